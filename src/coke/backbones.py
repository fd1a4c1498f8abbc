"""Backbones for small images, registered with timm under names of their own by ``import coke.backbones``.

    import coke.backbones, timm
    model = timm.create_model("coke_conv5_w16", num_classes=0, checkpoint_path="runs/textures/backbone.safetensors")

timm's ResNets begin with a 7 x 7 convolution of stride 2 and a max-pool, which leave 8 x 8 positions of a
32 px image. The ``_small`` variants begin with one 3 x 3 convolution of stride 1 and no pooling, as is usual
on CIFAR; all else is timm's own class. ``coke_conv5_*`` are five plain convolutions for a CPU.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models import register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from coke.errors import ConfigError, did_you_mean


def _small_resnet(block: Any, layers: tuple[int, ...], arguments: dict[str, Any]) -> Any:
    for unused in ("pretrained", "pretrained_cfg", "cache_dir"):
        arguments.pop(unused, None)
    stated = arguments.pop("pretrained_cfg_overlay", None)
    model: Any = ResNet(block=block, layers=layers, **arguments)
    model.pretrained_cfg = dict(stated or {})
    stem = nn.Conv2d(model.conv1.in_channels, model.conv1.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.conv1, model.maxpool = stem, nn.Identity()
    return model


@register_model
def coke_resnet18_small(**arguments: Any) -> Any:
    """ResNet-18 with the 3 x 3 stem: 512 features, 1.1 GFLOP forward at 32 px."""
    return _small_resnet(BasicBlock, (2, 2, 2, 2), arguments)


@register_model
def coke_resnet34_small(**arguments: Any) -> Any:
    """ResNet-34 with the 3 x 3 stem: 512 features."""
    return _small_resnet(BasicBlock, (3, 4, 6, 3), arguments)


@register_model
def coke_resnet50_small(**arguments: Any) -> Any:
    """ResNet-50 with the 3 x 3 stem: 2,048 features."""
    return _small_resnet(Bottleneck, (3, 4, 6, 3), arguments)


class Conv5(nn.Module):
    """Five 3 x 3 convolutions with batch norm and ReLU, then the mean over positions: [B, 3, H, W] -> [B, 8 w].

    Widths w, 2w, 4w, 8w, 8w with strides 1, 2, 2, 2, 1. Speaks timm's interface (``num_features``,
    ``forward_features``, ``forward_head``, ``reset_classifier``; ``pretrained_cfg`` says what images it wants).
    """

    def __init__(
        self,
        width: int = 24,
        num_classes: int = 0,
        in_chans: int = 3,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        **unused: Any,
    ) -> None:
        super().__init__()
        self.pretrained_cfg = dict(pretrained_cfg_overlay or {})
        widths = (width, 2 * width, 4 * width, 8 * width, 8 * width)
        blocks: list[nn.Module] = []
        channels = in_chans
        for out, stride in zip(widths, (1, 2, 2, 2, 1), strict=True):
            convolution = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True)))
            channels = out
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


@register_model
def coke_conv5_w16(pretrained: bool = False, **arguments: Any) -> Conv5:
    """Five convolutions of width 16 to 128: 128 features, 13 MFLOP forward at 32 px."""
    return Conv5(16, **arguments)


@register_model
def coke_conv5_w24(pretrained: bool = False, **arguments: Any) -> Conv5:
    """Five convolutions of width 24 to 192: 192 features, 28 MFLOP forward at 32 px."""
    return Conv5(24, **arguments)


@register_model
def coke_conv5_w32(pretrained: bool = False, **arguments: Any) -> Conv5:
    """Five convolutions of width 32 to 256: 256 features, 49 MFLOP forward at 32 px."""
    return Conv5(32, **arguments)


_SIZED = ("vit_", "deit", "swin", "eva", "beit", "cait", "xcit", "mixer", "coat")


def create(name: str, image_size: int) -> nn.Module:
    """timm's model of a name, untrained and without classifier: [B, 3, S, S] -> [B, F].

    Transformers fix their image size when they are built. Raises `ConfigError` for a name that timm does not know.
    """
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise ConfigError(f"unknown backbone {name!r}{hint}: timm.list_models() lists them all")
    size: dict[str, Any] = {"img_size": image_size} if name.startswith(_SIZED) else {}
    return timm.create_model(name, pretrained=False, num_classes=0, **size)
