"""Frozen features of images: from a backbone, or the pixels themselves.

Images come as `ImageSet.centered` hands them out, uint8 [B, 3, size, size], and are normalised with the mean
and standard deviation (of values in [0, 1]) that the backbone was trained with. Legend: N images, F
dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from coke.errors import ConfigError, DataError
from coke.images.image_set import ImageSet

Device = torch.device | str | None


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels 0 .. 255 [B, 3, H, W] as float32 (value / 255 - mean) / std, channel by channel.

    >>> normalised(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), (0.5,) * 3, (0.25,) * 3).flatten()
    tensor([2., 2., 2.])
    """
    if min(std) <= 0:
        came = f"got {tuple(std)}: use 1 for a constant channel"
        raise ConfigError(f"std must be above 0 in every channel, {came}")
    center, scale = (
        torch.tensor(of, dtype=torch.float32, device=images.device).view(3, 1, 1) for of in (mean, std)
    )
    return (images.float() / 255 - center) / scale


@contextmanager
def evaluating(backbone: nn.Module, device: Device = None) -> Iterator[torch.device]:
    """Put a backbone in eval mode on a device, and every module of it back as it was afterwards.

    ``device`` None means where the backbone is (the CPU if it has neither parameters nor buffers).
    """
    held = next(chain(backbone.parameters(), backbone.buffers()), None)
    home = held.device if held is not None else torch.device("cpu")
    there = torch.device(device) if device is not None else home
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval().to(there)
    try:
        yield there
    finally:
        backbone.to(home)
        for module, training in modes.items():
            module.training = training


def pooled(output: Tensor) -> Tensor:
    """A backbone's output as float32 [B, F]; a map [B, F, h, w] is averaged over its positions.

    Raises `DataError` for any other output.
    """
    if not isinstance(output, Tensor) or output.ndim not in (2, 4):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        wanted = "expected [B, F] or [B, F, h, w]: give it pooled features (timm: num_classes=0)"
        raise DataError(f"the backbone returned {shape}, {wanted}")
    return (output if output.ndim == 2 else output.mean(dim=(2, 3))).float()


@torch.no_grad()
def extract(
    backbone: nn.Module,
    images: ImageSet,
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 256,
    device: Device = None,
) -> Tensor:
    """Features of all images in order: float32 [N, F] on the CPU.

    The backbone runs in eval mode, so the batch size changes nothing but rounding; modes and device are
    restored. Raises `DataError` for an output that is neither [B, F] nor [B, F, h, w].
    """
    with evaluating(backbone, device) as there:
        seen = (normalised(batch.to(there), mean, std) for batch in images.centered(size, batch_size))
        return torch.cat([pooled(backbone(batch)).cpu() for batch in seen])


def to_device(features: Tensor, device: torch.device | str) -> Tensor:
    """A bank's features where probes shall compute: on a GPU while four copies fit into its free memory."""
    device = torch.device(device)
    if device.type == "cuda" and 4 * features.nbytes > torch.cuda.mem_get_info(device)[0]:
        return features
    return features.to(device)


@torch.no_grad()
def adapt_batch_norm(
    backbone: nn.Module,
    images: ImageSet,
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 256,
    device: Device = None,
) -> None:
    """Set the running statistics of batch norm to those of the images, in one pass; weights stay untouched.

    An untrained network is judged after this: with the default statistics (mean 0, variance 1) its k-NN
    accuracy looks 2 to 7 points too low. Only batch norm layers are in train mode, so dropout stays off. Each
    image weighs the same: a layer's running statistics become the average of its batches' statistics,
    weighted by their number of images. Batches are made equal in size, since one of a single image would have
    no variance. A backbone without running statistics is left alone. Raises `DataError` for fewer than two
    images.
    """
    layers = [m for m in backbone.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return
    if len(images) < 2:
        raise DataError(f"{len(images)} images in {images.name}: batch statistics need at least two")
    batch_size = -(-len(images) // -(-len(images) // batch_size))
    while len(images) % batch_size == 1:
        batch_size += 1
    momenta = [layer.momentum for layer in layers]
    seen = 0
    with evaluating(backbone, device) as there:
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
        try:
            for batch in images.centered(size, batch_size):
                seen += len(batch)
                for layer in layers:
                    layer.momentum = len(batch) / seen
                backbone(normalised(batch.to(there), mean, std))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum


def raw_pixels(
    images: ImageSet, *, size: int, mean: Sequence[float], std: Sequence[float], batch_size: int = 256
) -> Tensor:
    """The images themselves as features, normalised: float32 [N, 3 * size * size].

    What a representation has to beat. Give the bank's mean and std for both bank and query. Every image costs
    12 size^2 bytes, so photographs are better shrunk (size 32: 12 KiB an image).
    """
    batches = images.centered(size, batch_size)
    return torch.cat([normalised(batch, mean, std).flatten(1) for batch in batches])
