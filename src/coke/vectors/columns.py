"""Another column of parquet files, such as a name of each row, beside its vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from coke.errors import DataError, did_you_mean
from coke.vectors.source import Vectors

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 2**18  # at a time


def column_field(vectors: Vectors, name: str) -> pa.Field:
    """Name and type of a column, which every file of the vectors has alike.

    Raises:
        DataError: no parquet, or a file without that column or with another type.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not vectors.files or vectors.files[0].suffix.lower() != ".parquet":
        raise DataError(f"column {name!r} was asked of {vectors.name}, which has none: only parquet does")
    types: dict[Any, Any] = {}
    for file in vectors.files:
        schema = pq.read_schema(file)
        if name not in schema.names:
            known = ", ".join(schema.names)
            raise DataError(f"{file} has no column {name!r}{did_you_mean(name, schema.names)}: {known}")
        types.setdefault(schema.field(name).type, file)
    if len(types) > 1:
        kinds = ", ".join(f"{kind} in {file.name}" for kind, file in types.items())
        raise DataError(f"{vectors.name}: column {name!r} is {kinds}: all files must have the same type")
    return pa.field(name, next(iter(types)))


def column_values(vectors: Vectors, name: str) -> Iterator[Any]:
    """The column of all rows in order, as arrow arrays: not of a slice, but of whole files."""
    import pyarrow.parquet as pq

    for path in vectors.files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS, columns=[name]):
                yield batch.column(0)
