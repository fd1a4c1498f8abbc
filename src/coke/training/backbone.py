"""The backbone of a configuration: timm's by name (coke's small ones among them), or the user's own module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from coke.errors import ConfigError, did_you_mean
from coke.method.network import count_features
from coke.training.config import Config
from coke.training.weights import read_weights


def make_backbone(config: Config) -> nn.Module:
    """A fresh backbone without classifier. Raises `ConfigError` for a name that timm does not know."""
    import timm

    import coke.backbones  # noqa: F401 registers coke_*

    if config.backbone.startswith("custom:"):
        raise ConfigError(f"{config.backbone} is a module of your own: give it as backbone=")
    if not timm.is_model(config.backbone):
        hint = did_you_mean(config.backbone, timm.list_models())
        raise ConfigError(f"unknown backbone {config.backbone!r}{hint}: timm.list_models() lists them all")
    kwargs: dict[str, Any] = {"img_size": config.image_size} if _wants_size(config.backbone) else {}
    return timm.create_model(config.backbone, pretrained=False, num_classes=0, **kwargs)


def _wants_size(name: str) -> bool:
    """Transformers fix their image size when they are built."""
    return name.startswith(("vit_", "deit", "swin", "eva", "beit", "cait", "xcit", "mixer", "coat"))


def load_backbone(config: Config, weights: Path, module: nn.Module | None = None) -> nn.Module:
    """A run's backbone with weights from a file, strictly. Raises `ConfigError` where they do not fit."""
    backbone = make_backbone(config) if module is None else module
    try:
        backbone.load_state_dict(read_weights(weights), strict=True)
    except RuntimeError as error:
        raise ConfigError(
            f"{weights} does not fit the backbone {type(backbone).__name__}: {error}"
        ) from error
    return backbone


def check_backbone(backbone: nn.Module, config: Config) -> int:
    """F of the backbone; refuses view sizes that it does not take."""
    sizes = {view.size for view in [*config.large_views, *config.small_views]}
    n_features = max(count_features(backbone, size) for size in sizes)
    if config.objective.rotation > 0:
        try:
            count_features(backbone, config.image_size // 2)
        except ConfigError as error:
            raise ConfigError(
                f"objective.rotation looks at copies of half the view's size, and {error}: set objective.rotation=0"
            ) from error
    return n_features
