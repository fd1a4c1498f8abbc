"""A run's configuration: one frozen record, checked where it is made, written whole into the run folder.

Where a recipe says ``auto``, the figure follows from the data: `auto.py` settles it before a `Config` is
built. Keys fall in two groups: `FREE` ones may change when a run is resumed, all others decide what is
learned and must match.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from coke.errors import ConfigError
from coke.method.objective import Objective
from coke.training.settings import plain
from coke.training.views import View

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run depends on, apart from the images. Sizes in px, times in epochs unless said."""

    recipe: str
    data: str
    seed: int = 0
    # images, per channel, of pixels in 0 ... 1
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    views: tuple[View, ...]
    # network
    backbone: str
    init: str | None = None  # a file of weights to start the backbone from
    dim: int = 128
    hidden: int | None = None  # width of projector and predictor; None is the backbone's
    # clustering, one head per entry of n_clusters
    n_clusters: tuple[int, ...]
    min_size_ratio: float = 0.4
    dual_lr: tuple[float, ...]  # eta
    dual_climb: float = 3.3  # what dual_lr: auto aims at, rise of an empty cluster's dual per epoch
    dual_largest_hit: float = 0.03  # ... and its cap on eta / B
    count_carry: float = 0.0  # share of a center's weight that survives the epoch's end
    clustering_epochs: int = 1  # passes at the start that only cluster, without training
    averaging_share: float = 0.0  # last share of the epochs that averages centers and labels (stage 2)
    objective: Objective = field(default_factory=Objective)
    # optimisation
    epochs: int  # including the clustering epochs
    batch_size: int  # images per step over all processes
    accumulate: int = 1  # forward and backward passes that share one step
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    learning_rate: float  # at its peak, as it is used (not per 256 images)
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4  # matrices only
    warmup_epochs: float = 10.0  # after the clustering epochs
    clip_norm: float | None = None  # largest norm of the gradient
    precision: Precision = "32-true"
    # free: may change on resume
    max_minutes: float | None = None  # of training; epochs are cut so that the schedule still completes
    accelerator: str = "auto"
    devices: int | str = "auto"
    compile: bool = False  # the network by torch.compile: costs a minute or more at the start
    workers: int | None = (
        None  # processes that decode; None: as many as there are cores, 0 for images in memory
    )
    checkpoint_epochs: int = 10
    checkpoint_minutes: float = 10.0
    log_every: int = 20  # steps
    knn_every: int = 5  # epochs, where there are labels
    knn_images: int = 10_000  # of the labelled images at most, drawn by the seed, for k-NN during training
    tensorboard: bool = True
    linear_probe: bool = True  # at the end
    max_unreadable_share: float = 0.01
    image_column: str = "image"  # of parquet and CSV
    label_column: str = "label"

    FIXED: ClassVar[Mapping[str, Any]] = {  # keys that older runs could set, and what holds in their place
        "dual_decay_epochs": None,
        "start": "random",
        "label_slots": 5,
        "trust_coefficient": 0.001,
        "keep_checkpoints": 2,
    }

    def __post_init__(self) -> None:
        if not any(view.clusters for view in self.views):
            raise ConfigError("at least one view must have clusters: true, or there is nothing to cluster")
        for name in RANGES:
            check_range(name, getattr(self, name))
        if self.n_clusters == ():
            raise ConfigError("n_clusters must name at least one head")
        if len(self.dual_lr) != len(self.n_clusters):
            raise ConfigError(f"dual_lr has {len(self.dual_lr)} values for {len(self.n_clusters)} heads")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be positive, got {self.std}")
        if self.nesterov and self.momentum == 0 and self.optimizer != "adamw":
            raise ConfigError("nesterov looks ahead along the momentum, which is 0: set nesterov=false")
        if self.epochs <= self.clustering_epochs:
            raise ConfigError(
                f"epochs={self.epochs} leaves nothing to train on: {self.clustering_epochs} of them only cluster"
            )

    @property
    def large_views(self) -> list[View]:
        """Views that are clustered, as often as a step makes them."""
        return [view for view in self.views if view.clusters for _ in range(view.count)]

    @property
    def small_views(self) -> list[View]:
        """Views that only predict, as often as a step makes them."""
        return [view for view in self.views if not view.clusters for _ in range(view.count)]

    @property
    def image_size(self) -> int:
        """Side of the first clustered view, px: the size that probes and reports look at."""
        return self.large_views[0].size

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for YAML."""
        return dict(plain(self))

    def replaced(self, **changes: Any) -> Config:
        """The same with some keys changed (and checked again)."""
        return dataclasses.replace(self, **changes)


def without_fixed(
    stored: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """A run's stored configuration without the keys that nobody can set any more.

    Returns:
        The configuration as it is written today, and the fixed keys, dotted, that stood at another value in the run:
        that value, and the one that holds now.

    >>> without_fixed({"epochs": 3, "label_slots": 2, "objective": {"turning": 1.0, "average_temperature": 0.5}})
    ({'epochs': 3, 'objective': {'turning': 1.0}}, {'label_slots': (2, 5)})
    """
    settings, changed = plain(stored), {}
    for prefix, record, keys in (
        ("", Config, settings),
        ("objective.", Objective, settings.get("objective")),
    ):
        for key, now in record.FIXED.items() if isinstance(keys, dict) else ():
            before = keys.pop(key, now)
            if before != now:
                changed[f"{prefix}{key}"] = (before, now)
    return settings, changed


def check_range(name: str, value: Any) -> None:
    """Raise `ConfigError` for a number, or one of several, outside its key's range; null is allowed.

    >>> check_range("momentum", 0.9)
    >>> check_range("momentum", 2)
    Traceback (most recent call last):
    coke.errors.ConfigError: momentum must lie in 0 ... 1, got 2
    """
    low, high = RANGES[name]
    for number in value if isinstance(value, (tuple, list)) else (value,):
        if number is not None and not low <= number <= high:
            raise ConfigError(f"{name} must lie in {low:g} ... {high:g}, got {number:g}")


RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "dim": (1, 1 << 20),
    "hidden": (1, 1 << 20),
    "n_clusters": (1, 2**31 - 1),
    "min_size_ratio": (0, 1),
    "dual_lr": (0, float("inf")),
    "dual_climb": (0, float("inf")),
    "dual_largest_hit": (0, 2),
    "count_carry": (0, 1),
    "clustering_epochs": (1, 1000),
    "averaging_share": (0, 1),
    "epochs": (1, 1_000_000),
    "batch_size": (1, 1 << 24),
    "accumulate": (1, 1 << 16),
    "learning_rate": (0, float("inf")),
    "momentum": (0, 1),
    "weight_decay": (0, float("inf")),
    "warmup_epochs": (0, float("inf")),
    "clip_norm": (1e-12, float("inf")),
    "max_minutes": (0, float("inf")),
    "checkpoint_epochs": (1, float("inf")),
    "checkpoint_minutes": (0, float("inf")),
    "log_every": (1, float("inf")),
    "knn_every": (1, float("inf")),
    "knn_images": (1, float("inf")),
    "workers": (0, 1024),
    "max_unreadable_share": (0, 1),
}

FREE = frozenset(
    (
        *("data", "epochs", "max_minutes", "accelerator", "devices", "compile", "workers"),
        *("checkpoint_epochs", "checkpoint_minutes", "keep_checkpoints"),  # the last is fixed now
        *("log_every", "knn_every", "knn_images", "tensorboard", "linear_probe", "max_unreadable_share"),
        *("image_column", "label_column"),
    )
)

AUTO = ("mean", "std", "n_clusters", "dual_lr", "epochs", "batch_size", "learning_rate")
