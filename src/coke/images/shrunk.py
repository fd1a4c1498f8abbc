"""Large photographs, seen in training through smaller copies that are made once and kept.

A photograph of 12 megapixels takes a tenth of a second to decode, of which a crop of 224 px needs little. Whether an
image is seen through a copy follows from its size and from the views alone (`side_for`, `shrunk_sizes`), and a copy is
a function of the stored image: where copies are kept, and how many of them fit, changes the time and nothing else.
Shapes: N images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from coke import distributed
from coke.atomic import atomic
from coke.images.decode import Content, decode
from coke.images.image_set import ImageSet, shorter_side
from coke.images.splits import Splits
from coke.images.table import Source
from coke.images.views import View
from coke.memory import MEGABYTE, usable_cpus

LARGE = 2
"""Images whose shorter side is at least so many times a copy's are seen through one: it has a quarter of the pixels."""
_FORMAT = 1  # of the files in a folder; another where copies are made in another way


def side_for(views: Iterable[View]) -> int:
    """The shorter side of copies, px, at which the narrowest crop of the smallest share is as wide as its view.

    No crop is enlarged then that was not before. At their centre, as k-NN sees them, copies are no smaller than
    `shorter_side` either.

    >>> side_for([View(size=224, crop=(0.2, 1.0))]), side_for([View(size=128, crop=(0.3, 1.0))])
    (579, 270)
    """

    def enough(view: View) -> float:
        elongation = max(view.ratio[1], 1 / view.ratio[0])
        return max(view.size * math.sqrt(elongation / view.crop[0]), shorter_side(view.size))

    return math.ceil(max(map(enough, views)))


def shrunk_sizes(sizes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Which of N images are large, bool [N], and all sizes as they are seen, int32 [N, 2], for int32 [N, 2].

    >>> shrunk_sizes(torch.tensor([[3000, 4000], [400, 300], [3000, 539]]), 270)[1].tolist()
    [[270, 360], [400, 300], [3000, 539]]
    """
    shorter = sizes.min(dim=1, keepdim=True).values.long()
    large = shorter >= LARGE * side
    rounded = (2 * sizes.long() * side + shorter).div(2 * shorter.clamp(min=1), rounding_mode="floor")
    return large[:, 0], torch.where(large, rounded.to(sizes.dtype), sizes)


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A source of images of which the large ones are given as copies.

    source, max_pixels: where images come from, and what is decoded of them.
    side: of the copies, the shorter one, px.
    sizes: int32 [M, 2] of each row of the source, as it is seen; where it is no copy, 0.
    kept: uint8, the copies in memory, one after the other; starts: int64 [M] where each begins, -1 where none is kept.
    folder: files of copies, by the images' content; hashes: uint8 [M, 16].
    """

    source: Source
    max_pixels: int
    side: int
    sizes: Tensor
    kept: Tensor
    starts: Tensor
    folder: Path | None
    hashes: Tensor

    def load(self, row: int) -> Content:
        """A copy, uint8 [3, h, w], or what the source has of an image that is not large."""
        if not self.sizes[row, 0]:
            return self.source.load(row)
        start = int(self.starts[row])
        if start >= 0:
            return self._place(row, start)
        return self._make(row) if self.folder is None else self._from_folder(self.folder, row)

    def keep(self, row: int) -> None:
        """Make a copy where one is to be kept and is not there yet."""
        start = int(self.starts[row])
        if start >= 0:
            self._place(row, start).copy_(self._make(row))
        elif self.folder is not None:
            self._from_folder(self.folder, row)

    def _place(self, row: int, start: int) -> Tensor:
        height, width = self.sizes[row].tolist()
        return self.kept[start : start + 3 * height * width].view(height, width, 3).permute(2, 0, 1)

    def _make(self, row: int) -> Tensor:
        from torchvision.transforms.v2.functional import InterpolationMode, resize

        image = decode(self.source.load(row), self.max_pixels, at_least=self.side)
        size = self.sizes[row].tolist()
        copy: Tensor = resize(image, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        return copy.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # channels last in memory, as decoded

    def _from_folder(self, folder: Path, row: int) -> Tensor:
        name = self.hashes[row].numpy().tobytes().hex()
        path = folder / self._made_by() / name[:2] / f"{name}.npy"
        with suppress(OSError, ValueError, EOFError):  # not there yet, or damaged
            copy = np.load(path, allow_pickle=False)
            if copy.dtype == np.uint8 and copy.shape == (*self.sizes[row].tolist(), 3):
                return torch.from_numpy(copy).permute(2, 0, 1)
        copy = self._make(row)
        with atomic(path, "wb") as stream:
            np.save(stream, copy.permute(1, 2, 0).contiguous().numpy())
        return copy

    def _made_by(self) -> str:
        """Other versions may decode otherwise: theirs lie beside these."""
        return f"{self.side}px-{_FORMAT}-pillow-{PIL.__version__}-torch-{torch.__version__}"

    def in_words(self) -> str:
        """What is seen through copies, and where these are."""
        large = self.sizes[:, 0] > 0
        count, n_kept = int(large.sum()), int((self.starts >= 0).sum())
        n_bytes = 3 * int(self.sizes[large].long().prod(1).sum())
        words = f"{count:,} large images are seen through copies of {self.side} px (shorter side)"
        if self.folder is not None:
            return f"{words}, {n_bytes / MEGABYTE:,.1f} MB in {self.folder}"
        if n_kept == count:
            return f"{words}, {n_bytes / MEGABYTE:,.1f} MB in memory"
        kept = f"{n_kept:,} of them, {len(self.kept) / MEGABYTE:,.1f} MB, are kept in memory"
        return f"{words}; {kept}, the others are made anew each epoch (cache=FOLDER keeps all)"


def shrink(
    splits: Splits,
    side: int,
    *,
    memory: int = 0,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Splits:
    """The same images, of which those that are large beside ``side`` (px) are copies; the very same where none is.

    Statistics, keys, labels and the fingerprint stay those of the originals.

    Args:
        memory: bytes that copies may take; the first images of train come first, then those of query.
        folder: keep all in files there instead, for other runs, too; one that another run of it wrote is taken.
        progress: called with copies done and copies in all.

    Raises `DataError` or `OSError` where an image can no longer be read, or a copy not be written.
    """
    sets = [images for images in (splits.train, splits.bank, splits.query) if images is not None]
    sources: dict[int, Shrunk] = {}
    for images in sets:
        if id(images.source) not in sources:
            own = [other for other in sets if other.source is images.source]
            shrunk = sources[id(images.source)] = _of_source(own, side, memory, folder)
            memory -= len(shrunk.kept)
    rows = [
        (shrunk, row) for shrunk in sources.values() for row in shrunk.sizes[:, 0].nonzero()[:, 0].tolist()
    ]
    if not rows:
        return splits
    if folder is not None:  # each process makes a share; what is missing is made when it is asked for
        rows = rows[distributed.shard(len(rows))]
    wanted = [(shrunk, row) for shrunk, row in rows if folder is not None or shrunk.starts[row] >= 0]
    with ThreadPoolExecutor(usable_cpus()) as threads:
        for done, _ in enumerate(threads.map(lambda one: one[0].keep(one[1]), wanted), 1):
            if progress is not None:
                progress(done, len(wanted))

    def seen(images: ImageSet) -> ImageSet:
        _, sizes = shrunk_sizes(images.sizes, side)
        share = sizes.double().prod(1) / images.sizes.double().prod(
            1
        )  # so that means of pixels stay what they are
        source = sources[id(images.source)]
        return replace(images, source=source, sizes=sizes, sums=images.sums * share[:, None, None])

    bank, query = (None if images is None else seen(images) for images in (splits.bank, splits.query))
    return replace(splits, train=seen(splits.train), bank=bank, query=query)


def in_words(splits: Splits) -> list[str]:
    """What of these is seen through copies, if anything is."""
    sets = [images for images in (splits.train, splits.query) if images is not None]
    sources = {id(images.source): images.source for images in sets}
    return [
        source.in_words() for source in sources.values() if isinstance(source, Shrunk) and source.sizes.any()
    ]


def _of_source(sets: list[ImageSet], side: int, memory: int, folder: Path | None) -> Shrunk:
    """Copies of images of one source: which, how large, and where each will lie."""
    n_rows = max((int(images.rows.max()) + 1 for images in sets if len(images)), default=0)
    sizes = torch.zeros(n_rows, 2, dtype=torch.int32)
    hashes = torch.zeros(n_rows, 16, dtype=torch.uint8)
    for images in sets:
        large, smaller = shrunk_sizes(images.sizes, side)
        sizes[images.rows[large]] = smaller[large]
        hashes[images.rows] = images.hashes
    n_bytes = 3 * sizes.long().prod(1)
    stops = n_bytes.cumsum(0)
    fits = (n_bytes > 0) & (stops <= (memory if folder is None else 0))
    total = int(n_bytes[fits].sum())
    starts = torch.where(fits, stops - n_bytes, -1)
    kept = torch.empty(total, dtype=torch.uint8)
    return Shrunk(sets[0].source, sets[0].max_pixels, side, sizes, kept, starts, folder, hashes)
