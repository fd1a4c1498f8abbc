"""Recipes: named settings, each a handful of differences from `Config`'s defaults.

ImageNet's constants are the published ones (arXiv 2105.11527, method section 5); CIFAR-10's and the embedded
default's are measured here (`docs/log.md`).
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coke.errors import ConfigError, did_you_mean

_CIFAR_STATISTICS = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}
_IMAGENET_STATISTICS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

# Two views: one agrees with the other's projection and with the label (T 0.05, alpha 0.2, both branches).
_TWO_VIEWS = {"temperature": 0.05, "label_weight": 0.2, "prediction_share": 0.5}

# From scratch on small data the loss must not reach the projection directly, or a few clusters take all
# (docs/log.md, "Two views"): the prediction branch alone.
_TWO_SMALL_VIEWS = {**_TWO_VIEWS, "prediction_share": 1.0}

_TEXTURE_VIEW = {
    "size": 24,
    "crop": [0.5, 1.0],
    "rotation": 180,
    "jitter": [0.3, 0.3, 0.0, 0.0],
    "gray": 0.0,
    "invert": 0.5,
}
_SMALL_IMAGE_VIEW = {"size": 32, "crop": [0.3, 1.0], "jitter": [0.4, 0.4, 0.2, 0.1], "gray": 0.2}
_MILD_AUGMENTATION = {"crop": [0.3, 1.0], "jitter": [0.4, 0.4, 0.2, 0.1], "gray": 0.2, "blur": 0.0}
_SMALL_IMAGE_CROP = {"size": 16, "crop": [0.08, 0.35], "clusters": False, "count": 4}
_STRONG_JITTER, _MILD_JITTER = [0.8, 0.8, 0.8, 0.2], [0.4, 0.4, 0.2, 0.1]
_LARGE_IMAGE_VIEW = {"size": 224, "crop": [0.08, 1.0], "jitter": _MILD_JITTER, "gray": 0.2}
_IMAGENET_VIEWS = [{**_LARGE_IMAGE_VIEW, "blur": 1.0}, {**_LARGE_IMAGE_VIEW, "blur": 0.1, "solarise": 0.2}]
_IMAGENET_CROP = {
    "size": 96,
    "crop": [0.05, 0.6],
    "jitter": _STRONG_JITTER,
    "blur": 0.5,
    "clusters": False,
    "count": 6,
}

_SMALL_IMAGE = {
    "backbone": "coke_resnet18_small",
    "views": [_SMALL_IMAGE_VIEW],
    "batch_size": 128,
    "learning_rate": 0.06,
    "weight_decay": 5e-4,
    "warmup_epochs": 10,
}
_CIFAR = {
    **_SMALL_IMAGE,
    **_CIFAR_STATISTICS,
    "n_clusters": [150, 200],
    "epochs": 200,
    "averaging_share": 0.2,
}
_IMAGENET = {
    **_IMAGENET_STATISTICS,
    "backbone": "resnet50",
    "n_clusters": [3000, 4000, 5000],
    "dual_lr": 20.0,
    "epochs": 1000,
    "batch_size": 1024,
    "optimizer": "lars",
    "learning_rate": 1.6,
    "nesterov": False,
    "weight_decay": 1e-6,
    "warmup_epochs": 10,
    "precision": "16-mixed",
}

# Auxiliary losses, beyond the paper, for the first epochs on little data (docs/log.md, "Companions of the loss").
_AUXILIARY = {
    "n_clusters": list(range(10, 101, 10)),
    "min_size_ratio": 0.9,
    "count_carry": 0.5,
    "objective": {"decorrelation": 0.1, "rotation": 1.0},
}


@dataclass(frozen=True)
class Recipe:
    """A name, a line that says what it is for, and its settings: None where the images decide."""

    name: str
    summary: str
    settings: dict[str, Any]


_ALL = (
    Recipe(
        "textures",
        "the embedded default: ten procedural textures, five convolutions, under three minutes on two cores",
        {
            "backbone": "coke_conv5_w16",
            "views": [_TEXTURE_VIEW],
            "n_clusters": [10, 20, 40],
            "min_size_ratio": 0.9,
            "dual_climb": 0.5,
            "count_carry": 0.5,
            "objective": {"decorrelation": 0.01},
            "epochs": 60,
            "batch_size": 128,
            "learning_rate": 0.1,
            "warmup_epochs": 5,
            "averaging_share": 0.2,
            "checkpoint_epochs": 20,
            "max_minutes": 2.25,
        },
    ),
    Recipe("cifar10", "CIFAR-10, one view, small-stem ResNet-18", _CIFAR),
    Recipe(
        "cifar10-auxiliary",
        "CIFAR-10, one view, heads 10 to 100, auxiliary losses (rotation prediction, decorrelation): beyond the paper",
        {**_CIFAR, **_AUXILIARY},
    ),
    Recipe(
        "cifar10-2view",
        "CIFAR-10, two views, small-stem ResNet-18",
        {
            **_CIFAR,
            "views": [_SMALL_IMAGE_VIEW, {**_SMALL_IMAGE_VIEW, "solarise": 0.2}],
            "objective": _TWO_SMALL_VIEWS,
            "averaging_share": 0.0,
        },
    ),
    Recipe(
        "cifar10-multicrop",
        "CIFAR-10, two views of 32 px and four of 16 px, small-stem ResNet-18",
        {
            **_CIFAR,
            "views": [_SMALL_IMAGE_VIEW, {**_SMALL_IMAGE_VIEW, "solarise": 0.2}, _SMALL_IMAGE_CROP],
            "objective": _TWO_SMALL_VIEWS,
            "averaging_share": 0.0,
        },
    ),
    Recipe(
        "imagenet-1view",
        "ImageNet, one view of 224 px, ResNet-50, the published constants (72.5 % linear, published)",
        {
            **_IMAGENET,
            "views": [{**_LARGE_IMAGE_VIEW, "jitter": _STRONG_JITTER, "blur": 0.5}],
            "averaging_share": 0.2,
        },
    ),
    Recipe(
        "imagenet-2view",
        "ImageNet, two views of 224 px, ResNet-50, the published constants (74.9 % linear, published)",
        {**_IMAGENET, "views": _IMAGENET_VIEWS, "objective": _TWO_VIEWS},
    ),
    Recipe(
        "imagenet-multicrop",
        "ImageNet, 2 x 224 + 6 x 96 px, ResNet-50, the published constants (76.4 % linear, published)",
        {**_IMAGENET, "views": [*_IMAGENET_VIEWS, _IMAGENET_CROP], "objective": _TWO_VIEWS, "epochs": 800},
    ),
    Recipe(
        "auto",
        "your own images: view size, backbone, K, batch, step sizes and epochs follow from how many there are",
        {
            "views": [{"size": None, **_MILD_AUGMENTATION}],
            "objective": {"decorrelation": None, "rotation": None},
            "averaging_share": 0.2,
        },
    ),
)
RECIPES = {recipe.name: recipe for recipe in _ALL}
ALIASES = {"cifar10-companions": "cifar10-auxiliary"}  # names of old


def find_recipe(name: str) -> Recipe:
    """A recipe by name, or by one of old. Raises `ConfigError` with the nearest name."""
    name = ALIASES.get(name, name)
    if name not in RECIPES:
        raise ConfigError(
            f"unknown recipe {name!r}{did_you_mean(name, RECIPES)}; there are: {', '.join(RECIPES)}"
        )
    return RECIPES[name]


def own_backbones() -> dict[str, str]:
    """Names of `coke.backbones` and what their docstrings say, read without timm, which takes seconds to load.

    >>> own_backbones()["coke_conv5_w16"]
    'Five convolutions of width 16 to 128: 128 features, 13 MFLOP forward at 32 px.'
    """
    import coke

    source = Path(coke.__file__).with_name("backbones.py").read_text(encoding="utf-8")
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return {node.name: ast.get_docstring(node) or "" for node in functions if node.name.startswith("coke_")}
