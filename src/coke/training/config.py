"""A run's configuration: one frozen record, checked where it is made, written whole into the run folder.

`Config` describes what a recipe may say; ``auto`` stands where a figure follows from the data (`auto.py`
resolves it). Keys fall in two groups: `FREE` ones may change when a run is resumed, all others decide what is
learned and must match.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import yaml

from coke.errors import ConfigError, did_you_mean
from coke.training.objective import Objective
from coke.training.views import View

Auto = Literal["auto"]


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on, apart from the images. Sizes in px, times in epochs unless said."""

    recipe: str = "auto"
    data: str = "textures"
    seed: int = 0
    # images
    mean: tuple[float, float, float] | Literal["measured"] = "measured"
    std: tuple[float, float, float] | Literal["measured"] = "measured"
    views: tuple[View, ...] = (View(),)
    # network
    backbone: str = "coke_resnet18_small"
    init: str | None = None  # a file of weights to start the backbone from
    dim: int = 128
    hidden: int | None = None  # width of projector and predictor; None is the backbone's
    # clustering, one head per entry of n_clusters
    n_clusters: tuple[int, ...] | Auto = "auto"
    min_size_ratio: float = 0.4
    dual_lr: tuple[float, ...] | float | Auto = "auto"  # eta, one or one per head
    dual_climb: float = 3.3  # what "auto" aims at: rise of an empty cluster's dual per epoch
    dual_largest_hit: float = 0.03  # ... and its cap on eta / B
    dual_decay_epochs: float | None = None  # eta / sqrt(1 + epochs / this); None keeps eta
    count_carry: float = 0.0  # share of a center's weight that survives the epoch's end
    clustering_epochs: int = 1  # passes at the start that only cluster, without training
    averaging_share: float = 0.0  # last share of the epochs that averages centers and labels (stage 2)
    label_slots: int = 5
    objective: Objective = field(default_factory=Objective)
    # optimisation
    epochs: int | Auto = "auto"  # including the clustering epochs
    batch_size: int | Auto = "auto"  # images per step over all processes
    accumulate: int = 1  # forward and backward passes that share one step
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    learning_rate: float | Auto = "auto"  # at its peak, as it is used (not per 256 images)
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4  # matrices only
    trust_coefficient: float = 0.001  # LARS
    warmup_epochs: float = 10  # after the clustering epochs
    clip_norm: float | None = None  # largest norm of the gradient
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    # free: may change on resume
    max_minutes: float | None = None  # of training; epochs are cut so that the schedule still completes
    accelerator: str = "auto"
    devices: int | str = "auto"
    workers: int | Auto = "auto"
    checkpoint_epochs: int = 10
    checkpoint_minutes: float = 10
    keep_checkpoints: int = 2
    log_every: int = 20  # steps
    knn_every: int = 5  # epochs, where there are labels
    knn_images: int = 10_000  # of the labelled images at most, drawn by the seed, for k-NN during training
    tensorboard: bool = True
    linear_probe: bool = True  # at the end
    max_unreadable_share: float = 0.01

    def __post_init__(self) -> None:
        if not any(view.clusters for view in self.views):
            raise ConfigError("at least one view must have clusters: true, or there is nothing to cluster")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is None or isinstance(value, str):
                continue
            for number in value if isinstance(value, tuple) else (value,):
                if not low <= number <= high:
                    raise ConfigError(f"{name} must lie in {low:g} ... {high:g}, got {number:g}")
        if self.n_clusters == ():
            raise ConfigError("n_clusters must name at least one head")
        if isinstance(self.epochs, int) and self.epochs <= self.clustering_epochs:
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
        return typing.cast(dict[str, Any], _plain(dataclasses.asdict(self)))

    def replaced(self, **changes: Any) -> Config:
        """The same with some keys changed (and checked again)."""
        return dataclasses.replace(self, **changes)


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("dim", 1, 1 << 20),
    ("hidden", 1, 1 << 20),
    ("n_clusters", 1, 2**31 - 1),
    ("min_size_ratio", 0, 1),
    ("dual_lr", 0, float("inf")),
    ("dual_climb", 0, float("inf")),
    ("dual_largest_hit", 0, 2),
    ("dual_decay_epochs", 1e-9, float("inf")),
    ("count_carry", 0, 1),
    ("clustering_epochs", 1, 1000),
    ("averaging_share", 0, 1),
    ("label_slots", 1, 127),
    ("epochs", 1, 1_000_000),
    ("batch_size", 1, 1 << 24),
    ("accumulate", 1, 1 << 16),
    ("learning_rate", 0, float("inf")),
    ("momentum", 0, 1),
    ("weight_decay", 0, float("inf")),
    ("warmup_epochs", 0, float("inf")),
    ("clip_norm", 1e-12, float("inf")),
    ("max_minutes", 0, float("inf")),
    ("checkpoint_epochs", 1, float("inf")),
    ("checkpoint_minutes", 0, float("inf")),
    ("keep_checkpoints", 1, float("inf")),
    ("log_every", 1, float("inf")),
    ("knn_every", 1, float("inf")),
    ("knn_images", 1, float("inf")),
    ("workers", 0, 1024),
    ("max_unreadable_share", 0, 1),
)

FREE = frozenset(
    "data epochs max_minutes accelerator devices workers checkpoint_epochs checkpoint_minutes keep_checkpoints "
    "log_every knn_every knn_images tensorboard linear_probe max_unreadable_share".split()
)


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """``key=value`` words of the command line, values in YAML, as a mapping of dotted keys.

    >>> parse_overrides(["epochs=20", "n_clusters=[10, 20]", "objective.temperature=0.2", "init=null"])
    {'epochs': 20, 'n_clusters': [10, 20], 'objective.temperature': 0.2, 'init': None}
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise ConfigError(f"expected key=value, got {assignment!r}")
        try:
            overrides[key.strip()] = _number(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(f"{key}: {text!r} is not a value in YAML ({error})") from error
    return overrides


def override(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with dotted keys changed: ``objective.temperature``, ``views.0.crop``; ``views.crop`` means all."""
    result: dict[str, Any] = _plain(dict(settings))
    for dotted, value in overrides.items():
        _assign(result, dotted.split("."), _plain(value), dotted)
    return result


def build(settings: Mapping[str, Any]) -> Config:
    """A `Config` from plain settings. Raises `ConfigError` for unknown keys and values of the wrong type."""
    return typing.cast(Config, _convert(Config, dict(settings), ""))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values.

    >>> differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
    {'b.c': (2, 3)}
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found.update(differences(before, after, f"{prefix}{key}."))
        elif before != after:
            found[f"{prefix}{key}"] = (before, after)
    return found


def _assign(node: Any, path: list[str], value: Any, dotted: str) -> None:
    head, rest = path[0], path[1:]
    if isinstance(node, list):
        if head.isdigit():
            if int(head) >= len(node):
                raise ConfigError(f"{dotted}: there are {len(node)} entries, counted from 0")
            targets: list[Any] = [int(head)]
        else:  # every entry
            for entry in node:
                _assign(entry, path, value, dotted)
            return
    else:
        targets = [head]
    for target in targets:
        if not rest:
            node[target] = value
            continue
        if not isinstance(node, list) and not isinstance(node.setdefault(target, {}), (dict, list)):
            raise ConfigError(f"{dotted}: {target!r} holds a value, not further keys")
        _assign(node[target], rest, value, dotted)


def _convert(wanted: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated type ``wanted``, or a `ConfigError` that says what was expected."""
    if dataclasses.is_dataclass(wanted):
        return _convert_record(typing.cast(type, wanted), value, where)
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        for option in sorted(arguments, key=lambda option: option is not type(value)):
            try:
                return _convert(option, value, where)
            except ConfigError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and arguments[-1] is Ellipsis:
            value = [value]  # n_clusters=30 is one head
        if isinstance(value, (list, tuple)) and (arguments[-1] is Ellipsis or len(value) == len(arguments)):
            types_ = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
            return tuple(_convert(t, v, f"{where}.{i}") for i, (t, v) in enumerate(zip(types_, value, strict=True)))
    elif wanted is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif wanted is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif isinstance(wanted, type) and isinstance(value, wanted) and (wanted is bool) == isinstance(value, bool):
        return value
    raise ConfigError(f"{where} must be {_describe(wanted)}, got {value!r}")


def _convert_record(wanted: type, value: Any, where: str) -> Any:
    if isinstance(value, wanted):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of keys, got {value!r}")
    hints = typing.get_type_hints(wanted)
    names = [f.name for f in fields(wanted)]
    for key in value:
        if key not in names:
            prefix = f"{where}." if where else ""
            raise ConfigError(f"unknown key {prefix}{key!s}{did_you_mean(str(key), names)}; known: {', '.join(names)}")
    prefix = f"{where}." if where else ""
    return wanted(**{key: _convert(hints[key], item, f"{prefix}{key}") for key, item in value.items()})


def _describe(wanted: Any) -> str:
    arguments = typing.get_args(wanted)
    origin = typing.get_origin(wanted)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments)
    if origin is Literal:
        return " or ".join(repr(option) for option in arguments)
    if origin is tuple:
        inner = _describe(arguments[0])
        return f"a list of {inner}" if arguments[-1] is Ellipsis else f"[{', '.join(map(_describe, arguments))}]"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}.get(
        wanted, getattr(wanted, "__name__", str(wanted))
    )


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; a person means the number."""
    if isinstance(value, str):
        try:
            return float(value) if any(c.isdigit() for c in value) else value
        except ValueError:
            return value
    return [_number(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
