"""One split of images, scanned: every image in it was decoded once and is readable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from coke.images.decode import MAX_IMAGE_PIXELS, decode
from coke.images.table import Pixels, Source
from coke.images.unreadable import Unreadable
from coke.memory import usable_cpus

SMALL = 64
"""Up to this size in pixels a centre crop keeps the whole shorter side; above, the usual 224 of 256."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N readable images of one split.

    name: what it is, for people ("cifar10, train").
    keys: N names: the path relative to the data's root (posix), or "row 17".
    source, rows: where the content comes from, and which of its rows these are, int64 [N].
    sizes: int32 [N, 2], height and width in pixels, upright.
    hashes: uint8 [N, 16], of each image's stored content.
    sums: float64 [N, 2, 3], each image's sum and sum of squares of pixel values 0..255 per channel.
    labels: int64 [N], -1 where an image has none; None where the source has no labels at all.
    classes: the names of labels 0..C-1, None without labels.
    unreadable: what the scan left out.
    max_pixels: of an image; larger ones are not decoded.

    >>> from coke.images import open_data
    >>> images = open_data("textures").train
    >>> len(images), tuple(images.read(0).shape), len(images.subset([2, 3]))
    (5000, (3, 24, 24), 2)
    """

    name: str
    keys: list[str]
    source: Source
    rows: Tensor
    sizes: Tensor
    hashes: Tensor
    sums: Tensor
    labels: Tensor | None = None
    classes: list[str] | None = None
    unreadable: list[Unreadable] = field(default_factory=list)
    max_pixels: int = MAX_IMAGE_PIXELS

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def pixels(self) -> Tensor | None:
        """All images, uint8 [N, 3, H, W], where the scan found them of one size and small enough, else None.

        Of a subset that is not a contiguous range this copies its rows, once.
        """
        if not isinstance(self.source, Pixels):
            return None
        stored = self.source.pixels
        first = int(self.rows[0]) if len(self) else 0
        if torch.equal(self.rows, torch.arange(first, first + len(self))):
            return stored[first : first + len(self)]
        return stored[self.rows]

    @cached_property
    def mean(self) -> tuple[float, float, float]:
        """Mean of each channel in [0, 1]; every image counts the same, however large it is."""
        red, green, blue = (self._moments()[0] / 255).tolist()
        return red, green, blue

    @cached_property
    def std(self) -> tuple[float, float, float]:
        """Standard deviation of each channel in [0, 1]; every image counts the same, however large it is."""
        mean, square = self._moments()
        red, green, blue = ((square - mean**2).clamp(min=0).sqrt() / 255).tolist()
        return red, green, blue

    def _moments(self) -> Tensor:
        """Mean and mean square of each channel over the images' own, float64 [2, 3]."""
        n_pixels = self.sizes.to(torch.float64).prod(1)
        if len(self) and bool((n_pixels == n_pixels[0]).all()):
            return self.sums.sum(0) / n_pixels.sum()  # sums of whole numbers: exact
        return (self.sums / n_pixels[:, None, None]).mean(0)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the images' stored content in their order: 32 hexadecimal digits.

        Neither where the images lie nor their keys or labels count.
        """
        return hashlib.blake2b(self.hashes.contiguous().numpy().tobytes(), digest_size=16).hexdigest()

    @property
    def n_duplicates(self) -> int:
        """How many images have exactly the stored content of one before them."""
        return len(self) - len(np.unique(self.hashes.contiguous().numpy().view("V16")))

    def read(self, index: int) -> Tensor:
        """One image, uint8 [3, height, width], RGB, from memory or decoded now: not to be written to.

        Raises `DataError` or `OSError` where the file has changed or gone since the scan.
        """
        return decode(self.source.load(int(self.rows[index])), self.max_pixels)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """The same images, fewer rows, in the order of ``indices`` (int64 [M]). Shares the content."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return replace(
            self,
            keys=[self.keys[index] for index in chosen.tolist()],
            rows=self.rows[chosen],
            sizes=self.sizes[chosen],
            hashes=self.hashes[chosen],
            sums=self.sums[chosen],
            labels=None if self.labels is None else self.labels[chosen],
        )

    def centered(
        self, size: int, batch_size: int = 256, shorter: int | None = None, interpolation: str = "bicubic"
    ) -> Iterator[Tensor]:
        """All images in order, as batches uint8 [b, 3, size, size]: the view that evaluation uses.

        The shorter side is resized to ``shorter``, by default ``size`` (up to 64 px) or ``size * 256 / 224``, with
        antialias, then the centre is cut out.
        """

        def one(index: int) -> Tensor:
            return center(self.read(index), size, shorter, interpolation)

        with ThreadPoolExecutor(usable_cpus()) as threads:
            for start in range(0, len(self), batch_size):
                stop = min(start + batch_size, len(self))
                if isinstance(self.source, Pixels):
                    yield center(self.source.pixels[self.rows[start:stop]], size, shorter, interpolation)
                else:
                    yield torch.stack(list(threads.map(one, range(start, stop))))


def shorter_side(size: int) -> int:
    """To how many px an image's shorter side is resized before its centre of ``size`` px is cut out."""
    return size if size <= SMALL else round(size * 256 / 224)


def center(image: Tensor, size: int, shorter: int | None = None, interpolation: str = "bicubic") -> Tensor:
    """The centre of uint8 [..., 3, h, w] images as [..., 3, size, size]; see `ImageSet.centered`.

    shorter: what the shorter side is resized to before; interpolation: "bicubic" or "bilinear".

    >>> center(torch.zeros(3, 40, 60, dtype=torch.uint8), 32).shape
    torch.Size([3, 32, 32])
    """
    height, width = image.shape[-2:]
    shorter = shorter_side(size) if shorter is None else shorter
    scaled = (max(shorter, height * shorter // width), max(shorter, width * shorter // height))
    if scaled != (height, width):
        batch = image.float() if image.ndim == 4 else image.float()[None]
        batch = functional.interpolate(batch, scaled, mode=interpolation, antialias=True, align_corners=False)
        resized = batch.round().clamp(0, 255).to(torch.uint8)
        image = resized if image.ndim == 4 else resized[0]
    top, left = (round((side - size) / 2) for side in scaled)
    return image[..., top : top + size, left : left + size].contiguous()
