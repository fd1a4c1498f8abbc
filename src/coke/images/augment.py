"""Views of a whole batch at once, each image with random parameters of its own.

`draw` makes the random numbers of a view (on the host, from a seeded generator: the same images are made
whatever the device, the workers and the number of processes), `crop` and `orient` place the pixels,
`colour` changes them. Measured against torchvision's per-image transforms in `benchmarks/augmentation.py`.
Shapes: B batch, S side of the view in px.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from coke.images.views import View

_TRIES = 10  # a crop that does not fit the image is drawn anew, then becomes the largest centred one
_LARGEST_SIGMA = 2.0  # px at 224 px
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as torchvision
_CACHED = 1 << 20  # values that a CPU colours at once: 4 MiB stay in its caches from change to change


@dataclass(frozen=True)
class Draw:
    """Random parameters of one view of B images."""

    area: Tensor  # [B, tries] share of the image's area
    ratio: Tensor  # [B, tries] width / height
    place: Tensor  # [B, 2] where the crop lies, 0 ... 1 of the room left, x and y
    flip: Tensor  # [B] bool
    angle: Tensor  # [B] radians
    jitter: Tensor  # [B, 4] factors of brightness, contrast, saturation (1 = none), shift of hue in turns
    order: tuple[int, ...]  # the order in which the four are applied
    gray: Tensor  # [B] bool
    sigma: Tensor  # [B] px, 0 = no blur
    solarise: Tensor  # [B] bool
    invert: Tensor  # [B] bool

    def rows(self, rows: slice | Tensor) -> Draw:
        """The parameters of some of the images."""
        return self._mapped(lambda values: values[rows])

    def to(self, device: torch.device) -> Draw:
        """The parameters on another device, but for those of the box, which the host computes."""
        return self._mapped(
            lambda values: values.to(device, non_blocking=True), but=("area", "ratio", "place")
        )

    def _mapped(self, change: Callable[[Tensor], Tensor], but: tuple[str, ...] = ()) -> Draw:
        changed: dict[str, Any] = {
            name: change(values)
            for name, values in vars(self).items()
            if isinstance(values, Tensor) and name not in but
        }
        return replace(self, **changed)


def draw(view: View, n_images: int, generator: torch.Generator) -> Draw:
    """Random parameters for one view of ``n_images`` images."""

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(n_images, *shape, generator=generator) * (high - low) + low

    def chance(probability: float) -> Tensor:
        return uniform() < probability

    brightness, contrast, saturation, hue = view.jitter
    strength = torch.tensor([brightness, contrast, saturation, hue])
    jitter = uniform(4, low=-1.0) * strength * chance(view.jitter_probability)[:, None]
    scale = view.size / 224  # the published widths are for 224 px
    return Draw(
        area=uniform(_TRIES, low=view.crop[0], high=view.crop[1]),
        ratio=uniform(_TRIES, low=math.log(view.ratio[0]), high=math.log(view.ratio[1])).exp(),
        place=uniform(2),
        flip=chance(view.flip),
        angle=uniform(low=-1.0) * math.radians(view.rotation),
        jitter=torch.cat([(1 + jitter[:, :3]).clamp(min=0), jitter[:, 3:]], dim=1),
        order=tuple(torch.randperm(4, generator=generator).tolist()),
        gray=chance(view.gray),
        sigma=uniform(low=0.1 * scale, high=_LARGEST_SIGMA * scale) * chance(view.blur),
        solarise=chance(view.solarise),
        invert=chance(view.invert),
    )


def crop_boxes(draw: Draw, heights: Tensor, widths: Tensor) -> Tensor:
    """Where each image is cropped: [B, 4] left, top, width, height in px (whole numbers, as float)."""
    area = draw.area * (heights * widths)[:, None]
    width, height = (area * draw.ratio).sqrt().round(), (area / draw.ratio).sqrt().round()
    fits = (width <= widths[:, None]) & (height <= heights[:, None]) & (width > 0) & (height > 0)
    first = fits.float().argmax(dim=1, keepdim=True)
    ratio = draw.ratio[:, 0]
    fallback_width = torch.minimum(widths, (heights * ratio).round().clamp(min=1))
    fallback_height = torch.minimum(heights, (widths / ratio).round().clamp(min=1))
    any_fits = fits.any(dim=1)
    width = torch.where(any_fits, width.gather(1, first)[:, 0], fallback_width)
    height = torch.where(any_fits, height.gather(1, first)[:, 0], fallback_height)
    left = (draw.place[:, 0] * (widths - width + 1)).floor().clamp(max=(widths - width))
    top = (draw.place[:, 1] * (heights - height + 1)).floor().clamp(max=(heights - height))
    return torch.stack([left, top, width, height], dim=1)


def warp(images: Tensor, boxes: Tensor, draw: Draw, size: int) -> Tensor:
    """Crop, flip and turn in one bilinear resampling: uint8 or float [B, 3, H, W] -> float [B, 3, S, S].

    Not antialiased: for crops no larger than about the view. Outside of a turned image the border is mirrored.
    """
    floats = images.float().div_(255) if images.dtype == torch.uint8 else images
    return resample(floats, boxes, draw.flip, draw.angle, size)


def resample(images: Tensor, boxes: Tensor, flips: Tensor, angles: Tensor, size: int) -> Tensor:
    """What `warp` does, of float [B, 3, H, W] in any range, with flips [B] and angles [B] given."""
    height, width = images.shape[-2:]
    left, top, box_width, box_height = boxes.unbind(1)
    cosine, sine = angles.cos(), angles.sin()
    sign = torch.where(flips, -1.0, 1.0)
    scale_x, scale_y = box_width / width, box_height / height
    shift_x = (2 * left + box_width) / width - 1
    shift_y = (2 * top + box_height) / height - 1
    matrix = torch.stack(
        [
            torch.stack([scale_x * cosine * sign, -scale_x * sine, shift_x], dim=1),
            torch.stack([scale_y * sine * sign, scale_y * cosine, shift_y], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(matrix, [len(images), 3, size, size], align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def orient(images: Tensor, draw: Draw, view: View) -> Tensor:
    """Flip and turn images that are cropped already: [B, 3, S, S] -> float of the same shape."""
    size = images.shape[-1]
    if view.rotation == 0:
        flipped = _change(images, draw.flip, lambda some: some.flip(-1))
        return flipped.float().div_(255) if images.dtype == torch.uint8 else flipped
    whole = draw.angle.new_zeros(len(images), 4)
    whole[:, 2:] = size
    return warp(images, whole, draw, size)


def colour(images: Tensor, draw: Draw, view: View) -> Tensor:
    """Jitter, gray, blur, solarise, invert: float [B, 3, S, S] in 0 ... 1 -> the same."""
    if view.jitter_probability > 0 and max(view.jitter) > 0:
        jittered = (draw.jitter[:, :3] != 1).any(dim=1) | (draw.jitter[:, 3] != 0)
        change = partial(_jitter, order=draw.order, strengths=view.jitter)
        images = _change(images, jittered, change, draw.jitter)
    if view.gray > 0:
        images = _change(images, draw.gray, lambda some: luma(some).expand_as(some))
    if view.blur > 0:
        radius = math.ceil(2 * _LARGEST_SIGMA * view.size / 224)
        images = _change(images, draw.sigma > 0, partial(blur, radius=radius), draw.sigma)
    if view.solarise > 0:
        images = _change(images, draw.solarise, lambda some: torch.where(some >= 0.5, 1 - some, some))
    if view.invert > 0:
        images = _change(images, draw.invert, lambda some: 1 - some)
    return images


def in_parts(images: Tensor, draw: Draw, change: Callable[[Tensor, Draw], Tensor]) -> Tensor:
    """``change(images, draw)``, on a CPU part by part: all its passes over one part run in the caches."""
    rows = max(1, _CACHED // max(1, images[:1].numel()))
    if images.device.type != "cpu" or len(images) <= rows:
        return change(images, draw)
    parts = [slice(start, start + rows) for start in range(0, len(images), rows)]
    first = change(images[parts[0]], draw.rows(parts[0]))
    changed = first.new_empty(len(images), *first.shape[1:])
    changed[parts[0]] = first
    for part in parts[1:]:
        changed[part] = change(images[part], draw.rows(part))
    return changed


def _change(images: Tensor, chosen: Tensor, change: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """``change`` of the chosen images [B] with their parameters, [B, ...] each."""
    how = _change_rows if images.device.type == "cpu" else _change_everywhere
    return how(images, chosen, change, *parameters)


def _change_everywhere(
    images: Tensor, chosen: Tensor, change: Callable[..., Tensor], *parameters: Tensor
) -> Tensor:
    """Change all images and keep the chosen: to count them the host would wait for a GPU."""
    return torch.where(chosen[:, None, None, None], change(images, *parameters), images)


def _change_rows(
    images: Tensor, chosen: Tensor, change: Callable[..., Tensor], *parameters: Tensor
) -> Tensor:
    rows = chosen.nonzero()[:, 0]
    if len(rows) == 0:
        return images
    theirs = [values.index_select(0, rows) for values in parameters]
    return images.index_copy(0, rows, change(images.index_select(0, rows), *theirs))


def _jitter(images: Tensor, factors: Tensor, order: tuple[int, ...], strengths: tuple[float, ...]) -> Tensor:
    for which in order:
        if strengths[which] > 0:
            images = _JITTER[which](images, factors[:, which, None, None, None])
    return images


def luma(images: Tensor) -> Tensor:
    """Brightness of each pixel, [B, 1, S, S]."""
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).unsqueeze(1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale all pixels; factor [B, 1, 1, 1]."""
    return (images * factor).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance from the image's mean brightness."""
    mean = luma(images).mean(dim=(2, 3), keepdim=True)
    return torch.lerp(mean, images, factor).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance from each pixel's gray."""
    return torch.lerp(luma(images), images, factor).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` [B, 1, 1, 1] turns, keeping saturation and value of HSV."""
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - lowest
    divisor = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue = hue.add_(6 * shift[:, 0]).remainder_(6)
    shares = (  # HSV to RGB without cases: a channel is full two sixths of the turn around its own hue
        (hue - 3).abs_().sub_(1),
        (hue - 2).abs_().neg_().add_(2),
        (hue - 4).abs_().neg_().add_(2),
    )
    return torch.stack([torch.addcmul(lowest, chroma, share.clamp_(0, 1)) for share in shares], dim=1)


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur with a width [B] in px of its own for each image, cut at ``radius``; 0 leaves it as it is."""
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    safe = sigma.clamp(min=1e-3)[:, None]
    kernel = (-0.5 * (offsets / safe) ** 2).exp()
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    batch, channels, height, width = images.shape
    flat = functional.pad(images, (radius,) * 4, mode="reflect").reshape(
        1, batch * channels, height + 2 * radius, -1
    )
    weights = kernel.repeat_interleave(channels, dim=0)
    flat = functional.conv2d(flat, weights[:, None, :, None], groups=batch * channels)
    flat = functional.conv2d(flat, weights[:, None, None, :], groups=batch * channels)
    blurred = flat.reshape(batch, channels, height, width)
    return torch.where((sigma > 0)[:, None, None, None], blurred, images)


_JITTER = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
