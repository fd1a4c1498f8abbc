"""Vectors in a column of lists of a parquet file, read by row groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke.errors import DataError, did_you_mean
from coke.vectors.arrays import as_tensor, torch_type
from coke.vectors.source import PASS_ROWS, FileVectors, taken

_BATCH_VALUES = 2**26  # at most this many values at a time, below what an int32 offset of a list reaches
_READING = {"buffer_size": 2**20, "pre_buffer": False}
"""Pages are read as they are needed: by default a whole row group is, and some writers put a file into one."""


class ParquetVectors(FileVectors):
    """A column of lists, all of one length, in a parquet file; row groups that are not asked for are not read."""

    def __init__(self, path: Path, column: str | None = None, device: Any = None) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path, **_READING) as file:
                self._metadata = file.metadata
                schema = file.schema_arrow
                self._column = _vector_column(schema, column, path, self._metadata.num_rows)
                head = next(file.iter_batches(batch_size=1, columns=[self._column], use_threads=False), None)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read as parquet: {error}") from error
        groups = [self._metadata.row_group(index).num_rows for index in range(self._metadata.num_row_groups)]
        self._group_ends = np.cumsum(groups, dtype=np.int64)
        element = getattr(_storage(schema.field(self._column).type), "value_type", pa.float32())
        n_features = 0
        if head is not None and head.num_rows:
            first = getattr(head.column(0), "storage", head.column(0))
            if first.null_count:
                raise DataError(f"{path}: row 0 of column {self._column!r} is null: leave such rows out")
            n_features = len(first.flatten())
        shape = (self._metadata.num_rows, n_features)
        super().__init__(path, shape, torch_type(pa.array([], element).to_numpy().dtype), device)

    def _batches(self, wanted_rows: int) -> Iterator[Tensor]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self.n_rows == 0:
            return
        self._check_unchanged()
        stop = self._start + self.n_rows
        begin = int(np.searchsorted(self._group_ends, self._start, side="right"))
        end = int(np.searchsorted(self._group_ends, stop, side="left"))
        row = int(self._group_ends[begin - 1]) if begin else 0
        options = {
            "batch_size": max(1, min(wanted_rows, _BATCH_VALUES // self.n_features)),
            "row_groups": list(range(begin, end + 1)),
            "columns": [self._column],
            "use_threads": False,  # they share out columns, and there is one
        }
        try:
            with pq.ParquetFile(self._path, metadata=self._metadata, **_READING) as file:
                for batch in file.iter_batches(**options):
                    first, row = row, row + batch.num_rows
                    if row > self._start and first < stop:
                        rows = self._read(batch.column(0), first)
                        yield rows[max(self._start - first, 0) : stop - first]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self._path} cannot be read as parquet near row {row:,}: {error}") from error

    def _read(self, column: Any, first: int) -> Tensor:
        """A batch of the column as [b, D]; ``first`` is its first row's number in the file."""
        import pyarrow.compute as pc

        lists = getattr(column, "storage", column)
        lengths = pc.list_value_length(lists).fill_null(-1).to_numpy(zero_copy_only=False)
        wrong = lengths != self.n_features
        if wrong.any():
            row = int(wrong.argmax())
            came = "null" if lengths[row] < 0 else f"{lengths[row]} values"
            raise DataError(
                f"{self._path}: row {first + row:,} of column {self._column!r} has {came}, row 0 has "
                f"{self.n_features}: all must have as many"
            )
        values = lists.flatten()
        if values.null_count:
            row = first + int(values.is_null().index(True).as_py()) // self.n_features
            raise DataError(
                f"{self._path}: row {row:,} of column {self._column!r} has a null among its values"
            )
        return as_tensor(values.to_numpy(zero_copy_only=False).reshape(-1, self.n_features))

    def _take(self, ids: Tensor) -> Tensor:
        rows = ids.numpy() + self._start
        group = np.searchsorted(self._group_ends, rows, side="right")
        found = []
        for index in np.unique(group):
            begin = int(self._group_ends[index - 1]) if index else 0
            part = ParquetVectors.slice(self, 0, 0)
            part._start, part.n_rows = begin, int(self._group_ends[index]) - begin
            chosen = torch.from_numpy(rows[group == index])
            found.append(taken(part._batches(PASS_ROWS), chosen, begin))
        return torch.cat(found)


def _storage(type_: Any) -> Any:
    """The type below an extension type: a fixed-shape tensor is a list of fixed size."""
    return getattr(type_, "storage_type", type_)


def _vector_column(schema: Any, column: str | None, path: Path, n_rows: int) -> str:
    """Where the vectors are. Without rows also a column of nulls, as pandas writes that of an empty frame."""
    import pyarrow as pa

    def holds(type_: Any, numbers: Any) -> bool:
        listed = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        storage = _storage(type_)
        return any(is_kind(storage) for is_kind in listed) and numbers(storage.value_type)

    floats = [field.name for field in schema if holds(field.type, pa.types.is_floating)]
    integers = [field.name for field in schema if holds(field.type, pa.types.is_integer)]
    nulls = [field.name for field in schema if n_rows == 0 and pa.types.is_null(field.type)]
    if column is not None:
        if column not in schema.names:
            raise DataError(
                f"{path} has no column {column!r}{did_you_mean(column, schema.names)}: {', '.join(schema.names)}"
            )
        if column not in floats + integers + nulls:
            raise DataError(
                f"{path}: column {column!r} is {schema.field(column).type}, not a list of numbers"
            )
        return column
    found = floats or integers or nulls[:1]
    if len(found) != 1:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        what = (
            f"several columns of vectors, {', '.join(found)}: name one" if found else "no column of vectors"
        )
        raise DataError(
            f"{path} has {what} (a list of floats in each row; column=NAME). Its columns: {columns}"
        )
    return found[0]
