"""A text file with one path a line, or a table (CSV, TSV) with paths and perhaps labels and splits."""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path

from coke.errors import DataError, did_you_mean
from coke.images.labels import number_text
from coke.images.table import DEFAULT_IMAGE, Files, Rows, Table, look_for_labels, split_of
from coke.reading import read_text

PATH_COLUMNS = ("path", "image", "file", "filename", "file_name", "filepath", "file_path", "image_path")
SPLIT_COLUMN = "split"
LISTS = (".txt", ".lst", ".list")
TABLES = (".csv", ".tsv")


def find_list(path: Path) -> Table:
    """The images that a text file lists, one path a line, relative to its place; empty lines do not count.

    Raises `DataError` for a file without paths, one that is not UTF-8 text, or a path listed twice.
    """
    lines = [line.strip() for line in read_text(path).split("\n")]
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line]
    if not numbered:
        raise DataError(f"{path}: lists no images; write one path a line")
    _refuse_repeated(path, numbered)
    keys = [_posix(line) for _, line in numbered]
    return Table(path.stem, {"": lambda name: Rows(name, keys, Files(path.parent, keys))})


def find_table(path: Path, *, image_column: str = "image", label_column: str = "label") -> Table:
    """The images of a CSV or TSV file with a header: a path column, perhaps a label and a ``split`` column.

    The path column is ``image_column`` or, where that is the default, the first of `PATH_COLUMNS` that is
    there. Labels are whole numbers or names, empty where an image has none. Rows whose split is test, else
    val, are what probes query; train or an empty split is learned from. Raises `DataError` for missing
    columns, rows of another length, a path listed twice, an unknown split, and labels that are fractions or
    of mixed kinds.
    """
    header, rows = _table(path)
    path_at = _path_column(path, header, image_column)
    labelled, remarks = look_for_labels(path, header, label_column, header[path_at])
    numbered = [(number, row[path_at].strip()) for number, row in rows]
    empty = next((number for number, text in numbered if not text), None)
    if empty is not None:
        raise DataError(f"{path}, line {empty}: no path in column {header[path_at]!r}")
    _refuse_repeated(path, numbered)
    splits = _splits(path, header, rows)

    def read(split: str, name: str) -> Rows:
        members = [index for index, its in enumerate(splits) if its == split]
        keys = [_posix(numbered[index][1]) for index in members]
        labels, classes = None, None
        if labelled:
            texts = [rows[index][1][header.index(label_column)] for index in members]
            labels, classes = number_text(texts, f"{path}, column {label_column!r}")
        return Rows(name, keys, Files(path.parent, keys), labels, classes, remarks)

    if "train" not in splits:
        raise DataError(f"{path}: no row of the train split, only of {', '.join(sorted(set(splits)))}")
    if set(splits) == {"train"}:
        return Table(path.stem, {"": partial(read, "train")})
    unused = f"rows of the val split are not used ({splits.count('val'):,})"
    return Table(
        path.stem,
        {split: partial(read, split) for split in set(splits)},
        lambda used: [unused] if "val" in splits and "test" in used else [],
    )


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and rows, each row with the number of the line it ends on."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(read_text(path)), delimiter=delimiter)
    try:
        numbered = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    if not numbered:
        raise DataError(f"{path}: empty; the first line must name the columns, one of them 'path'")
    header = [name.strip() for name in numbered[0][1]]
    for number, row in numbered[1:]:
        if len(row) != len(header):
            raise DataError(f"{path}, line {number}: {len(row)} fields, the header has {len(header)}")
    if len(numbered) == 1:
        raise DataError(f"{path}: lists no images, only a header")
    return header, numbered[1:]


def _path_column(path: Path, header: list[str], asked: str) -> int:
    names = (asked,) if asked != DEFAULT_IMAGE else PATH_COLUMNS
    found = next((name for name in names if name in header), None)
    if found is None:
        hint = did_you_mean(asked, header) if asked != DEFAULT_IMAGE else ""
        raise DataError(
            f"{path}: no column {' or '.join(map(repr, names[:4]))}{hint}; name the columns in the first "
            f"line, which is {', '.join(header)}"
        )
    return header.index(found)


def _splits(path: Path, header: list[str], rows: list[tuple[int, list[str]]]) -> list[str]:
    if SPLIT_COLUMN not in header:
        return ["train"] * len(rows)
    place = header.index(SPLIT_COLUMN)
    splits = []
    for number, row in rows:
        text = row[place].strip()
        split = split_of(text) if text else "train"
        if split is None:
            raise DataError(f"{path}, line {number}: split {text!r}; use train, test or val")
        splits.append(split)
    return splits


def _refuse_repeated(path: Path, numbered: list[tuple[int, str]]) -> None:
    seen: dict[str, int] = {}
    for number, text in numbered:
        first = seen.setdefault(_posix(text), number)
        if first != number:
            raise DataError(f"{path}: {text!r} is listed twice, on lines {first} and {number}")


def _posix(text: str) -> str:
    return Path(text).as_posix()
