"""Vectors in files: .npy, parquet with a column of lists, and folders of one of them. Never read whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke.errors import DataError, did_you_mean
from coke.memory import require_memory
from coke.reading import files_below, reading_as
from coke.vectors.arrays import ArrayVectors, as_tensor, torch_type
from coke.vectors.source import Vectors, by_piece, check_shape

SUFFIXES = (".npy", ".parquet")
_BATCH_VALUES = 2**26  # of parquet at a time at most: below what an int32 offset of a list reaches
_LONGEST_HEADER = 2**16  # bytes of a .npy; numpy itself takes 10,000
_COLUMN_ROWS = 2**18  # of another column at a time
_VALUE = 16  # bytes that a value and its place in a list take at most while they are read
_READING = {"buffer_size": 2**20, "pre_buffer": False}
"""Pages are read as they are needed: by default a whole row group is, and some writers put a file into one."""


def open_path(path: Path, column: str | None, device: Any) -> Vectors:
    """The vectors of a file or folder, by its suffix.

    Raises:
        DataError: nothing there, nothing readable, or not rows of equally many numbers.
    """
    if os.path.isdir(path):
        return open_folder(path, column, device)
    if not os.path.exists(path):
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
    names = files_below(folder, hidden=True)
    found = sorted(path for path in map(folder.joinpath, names) if path.suffix.lower() in SUFFIXES)
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


class FileVectors(Vectors):
    """One file. It is opened for each pass and must be the same then; a folder of a thousand has too many handles."""

    kind = "file"

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype, device: Any) -> None:
        super().__init__(str(path), check_shape(shape, str(path), may_be_empty=True), dtype, device)
        self._path, self._state, self.files = path, _state_of(path), [path]

    def _check_unchanged(self) -> None:
        if not os.path.exists(self._path) or _state_of(self._path) != self._state:
            raise DataError(
                f"{self._path} has changed since it was opened: leave files alone while they are read"
            )


def _state_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


class NpyVectors(FileVectors):
    """A .npy file, memory-mapped for each pass: blocks are views of the map."""

    def __init__(self, path: Path, device: Any = None) -> None:
        array = _mapped(path)
        super().__init__(path, array.shape, torch_type(array.dtype, str(path)), device)

    def _array(self) -> ArrayVectors:
        self._check_unchanged()
        return ArrayVectors(_mapped(self._path), name=self.name)

    def _read(self, start: int, stop: int, wanted_rows: int) -> Iterator[Tensor]:
        return self._array()._read(start, stop, wanted_rows)

    def _take(self, ids: Tensor) -> Tensor:
        return self._array()._take(ids)


def _mapped(path: Path) -> np.ndarray[Any, Any]:
    with reading_as(".npy", path):
        with open(path, "rb") as stream:
            start = stream.read(12)
        length = int.from_bytes(start[8:12], "little")
        if start[6:7] > b"\1" and length > _LONGEST_HEADER:  # numpy makes room for it before it refuses it
            raise ValueError(f"its header is to have {length:,} bytes")
        try:
            with np.errstate(over="ignore"):  # of sizes that numpy then refuses
                return np.lib.format.open_memmap(path, mode="r")
        except ValueError as error:
            if "Python objects" in str(error):
                objects = "must be numbers, its dtype is object: convert it to float32 first"
                raise DataError(f"{path} {objects}") from error
            raise


class ParquetVectors(FileVectors):
    """A column of lists, all of one length, in a parquet file; row groups that are not asked for are not read."""

    def __init__(self, path: Path, column: str | None = None, device: Any = None) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with reading_as("parquet", path), pq.ParquetFile(path, **_READING) as file:
            metadata, schema = file.metadata, file.schema_arrow
            self._column = _vector_column(schema, column, path, metadata.num_rows)
            groups = _rows_of_groups(metadata, path)
            width = getattr(_lists_of(schema.field(self._column).type), "list_size", 0)
            require_memory(_VALUE * width, f"{path}, a row of {width:,} values", "split it into columns")
            head = next(file.iter_batches(batch_size=1, columns=[self._column], use_threads=False), None)
            n_features = 0
            if head is not None and head.num_rows:
                if _lists(head).null_count:
                    raise DataError(f"{path}: row 0 of column {self._column!r} is null: leave such rows out")
                n_features = len(_lists(head).flatten())
            element = _element(schema.field(self._column).type) or pa.float32()
            kind = pa.array([], element).to_numpy().dtype
        super().__init__(path, (metadata.num_rows, n_features), torch_type(kind, str(path)), device)
        self._metadata, self._ends = metadata, torch.tensor(groups, dtype=torch.int64).cumsum(0)

    def _read(self, start: int, stop: int, wanted_rows: int) -> Iterator[Tensor]:
        import pyarrow.parquet as pq

        self._check_unchanged()
        begin, end = torch.searchsorted(self._ends, torch.tensor([start, stop - 1]), right=True).tolist()
        row = int(self._ends[begin - 1]) if begin else 0
        options = {
            "batch_size": max(1, min(wanted_rows, _BATCH_VALUES // self.n_features)),
            "row_groups": list(range(begin, end + 1)),
            "columns": [self._column],
            "use_threads": False,  # they share out columns, and there is one
        }
        with (
            reading_as(lambda: f"parquet near row {row:,}", self._path),
            pq.ParquetFile(self._path, metadata=self._metadata, **_READING) as file,
        ):
            for batch in file.iter_batches(**options):
                first, row = row, row + batch.num_rows
                if row > start:
                    yield self._rows(_lists(batch), first)[max(start - first, 0) : stop - first]
                if row >= stop:
                    return
        raise DataError(f"{self._path} states {int(self._ends[-1]):,} rows and holds {row:,}: write it anew")

    def _rows(self, lists: Any, first: int) -> Tensor:
        """A batch of the column as [b, D]; ``first`` is its first row's number in the file."""
        import pyarrow.compute as pc

        lengths = pc.list_value_length(lists).fill_null(-1).to_numpy(zero_copy_only=False)
        wrong, values, problem = lengths != self.n_features, lists.flatten(), ""
        if wrong.any():
            row = int(wrong.argmax())
            came = "null" if lengths[row] < 0 else f"{lengths[row]} values"
            problem = f"{came}, row 0 has {self.n_features}: all must have as many"
        elif values.null_count:
            row = values.is_null().index(True).as_py() // self.n_features
            problem = "a null among its values"
        if problem:
            raise DataError(f"{self._path}: row {first + row:,} of column {self._column!r} has {problem}")
        return as_tensor(values.to_numpy(zero_copy_only=False).reshape(-1, self.n_features))


def _rows_of_groups(metadata: Any, path: Path) -> list[int]:
    """How many rows each row group has. Raises `DataError` where the counts contradict each other.

    What the file states of a group's columns is not asked for: where that is damaged, pyarrow 26 ends the process.
    """
    rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise DataError(
            f"{path} is damaged: it states {metadata.num_rows:,} rows, its row groups {sum(rows):,}"
        )
    return rows


def _lists(batch: Any) -> Any:
    """The only column of a batch: where it is of an extension type, as tensors of fixed shape, what it is stored as."""
    return getattr(batch.column(0), "storage", batch.column(0))


def _lists_of(type_: Any) -> Any:
    """What a column's type is stored as."""
    return getattr(type_, "storage_type", type_)


def _element(type_: Any) -> Any:
    """What a column of lists holds; None for other columns."""
    import pyarrow as pa

    lists = _lists_of(type_)
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return lists.value_type if any(is_kind(lists) for is_kind in kinds) else None


def _vector_column(schema: Any, column: str | None, path: Path, n_rows: int) -> str:
    """Where the vectors are. Without rows also a column of nulls, as pandas writes that of an empty frame."""
    import pyarrow as pa

    elements = [(field.name, _element(field.type) or pa.null()) for field in schema]
    floats = [name for name, element in elements if pa.types.is_floating(element)]
    integers = [name for name, element in elements if pa.types.is_integer(element)]
    nulls = [field.name for field in schema if n_rows == 0 and pa.types.is_null(field.type)]
    if column is not None:
        kind = _field(schema, column, path).type
        if column not in floats + integers + nulls:
            raise DataError(f"{path}: column {column!r} is {kind}, not a list of numbers")
        return column
    found = floats or integers or nulls[:1]
    if len(found) != 1:
        what = "no column of vectors"
        if found:
            what = f"several columns of vectors, {', '.join(found)}: name one"
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        what += f" (a list of floats in each row; column=NAME). Its columns: {columns}"
        raise DataError(f"{path} has {what}")
    return found[0]


def _field(schema: Any, name: str, path: Path) -> Any:
    if name not in schema.names:
        hint = did_you_mean(name, schema.names)
        raise DataError(f"{path} has no column {name!r}{hint}: {', '.join(schema.names)}")
    if schema.names.count(name) > 1:
        raise DataError(f"{path} has {schema.names.count(name)} columns {name!r}: rename one")
    return schema.field(name)


class FolderVectors(Vectors):
    """Several files one after the other; blocks do not end where a file does."""

    kind = "file"

    def __init__(self, folder: Path, parts: list[Vectors], device: Any = None) -> None:
        first = parts[0]
        for part in parts:
            if part.n_features != first.n_features:
                raise DataError(
                    f"{folder}: {part.files[0].name} has {part.n_features} features, "
                    f"{first.files[0].name} has {first.n_features}: all files must have as many"
                )
        ends = torch.tensor([part.n_rows for part in parts]).cumsum(0)
        dtype = reduce(torch.promote_types, [part.dtype for part in parts])
        super().__init__(str(folder), (int(ends[-1]), first.n_features), dtype, device)
        self._parts, self._ends = parts, ends
        self.files = [file for part in parts for file in part.files]

    def _read(self, start: int, stop: int, wanted_rows: int) -> Iterator[Tensor]:
        begin = 0
        for part in self._parts:
            low, high = max(start - begin, 0), min(stop - begin, part.n_rows)
            if low < high:
                for batch in part._read(low, high, wanted_rows):
                    yield batch.to(self.dtype)
            begin += part.n_rows

    def _take(self, ids: Tensor) -> Tensor:
        found = []
        for index, own in by_piece(ids, self._ends):
            part, end = self._parts[index], int(self._ends[index])
            found.append(part._take(own - (end - part.n_rows)).to(self.dtype))
        return torch.cat(found)


def column_field(vectors: Vectors, name: str) -> Any:
    """Another column's name and type, as arrow has them. `DataError` where a file lacks it or has another type."""
    import pyarrow as pa

    if not vectors.files or vectors.files[0].suffix.lower() != ".parquet":
        raise DataError(f"column {name!r} was asked of {vectors.name}, which has none: only parquet does")
    types: dict[Any, str] = {}
    for file in vectors.files:
        types.setdefault(_field(parquet_schema(file), name, file).type, file.name)
    if len(types) > 1:
        kinds = ", ".join(f"{kind} in {file}" for kind, file in types.items())
        raise DataError(f"{vectors.name}: column {name!r} is {kinds}: all files must have the same type")
    return pa.field(name, next(iter(types)))


def key_field(vectors: Vectors) -> Any:
    """`column_field` of the rows' names, a column ``key`` as `coke embed` writes it; None where a file has none."""
    files = vectors.files
    if not files or any(file.suffix.lower() != ".parquet" for file in files):
        return None
    schemas = [parquet_schema(file) for file in files]
    if any("key" not in schema.names for schema in schemas):
        return None
    return column_field(vectors, "key")


def parquet_schema(path: Path) -> Any:
    """The columns of a parquet file, as arrow has them. Raises `DataError`."""
    import pyarrow.parquet as pq

    with reading_as("parquet", path):
        return pq.read_schema(path)


def column_values(vectors: Vectors, name: str) -> Iterator[Any]:
    """That column in all files of the vectors, in the order of the rows, as arrow arrays."""
    import pyarrow.parquet as pq

    for path in vectors.files:
        with reading_as("parquet", path), pq.ParquetFile(path) as file:
            yield from (batch.column(0) for batch in file.iter_batches(_COLUMN_ROWS, columns=[name]))
