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

from coke.errors import DataError
from coke.images.decode import Content, decode
from coke.images.image_set import ImageSet, Unreadable
from coke.images.memory import usable_cpus
from coke.images.table import Pixels, Rows

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""

_CHUNK = 64
_BLOCK = 1 << 20  # values that are summed at once: float64 takes eight times their memory
_SMALL = 3 * 80 * 80  # values of an image below which threads only get in each other's way
_NAMED = 5


@dataclass(frozen=True, eq=False)
class _Image:
    """A readable row."""

    row: int
    pixels: Tensor
    digest: bytes


@dataclass(frozen=True, eq=False)
class _Chunk:
    """What some rows gave: n readable images, their pixels only while the whole split may stay in memory."""

    kept: list[int]
    sizes: list[tuple[int, int]]
    digests: bytes  # 16 of each image
    sums: np.ndarray  # float64 [n, 2, 3]
    pixels: Tensor | None  # uint8 [n, 3, h, w]
    unreadable: list[Unreadable]

    @property
    def small(self) -> bool:
        """Whether its images are small on average."""
        return 3 * sum(height * width for height, width in self.sizes) < _SMALL * len(self.sizes)


class _Scan:
    """The scan of one split: its threads share the rows and whether pixels may stay in memory."""

    def __init__(self, rows: Rows, resident_bytes: int) -> None:
        self.rows, self.resident_bytes = rows, resident_bytes
        self.resident = True

    def chunks(self) -> Iterator[_Chunk]:
        """All rows in order; large images in threads, only a few chunks ahead, so that memory stays bounded."""
        starts = iter(range(0, len(self.rows.keys), _CHUNK))
        for start in starts:
            chunk = self.chunk(start)
            yield chunk
            if not chunk.small:
                break
        threads = usable_cpus()
        pending: deque[Future[_Chunk]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for start in starts:
                pending.append(pool.submit(self.chunk, start))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def chunk(self, start: int) -> _Chunk:
        """Decode the rows from ``start`` on."""
        unreadable: list[Unreadable] = []
        kept: list[int] = []
        sizes: list[tuple[int, int]] = []
        digests = b""
        sums = [np.zeros((0, 2, 3))]
        blocks: list[Tensor] = []
        for images in _alike(self._decoded(start, unreadable)):
            block = torch.stack([image.pixels for image in images])
            kept += [image.row for image in images]
            sizes += [(block.shape[2], block.shape[3])] * len(images)
            digests += b"".join(image.digest for image in images)
            sums.append(channel_sums(block))
            fits = len(self.rows.keys) * block[0].numel() <= self.resident_bytes
            if not fits or (blocks and blocks[0].shape[1:] != block.shape[1:]):
                self.resident = False
            blocks = [*blocks, block] if self.resident else []
        pixels = torch.cat(blocks) if blocks and self.resident else None
        return _Chunk(kept, sizes, digests, np.concatenate(sums), pixels, unreadable)

    def _decoded(self, start: int, unreadable: list[Unreadable]) -> Iterator[_Image]:
        """The readable rows; the others go to ``unreadable`` with the reason."""
        for row in range(start, min(start + _CHUNK, len(self.rows.keys))):
            try:
                content = self.rows.source.load(row)
                pixels = decode(content)
            except (DataError, OSError) as error:
                reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
                unreadable.append(Unreadable(self.rows.keys[row], reason))
            else:
                yield _Image(row, pixels, _digest(content, pixels))


def _alike(images: Iterator[_Image]) -> Iterator[list[_Image]]:
    """Runs of images of one size, no longer than their sums are taken at once."""
    run: list[_Image] = []
    for image in images:
        if run and (image.pixels.shape != run[0].pixels.shape or len(run) * image.pixels.numel() >= _BLOCK):
            yield run
            run = []
        run.append(image)
    if run:
        yield run


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
    digests = bytearray()
    sums = [np.zeros((0, 2, 3))]
    stored: Tensor | None = None
    for chunk in state.chunks():
        unreadable += chunk.unreadable
        place = slice(len(kept), len(kept) + len(chunk.kept))
        kept += chunk.kept
        sizes[place] = torch.tensor(chunk.sizes, dtype=torch.int32).reshape(-1, 2)
        digests += chunk.digests
        sums.append(chunk.sums)
        if chunk.pixels is not None:
            if stored is None:
                stored = torch.empty((n_rows, *chunk.pixels.shape[1:]), dtype=torch.uint8)
            if stored.shape[1:] == chunk.pixels.shape[1:]:
                stored[place] = chunk.pixels
            else:
                state.resident = False
        if not state.resident:
            stored = None
        if progress is not None:
            progress(len(kept) + len(unreadable), n_rows)
    _refuse(rows.name, unreadable, n_rows, max_unreadable_share)
    chosen = torch.tensor(kept, dtype=torch.int64)
    count = len(kept)
    return ImageSet(
        name=rows.name,
        keys=[rows.keys[index] for index in kept],
        source=rows.source if stored is None else Pixels(stored[:count]),
        rows=chosen if stored is None else torch.arange(count),
        sizes=sizes[:count],
        hashes=torch.from_numpy(np.frombuffer(digests, dtype=np.uint8).reshape(-1, 16)),
        sums=torch.from_numpy(np.concatenate(sums)),
        labels=None if rows.labels is None else rows.labels[chosen],
        classes=rows.classes,
        unreadable=unreadable,
    )


def channel_sums(pixels: Tensor) -> np.ndarray:
    """Sum and sum of squares per channel of uint8 images [n, 3, h, w], float64 [n, 2, 3]: exact below 2^53.

    >>> channel_sums(torch.full((1, 3, 1, 2), 3, dtype=torch.uint8)).tolist()
    [[[6.0, 6.0, 6.0], [18.0, 18.0, 18.0]]]
    """
    flat = pixels.numpy().reshape(len(pixels), 3, -1)
    total = np.zeros((len(pixels), 2, 3))
    for start in range(0, flat.shape[2], _BLOCK):  # one image may be larger than a block
        block = flat[:, :, start : start + _BLOCK].astype(np.float64)
        total[:, 0] += block.sum(2)
        total[:, 1] += np.einsum("ncp,ncp->nc", block, block)
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
