"""The backbone of a configuration and its weights in files.

timm's by name (coke's small ones among them), or the user's own module. Weights are read from anywhere without
running code, loaded strictly, and written as timm reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from coke.errors import ConfigError, did_you_mean
from coke.method.network import count_features
from coke.run import atomic
from coke.training.config import Config


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


def write_backbone(path: Path, backbone: nn.Module, config: Config) -> None:
    """Weights as ``timm.create_model(name, num_classes=0, checkpoint_path=path)`` takes them.

    Name, view size, mean and standard deviation are in the file's metadata.
    """
    weights = own_tensors(backbone.state_dict())
    metadata = {
        "architecture": config.backbone,
        "input_size": json.dumps([3, config.image_size, config.image_size]),
        "mean": json.dumps(config.mean),
        "std": json.dumps(config.std),
    }
    with atomic(path, "wb") as stream:
        stream.write(save(weights, metadata))


def own_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host: safetensors refuses tensors that share memory, as tied weights do."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights of a safetensors file or of a torch file that holds nothing but tensors.

    A state dict may lie under ``state_dict`` or ``model``. Raises `ConfigError` where it cannot be read.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file of weights")
    try:
        found = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:
        wanted = "a .safetensors file, or a torch file that holds tensors alone"
        raise ConfigError(  # torch's own words fill a page and advise unsafe loading
            f"{path} cannot be read as weights ({type(error).__name__}): it must be {wanted}"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConfigError(f"{path} holds no state dict (names to tensors)")
    return found


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
