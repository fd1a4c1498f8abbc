"""Which images show a clustering, and their thumbnails: within a budget of bytes, copies collapsed into one.

What is shown can be kept in a file, so that it can be shown again where the images are not at hand.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from coke.atomic import atomic
from coke.explore.groups import Groups, Kind
from coke.explore.thumbnails import thumbnail

if TYPE_CHECKING:
    from coke.images.image_set import ImageSet

Array = np.ndarray[Any, Any]
Place = tuple[int, int, str]  # head, cluster, kind
FIRST, SHOWN = 6, 24  # images of a kind that are shown at once, and with "show more"
_SIDES = ((1000, 160), (10**12, 96))  # px of a thumbnail's shorter side, by the number of images up to which
_LOSSLESS, _FEW = 32, 20_000  # px: pictures of this size and below are kept exactly where images are few
_WORDS = 260  # bytes of a picture's words on the page
_ALIKE = 3.0  # mean difference, of 255, below which two pictures are one (docs/log.md)


@dataclass
class Shown:
    """An image in a row of pictures, and how many images behind it look the same."""

    row: int
    copies: int = 0


class Pictures:
    """Thumbnails of a run's images by row: from the images at hand, else those that were kept.

    Args:
        assignments: the run's table: key, and content where there is one; None where there is no run yet.
        images: those at hand, known by content or key.
        kept: what `keep` wrote.

    Attributes:
        keys: of all rows. classes: names of labels, as far as they were kept. copies: [N], equal where contents are.
        content: thumbnails by row, as far as they were loaded. places: where rows lie among the images at hand.
        failed: rows asked for that can no longer be read. twins: rows that stand behind one that looks the same.
    """

    def __init__(self, assignments: Any, images: ImageSet | None = None, kept: Any = None) -> None:
        names, self.images = [] if assignments is None else assignments.column_names, images
        self.keys: list[str] = assignments["key"].to_pylist() if "key" in names else []
        self.content, self.looks = dict[int, bytes](), dict[int, Array]()
        self.failed, self.twins = set[int](), set[int]()
        self.places = dict[int, int]()
        contents = assignments["content"].to_pylist() if self.keys and "content" in names else self.keys
        self.copies = np.unique(np.array(contents, object), return_inverse=True)[1]
        said = None if kept is None else kept.schema.metadata
        self.classes = json.loads((said or {}).get(b"classes", b"null"))
        for one in [] if kept is None else kept.to_pylist():
            if one["row"] < len(self.keys) and self.keys[one["row"]] == one["key"]:
                self.content[one["row"]] = one["picture"]
        self.kept = bool(self.content)
        if images is not None:
            by_key = {key: place for place, key in enumerate(images.keys)}
            by_content = {content.tobytes(): place for place, content in enumerate(images.hashes.numpy())}
            for row, (key, content) in enumerate(zip(self.keys, contents, strict=True)):
                place = by_content.get(content, by_key.get(key))
                if place is not None:
                    self.places[row] = place

    def load(self, rows: Iterable[int]) -> None:
        """Have the thumbnails of rows ready, as far as they can be had."""
        wanted = dict.fromkeys(row for row in rows if row not in self.content)
        here = [row for row in wanted if row in self.places and row not in self.failed]
        with ThreadPoolExecutor() as threads:
            for row, picture in zip(here, threads.map(self._read, here), strict=True):
                if picture is None:
                    self.failed.add(row)
                else:
                    self.content[row] = picture

    def _read(self, row: int) -> bytes | None:
        assert self.images is not None
        try:
            pixels = self.images.read(self.places[row])
        except (OSError, ValueError):
            return None
        side = next(side for n_images, side in _SIDES if len(self.keys) <= n_images)
        exact = max(pixels.shape[1:]) <= _LOSSLESS and len(self.keys) <= _FEW
        how = {"quality": 78, "lossless": exact, "method": 1 if exact else 4}
        return thumbnail(pixels, side, 2 * side, format="WEBP", **how)

    def look(self, row: int) -> Array | None:
        """A picture at 16 x 16, float32 [768] of 0 ... 255, by which copies are known; None where there is none."""
        if row in self.content and row not in self.looks:
            picture = Image.open(io.BytesIO(self.content[row])).convert("RGB")
            small = picture.resize((16, 16), Image.Resampling.BOX)
            self.looks[row] = np.asarray(small, np.float32).ravel()
        return self.looks.get(row)

    def difference(self, one: int, other: int) -> float | None:
        """The mean difference of two pictures, of 255; None where one of them is not there."""
        looks = self.look(one), self.look(other)
        return None if looks[0] is None or looks[1] is None else float(np.abs(looks[0] - looks[1]).mean())

    def choose(self, heads: list[Groups], budget: float) -> tuple[dict[Place, list[Shown]], bool]:
        """Images of every cluster and kind, and whether the budget of bytes sufficed.

        All clusters get their first image of a kind before any gets its second, and those of the first head, which
        is seen first, get all that are shown at once before others do. A cluster that shows all its images at once
        has one kind.
        """
        if not heads:
            return {}, True
        queues: dict[Place, list[int]] = {}
        members = {(head.index, cluster): head.members(cluster) for head in heads for cluster in head.by_size}
        for kind in get_args(Kind):
            for head in heads:
                for cluster in head.by_size:
                    if kind == "central" or head.sizes[cluster] > FIRST:
                        rows = head.chosen(cluster, kind, self.copies)[: 2 * SHOWN]
                        queues[head.index, cluster, kind] = rows[::-1].tolist()
        shown: dict[Place, list[Shown]] = {place: [] for place in queues}
        first = [place for place in queues if place[0] == heads[0].index]
        paid: set[int] = set()
        for places, n_most in ((queues, 1), (first, FIRST), (queues, FIRST), (queues, SHOWN)):
            while turn := [at for at in places if queues[at] and len(shown[at]) < n_most and budget > 0]:
                self.load(queues[at][-1] for at in turn)
                for at in turn:
                    row = queues[at].pop()
                    if self.images is None and self.kept and row not in self.content:
                        continue
                    copies = int((self.copies[members[at[:2]]] == self.copies[row]).sum())
                    twin = self._twin(row, shown[at])
                    if twin is not None:
                        twin.copies += copies
                        self.twins.add(row)
                        continue
                    budget -= _WORDS + (0 if row in paid else len(self.content.get(row, b"")) * 4 / 3)
                    if budget <= 0:
                        return shown, False
                    paid.add(row)
                    shown[at].append(Shown(row, copies - 1))
        return shown, budget > 0

    def _twin(self, row: int, shown: list[Shown]) -> Shown | None:
        """The image among those shown that looks like this one."""
        look, seen = self.look(row), [one for one in shown if one.row in self.looks]
        if look is None or not seen:
            return None
        differences = np.abs(np.stack([self.looks[one.row] for one in seen]) - look).mean(axis=1)
        return seen[int(differences.argmin())] if differences.min() < _ALIKE else None

    def keep(self, path: Path, rows: Iterable[int], classes: list[str] | None) -> None:
        """Write the thumbnails of rows to a parquet file, with the names of the labels."""
        kept = sorted({*rows, *self.twins} & self.content.keys())
        of_rows = {"key": [self.keys[row] for row in kept], "picture": [self.content[row] for row in kept]}
        table = pyarrow.table({"row": kept, **of_rows}).replace_schema_metadata(
            {"classes": json.dumps(classes)}
        )
        with atomic(path, "wb") as stream:
            pyarrow.parquet.write_table(table, stream, compression="none")
