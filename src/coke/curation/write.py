"""The files of a choice: the list itself, which `coke pretrain` takes, and beside it what went and why."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor

from coke.atomic import atomic, is_writable
from coke.curation.choose import Choice
from coke.curation.sources import Pictures, Rows
from coke.errors import ConfigError, DataError

_LIST_ROWS = 1024  # images that are encoded at a time
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as Hugging Face has it


def outputs(out: Path) -> tuple[Path, Path, Path]:
    """The list, the table of what went, and the page."""
    return out, out.with_name(f"{out.stem}.dropped.parquet"), out.with_suffix(".html")


def check_outputs(out: Path, data: Any, overwrite: bool) -> None:
    """Raise `ConfigError` where a file cannot be written, exists already, or is what is read."""
    if out.suffix != ".parquet":
        raise ConfigError(f"{out}: the list is written as parquet, so let its name end in .parquet")
    if not is_writable(out):
        raise ConfigError(f"{out} cannot be written: nothing can be made in {out.parent}")
    source = Path(data).resolve() if isinstance(data, str | Path) else None
    for path in outputs(out):
        if path.is_dir():
            raise ConfigError(f"{path} is a folder: name a file in it")
        if source is not None and (
            path.resolve() == source or (source.is_dir() and source in path.resolve().parents)
        ):
            raise ConfigError(
                f"{path} lies in the data itself and would be read as data: choose another --out"
            )
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists: choose another --out, or --overwrite it")


def write_list(out: Path, rows: Rows, choice: Choice) -> None:
    """The chosen rows, in the order in which they were taken: any first m of them are an even choice, too.

    ``row`` (of the data), ``key``, ``cluster`` (of the choice), ``run_cluster`` (the run's own, of a run),
    ``priority`` (1 is taken first), ``why``, ``duplicates`` (how many rows it stands for) and, where images are at
    hand, ``image``: {bytes, path}, a path where it is a file.
    """
    fields = [pa.field("row", pa.int64())]
    fields += [pa.field("image", _IMAGE)] if rows.pictures is not None else []
    fields += [pa.field("key", pa.string())] if rows.keys is not None else []
    fields += [pa.field("cluster", pa.int32())]
    fields += [pa.field("run_cluster", pa.int32())] if rows.labels is not None else []
    fields += [pa.field("priority", pa.int64())]
    fields += [pa.field("why", pa.string()), pa.field("duplicates", pa.int64())]
    schema = pa.schema(fields)
    stands_for = np.bincount(choice.instead[choice.instead >= 0], minlength=len(rows))
    order = choice.rows
    with atomic(out, "wb") as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for start in range(0, len(order), _LIST_ROWS):
            part = order[start : start + _LIST_ROWS]
            columns: dict[str, Any] = {
                "row": part,
                "cluster": choice.labels[part].astype(np.int32),
                "priority": np.arange(start + 1, start + len(part) + 1),
                "why": [choice.why(row) for row in part.tolist()],
                "duplicates": stands_for[part],
            }
            if rows.labels is not None:
                columns["run_cluster"] = rows.labels[part].astype(np.int32)
            if rows.keys is not None:
                columns["key"] = [rows.keys[row] for row in part.tolist()]
            if rows.pictures is not None:
                images = [_image(rows.pictures, row, rows.key(row)) for row in part.tolist()]
                columns["image"] = pa.array(images, _IMAGE)
            writer.write_table(pa.table(columns, schema))


def _image(pictures: Pictures, row: int, key: str) -> dict[str, Any]:
    path = pictures.path(row)
    if path is not None:
        return {"bytes": None, "path": path}
    try:
        content = pictures.content(row)
    except (DataError, OSError) as error:
        raise DataError(f"{key} cannot be read any more: {error}") from error
    return {"bytes": content if isinstance(content, bytes) else _encoded(content), "path": None}


def _encoded(content: Any) -> bytes:
    """Pixels as PNG, which loses nothing."""
    if isinstance(content, Tensor):
        content = Image.fromarray(content.permute(1, 2, 0).contiguous().numpy())
    stream = io.BytesIO()
    content.save(stream, "PNG")
    return stream.getvalue()


def write_dropped(path: Path, rows: Rows, choice: Choice) -> None:
    """The rows that were not chosen: ``row``, ``key``, ``cluster``, ``why`` (duplicate, or cluster full) and, of a
    duplicate, ``instead`` (the row that stays in its place), ``instead_key`` and ``similarity`` (their cosine).
    """
    fields = [("row", pa.int64()), ("key", pa.string()), ("cluster", pa.int32()), ("why", pa.string())]
    fields += [("instead", pa.int64()), ("instead_key", pa.string()), ("similarity", pa.float32())]
    schema = pa.schema([field for field in fields if rows.keys is not None or "key" not in field[0]])
    with atomic(path, "wb") as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for part in _dropped(choice):
            instead = choice.instead[part]
            copies = instead >= 0
            columns: dict[str, Any] = {
                "row": part,
                "cluster": choice.labels[part].astype(np.int32),
                "why": np.where(copies, "duplicate", "cluster full"),
                "instead": pa.array(instead, mask=~copies),
                "similarity": pa.array(choice.alike[part], mask=~copies),
            }
            if rows.keys is not None:
                columns["key"] = [rows.keys[row] for row in part.tolist()]
                columns["instead_key"] = [rows.keys[row] if row >= 0 else None for row in instead.tolist()]
            writer.write_table(pa.table(columns, schema))


def _dropped(choice: Choice) -> Iterator[np.ndarray[Any, Any]]:
    chosen = np.zeros(len(choice.labels), bool)
    chosen[choice.rows] = True
    left = np.flatnonzero(~chosen)
    for start in range(0, len(left), 1 << 18):
        yield left[start : start + (1 << 18)]
