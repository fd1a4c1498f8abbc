"""Decode every image once, in threads: sizes, content hashes, mean and deviation, and what cannot be read."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coke.data.decode import Content, decode
from coke.data.images import ImageSet, Unreadable
from coke.data.memory import usable_cpus
from coke.data.sources import Pixels, Rows
from coke.errors import DataError

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""

_CHUNK = 64
_BLOCK = 1 << 20
_NAMED = 5


@dataclass(frozen=True, eq=False)
class _Image:
    """What one image gave: pixels only while the whole split may still stay in memory."""

    size: tuple[int, int]
    digest: bytes
    sums: np.ndarray
    pixels: Tensor | None


class _Scan:
    """The scan of one split: its threads share the rows and whether all sizes are equal so far."""

    def __init__(self, rows: Rows, resident_bytes: int) -> None:
        self.rows = rows
        self.resident_bytes = resident_bytes
        self.first_size: tuple[int, int] | None = None
        self.uniform = True

    def chunk(self, start: int) -> list[_Image | Unreadable]:
        """Decode the rows from ``start`` on."""
        stop = min(start + _CHUNK, len(self.rows.keys))
        return [self.image(row) for row in range(start, stop)]

    def image(self, row: int) -> _Image | Unreadable:
        """Decode one row; one that cannot be read gives the reason instead."""
        try:
            content = self.rows.source.load(row)
            pixels = decode(content)
        except (DataError, OSError) as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
            return Unreadable(self.rows.keys[row], reason)
        size = (pixels.shape[1], pixels.shape[2])
        if self.first_size is None:
            self.first_size = size
        fits = len(self.rows.keys) * pixels.numel() <= self.resident_bytes
        if size != self.first_size or not fits:
            self.uniform = False
        keep = pixels if self.uniform else None
        return _Image(size, _digest(content, pixels), channel_sums(pixels), keep)


def scan(
    rows: Rows,
    *,
    resident_bytes: int = 2 << 30,
    max_unreadable_share: float = 0.01,
    progress: Progress | None = None,
) -> ImageSet:
    """Decode all rows and return the readable ones.

    resident_bytes: pixels stay in memory where all images have one size and together take at most this.
    max_unreadable_share: of the rows; more raises `DataError` naming the first few. So does a split in which
    no image can be read at all.
    """
    n_rows = len(rows.keys)
    state = _Scan(rows, resident_bytes)
    unreadable: list[Unreadable] = []
    kept: list[int] = []
    sizes = torch.zeros((n_rows, 2), dtype=torch.int32)
    hashes = torch.zeros((n_rows, 16), dtype=torch.uint8)
    sums = torch.zeros((n_rows, 2, 3), dtype=torch.float64)
    stored: Tensor | None = None
    row = 0
    for chunk in _in_order(state, n_rows):
        for image in chunk:
            if isinstance(image, Unreadable):
                unreadable.append(image)
            else:
                place = len(kept)
                kept.append(row)
                sizes[place] = torch.tensor(image.size)
                hashes[place] = torch.frombuffer(bytearray(image.digest), dtype=torch.uint8)
                sums[place] = torch.from_numpy(image.sums)
                if not state.uniform or image.pixels is None:
                    stored = None
                else:
                    if stored is None:
                        stored = torch.empty((n_rows, *image.pixels.shape), dtype=torch.uint8)
                    if stored.shape[1:] == image.pixels.shape:
                        stored[place] = image.pixels
                    else:  # two threads saw the first size at the same time
                        state.uniform, stored = False, None
            row += 1
        if progress is not None:
            progress(row, n_rows)
    _refuse(rows.name, unreadable, n_rows, max_unreadable_share)
    chosen = torch.tensor(kept, dtype=torch.int64)
    count = len(kept)
    return ImageSet(
        name=rows.name,
        keys=[rows.keys[index] for index in kept],
        source=rows.source if stored is None else Pixels(stored[:count]),
        rows=chosen if stored is None else torch.arange(count),
        sizes=sizes[:count],
        hashes=hashes[:count],
        sums=sums[:count],
        labels=None if rows.labels is None else rows.labels[chosen],
        classes=rows.classes,
        unreadable=unreadable,
    )


def _in_order(state: _Scan, n_rows: int) -> Iterator[list[_Image | Unreadable]]:
    """The chunks in order; only a few are under way, so memory stays bounded."""
    threads = usable_cpus()
    pending: deque[Future[list[_Image | Unreadable]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, n_rows, _CHUNK):
            pending.append(pool.submit(state.chunk, start))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def channel_sums(pixels: Tensor) -> np.ndarray:
    """Sum and sum of squares per channel of uint8 [3, h, w], float64 [2, 3]: exact below 2^53.

    >>> channel_sums(torch.full((3, 1, 2), 3, dtype=torch.uint8)).tolist()
    [[6.0, 6.0, 6.0], [18.0, 18.0, 18.0]]
    """
    flat = pixels.numpy().reshape(3, -1)
    total = np.zeros((2, 3))
    for start in range(0, flat.shape[1], _BLOCK):  # in blocks: float64 takes eight times the image's memory
        block = flat[:, start : start + _BLOCK].astype(np.float64)
        total[0] += block.sum(1)
        total[1] += np.einsum("cp,cp->c", block, block)
    return total


def _digest(content: Content, pixels: Tensor) -> bytes:
    if isinstance(content, bytes):
        return hashlib.blake2b(content, digest_size=16).digest()
    shape = f"{tuple(pixels.shape)}".encode()  # the same bytes in another shape are another image
    return hashlib.blake2b(shape + pixels.contiguous().numpy().tobytes(), digest_size=16).digest()


def _refuse(name: str, unreadable: list[Unreadable], n_rows: int, max_share: float) -> None:
    share = len(unreadable) / max(n_rows, 1)
    if not unreadable or (share <= max_share and len(unreadable) < n_rows):
        return
    named = "; ".join(f"{bad.key}: {bad.reason}" for bad in unreadable[:_NAMED])
    more = f"; and {len(unreadable) - _NAMED} more" if len(unreadable) > _NAMED else ""
    raise DataError(
        f"{name}: {len(unreadable)} of {n_rows} images cannot be read "
        f"({share:.1%}, allowed {max_share:.1%}). {named}{more}. "
        "Repair or remove them, or allow more with max_unreadable_share"
    )
