"""Every run that a claim of docs/evidence.md asks for, as data: what differs from the scale's base settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from coke.training.recipes import find_recipe
from contest.data import COMPRESSED

VIEW = {"size": 32, "crop": [0.3, 1.0], "jitter": [0.4, 0.4, 0.2, 0.1], "gray": 0.2}
STRONG = {"size": 32, "crop": [0.2, 1.0], "jitter": [0.4, 0.4, 0.4, 0.1], "gray": 0.2}  # usual for SimCLR
SMALL = {"size": 16, "crop": [0.08, 0.35], "jitter": VIEW["jitter"], "gray": 0.2}
VIEWS = {
    "one": [VIEW],
    "two": [VIEW, {**VIEW, "solarise": 0.2}],
    "two alike": [VIEW, VIEW],
    "two strong": [STRONG, STRONG],
    "multi-crop": [VIEW, {**VIEW, "solarise": 0.2}, {**SMALL, "clusters": False, "count": 4}],
}
_RECIPE = find_recipe("cifar10-auxiliary").settings
TEN_HEADS = {key: _RECIPE[key] for key in ("n_clusters", "min_size_ratio", "count_carry")}
SWAPPED = {"objective": {"temperature": 0.05, "label_weight": 0.2, "prediction_share": 1.0}}


@dataclass(frozen=True)
class Scale:
    """The settings that all contenders of a scale share, and coke's own."""

    name: str
    base: dict[str, Any]
    n_images: int | None  # of the balanced training set; None: the whole pool
    epochs: int  # of one view an image, after coke's clustering pass
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Entry:
    """One contender: a method on a training set, with what differs from the scale's settings."""

    name: str
    method: str = "coke"
    data: str = "balanced"
    views: str = "one"
    epochs: float = 1.0  # of the scale's
    settings: dict[str, Any] = field(default_factory=dict)  # keys of coke's configuration
    options: dict[str, Any] = field(default_factory=dict)  # of a peer's constructor


# The settings beyond the paper that held-out images chose at the small scale (docs/log.md).
AUXILIARY = Entry("coke, companions", settings={**TEN_HEADS, "objective": _RECIPE["objective"]})


def _base(backbone: str, heads: list[int], batch_size: int, warmup_epochs: int) -> dict[str, Any]:
    """A scale's settings; the learning rate is 0.06 for 128 images of a batch."""
    return {
        "backbone": backbone,
        "n_clusters": heads,
        "batch_size": batch_size,
        "learning_rate": round(0.06 * batch_size / 128, 4),
        "warmup_epochs": warmup_epochs,
        "averaging_share": 0.0,
        "precision": "bf16-mixed",
    }


SCALES = {
    scale.name: scale
    for scale in (
        Scale("small", _base("coke_conv5_w16", [40, 60], 128, 2), n_images=12_600, epochs=12),
        Scale("medium", _base("coke_conv5_w24", [150, 200], 128, 3), n_images=None, epochs=21),
        Scale(
            "resnet", _base("coke_resnet18_small", [20, 30], 128, 2), n_images=6_300, epochs=12, seeds=(0,)
        ),
        Scale("full", _base("coke_resnet18_small", [150, 200], 512, 10), n_images=None, epochs=200),
    )
}


def entries(claim: str, scale: Scale) -> list[Entry]:
    """The contenders of a claim, the baseline ("coke") among them wherever it belongs."""
    return CLAIMS[claim](scale)


def _sizes(scale: Scale) -> list[Entry]:
    """Claim 2: ratio r of the minimum size, against balance and no bound."""
    small = scale.name == "small"
    ratios = (0.0, 0.4, 1.0) if small else (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    found = []
    for data in (
        ("balanced", "imbalance-50") if small else ("balanced", *(f"imbalance-{i}" for i in (10, 50, 100)))
    ):
        suffix = "" if data == "balanced" else f", {data}"
        for ratio in ratios:
            usual = ratio == 0.4
            name, settings = ("coke", {}) if usual else (f"coke, r = {ratio:g}", {"min_size_ratio": ratio})
            found.append(Entry(name + suffix, data=data, settings=settings))
        found.append(Entry(f"sinkhorn{suffix}", "sinkhorn", data=data))
    return found


def _views(scale: Scale) -> list[Entry]:
    """Claim 1: one view against two-view contrastive learning at as many views seen."""
    return [Entry("coke"), AUXILIARY, *_tuned(scale)]


def _tuned(scale: Scale) -> list[Entry]:
    """The settings of coke, SimCLR and MoCo v2 that the small study found best on held-out images."""
    best = ("coke, learning rate x 2", "simclr, learning rate x 2", "moco, T 0.1")
    return [entry for entry in _study(scale) if entry.name in best]


def _study(scale: Scale) -> list[Entry]:
    """Which settings matter: one change at a time, for coke and for its rivals; held-out images decide."""
    heads, rate = scale.base["n_clusters"], scale.base["learning_rate"]

    def times(factor: float) -> list[int]:
        return [max(2, round(factor * k)) for k in heads]

    coke = {
        "K / 2": {"n_clusters": times(0.5)},
        "K x 2": {"n_clusters": times(2)},
        "dual step / 3": {"dual_climb": 1.1},
        "dual step x 3": {"dual_climb": 9.9, "dual_largest_hit": 0.09},
        "temperature / 2": {"objective.temperature": 0.05},
        "temperature x 2": {"objective.temperature": 0.2},
        "learning rate / 2": {"learning_rate": rate / 2},
        "learning rate x 2": {"learning_rate": rate * 2},
    }
    found = [Entry("coke"), *(Entry(f"coke, {name}", settings=change) for name, change in coke.items())]
    for method in ("simclr", "moco"):
        base = {"method": method, "views": "two alike", "epochs": 0.5}
        found += [
            Entry(f"{method}, mild views", **base),
            Entry(f"{method}", **{**base, "views": "two strong"}),
            Entry(f"{method}, learning rate x 2", **base, settings={"learning_rate": 2 * rate}),
        ]
    found += [
        Entry("simclr, T 0.5", "simclr", views="two alike", epochs=0.5, options={"temperature": 0.5}),
        Entry(
            "simclr, learning rate / 2",
            "simclr",
            views="two alike",
            epochs=0.5,
            settings={"learning_rate": rate / 2},
        ),
        Entry("moco, T 0.1", "moco", views="two alike", epochs=0.5, options={"temperature": 0.1}),
    ]
    return found


def _batch(scale: Scale) -> list[Entry]:
    """Claim 3: k-means every epoch over stored features."""
    return [Entry("coke"), Entry("batch k-means", "batch-kmeans")]


def _variance(scale: Scale) -> list[Entry]:
    """Claim 4: averaged centers and labels; one, two, many views at equal images."""
    return [
        Entry("coke"),
        Entry("coke, averaging", settings={"averaging_share": 0.2}),
        Entry("coke, two views", views="two", epochs=0.5, settings=SWAPPED),
        Entry("coke, multi-crop", views="multi-crop", epochs=1 / 3, settings=SWAPPED),
    ]


def _batch_size(scale: Scale) -> list[Entry]:
    """Claim 5: any batch size at fixed epochs; the learning rate goes with the square root beyond the base."""
    base, rate = scale.base["batch_size"], scale.base["learning_rate"]
    sizes = (2048,) if scale.name == "small" else (64, 128, 256, 1024, 2048)
    return [
        Entry("coke"),
        *(
            Entry(
                f"coke, batch {size}",
                settings={"batch_size": size, "learning_rate": round(rate * (size / base) ** 0.5, 4)},
            )
            for size in sizes
        ),
    ]


def _decoupling(scale: Scale) -> list[Entry]:
    """Claim 6: labels of the last epoch against labels of the same step."""
    return [Entry("coke"), Entry("same-step labels", "same-step")]


def _improvements(scale: Scale) -> list[Entry]:
    """Beyond the paper: what is worth a place in the recipes."""
    spread, rotation = {"objective.decorrelation": 0.1}, {"objective.rotation": 0.4}
    found = [
        Entry("coke"),
        Entry("coke, turning", settings=rotation),
        Entry("coke, decorrelated", settings=spread),
        Entry("coke, decorrelated, turning", settings={**spread, **rotation}),
        AUXILIARY,
    ]
    if scale.name == "full":
        found += [
            Entry("coke, counts carried", settings={"count_carry": 0.5}),
            Entry("coke, ten heads", settings=TEN_HEADS),
        ]
    return found


def _deep(scale: Scale) -> list[Entry]:
    """Claim 7: ten clusters against the ten classes; coarse heads with a high minimum."""
    return [Entry("coke, heads 10 to 100", views="two", epochs=0.5, settings={**SWAPPED, **TEN_HEADS})]


def _table(scale: Scale) -> list[Entry]:
    """Claim 8: coke and the field by one probe."""
    peers = [
        Entry("swav", "swav", views="two alike", epochs=0.5),
        Entry("byol", "byol", views="two strong", epochs=0.5),
        Entry("barlow", "barlow", views="two strong", epochs=0.5),
        Entry("supervised", "supervised"),
    ]
    ours = [entry for entry in _variance(scale) if entry.name != "coke, averaging"]
    return [*ours, AUXILIARY, *_tuned(scale), *peers]


def _auto(scale: Scale) -> list[Entry]:
    """What ``auto`` adds to the loss for small images, and what held-out images chose."""
    pair = {"objective.decorrelation": 0.01, "objective.rotation": 1.0}
    return [Entry("coke"), Entry("coke, auto's pair", settings=pair), AUXILIARY]


def _jpeg(scale: Scale) -> list[Entry]:
    """What a JPEG of quality 75 costs: the supervised run on the files, and on the same compressed again."""
    again = Entry(f"supervised, {COMPRESSED}", "supervised", data=COMPRESSED)
    return [Entry("supervised", "supervised"), again]


CLAIMS = {
    "study": _study,
    "sizes": _sizes,
    "views": _views,
    "batch": _batch,
    "variance": _variance,
    "batch-size": _batch_size,
    "decoupling": _decoupling,
    "improvements": _improvements,
    "deep": _deep,
    "table": _table,
    "auto": _auto,
    "jpeg": _jpeg,
}
ONE_SEED_WHEN_SMALL = (
    "study",
    "batch",
    "variance",
    "batch-size",
    "decoupling",
    "improvements",
    "deep",
    "table",
    "auto",
)
