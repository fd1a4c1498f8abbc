"""One name for every kind of data."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from coke.data.labels import align
from coke.data.parquet import find_parquet
from coke.data.scan import scan
from coke.data.sources import Found, Pixels, Rows
from coke.data.splits import Splits, make_splits
from coke.data.textures import CLASSES, textures
from coke.errors import DataError, did_you_mean

TEXTURES = "textures"


def open_data(
    data: str | os.PathLike[str],
    *,
    seed: int = 0,
    resident_bytes: int = 2 << 30,
    max_unreadable_share: float = 0.01,
    label_column: str = "label",
    image_column: str = "image",
    progress: Callable[[int, int], None] | None = None,
) -> Splits:
    """Find the images of ``data``, decode each once, and say which of them probes use.

    seed: of the hold-out where there is no labelled test split.
    resident_bytes: a split's pixels stay in memory where all its images have one size and take at most this.
    max_unreadable_share: of a split's images may be unreadable; they are listed and left out.
    label_column, image_column: of parquet and CSV.
    progress: called with images decoded and images in all, over both splits.

    Raises `DataError` for a path that is not there, no images, labels of a wrong type, too many unreadable images.

    >>> splits = open_data("textures")
    >>> len(splits.train), splits.train.classes[:3], splits.note
    (5000, ['stripes', 'checks', 'dots'], 'probes query the test split (1,000 images)')
    """
    if not 0 <= max_unreadable_share <= 1:
        raise DataError(f"max_unreadable_share must be in [0, 1], got {max_unreadable_share}")
    found = _align(_find(data, label_column, image_column))
    total = len(found.train.keys) + (len(found.query.keys) if found.query else 0)

    def scan_split(rows: Rows, done: int) -> object:
        report = None if progress is None else lambda count, _: progress(done + count, total)
        return scan(
            rows, resident_bytes=resident_bytes, max_unreadable_share=max_unreadable_share, progress=report
        )

    train = scan_split(found.train, 0)
    query = scan_split(found.query, len(found.train.keys)) if found.query else None
    return make_splits(train, query, query_split=found.query_split, seed=seed, remarks=found.remarks)


def _find(data: str | os.PathLike[str], label_column: str, image_column: str) -> Found:
    path = Path(data)
    if data == TEXTURES and not path.exists():
        return _textures()
    if not path.exists():
        raise DataError(f"no such file or folder: {data}{did_you_mean(str(data), [TEXTURES])}")
    return find_parquet(path, image_column=image_column, label_column=label_column)


def _textures() -> Found:
    splits = []
    for name, n_images, seed in (("train", 5000, 0), ("test", 1000, 1)):
        pixels, labels = textures(n_images, seed=seed)
        keys = [f"row {row}" for row in range(n_images)]
        splits.append(Rows(f"{TEXTURES}, {name}", keys, Pixels(pixels), labels, list(CLASSES)))
    return Found(*splits)


def _align(found: Found) -> Found:
    """The same numbers for the same class names in both splits."""
    train, query = found.train, found.query
    if query is None or query.labels is None or query.classes is None or train.classes is None:
        return found
    labels, classes, added = align(train.classes, query.labels, query.classes)
    remarks = found.remarks
    if added:
        remarks += (f"classes only in the {found.query_split} split: {', '.join(added)}",)
    return replace(
        found,
        train=replace(train, classes=classes),
        query=replace(query, labels=labels, classes=classes),
        remarks=remarks,
    )
