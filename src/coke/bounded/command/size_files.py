"""Sizes of clusters in a file: one line for each, in the order of their numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from coke.errors import DataError

SUFFIXES = (".npy", ".csv", ".txt")
_NAMES = ("min_size", "max_size")


def read_sizes(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arguments ``min_size`` and ``max_size``, [K] each, or the latter alone.

    One column holds what each cluster may hold at most; two hold what it must and may. A text has a cluster in
    each line, with commas, semicolons, tabs or spaces between columns; a first line may name them, and ``#``
    begins a comment. ``inf`` is no maximum.

    Raises:
        DataError: a file that is missing or holds anything else.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "sizes.csv"
    >>> _ = path.write_text("max_size,min_size\\n30,10\\ninf,0\\n")
    >>> {name: sizes.tolist() for name, sizes in read_sizes(path).items()}
    {'max_size': [30.0, inf], 'min_size': [10.0, 0.0]}
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of sizes")
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: sizes are read from {', '.join(SUFFIXES)}, not {path.suffix!r}")
    names, table = _read_array(path) if path.suffix == ".npy" else _read_text(path)
    if names is None:
        names = list(_NAMES[-table.shape[1] :])
    if (
        np.array_equal(table[:, 0], np.arange(len(table)))
        and table.shape == (len(table), 2)
        and len(table) > 2
    ):
        raise DataError(f"{path}: its first column counts 0, 1, 2, ...: leave the clusters' numbers out")
    return {name: table[:, column] for column, name in enumerate(names)}


def _read_array(path: Path) -> tuple[None, np.ndarray[Any, Any]]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read as .npy: {error}") from error
    table = array[:, None] if array.ndim == 1 else array
    if table.ndim != 2 or table.shape[1] not in (1, 2) or not len(table) or table.dtype.kind not in "iuf":
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}: sizes are numbers, [K] or [K, 2] with "
            "minimum and maximum"
        )
    return None, table.astype(np.float64)


def _read_text(path: Path) -> tuple[list[str] | None, np.ndarray[Any, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text") from error
    kept = [(number, line.split("#")[0].strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, re.split(r"\s*[,;\t]\s*|\s+", line)) for number, line in kept if line]
    names = None
    if lines and not any(_is_number(word) for word in lines[0][1]):
        names = [word.strip("\"'") for word in lines.pop(0)[1]]
        if not set(names) <= set(_NAMES) or "max_size" not in names or len(set(names)) < len(names):
            raise DataError(
                f"{path} has columns {', '.join(names)}: name them min_size and max_size, or max_size alone"
            )
    if not lines:
        raise DataError(f"{path} holds no sizes")
    n_columns = len(names or lines[0][1])
    for number, words in lines:
        wrong = next((word for word in words if not _is_number(word)), None)
        if wrong is not None:
            raise DataError(f"{path}, line {number}: {wrong!r} is no number")
        if len(words) != n_columns or n_columns > 2:
            wanted = n_columns if n_columns <= 2 else "1 or 2"
            raise DataError(f"{path}, line {number}: {len(words)} columns, {wanted} expected")
    return names, np.array([[float(word) for word in words] for _, words in lines])


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
