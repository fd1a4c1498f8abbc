"""What follows from the data: the recipe ``auto``, and every figure that a recipe leaves to ``auto``.

Each decision comes with its reason in words, which ``--dry-run`` shows and the run folder keeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coke.errors import ConfigError, DataError
from coke.images import ImageSet
from coke.method.dual_step import auto_dual_lr, check_n_clusters, min_size
from coke.training.config import AUTO, RANGES, Config, check_range
from coke.training.recipes import Recipe
from coke.training.settings import build, check, convert, override, plain

IMAGES_PER_CLUSTER = 285  # learned on CIFAR-10 (method section 7): 50,000 images in 150 to 200 clusters
SMALL_IMAGE = 64  # px: up to here the small stem, beyond it timm's own
SMALLEST_STD = 1e-3  # what images without contrast are divided by


@dataclass(frozen=True)
class Resolved:
    """A configuration, and why each figure that the data decided is what it is."""

    config: Config
    reasons: list[str]


def resolve(settings: Mapping[str, Any], overrides: Mapping[str, Any], images: ImageSet) -> Resolved:
    """Settle what the data decides, then check that it can hold.

    Args:
        settings: of the recipe, with ``recipe`` and ``data`` named.
        overrides: dotted keys of the user, which win over everything.
        images: what pretraining will see.

    Raises:
        ConfigError, BoundsError: a setting that cannot work with these images.
    """
    reasons: list[str] = []
    auto = settings.get("recipe") == "auto"
    fresh = auto and "objective" not in settings  # a resumed run has one
    if auto:
        derived, derivations = _derive(images)
        settings = {**derived, **settings}
    chosen = override(settings, overrides)
    check_settings(chosen)
    if auto:  # a reason stands where what it is for was not given otherwise
        reasons = [reason for figures, reason in derivations if override(chosen, figures) == chosen]
    if fresh:
        _companions(chosen, chosen["backbone"] == settings["backbone"], reasons)
    for key in AUTO:
        chosen.setdefault(key, "auto")
    for settle in (_batch_size, _n_clusters, _learning_rate, _dual_lr, _epochs, _statistics):
        settle(chosen, images, reasons)
    return Resolved(build(Config, chosen), reasons)


def template(recipe: Recipe) -> dict[str, Any]:
    """A recipe with every key of `Config`, in its order: "auto" stands where the images decide."""
    given = override(recipe.settings, {"recipe": recipe.name})
    whole: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        if field.name in given:
            whole[field.name] = given[field.name]
        elif field.default is not dataclasses.MISSING:
            whole[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            whole[field.name] = field.default_factory()
        else:
            whole[field.name] = "auto"
    whole["data"] = "textures" if recipe.name == "textures" else "DATA"
    shown = dict(plain({key: _completed(key, value) for key, value in whole.items()}))
    if recipe.name == "auto":
        shown["objective"] |= {"decorrelation": "auto", "turning": "auto"}
    return shown


def _completed(key: str, value: Any) -> Any:
    """Nested records with their defaults."""
    return convert(Config, key, value) if key in ("views", "objective") and value != "auto" else value


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for keys and values that no images could make right: done before any is read."""
    check(Config, settings, later=AUTO)
    for name in RANGES:
        if settings.get(name, "auto") != "auto":
            check_range(name, settings[name])
    if settings.get("n_clusters") == []:
        raise ConfigError("n_clusters must name at least one head")


def _derive(images: ImageSet) -> tuple[dict[str, Any], list[tuple[dict[str, Any], str]]]:
    """The recipe ``auto``: view size, backbone and augmentation from the images; figures and why they are so."""
    n_images = len(images)
    side = int(images.sizes.min(dim=1).values.median())
    size = max(8, side) if side <= SMALL_IMAGE else min(224, side // 32 * 32)
    if size <= SMALL_IMAGE:
        backbone, why = "coke_resnet18_small", f"images of at most {SMALL_IMAGE} px need a 3 x 3 stem"
    elif n_images < 200_000:
        backbone, why = "resnet18", f"{n_images:,} images are too few for a larger network"
    else:
        backbone, why = "resnet50", f"{n_images:,} images"
    augmentation = {"crop": [0.3, 1.0], "jitter": [0.4, 0.4, 0.2, 0.1], "gray": 0.2, "blur": 0.0}
    reasons: list[tuple[dict[str, Any], str]] = [
        ({"views.size": size}, f"view size {size} px: the median of the images' shorter sides is {side} px"),
        ({"backbone": backbone}, f"backbone {backbone}: {why}"),
        (
            {f"views.{key}": value for key, value in augmentation.items()},
            "crop 0.3 to 1, mild jitter, no blur: strong augmentation drowns the first labels in noise",
        ),
        ({"averaging_share": 0.2}, "the last fifth of the epochs averages centers and labels"),
    ]
    view = {"size": size, **augmentation}
    return {"views": [view], "backbone": backbone, "averaging_share": 0.2}, reasons


def _companions(chosen: dict[str, Any], usual_backbone: bool, reasons: list[str]) -> None:
    """Terms beyond the paper that small images gained from (docs/log.md), where nothing else is given."""
    view = next((view for view in convert(Config, "views", chosen["views"]) if view.clusters), None)
    if view is None or view.size > SMALL_IMAGE:
        return
    objective = chosen.setdefault("objective", {})
    if "decorrelation" not in objective:
        objective["decorrelation"] = 0.01
        reasons.append(
            "objective.decorrelation 0.01: without it small images' features fall into few dimensions"
        )
    if "turning" not in objective and usual_backbone and view.rotation < 45:
        objective["turning"] = 1.0
        reasons.append(
            "objective.turning 1, telling quarter turns of half-size copies beside the clusters: better on CIFAR-10, "
            "no worse on textures, which have no upright; a third more time"
        )


def _batch_size(chosen: dict[str, Any], images: ImageSet, reasons: list[str]) -> None:
    n_images = len(images)
    if n_images < 2:
        count = "one image is" if n_images else "no images are"
        raise DataError(f"{images.name}: {count} not enough, clustering needs at least two")
    if chosen["batch_size"] == "auto":
        batch_size = 1024 if n_images >= 1_000_000 else 256 if n_images >= 200_000 else 128
        while batch_size > 16 and n_images < 20 * batch_size:
            batch_size //= 2
        chosen["batch_size"] = min(batch_size, n_images)
        reasons.append(f"batch {chosen['batch_size']}: {-(-n_images // batch_size)} steps an epoch")
    batch_size = convert(Config, "batch_size", chosen["batch_size"])
    if not 2 <= batch_size <= n_images:
        raise ConfigError(
            f"batch_size={batch_size} does not fit {n_images:,} images: choose 2 ... {n_images}"
        )


def _n_clusters(chosen: dict[str, Any], images: ImageSet, reasons: list[str]) -> None:
    n_images = len(images)
    if chosen["n_clusters"] == "auto":
        smallest = min(3000, max(2, round(n_images / IMAGES_PER_CLUSTER)))
        heads = sorted({smallest, round(smallest * 4 / 3), round(smallest * 5 / 3)})
        chosen["n_clusters"] = [k for k in heads if 2 * k <= n_images] or [1]
        reasons.append(
            f"K = {_listed(chosen['n_clusters'])}: about {IMAGES_PER_CLUSTER} images a cluster of {n_images:,} "
            "(at most 3,000; heads in the published proportions 3 : 4 : 5)"
        )
    ratio = convert(Config, "min_size_ratio", chosen.get("min_size_ratio", Config.min_size_ratio))
    for n_clusters in convert(Config, "n_clusters", chosen["n_clusters"]):
        check_n_clusters(n_images, n_clusters, ratio)


def _learning_rate(chosen: dict[str, Any], images: ImageSet, reasons: list[str]) -> None:
    if chosen["learning_rate"] == "auto":
        optimizer = convert(Config, "optimizer", chosen.get("optimizer", Config.optimizer))
        rate, per = {"sgd": (0.06, 128), "lars": (1.6, 1024), "adamw": (0.001, 256)}[optimizer]
        chosen["learning_rate"] = rate * chosen["batch_size"] / per
        reasons.append(f"learning rate {chosen['learning_rate']:g}: {rate:g} per {per} images of a batch")


def _dual_lr(chosen: dict[str, Any], images: ImageSet, reasons: list[str]) -> None:
    heads = convert(Config, "n_clusters", chosen["n_clusters"])
    if chosen["dual_lr"] != "auto":
        if isinstance(chosen["dual_lr"], (int, float)):
            chosen["dual_lr"] = [chosen["dual_lr"]] * len(heads)
        return
    n_images, batch_size = len(images), convert(Config, "batch_size", chosen["batch_size"])
    ratio = convert(Config, "min_size_ratio", chosen.get("min_size_ratio", Config.min_size_ratio))
    climb = convert(Config, "dual_climb", chosen.get("dual_climb", Config.dual_climb))
    hit = convert(Config, "dual_largest_hit", chosen.get("dual_largest_hit", Config.dual_largest_hit))
    steps = [
        float(f"{auto_dual_lr(n_images, batch_size, k, ratio, climb=climb, largest_hit=hit):.4g}")
        for k in heads
    ]
    chosen["dual_lr"] = steps
    climbs = [step / batch_size * min_size(n_images, k, ratio) for step, k in zip(steps, heads, strict=True)]
    reasons.append(
        f"dual step {_listed(steps)}: an empty cluster's dual rises by {_listed(round(c, 2) for c in climbs)} an "
        f"epoch (aim {climb:g}), one image lowers it by at most {max(steps) / batch_size:.4f}"
    )


def _epochs(chosen: dict[str, Any], images: ImageSet, reasons: list[str]) -> None:
    if chosen["epochs"] == "auto":
        chosen["epochs"] = 200 if len(images) < 1_000_000 else 400
        reasons.append(f"{chosen['epochs']} epochs: 200 below a million images, 400 from there on")


def _statistics(chosen: dict[str, Any], images: ImageSet, reasons: list[str]) -> None:
    for key, measured in (("mean", images.mean), ("std", images.std)):
        if chosen[key] == "auto":
            least = SMALLEST_STD if key == "std" else 0.0
            chosen[key] = [max(round(value, 4), least) for value in measured]
            reason = f"{key} {chosen[key]}: measured over all {len(images):,} images"
            if max(measured) < least:
                reason += f", which are all of one colour, with nothing to learn from; {least:g} stands for 0"
            elif min(measured) < least:
                reason += f"; {least:g} stands for 0 in channels without contrast"
            reasons.append(reason)


def _listed(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)
