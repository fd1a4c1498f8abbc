"""The backbone of a configuration: timm's by name (coke's small ones among them), or the user's own module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from coke.errors import ConfigError
from coke.method.network import count_features
from coke.model.files import BACKBONE, load_weights, published, read_weights, stated_in
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


def check_architecture(config: Config) -> None:
    """Refuse a name that timm does not know, and views that its model does not take: by shapes alone, before any work.

    A model that cannot be laid out without memory is left to `check_backbone`.
    """
    from coke.backbones import create

    try:
        with torch.device("meta"):
            backbone = create(config.backbone, config.image_size)
        check_backbone(backbone, config)
    except ConfigError as error:
        if "meta" not in str(error.__cause__):
            raise
    except (AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        if "meta" not in str(error):
            raise ConfigError(
                f"{config.backbone} cannot be made for views of {config.image_size} px: {error}"
            ) from error


def check_backbone(backbone: nn.Module, config: Config) -> int:
    """F of the backbone; refuses view sizes that it does not take."""
    sizes = {view.size for view in [*config.large_views, *config.small_views]}
    n_features = max(_count_features(backbone, size, config.backbone) for size in sizes)
    if config.objective.rotation > 0:
        try:
            count_features(backbone, config.image_size // 2)
        except ConfigError as error:
            raise ConfigError(
                f"objective.rotation looks at copies of half the view's size, and {error}: set objective.rotation=0"
            ) from error
    return n_features


def _count_features(backbone: nn.Module, size: int, name: str) -> int:
    """F; refuses patches that leave pixels over, which timm would not look at."""
    for part in ("patch_embed", "stem"):
        cut = getattr(getattr(backbone, part, None), "proj", None)
        if isinstance(cut, nn.Conv2d) and cut.kernel_size == cut.stride and size % cut.stride[0]:
            patch = cut.stride[0]
            fits = " or ".join(
                str(side) for side in (size // patch * patch, -(-size // patch) * patch) if side
            )
            raise ConfigError(
                f"views of {size} px cannot be cut into {name}'s patches of {patch} px: choose views.size={fits}"
            )
    return count_features(backbone, size)


@dataclass(frozen=True)
class Init:
    """Weights to start from: in a file, or timm's published ones where that is None."""

    asked: str
    architecture: str | None  # as far as it is known
    file: Path | None

    def read(self) -> dict[str, Tensor]:
        """Names to tensors. Raises `ConfigError` where they cannot be read, or are not to be had."""
        if self.file is not None:
            return read_weights(self.file)
        return published(self.asked).state_dict()


def find_init(asked: str) -> Init:
    """What ``init`` names: a run folder, a file of weights, or a model of timm's. Raises `ConfigError` for none."""
    from coke.backbones import check_name

    path = Path(asked)
    file = path / BACKBONE if path.is_dir() else path
    if file.is_file():
        stated = stated_in(file) if file.suffix == ".safetensors" else {}
        name = stated.get("architecture", "custom:")
        return Init(asked, None if name.startswith("custom:") else name, file)
    if path.is_dir():
        raise ConfigError(f"init={asked}: this folder holds no finished run, {BACKBONE} is missing")
    if path.suffix in (".safetensors", ".pt", ".pth", ".tar", ".bin") or len(path.parts) > 1:
        raise ConfigError(f"{path}: no such file of weights")
    try:
        check_name(asked)
    except ConfigError as error:
        raise ConfigError(
            f"init={asked} is no run folder, no file of weights, and no name: {error}"
        ) from error
    return Init(asked, asked.partition(".")[0], None)


def start_from(backbone: nn.Module, init: Init) -> str:
    """Load weights into a backbone and say what was: '62 of 62 tensors'. A classifier's weights may be left.

    A prefix that all names share, as of a wrapper or a part of another model (``module.``, ``backbone.``), is taken
    off. Raises `ConfigError` where a tensor of the backbone is missing from the file or of another shape.
    """
    found, own = init.read(), backbone.state_dict()
    first = next(iter(own))
    prefixes = {"", *(name.removesuffix(first) for name in found if name.endswith(f".{first}"))}
    prefix = max(sorted(prefixes), key=lambda prefix: sum(prefix + name in found for name in own))
    weights = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    missing = [name for name in own if name not in weights]
    misshapen = [
        f"{name} {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if missing or misshapen:
        fit = len(own) - len(missing) - len(misshapen)
        raise ConfigError(
            f"{init.asked} does not fit the backbone: {fit} of {len(own)} tensors match; "
            f"missing {missing[:3]}, of another shape {misshapen[:3]}"
        )
    backbone.load_state_dict({name: weights[name] for name in own})
    unused = [name for name in found if name.removeprefix(prefix) not in own or not name.startswith(prefix)]
    where = f", under {prefix!r}" if prefix else ""
    left = f"; {len(unused)} in the file not used ({', '.join(unused[:3])})" if unused else ""
    return f"started from {init.asked}: {len(own)} of {len(own)} tensors{where}{left}"
