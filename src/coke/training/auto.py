"""What follows from the images: every figure that a recipe or the user leaves to them.

Each decision comes with its reason in words, which ``--dry-run`` shows and the run folder keeps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from coke.errors import ConfigError, DataError
from coke.images import ImageSet
from coke.method.dual_step import auto_dual_lr, check_n_clusters, min_size
from coke.training.backbone import find_init
from coke.training.candidates import (
    ENOUGH,
    MANY_IMAGES,
    SMALL_IMAGE,
    Candidate,
    candidates,
    fitting,
    seconds_per_image,
)
from coke.training.config import AUTO, Config, chosen
from coke.training.recipes import RECIPES, Recipe
from coke.training.settings import places

IMAGES_PER_CLUSTER = 285  # learned on CIFAR-10 (method section 7): 50,000 images in 150 to 200 clusters
FEW_IMAGES = (
    5_000  # below it a network hardly learns from scratch (docs/log.md, "How many clusters for few images")
)
FEWEST_IMAGES = 4  # two clusters of two
CPU_MINUTES = 60  # of training, where nobody says how many epochs
SMALLEST_STD = 1e-3  # what images without contrast are divided by
STAND_INS: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.2] * 3, "backbone": "", "dual_lr": 1.0}
STAND_INS |= {"epochs": 1_000_000, "batch_size": 2, "learning_rate": 0.1}  # beside n_clusters


@dataclass(frozen=True)
class Resolved:
    """A configuration, and why each figure that the images decided is what it is."""

    config: Config
    reasons: list[str]


def resolve(settings: Mapping[str, Any], images: ImageSet) -> Resolved:
    """Settle what is left to the images, then check that all of it can hold.

    Args:
        settings: with ``recipe`` and ``data`` named; None or "auto" where the images decide (`config.chosen`).
        images: what pretraining will see.

    Raises:
        ConfigError, BoundsError, DataError: a setting that cannot work with these images.
    """
    given, settled, n_images = check_settings(settings), chosen(settings), len(images)
    reasons: list[str] = []

    def settle(dotted: str, value: Any, reason: str = "") -> None:
        left = [(node, key) for node, key in places(settled, dotted) if node[key] is None]
        for node, key in left:
            node[key] = value
        reasons.extend([reason] if left and reason else [])

    if n_images < FEWEST_IMAGES:
        count = "one image is" if n_images == 1 else f"{n_images or 'no'} images are"
        raise DataError(
            f"{images.name}: {count} not enough: training tells clusters of at least two images apart, so give four"
        )

    cpu = given.accelerator == "cpu" or (given.accelerator == "auto" and not torch.cuda.is_available())
    epochs = 200 if n_images < 1_000_000 else 400
    if settled["epochs"] is None and cpu and given.max_minutes is None:
        settled["max_minutes"] = CPU_MINUTES
        reasons.append(
            f"max_minutes {CPU_MINUTES}: as many epochs as a CPU has time for; epochs=NUMBER takes as long as it takes"
        )
    settle("epochs", epochs, f"{epochs} epochs: 200 below a million images, 400 from there on")

    side = int(images.sizes.min(dim=1).values.median())
    taken, largest, why = _network(settled, n_images, side, "cpu" if cpu else given.accelerator)
    limit = ", and larger ones want more images or time, see backbone" if taken.size < largest else ""
    settle(
        "views.size",
        taken.size,
        f"view size {taken.size} px: the median of the images' shorter sides is {side} px{limit}",
    )
    view = check_settings(settled).large_views[0]
    small, backbone = view.size <= SMALL_IMAGE, taken.backbone
    if given.init and settled["backbone"] is None:
        started = find_init(given.init).architecture
        if started is None:
            raise ConfigError(
                f"init={given.init} does not say of which backbone it is: name it with backbone=NAME"
            )
        backbone, why = started, f"what init={given.init} is of"
    settle("backbone", backbone, f"backbone {backbone}: {why}")

    if given.recipe == "auto":  # what it says without looking at images is explained as well
        recipe = RECIPES["auto"].settings
        (usual,) = recipe["views"]
        if all(view.get(key) == usual[key] for view in settled["views"] for key in usual if key != "size"):
            reasons.append(
                "crop 0.3 to 1, mild jitter, no blur: strong augmentation drowns the first labels in noise"
            )
        if given.averaging_share == recipe["averaging_share"]:
            reasons.append("the last fifth of the epochs averages centers and labels")
        settled["objective"] = {**recipe["objective"], **settled.get("objective", {})}

    takes_halves = settled["backbone"] == backbone or settled["backbone"].startswith("coke_")
    upright = small and takes_halves and view.rotation < 45
    if small:  # which gained from losses beyond the paper (docs/log.md)
        why = "without it small images' features fall into few dimensions"
        settle("objective.decorrelation", 0.01, f"objective.decorrelation 0.01: {why}")
    if upright:
        why = "better on CIFAR-10, no worse on textures, which have no upright; a third more time"
        told = "telling quarter turns of half-size copies beside the clusters"
        settle("objective.rotation", 1.0, f"objective.rotation 1, {told}: {why}")
    settle("objective.decorrelation", 0.0)
    settle("objective.rotation", 0.0)

    batch_size = 1024 if n_images >= 1_000_000 else 256 if n_images >= 200_000 else 128
    while batch_size > 16 and n_images < 20 * batch_size:
        batch_size //= 2
    steps = -(-n_images // batch_size)
    batch_size = min(batch_size, n_images)
    settle("batch_size", batch_size, f"batch {batch_size}: {steps} steps an epoch")
    batch_size = settled["batch_size"]
    if not 2 <= batch_size <= n_images:
        raise ConfigError(
            f"batch_size={batch_size} does not fit {n_images:,} images: choose 2 ... {n_images}"
        )

    by_root = math.sqrt(n_images) / 2  # to look at: tens of images in each of tens of clusters
    smallest = min(3000, max(2, round(max(n_images / IMAGES_PER_CLUSTER, by_root))))
    proportions = sorted({smallest, round(smallest * 4 / 3), round(smallest * 5 / 3)})
    heads = [k for k in proportions if 2 * k <= n_images]
    settle(
        "n_clusters",
        heads,
        f"K = {_listed(heads)}: about {n_images / heads[0]:.0f} images a cluster of {n_images:,}, "
        + (
            "half the square root of their number"
            if by_root > n_images / IMAGES_PER_CLUSTER
            else f"one for {IMAGES_PER_CLUSTER}, at most 3,000"
        )
        + " (heads in the published proportions 3 : 4 : 5)",
    )
    heads, ratio = settled["n_clusters"], given.min_size_ratio
    for n_clusters in heads:
        check_n_clusters(n_images, n_clusters, ratio)
    if max(heads) == 1 and not settled["objective"]["rotation"]:
        raise ConfigError(
            "n_clusters=1 makes one cluster of all images, which it takes no network to predict: give at least 2"
        )

    rate, per = {"sgd": (0.06, 128), "lars": (1.6, 1024), "adamw": (0.001, 256)}[given.optimizer]
    peak = rate * batch_size / per
    settle("learning_rate", peak, f"learning rate {peak:g}: {rate:g} per {per} images of a batch")

    climb, hit = given.dual_climb, given.dual_largest_hit
    duals = [auto_dual_lr(n_images, batch_size, k, ratio, climb=climb, largest_hit=hit) for k in heads]
    duals = [float(f"{dual_lr:.4g}") for dual_lr in duals]
    climbs = [
        dual_lr / batch_size * min_size(n_images, k, ratio) for dual_lr, k in zip(duals, heads, strict=True)
    ]
    settle(
        "dual_lr",
        duals,
        f"dual step {_listed(duals)}: an empty cluster's dual rises by {_listed(round(c, 2) for c in climbs)} an "
        f"epoch (aim {climb:g}), one image lowers it by at most {max(duals) / batch_size:.4f}",
    )

    for key, measured, least in (("mean", images.mean, 0.0), ("std", images.std, SMALLEST_STD)):
        statistics = [max(round(value, 4), least) for value in measured]
        reason = f"{key} {statistics}: measured over all {n_images:,} images"
        if max(measured) < least:
            reason += f", which are all of one colour, with nothing to learn from; {least:g} stands for 0"
        elif min(measured) < least:
            reason += f"; {least:g} stands for 0 in channels without contrast"
        settle(key, statistics, reason)
    if n_images < FEW_IMAGES and not given.init and not given.continues:
        reasons.append(
            f"{n_images:,} images are few: below {FEW_IMAGES:,} a network hardly learns from scratch; what can work: "
            "init=NAME, a start from weights of timm's on this machine; more images; "
            "`coke embed NAME DATA`, by such weights alone, then `coke cluster`"
        )
    return Resolved(Config(**settled), reasons)


def _network(
    settled: Mapping[str, Any], n_images: int, side: int, accelerator: str
) -> tuple[Candidate, int, str]:
    """The network and views that are taken if nothing is said, the largest views that could be, and why.

    Nothing is measured where several processes would have to agree on it.
    """
    given, cpu = check_settings(settled), accelerator == "cpu"
    asked = any(node[key] is not None for node, key in places(settled, "views.size"))
    options = candidates(n_images, side, given.large_views[0].size if asked else None)
    largest = options[0].size
    minutes = CPU_MINUTES if cpu and given.max_minutes is None else given.max_minutes
    device = "cpu" if cpu else "cuda"
    measures = settled["backbone"] is None and not given.init and minutes is not None
    measures &= accelerator in ("auto", "cpu", "cuda", "gpu") and (cpu or torch.cuda.is_available())
    measures &= given.devices in ("auto", 1, "1") and os.environ.get("WORLD_SIZE", "1") == "1"
    wants = ""
    if cpu and (not measures or n_images < FEW_IMAGES):
        options = [option for option in options if option.least < ENOUGH]
        wants = f"the device is a CPU, where a larger network wants {FEW_IMAGES:,} images and hours"
    if measures and len(options) > 1:
        n_views = len(given.large_views)
        taken, why = fitting(
            options,
            lambda option: n_views * n_images * seconds_per_image(option.backbone, option.size, device),
            minutes=minutes or 0,
            epochs=given.epochs,
        )
        return taken, largest, f"{wants}; {why}" if wants else why
    stem = f"views of at most {SMALL_IMAGE} px need a 3 x 3 stem"
    few = "" if n_images >= MANY_IMAGES else " are too few for a larger network"
    return options[0], largest, wants or (stem if largest <= SMALL_IMAGE else f"{n_images:,} images{few}")


def check_settings(settings: Mapping[str, Any]) -> Config:
    """Settings as far as they can be known before images are read; something stands for what is left to these.

    Raises `ConfigError` for keys and values that no images could make right.
    """
    given = chosen(settings)
    for dotted in AUTO:
        for node, key in [*places(given, dotted)]:
            if node[key] is None:
                del node[key]
    steps = given.get("dual_lr")
    heads = [1] * len(steps) if isinstance(steps, list) else 1
    return Config(**{**STAND_INS, "n_clusters": heads, **given})


def template(recipe: Recipe) -> dict[str, Any]:
    """A recipe with every key of `Config`, in its order: "auto" stands where the images decide."""
    data = "textures" if recipe.name == "textures" else "DATA"
    settings = chosen({**recipe.settings, "recipe": recipe.name, "data": data})
    return dict(_completed(check_settings(settings).as_dict(), settings))


def _completed(whole: Any, given: Any) -> Any:
    """What is given, with the rest of the whole; "auto" where None is given for something."""
    if isinstance(whole, dict):
        return {key: _completed(value, given[key]) if key in given else value for key, value in whole.items()}
    if isinstance(whole, list) and isinstance(given, list):
        return [_completed(*pair) for pair in zip(whole, given, strict=True)]
    return "auto" if given is None and whole is not None else whole


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
