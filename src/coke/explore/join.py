"""Clusters of rows, from a file of `coke cluster`, `assign`, `predict` or `pretrain`: joined by key, or by row."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coke.errors import DataError

PLACE = {
    "cluster": "int32",
    "score": "float32",
    "distance": "float32",
    "margin": "float32",
    "second": "int32",
}
"""What a file may say of a row: ``score`` is a cosine, ``distance`` a Euclidean one. Of all but the cluster, less."""


def read_clusters(
    path: Path, n_rows: int, keys: Any | None, head: int | None = None
) -> tuple[dict[str, Any], str]:
    """Columns of `PLACE` for N rows, null for rows that the file does not name, and a sentence on what matched.

    Args:
        path: a parquet file with ``cluster``, or ``cluster_H`` for each head H; ``key`` or ``row`` say of what.
        n_rows: N. keys: their names [N], an arrow array; None where they have none.
        head: of several; None is 0.

    Raises:
        DataError: no such file, head or clusters; or it is about other rows.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of clusters")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error
    columns = _columns(table, path, head)
    wanted, by = _rows_of_file(table, path, n_rows, keys)
    n_known = n_rows - wanted.null_count
    if not n_known:
        theirs, ours = table[by][0].as_py(), (keys[0].as_py() if keys is not None and by == "key" else 0)
        raise DataError(
            f"{path}: none of its {table.num_rows:,} rows is one of the {n_rows:,} (its first {by} is {theirs!r}, here "
            f"it is {ours!r}): name the file that was made of these"
        )
    said = f"clusters of {path}, by {by}"
    if n_known < n_rows:
        said += f": {n_rows - n_known:,} of {n_rows:,} rows have none there"
    if n_known < table.num_rows:
        said += f"; {table.num_rows - n_known:,} of its rows are not among these"
    return {name: column.take(wanted) for name, column in columns.items()}, said


def heads_of(names: Iterable[str]) -> list[int]:
    """The heads whose clusters a table with these columns holds.

    >>> heads_of(["key", "cluster_1", "score_1", "cluster_0"])
    [0, 1]
    """
    return sorted(int(name[8:]) for name in names if name.startswith("cluster_") and name[8:].isdigit())


def _columns(table: pa.Table, path: Path, head: int | None) -> dict[str, Any]:
    names, heads, wanted = table.column_names, heads_of(table.column_names), head or 0
    suffix = "" if "cluster" in names and not head else f"_{wanted}"
    if suffix and wanted not in heads:
        there = f"it has heads {', '.join(map(str, heads))}" if heads else f"its columns: {', '.join(names)}"
        raise DataError(f"{path} has no cluster{'' if head is None else f' of head {head}'}: {there}")
    found = {name: table[name + suffix] for name in PLACE if name + suffix in names}
    if not pa.types.is_integer(found["cluster"].type):
        raise DataError(f"{path}: clusters must be whole numbers, got {found['cluster'].type}")
    found = {name: column.combine_chunks().cast(PLACE[name]) for name, column in found.items()}
    if "distance" in found and "score" not in found:
        with suppress(KeyError, ValueError):
            if json.loads((table.schema.metadata or {})[b"coke clustering"])["metric"] == "cosine":
                found["score"] = pc.subtract(pa.scalar(1, pa.float32()), found.pop("distance"))
    return found


def _rows_of_file(table: pa.Table, path: Path, n_rows: int, keys: Any | None) -> tuple[Any, str]:
    """For each of N rows that of the file which is about it, null where there is none; and by what it was found."""
    if keys is not None and "key" in table.column_names:
        theirs = table["key"].combine_chunks().cast(pa.string())
        if len(theirs.unique()) < len(theirs):
            raise DataError(f"{path} names a key twice: one row for each is expected")
        return pc.index_in(keys.cast(pa.string()), value_set=theirs), "key"
    if "row" in table.column_names:
        rows = table["row"].to_numpy()
        if len(rows) and not 0 <= rows.min() <= rows.max() < n_rows:
            about = f"rows {rows.min()} ... {rows.max()}"
            raise DataError(f"{path} is about {about}, and there are {n_rows:,} here")
        wanted = np.full(n_rows, -1)
        wanted[rows] = np.arange(len(rows))
        return pa.array(wanted, mask=wanted < 0), "row"
    if table.num_rows != n_rows:
        raise DataError(
            f"{path} has {table.num_rows:,} rows without key or row, and there are {n_rows:,} here: "
            "nothing says what belongs to what"
        )
    return pa.array(np.arange(n_rows)), "order"
