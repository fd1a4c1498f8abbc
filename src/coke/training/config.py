"""A run's configuration: one frozen record, checked where it is made, written whole into the run folder.

Type, range and meaning of a key stand beside it, once: pydantic checks them, `schema` shows them to editors. A key
without a default follows from the images where a recipe leaves it to them (`auto.py`). `Free` keys may change when a
run is resumed, all others decide what is learned and must match.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.json_schema import GenerateJsonSchema

from coke.errors import ConfigError
from coke.images.decode import MAX_IMAGE_PIXELS
from coke.images.views import View
from coke.method.objective import AVERAGE_TEMPERATURE, LARGE_VIEW_SHARE, Objective
from coke.training.recipes import ALIASES
from coke.training.settings import mistake, override, part, places, plain

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
Count = Annotated[int, Field(ge=1)]
Clusters = Annotated[int, Field(ge=1, le=2**31 - 1)]
Width = Annotated[int, Field(ge=1, le=1 << 20)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Free = "may change when a run is resumed"

AUTO = (  # keys that may be "auto": the images decide
    *("mean", "std", "backbone", "n_clusters", "dual_lr", "epochs", "batch_size", "learning_rate"),
    *("views.size", "objective.decorrelation", "objective.rotation"),
)
RENAMED = {"objective.turning": "objective.rotation"}  # older runs and command lines -> today


class Config(BaseModel):
    """Everything that a run depends on, apart from the images. Sizes in px, times in epochs unless said."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    recipe: str
    data: Annotated[str, Free]
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    mean: tuple[float, float, float]  # of the images, per channel, of pixels in 0 ... 1
    std: tuple[Positive, Positive, Positive]  # likewise
    views: tuple[View, ...]

    backbone: str  # a model of timm's, coke's own among them
    init: str | None = None  # to start the backbone from: a run, a file of weights, or a name of timm's
    continues: str | None = None  # a finished run: its weights, clusters and labels are carried over
    dim: Width = 128
    hidden: Width | None = None  # width of projector and predictor; null is the backbone's

    n_clusters: Annotated[tuple[Clusters, ...], Field(min_length=1)]  # K of each head
    min_size_ratio: Share = 0.4  # smallest cluster that is wanted, in shares of N / K
    dual_lr: tuple[NotNegative, ...]  # step of the duals, eta, of each head
    dual_climb: NotNegative = 3.3  # what dual_lr: auto aims at, the rise of an empty cluster's dual per epoch
    dual_largest_hit: Annotated[float, Field(ge=0, le=2)] = 0.03  # its cap on eta / B
    count_carry: Share = 0.0  # share of a center's weight that survives the epoch's end
    clustering_epochs: Annotated[int, Field(ge=1, le=1000)] = 1  # at the start, without training
    averaging_share: Share = 0.0  # last share of the epochs, which averages centers and labels (stage 2)
    objective: Objective = Objective()

    epochs: Annotated[int, Field(ge=1, le=1_000_000), Free]  # including the clustering epochs
    batch_size: Annotated[int, Field(ge=1, le=1 << 24)]  # images per step over all processes
    accumulate: Annotated[int, Field(ge=1, le=1 << 16)] = 1  # forward and backward passes that share one step
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    learning_rate: NotNegative  # at its peak, as it is used (not per 256 images)
    momentum: Share = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 5e-4  # of matrices only
    warmup_epochs: NotNegative = 10.0  # after the clustering epochs
    clip_norm: Annotated[float | None, Field(ge=1e-12)] = None  # largest norm of the gradient
    precision: Precision = "32-true"

    max_minutes: Annotated[NotNegative | None, Free] = None  # of training, whose schedule is cut to fit
    accelerator: Annotated[str, Free] = "auto"
    devices: Annotated[int | str, Free] = "auto"
    compile: Annotated[bool, Free] = False  # the network; costs a minute or more at the start
    workers: Annotated[int | None, Field(ge=0, le=1024), Free] = None  # that decode; null: one a core
    checkpoint_epochs: Annotated[Count, Free] = 10
    checkpoint_minutes: Annotated[NotNegative, Free] = 10.0
    log_every: Annotated[Count, Free] = 20  # steps
    knn_every: Annotated[Count, Free] = 5  # epochs, where there are labels
    knn_images: Annotated[Count, Free] = 10_000  # of the labelled ones at most, drawn by the seed
    tensorboard: Annotated[bool, Free] = True
    linear_probe: Annotated[bool, Free] = True  # at the end
    max_unreadable_share: Annotated[Share, Free] = 0.01  # of a split's images; they are left out
    max_image_pixels: Annotated[Count, Free] = (
        MAX_IMAGE_PIXELS  # larger images are not decoded, and unreadable
    )
    shrink: bool = True  # photographs that are large beside the views are seen through smaller copies
    cache: Annotated[str, Free] = (
        "memory"  # where these are kept: memory (a quarter of it), none, or a folder
    )
    image_column: Annotated[str, Free] = "image"  # of parquet and CSV
    label_column: Annotated[str, Free] = "label"

    FIXED: ClassVar[Mapping[str, Any]] = {  # keys that older runs could set, and what holds in their place
        "dual_decay_epochs": None,
        "start": "random",
        "label_slots": 5,
        "trust_coefficient": 0.001,
        "keep_checkpoints": 2,
        "objective.large_view_share": LARGE_VIEW_SHARE,
        "objective.average_temperature": AVERAGE_TEMPERATURE,
    }

    EARLIER: ClassVar[Mapping[str, Any]] = {"shrink": False}  # what runs did before these keys were there

    def __init__(self, **settings: Any) -> None:
        """Plain settings, or records. Raises `ConfigError` for unknown keys and whatever cannot work."""
        try:  # as JSON, where a list may be a tuple, and a mapping a record, but text is no number
            self.__pydantic_validator__.validate_json(json.dumps(_normalised(settings)), self_instance=self)
        except ValidationError as error:
            raise ConfigError(mistake(error.errors(), type(self).model_json_schema(), self.FIXED)) from None

    @model_validator(mode="after")
    def _check_together(self) -> Config:
        if not any(view.clusters for view in self.views):
            raise ConfigError("at least one view must have clusters: true, or there is nothing to cluster")
        if len(self.dual_lr) != len(self.n_clusters):
            raise ConfigError(f"dual_lr has {len(self.dual_lr)} values for {len(self.n_clusters)} heads")
        if self.nesterov and self.momentum == 0 and self.optimizer != "adamw":
            raise ConfigError("nesterov looks ahead along the momentum, which is 0: set nesterov=false")
        if self.epochs <= self.clustering_epochs:
            raise ConfigError(
                f"epochs={self.epochs} leaves nothing to train on: {self.clustering_epochs} of them only cluster; "
                f"give epochs={self.clustering_epochs + 1} or more"
            )
        return self

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
        return dict(plain(dict(self)))

    def replaced(self, **changes: Any) -> Config:
        """The same with some keys changed (and checked again)."""
        return Config(**{**dict(self), **changes})


FREE = frozenset(
    [*(key for key, field in Config.model_fields.items() if Free in field.metadata), "keep_checkpoints"]
)


def chosen(settings: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings with the user's on top, in today's form; None for whatever is left to the images.

    >>> settings = chosen({"epochs": 3, "dual_lr": "auto"}, {"n_clusters": 7, "objective.turning": 1e0})
    >>> [settings[key] for key in ("epochs", "n_clusters", "objective", "dual_lr", "batch_size")]
    [3, [7], {'rotation': 1}, None, None]
    """
    by_name = {RENAMED.get(key, key): value for key, value in (overrides or {}).items()}
    left = dict.fromkeys(key for key in AUTO if "." not in key)
    result = _normalised(override({**left, **settings}, by_name))
    for dotted in AUTO:
        for node, key in places(result, dotted):
            node[key] = None if node[key] == "auto" else node[key]
    return result


def without_fixed(stored: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """A run's stored configuration without the keys that nobody can set any more, with those that it did not know.

    Returns:
        The configuration as it is written today, and the fixed keys, dotted, that stood at another value in the run:
        that value, and the one that holds now.

    >>> without_fixed({"epochs": 3, "label_slots": 2, "objective": {"turning": 1.0, "average_temperature": 0.5}})
    ({'shrink': False, 'epochs': 3, 'objective': {'turning': 1.0}}, {'label_slots': (2, 5)})
    """
    settings, changed = {**Config.EARLIER, **plain(stored)}, {}
    for dotted, now in Config.FIXED.items():
        for node, key in places(settings, dotted):
            before = node.pop(key)
            if before != now:
                changed[dotted] = (before, now)
    return settings, changed


def schema(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of settings, for editors: these as defaults, "auto" and single numbers where they may stand.

    Fields are described by the comments beside them, as far as the source is at hand.
    """
    whole = Config.model_json_schema()
    for record in (Config, View, Objective):
        keys = whole["properties"] if record is Config else whole["$defs"][record.__name__]["properties"]
        with suppress(OSError):
            for key, comment in re.findall(r"^    (\w+): .*  # (.*)$", inspect.getsource(record), re.M):
                if key in keys:
                    keys[key]["description"] = comment
    for dotted in AUTO:
        node = part(whole, dotted.split("."))
        options = [
            {key: node.pop(key) for key in list(node) if key not in ("description", "title", "default")}
        ]
        options += [{"const": "auto"}, *([options[0]["items"]] if "items" in options[0] else [])]
        node["anyOf"] = options
    for key, value in settings.items():
        whole["properties"][key]["default"] = value
    del whole["required"]  # by now all have a default
    return {"$schema": GenerateJsonSchema.schema_dialect, **whole}


def _normalised(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings under today's names; 1e4 is a whole number, and a single number a list with one for each head."""
    text = json.dumps(plain(settings), default=str)
    result: dict[str, Any] = json.loads(text, parse_float=_number)
    for old, new in RENAMED.items():
        for node, key in places(result, old):
            node.setdefault(new.rpartition(".")[2], node.pop(key))
    if "recipe" in result:
        result["recipe"] = ALIASES.get(str(result["recipe"]), result["recipe"])
    heads, steps = result.get("n_clusters"), result.get("dual_lr")
    if isinstance(heads, (int, float)):
        heads = result["n_clusters"] = [heads]
    if isinstance(steps, (int, float)) and isinstance(heads, list):
        result["dual_lr"] = [steps] * len(heads)
    return result


def _number(text: str) -> float:
    number = float(text)  # beyond 64 bits pydantic 2.11 takes no whole number for a number
    return int(number) if number.is_integer() and abs(number) < 2**63 else number
