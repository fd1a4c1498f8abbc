"""The files of a choice: the list itself, which `coke pretrain` takes, and beside it what went and why."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor

from coke.atomic import atomic
from coke.curation.choose import Choice
from coke.curation.sources import Candidates
from coke.errors import DataError
from coke.explore.items import Places
from coke.images import Rows

_AT_ONCE = 1024  # images that are encoded
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as Hugging Face has it


def outputs(out: Path) -> tuple[Path, Path, Path]:
    """The list, the table of what went, and the page."""
    return out, out.with_name(f"{out.stem}.dropped.parquet"), out.with_suffix(".html")


def write_list(out: Path, rows: Candidates, choice: Choice) -> None:
    """The chosen rows, in the order in which they were taken: any first m of them are an even choice, too.

    ``row`` (of the data), ``key``, ``cluster`` (of the choice), ``run_cluster`` (the run's own, of a run),
    ``priority`` (1 is taken first), ``why``, ``duplicates`` (how many rows it stands for) and, where images are at
    hand, ``image``: {bytes, path}, a path where it is a file.
    """
    stands_for = np.bincount(choice.instead[choice.instead >= 0], minlength=len(rows))
    order, keys = choice.rows, np.array(rows.keys, object)
    table = pa.table(
        {
            "row": order,
            **({} if rows.keys is None else {"key": keys[order]}),
            "cluster": choice.labels[order].astype(np.int32),
            **({} if rows.labels is None else {"run_cluster": rows.labels[order].astype(np.int32)}),
            "priority": np.arange(1, len(order) + 1),
            "why": [choice.why(row) for row in order.tolist()],
            "duplicates": stands_for[order],
        }
    )
    schema = table.schema if rows.images is None else table.schema.insert(1, pa.field("image", _IMAGE))
    with atomic(out, "wb") as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for part in table.to_batches(_AT_ONCE):
            columns = part.columns
            if rows.images is not None:
                images = [_image(rows.images, row) for row in part["row"].to_pylist()]
                columns.insert(1, pa.array(images, _IMAGE))
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _image(images: Rows, row: int) -> dict[str, Any]:
    assert isinstance(images.source, Places)
    path = images.source.path(row)
    if path is not None:
        return {"bytes": None, "path": path}
    try:
        content = images.source.load(row)
    except (DataError, OSError) as error:
        raise DataError(f"{images.keys[row]} cannot be read any more: {error}") from error
    if not isinstance(content, bytes):  # pixels: as PNG, which loses nothing
        if isinstance(content, Tensor):
            content = Image.fromarray(content.permute(1, 2, 0).contiguous().numpy())
        stream = io.BytesIO()
        content.save(stream, "PNG")
        content = stream.getvalue()
    return {"bytes": content, "path": None}


def write_dropped(path: Path, rows: Candidates, choice: Choice) -> None:
    """The rows that were not chosen: ``row``, ``key``, ``cluster``, ``why`` (duplicate, or cluster full) and, of a
    duplicate, ``instead`` (the row that stays in its place), ``instead_key`` and ``similarity`` (their cosine).
    """
    left = np.setdiff1d(np.arange(len(rows)), choice.rows)
    stays = choice.instead[left]
    instead = pa.array(stays, mask=stays < 0)
    columns: dict[str, Any] = {"row": left}
    if rows.keys is not None:
        keys = pa.array(rows.keys, pa.string())
        columns["key"] = keys.take(left)
    columns["cluster"] = choice.labels[left].astype(np.int32)
    columns["why"] = np.where(stays < 0, "cluster full", "duplicate")
    columns["instead"] = instead
    if rows.keys is not None:
        columns["instead_key"] = keys.take(instead)
    columns["similarity"] = pa.array(choice.alike[left], mask=stays < 0)
    with atomic(path, "wb") as stream:
        pq.write_table(pa.table(columns), stream, compression="zstd")
