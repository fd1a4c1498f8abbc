"""Another column of parquet files, such as a name of each row, beside its vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from coke.errors import DataError, did_you_mean
from coke.vectors.source import Vectors

_ROWS = 2**18  # at a time


def column_field(vectors: Vectors, name: str) -> Any:
    """Name and type of a column, as arrow has them. Raises `DataError` where a file lacks it or has another type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not vectors.files or vectors.files[0].suffix.lower() != ".parquet":
        raise DataError(f"column {name!r} was asked of {vectors.name}, which has none: only parquet does")
    types: dict[Any, str] = {}
    for file in vectors.files:
        schema = pq.read_schema(file)
        if name not in schema.names:
            hint = did_you_mean(name, schema.names)
            raise DataError(f"{file} has no column {name!r}{hint}: {', '.join(schema.names)}")
        types.setdefault(schema.field(name).type, file.name)
    if len(types) > 1:
        kinds = ", ".join(f"{kind} in {file}" for kind, file in types.items())
        raise DataError(f"{vectors.name}: column {name!r} is {kinds}: all files must have the same type")
    return pa.field(name, next(iter(types)))


def column_values(vectors: Vectors, name: str) -> Iterator[Any]:
    """The column in all files of the vectors, in the order of the rows, as arrow arrays."""
    import pyarrow.parquet as pq

    for path in vectors.files:
        with pq.ParquetFile(path) as file:
            yield from (batch.column(0) for batch in file.iter_batches(_ROWS, columns=[name]))
