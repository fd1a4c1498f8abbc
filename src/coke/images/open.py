"""One name for every kind of data."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from coke.errors import DataError, did_you_mean
from coke.images.decode import MAX_IMAGE_PIXELS
from coke.images.folder import SUFFIXES, find_folder
from coke.images.image_set import ImageSet
from coke.images.listing import LISTS, TABLES, find_list, find_table
from coke.images.parquet import find_parquet
from coke.images.scan import scan
from coke.images.splits import Splits, in_order, make_splits
from coke.images.table import DEFAULT_IMAGE, DEFAULT_LABEL, Rows, Table
from coke.images.textures import NAME, find_textures
from coke.images.torchvision_sets import find_torchvision
from coke.images.unreadable import Unreadable, refuse_too_many, to_install
from coke.reading import files_below

_NAME_AND_ROOT = re.compile(
    r"^(?P<name>[A-Za-z_][A-Za-z0-9_]+):(?P<root>.+)$"
)  # two letters: C:\\ is a drive


def open_data(
    data: str | os.PathLike[str],
    *,
    seed: int = 0,
    resident_bytes: int = 2 << 30,
    max_unreadable_share: float = 0.01,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    label_column: str = "label",
    image_column: str = "image",
    contents: Sequence[bytes] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Splits:
    """Find the images of ``data``, decode each once, and say which of them probes use.

    seed: of the hold-out where there is no labelled test split.
    resident_bytes: a split's pixels stay in memory where all its images have one size and take at most this.
    max_unreadable_share: of a split's images may be unreadable (of ten or more one, unless it is 0); they are
    listed and left out.
    max_image_pixels: of one image; larger ones are not decoded, and unreadable.
    label_column, image_column: of parquet and CSV.
    contents: hashes of the images that a run was trained on: where these are the same ones, they come in that order,
    else in the order of their own hashes, whatever the order in ``data``.
    progress: called with images decoded and images in all, over both splits.

    Raises `DataError` for a path that is not there, no images, labels of a wrong type, and `UnreadableError`,
    with the whole list, for too many unreadable images.

    >>> splits = open_data("textures")
    >>> len(splits.train), splits.train.classes[:3], splits.note
    (5000, ['stripes', 'checks', 'dots'], 'probes query the test split (1,000 images)')
    """
    if not 0 <= max_unreadable_share <= 1:
        raise DataError(f"max_unreadable_share must be in [0, 1], got {max_unreadable_share}")
    found = _find(data, label_column, image_column).choose()
    if (image_column, label_column) != (DEFAULT_IMAGE, DEFAULT_LABEL) and not has_columns(data):
        raise DataError(f"{data} has no columns: image_column and label_column are of parquet and CSV")
    total = len(found.train.keys) + (len(found.query.keys) if found.query else 0)

    def scan_split(rows: Rows, done: int) -> ImageSet:
        report = None if progress is None else lambda count, _: progress(done + count, total)
        return scan(rows, resident_bytes=resident_bytes, max_pixels=max_image_pixels, progress=report)

    train = in_order(scan_split(found.train, 0), contents)
    query = scan_split(found.query, len(found.train.keys)) if found.query else None
    if found.query and query and not set(found.train.keys).isdisjoint(found.query.keys):
        train, query = _told_apart(train, "train"), _told_apart(query, found.query_split)
    splits = [(found.train, train)] + ([(found.query, query)] if found.query and query else [])
    listed = [bad for _, images in splits for bad in images.unreadable]
    for rows, images in splits:  # once both are scanned: what is repaired then, is repaired at once
        refuse_too_many(rows.name, images.unreadable, len(rows.keys), max_unreadable_share, listed)
    remarks = found.remarks
    if train.n_duplicates:
        remarks += (f"exact copies of other images to learn from: {train.n_duplicates:,}",)
    remarks += tuple(to_install(bad.reason for bad in listed))
    return make_splits(train, query, query_split=found.query_split, seed=seed, remarks=remarks)


def _told_apart(images: ImageSet, split: str) -> ImageSet:
    """With unreadable images named after their split, where another split has the same keys."""
    told = [Unreadable(f"{split}/{bad.key}", bad.reason) for bad in images.unreadable]
    return replace(images, unreadable=told)


def find_rows(
    data: str | os.PathLike[str], *, image_column: str = "image", label_column: str = "label"
) -> list[Rows]:
    """All images of ``data``, split after split, train first, as they lie there: none is decoded.

    Splits that `open_data` would leave aside are there too. Raises as `open_data` does.
    """
    return _find(data, label_column, image_column).read_all()


def _find(data: str | os.PathLike[str], label_column: str, image_column: str) -> Table:
    path = Path(data)
    if not os.path.exists(path):
        return _find_name(str(data))
    suffix = path.suffix.lower()
    if path.is_dir():
        parquet, images = _kinds(path)
        if parquet and images:
            raise DataError(f"{path} holds both images and parquet files: name the one to learn from")
        if not parquet:
            return find_folder(path)
    elif suffix in LISTS:
        return find_list(path)
    elif suffix in TABLES:
        return find_table(path, image_column=image_column, label_column=label_column)
    elif suffix != ".parquet":
        readable = ", ".join((*LISTS, *TABLES, ".parquet"))
        raise DataError(
            f"{path}: {suffix or 'a file without suffix'} is no list of images; use {readable}, or a folder"
        )
    return find_parquet(path, image_column=image_column, label_column=label_column)


def has_columns(data: str | os.PathLike[str]) -> bool:
    """Whether images and labels are columns of a table there: CSV or parquet."""
    path = Path(data)
    if path.is_dir():
        return _kinds(path)[0]
    return path.is_file() and path.suffix.lower() in (*TABLES, ".parquet")


def _find_name(data: str) -> Table:
    """The embedded default or a torchvision data set; else the error for a path that is not there."""
    if data == NAME:
        return find_textures()
    name = _NAME_AND_ROOT.match(data)
    if name:
        return find_torchvision(name["name"], Path(name["root"]))
    path = Path(data)
    above = path.parent
    known = [NAME]
    if above.is_dir():
        known += [str(above / entry.name) for entry in above.iterdir()]
    where = "" if above.is_dir() else f"; {_deepest(path)} is the part of it that exists"
    raise DataError(
        f"no such file or folder: {data}{did_you_mean(data, known)}{where}. Give a folder, a list "
        f"(.txt, .csv), parquet, a torchvision data set as NAME:ROOT, or {NAME!r}"
    )


def _deepest(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if os.path.exists(parent))


def _kinds(folder: Path) -> tuple[bool, bool]:
    """Whether there are parquet files and images below a folder."""
    names = [name.lower() for name in files_below(folder)]
    return any(name.endswith(".parquet") for name in names), any(name.endswith(SUFFIXES) for name in names)
