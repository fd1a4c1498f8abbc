"""Vectors in files: .npy, parquet with a column of lists, and folders of one of them. Never read whole."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke.errors import DataError
from coke.vectors.arrays import ArrayVectors, check_type, torch_type
from coke.vectors.parquet import ParquetVectors
from coke.vectors.source import FileVectors, Vectors, check_shape

SUFFIXES = (".npy", ".parquet")


def open_path(path: Path, column: str | None, device: Any) -> Vectors:
    """The vectors of a file or folder, by its suffix.

    Raises:
        DataError: nothing there, nothing readable, or not rows of equally many numbers.
    """
    if path.is_dir():
        return open_folder(path, column, device)
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    if path.suffix.lower() not in SUFFIXES:
        remedy = "save its array with numpy.save" if path.suffix == ".npz" else "convert it to one of these"
        raise DataError(f"{path}: vectors are read from .npy or .parquet, not {path.suffix!r}: {remedy}")
    vectors = _open_file(path, column, device)
    check_shape((vectors.n_rows, vectors.n_features), str(path))
    return vectors


def _open_file(path: Path, column: str | None, device: Any) -> Vectors:
    if path.suffix.lower() == ".parquet":
        return ParquetVectors(path, column, device)
    if column is not None:
        raise DataError(f"column={column!r} was asked of {path}, which has none: only parquet does")
    return NpyVectors(path, device)


def open_folder(folder: Path, column: str | None, device: Any) -> Vectors:
    """All .npy or all .parquet files of a folder in the order of their names, as one.

    Suffixes may be in capitals. Files without rows are allowed there, and files with another suffix are none of
    ours; nor are names that begin with . or _, as pyarrow has it: other programs keep their notes in those.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    shown = [path for path in found if not any(name[0] in "._" for name in path.relative_to(folder).parts)]
    below = next((path for path in shown if path.parent != folder), None)
    if below is not None:
        raise DataError(f"{folder} has vectors in folders below it, as {below}: name one folder of files")
    if not shown:
        hidden = f"; not read: {found[0].name}, as names that begin with . or _" if found else ""
        raise DataError(f"{folder}: no .npy or .parquet file in this folder{hidden}")
    other = next((path for path in shown if path.suffix.lower() != shown[0].suffix.lower()), None)
    if other is not None:
        mixed = f"{shown[0].name} and {other.name}"
        raise DataError(f"{folder} mixes {mixed}: keep .npy and .parquet in folders apart")
    parts = [part for part in (_open_file(path, column, device) for path in shown) if part.n_rows]
    if not parts:
        raise DataError(f"{folder} has 0 sample(s) in {len(shown)} files, while a minimum of 1 is required")
    return FolderVectors(folder, parts, device)


class NpyVectors(FileVectors):
    """A .npy file, memory-mapped for each pass: blocks are views of the map.

    It is not kept open in between, or a folder of a thousand would run out of file handles.
    """

    def __init__(self, path: Path, device: Any = None) -> None:
        array = _mapped(path)
        check_type(array.dtype, str(path))
        if array.ndim != 2:
            check_shape(array.shape, str(path))
        super().__init__(path, array.shape, torch_type(array.dtype), device)

    def _array(self) -> Vectors:
        self._check_unchanged()
        whole = ArrayVectors(_mapped(self._path), name=self.name)
        return whole.slice(self._start, self._start + self.n_rows)

    def _batches(self, wanted_rows: int) -> Iterator[Tensor]:
        yield from self._array()._batches(wanted_rows)

    def _take(self, ids: Tensor) -> Tensor:
        return self._array()._take(ids)


def _mapped(path: Path) -> np.ndarray[Any, Any]:
    try:
        with path.open("rb") as file:  # an array without values cannot be mapped
            version, header = np.lib.format.read_magic(file), np.lib.format
            read = header.read_array_header_1_0 if version == (1, 0) else header.read_array_header_2_0
            shape, _, dtype = read(file)
        if dtype.hasobject or 0 in shape:
            return np.empty(shape, dtype)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read as .npy: {error}") from error


class FolderVectors(Vectors):
    """Several files one after the other; blocks do not end where a file does."""

    kind = "file"

    def __init__(self, folder: Path, parts: list[Vectors], device: Any = None) -> None:
        for part in parts:
            if part.n_features != parts[0].n_features:
                raise DataError(
                    f"{folder}: {Path(part.name).name} has {part.n_features} features, "
                    f"{Path(parts[0].name).name} has {parts[0].n_features}: all files must have as many"
                )
        dtype = parts[0].dtype
        for part in parts:
            dtype = torch.promote_types(dtype, part.dtype)
        self._parts = parts
        self.files = [file for part in parts for file in part.files]
        self._starts = [0, *np.cumsum([part.n_rows for part in parts]).tolist()]
        check_shape((self._starts[-1], parts[0].n_features), str(folder))
        super().__init__(str(folder), self._starts[-1], parts[0].n_features, dtype, device)

    def _batches(self, wanted_rows: int) -> Iterator[Tensor]:
        stop = self._start + self.n_rows
        for part, (begin, end) in zip(self._parts, pairwise(self._starts), strict=True):
            low, high = max(self._start, begin), min(stop, end)
            if low < high:
                for batch in part.slice(low - begin, high - begin)._batches(wanted_rows):
                    yield batch.to(self.dtype)

    def _take(self, ids: Tensor) -> Tensor:
        rows = ids + self._start
        found = []
        for part, (begin, end) in zip(self._parts, pairwise(self._starts), strict=True):
            low, high = (int(torch.searchsorted(rows, edge)) for edge in (begin, end))
            if low < high:
                found.append(part._take(rows[low:high] - begin).to(self.dtype))
        return torch.cat(found)
