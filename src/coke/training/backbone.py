"""The backbone of a configuration: timm's by name (coke's small ones among them), or the user's own module."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from coke.errors import ConfigError
from coke.method.network import count_features
from coke.model.files import load_weights, read_weights
from coke.training.config import Config


def make_backbone(config: Config) -> nn.Module:
    """A fresh backbone without classifier. Raises `ConfigError` for a name that timm does not know."""
    from coke.backbones import create

    if config.backbone.startswith("custom:"):
        raise ConfigError(f"{config.backbone} is a module of your own: give it as backbone=")
    return create(config.backbone, config.image_size)


def load_backbone(config: Config, weights: Path, module: nn.Module | None = None) -> nn.Module:
    """A run's backbone with weights from a file, strictly. Raises `ConfigError` where they do not fit."""
    return load_weights(make_backbone(config) if module is None else module, weights, "backbone")


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


def start_from(backbone: nn.Module, path: Path) -> str:
    """Load weights into a backbone and say what was: '62 of 62 tensors'. A classifier's weights may be left.

    Raises `ConfigError` where a tensor of the backbone is missing from the file or of another shape.
    """
    weights, own = read_weights(path), backbone.state_dict()
    missing = [name for name in own if name not in weights]
    misshapen = [
        f"{name} {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if missing or misshapen:
        fit = len(own) - len(missing) - len(misshapen)
        raise ConfigError(
            f"{path} does not fit the backbone: {fit} of {len(own)} tensors match; "
            f"missing {missing[:3]}, of another shape {misshapen[:3]}"
        )
    backbone.load_state_dict({name: weights[name] for name in own})
    unused = [name for name in weights if name not in own]
    left = f"; {len(unused)} in the file not used ({', '.join(unused[:3])})" if unused else ""
    return f"started from {path}: {len(own)} of {len(own)} tensors{left}"
