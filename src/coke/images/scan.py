"""Decode every image once, in threads: sizes, content hashes, mean and deviation, and what cannot be read."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from coke.errors import DataError
from coke.images.decode import MAX_IMAGE_PIXELS, Content, decode
from coke.images.image_set import ImageSet
from coke.images.table import Pixels, Rows
from coke.images.unreadable import Unreadable
from coke.memory import usable_cpus

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""

_CHUNK = 64  # rows that a thread decodes in one go
_SUMMED = 1 << 20  # values of a channel that are summed at once: float64 takes eight times their memory
_SMALL = (
    3 * 80 * 80
)  # values of an image: below, sums of many at once are faster, and threads in each other's way


class _Scan:
    """What the scan of N rows fills in; its threads write rows of their own, and share nothing else.

    sizes: int32 [N, 2]; hashes: uint8 [N, 16]; sums: float64 [N, 2, 3]; readable: bool [N].
    pixels: uint8 [N, 3, h, w] while all images are of one size and may stay in memory, else None.
    """

    def __init__(self, rows: Rows, resident_bytes: int, max_pixels: int) -> None:
        self.rows, self.resident_bytes, self.max_pixels = rows, resident_bytes, max_pixels
        n_rows = len(rows.keys)
        self.sizes = np.zeros((n_rows, 2), np.int32)
        self.hashes = np.zeros((n_rows, 16), np.uint8)
        self.sums = np.zeros((n_rows, 2, 3))
        self.readable = np.zeros(n_rows, bool)
        self.pixels: Tensor | None = None
        self.resident = True

    def run(self) -> Iterator[list[Unreadable]]:
        """Scan all rows, chunk after chunk, from the first large image on in threads; gives what is unreadable."""
        starts = range(0, len(self.rows.keys), _CHUNK)
        done = 0
        while done < len(starts) and self._here():
            yield self.chunk(starts[done])
            done += 1
        with ThreadPoolExecutor(usable_cpus()) as threads:
            yield from threads.map(self.chunk, starts[done:])

    def _here(self) -> bool:
        """Whether one thread is best: images are small, or their size, and so where they are kept, is not known."""
        sizes = self.sizes[self.readable]
        return len(sizes) == 0 or 3 * sizes[-_CHUNK:].prod(1).mean() < _SMALL

    def chunk(self, start: int) -> list[Unreadable]:
        """Decode the rows from ``start`` on; those that cannot be read, with the reason."""
        unreadable: list[Unreadable] = []
        small: dict[torch.Size, dict[int, Tensor]] = defaultdict(dict)
        for row in range(start, min(start + _CHUNK, len(self.rows.keys))):
            try:
                content = self.rows.source.load(row)
                pixels = decode(content, self.max_pixels)
            except (DataError, OSError) as error:
                reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
                unreadable.append(Unreadable(self.rows.keys[row], reason))
                continue
            self.sizes[row] = pixels.shape[1:]
            self.hashes[row] = np.frombuffer(_digest(content, pixels), np.uint8)
            self.readable[row] = True
            if pixels.numel() < _SMALL:
                small[pixels.shape][row] = pixels
            else:
                self._keep([row], pixels[None])
        for images in small.values():
            self._keep(list(images), torch.stack(list(images.values())))
        return unreadable

    def _keep(self, rows: list[int], pixels: Tensor) -> None:
        """Sums of images of one size, uint8 [n, 3, h, w], and their pixels if they may stay in memory."""
        self.sums[rows] = channel_sums(pixels)
        shape = (len(self.rows.keys), *pixels.shape[1:])
        if self.pixels is None and self.resident and np.prod(shape) <= self.resident_bytes:
            self.pixels = torch.empty(
                shape, dtype=torch.uint8
            )  # by the first image, before there are threads
        stored = self.pixels
        if stored is not None and stored.shape == shape:
            stored[rows] = pixels
        else:
            self.pixels, self.resident = None, False


def scan(
    rows: Rows,
    *,
    resident_bytes: int = 2 << 30,
    max_pixels: int = MAX_IMAGE_PIXELS,
    progress: Progress | None = None,
) -> ImageSet:
    """Decode all rows and return the readable ones; ``unreadable`` of the set has the others.

    resident_bytes: pixels stay in memory where all images have one size and together take at most this.
    max_pixels: of an image; larger ones are unreadable.
    """
    n_rows = len(rows.keys)
    state = _Scan(rows, resident_bytes, max_pixels)
    unreadable: list[Unreadable] = []
    for number, more in enumerate(state.run(), 1):
        unreadable += more
        if progress is not None:
            progress(min(number * _CHUNK, n_rows), n_rows)
    kept = torch.from_numpy(state.readable).nonzero()[:, 0]
    source, places = rows.source, kept
    if state.pixels is not None:
        if unreadable:  # closed up in place: a copy of all would take as much memory again
            for start, some in zip(range(0, len(kept), _CHUNK), kept.split(_CHUNK), strict=True):
                state.pixels[start : start + len(some)] = state.pixels[some]
        source, places = Pixels(state.pixels[: len(kept)]), torch.arange(len(kept))
    return ImageSet(
        name=rows.name,
        keys=[rows.keys[row] for row in kept.tolist()],
        source=source,
        rows=places,
        sizes=torch.from_numpy(state.sizes)[kept],
        hashes=torch.from_numpy(state.hashes)[kept],
        sums=torch.from_numpy(state.sums)[kept],
        labels=None if rows.labels is None else rows.labels[kept],
        classes=rows.classes,
        unreadable=unreadable,
        max_pixels=max_pixels,
    )


def channel_sums(pixels: Tensor) -> np.ndarray:
    """Sum and sum of squares per channel of uint8 images [n, 3, h, w], float64 [n, 2, 3]: exact below 2^53.

    >>> channel_sums(torch.full((1, 3, 1, 2), 3, dtype=torch.uint8)).tolist()
    [[[6.0, 6.0, 6.0], [18.0, 18.0, 18.0]]]
    """
    if pixels.is_contiguous():
        values = pixels.numpy().reshape(len(pixels), 3, -1, 1)
    else:  # channels last, as images are decoded: to turn them around takes five times as long as their sums
        values = pixels.permute(0, 2, 3, 1).numpy().reshape(len(pixels), 1, pixels.shape[2], -1)
    total = np.zeros((len(pixels), 2, 3))
    step = max(1, _SUMMED // values.shape[3])
    for start in range(0, values.shape[2], step):  # one image may be larger than what is summed at once
        block = values[:, :, start : start + step].astype(np.float64)
        sums = np.stack([block.sum(2), np.einsum("ncpw,ncpw->ncw", block, block)], axis=1)
        total += sums.reshape(len(pixels), 2, -1, 3).sum(2)
    return total


def _digest(content: Content, pixels: Tensor) -> bytes:
    if isinstance(content, bytes):
        return hashlib.blake2b(content, digest_size=16).digest()
    shape = f"{tuple(pixels.shape)}".encode()  # the same bytes in another shape are another image
    return hashlib.blake2b(shape + pixels.contiguous().numpy().tobytes(), digest_size=16).digest()
