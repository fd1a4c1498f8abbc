"""Which row is which: names that lie beside vectors in files."""

from __future__ import annotations

import csv
from typing import Any

from coke.errors import DataError
from coke.vectors.files import column_values, key_field
from coke.vectors.source import Vectors


def names_of(vectors: Vectors) -> dict[str, Any]:
    """What rows are called, ``key`` and ``label`` as arrow arrays [N] of text: as far as there are any.

    From parquet's columns, or from NAME.keys.csv, which `coke embed` writes beside NAME.npy. Raises `DataError` where
    there are not as many keys as rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    listed = (
        vectors.files[0].with_name(f"{vectors.files[0].stem}.keys.csv") if len(vectors.files) == 1 else None
    )
    if listed is not None and vectors.files[0].suffix.lower() == ".npy" and listed.is_file():
        with open(listed, newline="", encoding="utf-8", errors="surrogateescape") as stream:
            head, *rows = [*csv.reader(stream)] or [[]]
        if len(rows) != vectors.n_rows or "key" not in head:
            raise DataError(f"{listed} has {len(rows):,} keys, {vectors.name} has {vectors.n_rows:,} rows")
        columns = dict(zip(head, zip(*rows, strict=True), strict=True))
        return {name: pa.array(columns[name], pa.string()) for name in ("key", "label") if name in columns}
    if key_field(vectors) is None:
        return {}
    schemas = [pq.read_schema(file) for file in vectors.files]
    labelled = all(
        "label" in schema.names and not pa.types.is_nested(schema.field("label").type) for schema in schemas
    )
    return {
        name: pa.chunked_array(list(column_values(vectors, name))).combine_chunks().cast(pa.string())
        for name in (("key", "label") if labelled else ("key",))
    }
