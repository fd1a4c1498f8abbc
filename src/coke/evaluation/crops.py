"""Random resized crops and flips of images, for the linear probe's training: the one augmentation it uses.

Legend: B images, (h, w) an image's size in pixels, size the side of what comes out.
"""

from __future__ import annotations

import math
from concurrent.futures import Executor

import torch
from torch import Tensor
from torch.nn import functional

from coke.data.images import ImageSet

AREA = (0.08, 1.0)  # of the image, uniform
ASPECT = (3 / 4, 4 / 3)  # width over height, log-uniform


def random_boxes(sizes: Tensor, generator: torch.Generator) -> Tensor:
    """A box for each image of sizes [B, 2] (height, width): float32 [B, 4], top, left, height, width.

    Area and aspect are those of the customary random resized crop; a box that would be higher or wider than
    its image is clipped to it (the custom there is to draw again).

    >>> boxes = random_boxes(torch.tensor([[32, 48]]), torch.Generator().manual_seed(0))
    >>> bool((boxes[:, :2] + boxes[:, 2:] <= torch.tensor([32, 48])).all())
    True
    """
    draws = torch.rand(len(sizes), 4, generator=generator)
    image = sizes.float()
    area = image.prod(dim=1) * (AREA[0] + (AREA[1] - AREA[0]) * draws[:, 0])
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    aspect = (low + (high - low) * draws[:, 1]).exp()
    box = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], dim=1).clamp(min=1)
    box = torch.minimum(box, image)
    return torch.cat([(image - box) * draws[:, 2:], box], dim=1)


def crop_batch(pixels: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Boxes [B, 4] of images [B, 3, H, W], resized bilinearly: float32 [B, 3, size, size], same device.

    ``flips`` bool [B] mirrors left and right. Meant for enlarging: where a box is larger than ``size`` pixels
    are skipped instead of averaged (`crop_one` averages).
    """
    height, width = pixels.shape[-2:]
    top, left, box_height, box_width = boxes.to(pixels.device).unbind(dim=1)
    mirror = torch.where(flips.to(pixels.device), -1.0, 1.0)
    zero = torch.zeros_like(top)
    across = torch.stack([mirror * box_width / width, zero, (2 * left + box_width) / width - 1], dim=1)
    down = torch.stack([zero, box_height / height, (2 * top + box_height) / height - 1], dim=1)
    grid = functional.affine_grid(
        torch.stack([across, down], dim=1), [len(pixels), 3, size, size], align_corners=False
    )
    return functional.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)


def crop_one(image: Tensor, box: Tensor, flip: bool, size: int) -> Tensor:
    """One box [4], rounded to pixels, of an image [3, h, w], antialiased: float32 [3, size, size]."""
    height, width = (max(1, round(side)) for side in box[2:].tolist())
    top = min(round(float(box[0])), image.shape[1] - height)
    left = min(round(float(box[1])), image.shape[2] - width)
    cut = image[None, :, top : top + height, left : left + width].float()
    resized = functional.interpolate(cut, (size, size), mode="bilinear", antialias=True, align_corners=False)[
        0
    ]
    return resized.flip(-1) if flip else resized


def random_crops(
    images: ImageSet,
    indices: Tensor,
    size: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    threads: Executor | None = None,
) -> Tensor:
    """Randomly cropped, resized and flipped images [B] of a set: float32 [B, 3, size, size], values 0 .. 255.

    All boxes come from ``generator`` (CPU), so one seed gives one result on every device. Images in memory
    that are not larger than ``size`` are cropped as one batch on ``device``, others one by one, on
    ``threads`` if given.
    """
    sizes = images.sizes[indices]
    boxes = random_boxes(sizes, generator)
    flips = torch.rand(len(indices), generator=generator) < 0.5
    if images.pixels is not None and max(images.pixels.shape[-2:]) <= size:
        return crop_batch(images.pixels[indices].to(device), boxes, flips, size)

    def one(row: int) -> Tensor:
        return crop_one(images.read(int(indices[row])), boxes[row], bool(flips[row]), size)

    rows = range(len(indices))
    return torch.stack(list(threads.map(one, rows) if threads else map(one, rows))).to(device)
