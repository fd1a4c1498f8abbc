"""Montages: a row of small square pictures as one embedded image.

One file for a row, because every embedded file costs its header; tiles lie ``gap`` pixels apart, and the gap
repeats the tile's last column, so that lossy compression does not let a border colour bleed into a picture.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

LARGEST_TILE = 64
LOSSLESS_TILE = 32  # at this size and below pictures are kept exactly (PNG), above as JPEG
MISSING = 127  # grey level of a tile whose image can no longer be read


@dataclass(frozen=True)
class Montage:
    """A row of tiles: the data URI and the geometry that a page needs to lay words under each tile."""

    uri: str
    n_tiles: int
    tile: int
    gap: int

    @property
    def width(self) -> int:
        """Pixels from the first tile to the end of the last tile's gap."""
        return self.n_tiles * (self.tile + self.gap)


def tile_size(sizes: Tensor) -> int:
    """The side of a tile in pixels for images of ``sizes`` [N, 2]: the median shorter side, at most 64.

    >>> tile_size(torch.tensor([[24, 24], [24, 30], [500, 375]]))
    24
    """
    shorter = sizes.min(dim=1).values if len(sizes) else torch.tensor([LARGEST_TILE])
    return max(1, min(LARGEST_TILE, int(shorter.median())))


def thumbnail(image: Tensor, size: int) -> Tensor:
    """An image, uint8 [3, h, w], cut to its central square and resized: uint8 [3, size, size].

    An image of that size comes back as it is.
    """
    if tuple(image.shape[1:]) == (size, size):
        return image
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    fitted = ImageOps.fit(picture, (size, size), method=Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def missing_tile(size: int) -> Tensor:
    """The grey tile that stands for an image which can no longer be read."""
    return torch.full((3, size, size), MISSING, dtype=torch.uint8)


def montage(tiles: Sequence[Tensor]) -> Montage:
    """Tiles, each uint8 [3, size, size], in one row; PNG for small tiles, JPEG for larger ones.

    >>> montage([torch.zeros(3, 8, 8, dtype=torch.uint8)] * 2).width
    18
    """
    size = tiles[0].shape[-1]
    gap = max(1, size // 12)
    padded = [torch.cat([tile, tile[:, :, -1:].expand(-1, -1, gap)], dim=2) for tile in tiles]
    pixels = torch.cat(padded, dim=2).permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    if size <= LOSSLESS_TILE:
        kind = "png"
        Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    else:
        kind = "jpeg"
        Image.fromarray(pixels).save(buffer, "JPEG", quality=85, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Montage(f"data:image/{kind};base64,{encoded}", len(tiles), size, gap)
