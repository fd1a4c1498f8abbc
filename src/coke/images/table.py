"""One table for every kind of data: of each image a key, where its content lies and perhaps a label, split by split.

A reader says which splits there are and how the rows of one are read. Which of them are used, the same numbers for
the same classes in all of them, and what the user is told about it are decided here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from coke.errors import DataError, did_you_mean
from coke.images.decode import Content
from coke.images.labels import align
from coke.reading import read_file

DEFAULT_IMAGE = "image"
DEFAULT_LABEL = "label"
SPLITS = ("train", "test", "val")
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
_FIRST_WORD = re.compile(r"^[A-Za-z]+(?=$|[-_. ])")


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
        return read_file(self.root / self.paths[row])


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

    keys: N names; labels: int64 [N], -1 where there is none, or None; classes: names of labels 0..C-1;
    remarks: what the user should know of how it was read.
    """

    name: str
    keys: list[str]
    source: Source
    labels: Tensor | None = None
    classes: list[str] | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Chosen:
    """Rows to learn from, rows to ask probes about and of which split they are, and remarks for the user."""

    train: Rows
    query: Rows | None
    query_split: str
    remarks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Table:
    """The splits of some data, read on demand: the images of parquet are held in memory, and some are never asked.

    splits: what reads the rows of each of `SPLITS` that is there, given a name for them; or of "", where
    there are no splits.
    unused: remarks on what lies beside the splits in use, which are given.
    """

    name: str
    splits: Mapping[str, Callable[[str], Rows]]
    unused: Callable[[Sequence[str]], Iterable[str]] = lambda used: ()

    def read(self, split: str) -> Rows:
        """The rows of a split."""
        return self.splits[split](f"{self.name}, {split}" if split else self.name)

    def read_all(self) -> list[Rows]:
        """The rows of every split, train first."""
        return [self.read(split) for split in ("", *SPLITS) if split in self.splits]

    def choose(self) -> Chosen:
        """What is learned from, and what probes are asked: the first of test and val that has labels."""
        train = self.read("train" if "train" in self.splits else "")
        query, query_split, remarks = None, "", list(train.remarks)
        for query_split in [split for split in ("test", "val") if split in self.splits]:
            query = self.read(query_split)
            remarks += query.remarks
            if query.labels is not None:
                break
        remarks += self.unused(["train", query_split] if query else ["train"])
        if query is not None and query.labels is None:
            remarks.insert(0, f"the {query_split} split has no labels and is not used")
            query = None
        elif query is not None and train.labels is None:
            remarks.insert(
                0, f"only the {query_split} split has labels, and probes need others to learn from"
            )
            query = None
        if query is not None and query.labels is not None and query.classes and train.classes:
            labels, classes, added = align(train.classes, query.labels, query.classes)
            if added:
                remarks.append(f"classes only in the {query_split} split: {', '.join(added)}")
            train = replace(train, classes=classes)
            query = replace(query, labels=labels, classes=classes)
        return Chosen(train, query, query_split, tuple(dict.fromkeys(remarks)))


def split_of(name: str) -> str | None:
    """The split a file or folder name begins with: "train", "test", "val", or None.

    >>> split_of("validation-00000-of-00001"), split_of("Train"), split_of("trainspotting")
    ('val', 'train', None)
    """
    word = _FIRST_WORD.match(name)
    return _SPLIT_NAMES.get(word.group().lower()) if word else None


def row_keys(count: int) -> list[str]:
    """Keys of images that have no path."""
    return [f"row {row}" for row in range(count)]


def look_for_labels(where: Path, columns: list[str], asked: str, image: str) -> tuple[bool, tuple[str, ...]]:
    """Whether a column of labels is there, and a remark where the default one is not.

    Raises `DataError` for another that was asked for and is not there.
    """
    if asked in columns:
        return True, ()
    if asked != DEFAULT_LABEL:
        hint = did_you_mean(asked, columns)
        raise DataError(f"{where}: no column {asked!r}{hint}; it has {', '.join(columns)}")
    rest = ", ".join(column for column in columns if column != image)
    return False, (f"no column {asked!r} (other columns: {rest})",) if rest else ()
