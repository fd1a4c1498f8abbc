"""Backbones for small images, registered with timm under names of their own by ``import coke.backbones``.

    import coke.backbones, timm
    model = timm.create_model("coke_conv5_w16", num_classes=0, checkpoint_path="runs/textures/backbone.safetensors")

timm's ResNets begin with a 7 x 7 convolution of stride 2 and a max-pool, which leave 8 x 8 positions of a
32 px image. The ``_small`` variants begin with one 3 x 3 convolution of stride 1 and no pooling, as is usual
on CIFAR; all else is timm's own class. ``coke_conv5_*`` are five plain convolutions for a CPU.

There are no published weights of them: ``pretrained=True`` is refused unless ``pretrained_cfg_overlay=dict(file=...)``
says where they are. ``features_only=True`` gives feature maps; unknown words are refused.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from coke.errors import ConfigError, did_you_mean

_SIZED = ("vit_", "deit", "swin", "eva", "beit", "cait", "xcit", "mixer", "coat")


def create(name: str, image_size: int | None = None) -> nn.Module:
    """timm's model of a name, untrained and without classifier: [B, 3, S, S] -> [B, F].

    Transformers fix their image size when they are built (None: timm's own). Raises `ConfigError` for a name that timm
    does not know.
    """
    check_name(name)
    return timm.create_model(name, pretrained=False, num_classes=0, **size_argument(name, image_size))


def size_argument(name: str, image_size: int | None) -> dict[str, Any]:
    """What `timm.create_model` is told beside a transformer's name."""
    return {"img_size": image_size} if image_size and name.startswith(_SIZED) else {}


def check_name(name: str) -> None:
    """Raise `ConfigError` for a name that timm does not know, with the nearest one."""
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise ConfigError(f"unknown backbone {name!r}{hint}: timm.list_models() lists them all")


class SmallResNet(ResNet):
    """timm's ResNet with one 3 x 3 convolution of stride 1 in place of its stem."""

    conv1: Any
    maxpool: Any

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        stem = self.conv1
        self.conv1 = nn.Conv2d(stem.in_channels, stem.out_channels, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        feature_info: Any = self.feature_info
        for info in feature_info:
            info["reduction"] = max(1, info["reduction"] // 4)


class Conv5(nn.Module):
    """Five 3 x 3 convolutions with batch norm and ReLU, then the mean over positions: [B, 3, H, W] -> [B, 8 w].

    Widths w, 2w, 4w, 8w, 8w with strides 1, 2, 2, 2, 1. Speaks timm's interface (``num_features``,
    ``forward_features``, ``forward_head``, ``reset_classifier``; ``pretrained_cfg`` says what images it wants).
    """

    def __init__(self, width: int = 24, num_classes: int = 0, in_chans: int = 3) -> None:
        super().__init__()
        widths, strides = (width, 2 * width, 4 * width, 8 * width, 8 * width), (1, 2, 2, 2, 1)
        blocks: list[nn.Module] = []
        self.feature_info: list[dict[str, Any]] = []
        channels, reduction = in_chans, 1
        for out, stride in zip(widths, strides, strict=True):
            convolution = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True)))
            channels, reduction = out, reduction * stride
            module = f"blocks.{len(blocks) - 1}"
            self.feature_info.append({"num_chs": out, "reduction": reduction, "module": module})
        self.blocks = nn.Sequential(*blocks)
        self.num_features = self.head_hidden_size = channels
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a linear classifier on top, or none for 0 classes."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        """Feature maps [B, 8 w, H / 8, W / 8]."""
        return self.blocks(images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooled features, or logits where there is a classifier."""
        pooled = features.mean(dim=(2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features [B, 8 w] (or logits)."""
        return self.forward_head(self.forward_features(images))


_WANTED = {
    "num_classes": 0,
    "input_size": (3, 32, 32),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "classifier": "fc",
}
_KNOWN: dict[str, Any] = {
    **{f"coke_resnet{depth}_small": {**_WANTED, "first_conv": "conv1"} for depth in (18, 34, 50)},
    **{f"coke_conv5_w{width}": {**_WANTED, "first_conv": "blocks.0.0"} for width in (16, 24, 32)},
}
default_cfgs = generate_default_cfgs(_KNOWN)


def _resnet(name: str, pretrained: bool, block: Any, layers: tuple[int, ...], words: dict[str, Any]) -> Any:
    return build_model_with_cfg(SmallResNet, name, pretrained, block=block, layers=layers, **words)


def _conv5(name: str, pretrained: bool, width: int, words: dict[str, Any]) -> Any:
    words.setdefault("num_classes", 0)
    feature_cfg = {"flatten_sequential": True}
    return build_model_with_cfg(Conv5, name, pretrained, feature_cfg=feature_cfg, width=width, **words)


@register_model
def coke_resnet18_small(pretrained: bool = False, **words: Any) -> Any:
    """ResNet-18 with the 3 x 3 stem: 512 features, 1.1 GFLOP forward at 32 px."""
    return _resnet("coke_resnet18_small", pretrained, BasicBlock, (2, 2, 2, 2), words)


@register_model
def coke_resnet34_small(pretrained: bool = False, **words: Any) -> Any:
    """ResNet-34 with the 3 x 3 stem: 512 features, 2.3 GFLOP forward at 32 px."""
    return _resnet("coke_resnet34_small", pretrained, BasicBlock, (3, 4, 6, 3), words)


@register_model
def coke_resnet50_small(pretrained: bool = False, **words: Any) -> Any:
    """ResNet-50 with the 3 x 3 stem: 2,048 features, 2.6 GFLOP forward at 32 px."""
    return _resnet("coke_resnet50_small", pretrained, Bottleneck, (3, 4, 6, 3), words)


@register_model
def coke_conv5_w16(pretrained: bool = False, **words: Any) -> Any:
    """Five convolutions of width 16 to 128: 128 features, 13 MFLOP forward at 32 px."""
    return _conv5("coke_conv5_w16", pretrained, 16, words)


@register_model
def coke_conv5_w24(pretrained: bool = False, **words: Any) -> Any:
    """Five convolutions of width 24 to 192: 192 features, 28 MFLOP forward at 32 px."""
    return _conv5("coke_conv5_w24", pretrained, 24, words)


@register_model
def coke_conv5_w32(pretrained: bool = False, **words: Any) -> Any:
    """Five convolutions of width 32 to 256: 256 features, 49 MFLOP forward at 32 px."""
    return _conv5("coke_conv5_w32", pretrained, 32, words)
