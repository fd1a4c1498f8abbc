"""Which row is which: names that lie beside vectors in files."""

from __future__ import annotations

import csv
import io
from typing import Any

from coke.errors import DataError
from coke.reading import read_file, reading_as
from coke.vectors.files import column_values, key_field, parquet_schema
from coke.vectors.source import Vectors


def names_of(vectors: Vectors) -> dict[str, Any]:
    """What rows are called, ``key`` and ``label`` as arrow arrays [N] of text: as far as there are any.

    From parquet's columns, or from NAME.keys.csv, which `coke embed` writes beside NAME.npy. Raises `DataError` where
    there are not as many keys as rows.
    """
    import pyarrow as pa

    listed = (
        vectors.files[0].with_name(f"{vectors.files[0].stem}.keys.csv") if len(vectors.files) == 1 else None
    )
    if listed is not None and vectors.files[0].suffix.lower() == ".npy" and listed.exists():
        text = read_file(listed).decode(errors="surrogateescape")
        with reading_as("CSV", listed):
            head, *rows = [*csv.reader(io.StringIO(text, newline=""))] or [[]]
        if len(rows) != vectors.n_rows or "key" not in head:
            raise DataError(f"{listed} has {len(rows):,} keys, {vectors.name} has {vectors.n_rows:,} rows")
        if ragged := next((number for number, row in enumerate(rows, 2) if len(row) != len(head)), 0):
            raise DataError(f"{listed}, row {ragged}: its fields are not as many as the header's {len(head)}")
        columns = dict(zip(head, zip(*rows, strict=True), strict=True))
        with reading_as("UTF-8", listed):
            return {
                name: pa.array(columns[name], pa.string()) for name in ("key", "label") if name in columns
            }
    if key_field(vectors) is None:
        return {}
    schemas = [parquet_schema(file) for file in vectors.files]
    labelled = all(
        "label" in schema.names and not pa.types.is_nested(schema.field("label").type) for schema in schemas
    )
    with reading_as("rows' names", vectors.files[0]):
        return {
            name: pa.chunked_array(list(column_values(vectors, name))).combine_chunks().cast(pa.string())
            for name in (("key", "label") if labelled else ("key",))
        }
