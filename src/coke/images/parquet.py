"""Parquet in the Hugging Face image layout: a file, or a folder whose file names state the split.

Column ``image`` holds struct(bytes, path) or plain bytes; an optional label column holds whole numbers (their
names come from the schema's Hugging Face metadata) or names. **The encoded images are held in memory**: a
split that would not fit is refused before it is read; keep larger ones as files in a folder.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from coke.errors import DataError, did_you_mean
from coke.images.labels import UNLABELLED, number_labels
from coke.images.table import DEFAULT_IMAGE, Rows, Table, look_for_labels, row_keys, split_of
from coke.memory import GIGABYTE, available_memory, require_memory
from coke.reading import files_below, read_file, reading_as

_BATCH_ROWS = 64  # read at a time
_SHARD = re.compile(r"^(?P<split>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})$")


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoded images in memory, a column of parquet: binary [N]; where it is null, a path below ``root``."""

    content: pa.ChunkedArray
    paths: pa.ChunkedArray | None
    root: Path

    def load(self, row: int) -> bytes:
        """The bytes of a row, or of the file that the row names."""
        content = self.content[row].as_py()
        if content is not None:
            return bytes(content)
        try:
            path = self.paths[row].as_py() if self.paths is not None else None
        except UnicodeDecodeError as error:
            raise DataError(f"its path is not UTF-8 ({error.reason})") from error
        if not path:
            raise DataError("neither bytes nor a path")
        return read_file(self.root / path)


def find_parquet(path: Path, *, image_column: str = "image", label_column: str = "label") -> Table:
    """The splits of a parquet file or of a folder of parquet files.

    A folder's files are told apart by name (``train-00000-of-00002.parquet``, ``test.parquet``) or by the
    folder they lie in (``train/0.parquet``); where no name states a split, all of them are train. Raises
    `DataError` for missing shards, a file that is no parquet, no image column, labels of a wrong type, or too
    little memory.
    """

    def reader(files: list[Path]) -> Callable[[str], Rows]:
        return lambda name: _read(name, files, image_column, label_column)

    if not path.is_dir():
        shard = _SHARD.match(path.stem)
        name = f"{path.resolve().parent.name}, {shard['split']}" if shard else path.stem
        return Table(name, {"": reader([path])})
    splits: dict[str | None, list[Path]] = {}
    for file in sorted(path / name for name in files_below(path) if name.lower().endswith(".parquet")):
        splits.setdefault(_split(file, path), []).append(file)
    unnamed = splits.pop(None, [])
    named = {split: files for split, files in splits.items() if split} or {"train": unnamed}
    for split, files in named.items():
        _check_shards(f"{path.name}, {split}", files)
    if "train" not in named:
        raise DataError(
            f"{path}: parquet files of {', '.join(sorted(named))} but none of train; give one file, "
            "or name the one to learn from train-00000-of-00001.parquet"
        )
    unused = ", ".join(file.relative_to(path).as_posix() for file in unnamed) if splits else ""
    return Table(
        path.name,
        {split: reader(files) for split, files in named.items()},
        lambda used: [f"not used, their names state no split: {unused}"] if unused else [],
    )


def _split(file: Path, root: Path) -> str | None:
    """The split that a file's name states, or else the nearest of its folders below the root."""
    folders = [parent.name for parent in file.relative_to(root).parents][:-1]
    return next((split for split in map(split_of, [file.stem, *folders]) if split), None)


def _read(name: str, files: list[Path], image_column: str, label_column: str) -> Rows:
    """One split's rows, with remarks on columns that were guessed or not there."""
    schemas = [_schema(file) for file in files]
    image, remarks = _choose_image(files[0], schemas[0], image_column)
    labelled, more = look_for_labels(files[0], schemas[0].names, label_column, image)
    columns = [image, label_column] if labelled else [image]
    for file, schema in zip(files, schemas, strict=True):
        for column in columns:
            if column not in schema.names or schema.field(column).type != schemas[0].field(column).type:
                raise DataError(f"{file}: column {column!r} is not as in {files[0].name}; make shards alike")
    if labelled:
        _check_label_type(files[0], schemas[0].field(label_column))
    instead = "use fewer shards, or keep the images as files in a folder"
    if [field.name for field in schemas[0] if _is_image(field.type)] == [
        image
    ]:  # else others may be the larger
        require_memory(stated_bytes(files), f"{name}, encoded images", instead)
    table = _table(name, files, columns, instead)
    if not table.num_rows:
        raise DataError(f"{files[0]} holds no images: it has no rows")
    content, paths = _content(table.column(image))
    labels, classes = None, None
    if labelled:
        labels, classes = _labels(table.column(label_column), schemas[0], label_column, str(files[0]))
    source = Encoded(content, paths, files[0].parent)
    return Rows(name, row_keys(table.num_rows), source, labels, classes, remarks + more)


def _check_shards(name: str, files: list[Path]) -> None:
    """Refuse a split of which files are missing: each name states how many there are."""
    matches = [match for match in (_SHARD.match(file.stem) for file in files) if match]
    counts = {int(match["count"]) for match in matches}
    present = {int(match["index"]) for match in matches}
    if matches and len(matches) == len(files):
        missing = sorted(set(range(max(counts))) - present)
        if missing:
            raise DataError(
                f"{name}: {len(files)} of {max(counts)} shards are there, {missing[0]:05d} is missing; "
                "add it, or give a single file to learn from that alone"
            )


def _schema(file: Path) -> pa.Schema:
    with reading_as("parquet", file):
        schema = pq.read_schema(file)
    twice = next((name for name, count in Counter(schema.names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{file} has several columns {twice!r}: rename them")
    return schema


def _batches(files: list[Path], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """All rows, few at a time: a page of a few bytes may stand for any number of rows of any size."""
    for file in files:  # no read_table, which takes "split=train" in a folder's name for a column
        with reading_as("parquet", file), pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
                batch.validate(full=True)  # else names that are not UTF-8 come to light much later
                yield batch.select(columns).replace_schema_metadata(None)


def _table(name: str, files: list[Path], columns: list[str], instead: str) -> pa.Table:
    """All rows in memory, as far as they fit."""
    free, needed, batches = available_memory(), 0, []
    for batch in _batches(files, columns):
        needed += batch.nbytes
        if free is not None and needed > free:
            raise DataError(f"{name}: its images take more than the {free / GIGABYTE:.1f} GB free: {instead}")
        batches.append(batch)
    schema = batches[0].schema if batches else _schema(files[0]).empty_table().select(columns).schema
    return pa.Table.from_batches(batches, schema.remove_metadata())


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _choose_image(file: Path, schema: pa.Schema, asked: str) -> tuple[str, tuple[str, ...]]:
    """The image column: the one asked for, or, where that is the default, the only one that holds images."""
    if asked in schema.names:
        kind = schema.field(asked).type
        if not _is_image(kind):
            raise DataError(f"{file}: column {asked!r} must be struct(bytes, path) or binary, it is {kind}")
        return asked, ()
    found = [field.name for field in schema if _is_image(field.type)]
    if asked == DEFAULT_IMAGE and len(found) == 1:
        return found[0], (f"images are taken from column {found[0]!r}",)
    hint = did_you_mean(asked, schema.names)
    choice = f"; {', '.join(map(repr, found))} hold bytes: name one with image_column" if found else ""
    raise DataError(f"{file}: no image column {asked!r}{hint}; it has {', '.join(schema.names)}{choice}")


def _check_label_type(file: Path, field: pa.Field) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    is_name = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or is_name or pa.types.is_null(kind)):
        raise DataError(
            f"{file}: label column {field.name!r} must hold whole numbers or names, it holds {field.type}; "
            "name another with label_column, or convert it"
        )


def stated_bytes(files: list[Path]) -> int:
    """How much memory all columns take, from the files' metadata alone.

    What these state of a single column is not asked for: where that is damaged, pyarrow 26 ends the process.
    """
    needed = 0
    for file in files:
        with reading_as("parquet", file):
            metadata = pq.read_metadata(file)
            needed += sum(
                metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)
            )
    return needed


def _content(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
    if not pa.types.is_struct(column.type):
        return column, None
    place = column.type.get_field_index("path")
    with_paths = place >= 0 and pa.types.is_string(column.type.field(place).type)
    return pc.struct_field(column, "bytes"), pc.struct_field(column, "path") if with_paths else None


def _labels(
    column: pa.ChunkedArray, schema: pa.Schema, name: str, where: str
) -> tuple[Tensor | None, list[str] | None]:
    """Labels as numbers: the stored ones where the metadata names the classes, else in sorted order."""
    names = _class_names(schema, name)
    if names is None or not pa.types.is_integer(column.type):
        return number_labels(column.to_pylist(), f"{where}, column {name!r}")
    largest = pc.max(column).as_py()
    if largest is not None and largest >= len(names):
        raise DataError(
            f"{where}, column {name!r}: label {largest} is outside the {len(names)} classes that the schema names"
        )
    numbers = torch.from_numpy(column.cast(pa.int64()).fill_null(UNLABELLED).to_numpy().copy())
    return (numbers.clamp(min=UNLABELLED), names) if bool((numbers >= 0).any()) else (None, None)


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The names of a ClassLabel column, as Hugging Face's `datasets` writes them into the schema."""
    stated = (schema.metadata or {}).get(b"huggingface")
    if stated is None:
        return None
    try:
        feature = json.loads(stated)["info"]["features"][column]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # other tools use the key as well: labels are then named by their numbers
    names = feature.get("names") if isinstance(feature, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else None
