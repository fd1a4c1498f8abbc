"""Where the content of images comes from: files, encoded bytes in memory, or pixels in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from torch import Tensor

from coke.errors import DataError
from coke.images.decode import Content


class Source(Protocol):
    """Gives the content of one image by its row. Picklable, and safe to use from several threads."""

    def load(self, row: int) -> Content:
        """Encoded bytes, a PIL image or pixels of a row. Raises `DataError` or `OSError` with the reason."""


@dataclass(frozen=True, eq=False)
class Files:
    """Images in files below ``root``; absolute paths are taken as they are."""

    root: Path
    paths: list[str]

    def load(self, row: int) -> bytes:
        """The bytes of a file."""
        return (self.root / self.paths[row]).read_bytes()


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoded images in memory, a column of parquet: binary [N]; where it is null, a path below ``root``."""

    content: pa.ChunkedArray
    paths: pa.ChunkedArray | None
    root: Path

    def load(self, row: int) -> bytes:
        """The bytes of a row, or of the file that the row names."""
        content = self.content[row].as_py()
        if content is not None:
            return bytes(content)
        path = self.paths[row].as_py() if self.paths is not None else None
        if not path:
            raise DataError("neither bytes nor a path")
        return (self.root / path).read_bytes()


@dataclass(frozen=True, eq=False)
class Pixels:
    """Decoded images of one size in memory: uint8 [N, 3, H, W]."""

    pixels: Tensor

    def load(self, row: int) -> Tensor:
        """The pixels of a row, uint8 [3, H, W]: a view, not to be written to."""
        return self.pixels[row]


@dataclass(frozen=True, eq=False)
class Rows:
    """One split before its scan: what was found, not yet known to be readable.

    keys: N names; labels: int64 [N], -1 where there is none, or None; classes: names of labels 0..C-1.
    """

    name: str
    keys: list[str]
    source: Source
    labels: Tensor | None = None
    classes: list[str] | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """What a reader found: rows to learn from, rows to ask probes about, and remarks for the user."""

    train: Rows
    query: Rows | None
    query_split: str = "test"
    remarks: tuple[str, ...] = ()
