"""What follows from the data: the recipe ``auto``, and every figure that a recipe leaves to ``auto``.

Each decision comes with its reason in words, which ``coke pretrain`` prints and ``--dry-run`` shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coke.clustering.dual_step import auto_dual_lr
from coke.clustering.sizes import check_n_clusters, min_size
from coke.data import ImageSet
from coke.errors import ConfigError
from coke.training.config import Config, build, override

IMAGES_PER_CLUSTER = 285  # learned on CIFAR-10 (method section 7): 50,000 images in 150 to 200 clusters
SMALL_IMAGE = 64  # px: up to here the small stem, beyond it timm's own


@dataclass(frozen=True)
class Resolved:
    """A configuration without any ``auto`` left, and why each figure is what it is."""

    config: Config
    reasons: list[str]


def resolve(settings: Mapping[str, Any], overrides: Mapping[str, Any], images: ImageSet) -> Resolved:
    """Fill in what the data decides, then check that it can hold.

    Args:
        settings: of the recipe, with ``recipe`` and ``data`` named.
        overrides: dotted keys of the user, which win over everything.
        images: what pretraining will see.

    Raises:
        ConfigError, BoundsError: a setting that cannot work with these images.
    """
    reasons: list[str] = []
    if settings.get("recipe") == "auto":
        derived, reasons = _derive(images)
        settings = {**derived, **settings}
    config = build(override(settings, overrides))
    return _fill(config, images, reasons)


def _derive(images: ImageSet) -> tuple[dict[str, Any], list[str]]:
    """The recipe ``auto``: view size, backbone and augmentation from the images' number and size."""
    n_images = len(images)
    side = int(images.sizes.min(dim=1).values.median())
    size = side if side <= SMALL_IMAGE else min(224, side // 32 * 32)
    size = max(size, 8)
    if size <= SMALL_IMAGE:
        backbone, why = "coke_resnet18_small", f"images of at most {SMALL_IMAGE} px need a 3 x 3 stem"
    elif n_images < 200_000:
        backbone, why = "resnet18", f"{n_images:,} images are too few for a larger network"
    else:
        backbone, why = "resnet50", f"{n_images:,} images"
    view: dict[str, Any] = {"size": size, "crop": [0.3, 1.0], "jitter": [0.4, 0.4, 0.2, 0.1], "gray": 0.2}
    reasons = [
        f"view size {size} px: half of the images have a shorter side of at least {side} px",
        f"backbone {backbone}: {why}",
        "one view, crop 0.3 to 1, mild jitter, no blur: strong augmentation drowns the first labels in noise",
    ]
    return {"views": [view], "backbone": backbone}, reasons


def _fill(config: Config, images: ImageSet, reasons: list[str]) -> Resolved:
    n_images = len(images)
    if config.batch_size == "auto":
        batch_size = 1024 if n_images >= 1_000_000 else 256 if n_images >= 200_000 else 128
        while batch_size > 16 and n_images < 20 * batch_size:
            batch_size //= 2
        config = config.replaced(batch_size=min(batch_size, n_images))
        reasons.append(f"batch {config.batch_size}: {-(-n_images // batch_size)} steps an epoch")
    assert isinstance(config.batch_size, int)
    if config.batch_size > n_images or config.batch_size < 2:
        raise ConfigError(
            f"batch_size={config.batch_size} does not fit {n_images:,} images: choose 2 ... {n_images}"
        )
    if config.n_clusters == "auto":
        target = min(3000, max(2, round(n_images / IMAGES_PER_CLUSTER)))
        heads = tuple(sorted({target, round(target * 4 / 3), round(target * 5 / 3)}))
        config = config.replaced(n_clusters=tuple(k for k in heads if 2 * k <= n_images) or (1,))
        reasons.append(
            f"K = {_list(config.n_clusters)}: about {IMAGES_PER_CLUSTER} images a cluster of {n_images:,}"
            " (at most 3,000; heads in the published proportions 3 : 4 : 5)"
        )
    assert not isinstance(config.n_clusters, str)
    for n_clusters in config.n_clusters:
        check_n_clusters(n_images, n_clusters, config.min_size_ratio)
    config = _fill_steps(config, n_images, reasons)
    if config.epochs == "auto":
        epochs = 200 if n_images < 1_000_000 else 400
        config = config.replaced(epochs=epochs, averaging_share=config.averaging_share or 0.2)
        reasons.append(f"{epochs} epochs, the last fifth averaging centers and labels: more still helps")
    if config.mean == "measured" or config.std == "measured":
        mean = images.mean if config.mean == "measured" else config.mean
        std = images.std if config.std == "measured" else config.std
        config = config.replaced(mean=tuple(round(v, 4) for v in mean), std=tuple(max(round(v, 4), 1e-3) for v in std))
        reasons.append(f"mean {config.mean}, standard deviation {config.std}: measured over all images")
    return Resolved(config, reasons)


def _fill_steps(config: Config, n_images: int, reasons: list[str]) -> Config:
    """Learning rate and dual steps, which follow from batch size and K."""
    assert isinstance(config.batch_size, int)
    assert not isinstance(config.n_clusters, str)
    ratio, batch_size = config.min_size_ratio, config.batch_size
    if config.learning_rate == "auto":
        rates = {"sgd": 0.06 * batch_size / 128, "lars": 1.6 * batch_size / 1024, "adamw": 1e-3 * batch_size / 256}
        config = config.replaced(learning_rate=rates[config.optimizer])
        reasons.append(f"learning rate {config.learning_rate:g}: in proportion to the batch")
    if config.dual_lr == "auto":
        steps = tuple(
            float(f"{auto_dual_lr(n_images, batch_size, k, ratio, climb=config.dual_climb, largest_hit=config.dual_largest_hit):.4g}")
            for k in config.n_clusters
        )
        config = config.replaced(dual_lr=steps)
        climbs = [step / batch_size * min_size(n_images, k, ratio) for step, k in zip(steps, config.n_clusters, strict=True)]
        reasons.append(
            f"dual step {_list(steps)}: an empty cluster's dual rises by {_list([round(c, 2) for c in climbs])} an"
            f" epoch (aim {config.dual_climb:g}), one image lowers it by {max(steps) / batch_size:.4f} at most"
        )
    elif isinstance(config.dual_lr, float):
        config = config.replaced(dual_lr=(config.dual_lr,) * len(config.n_clusters))
    if isinstance(config.dual_lr, tuple) and len(config.dual_lr) != len(config.n_clusters):
        raise ConfigError(f"dual_lr has {len(config.dual_lr)} values for {len(config.n_clusters)} heads")
    return config


def _list(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)
