"""A data set through a model, in order, into a file that an interrupted program goes on with.

    read    each image decoded once, by workers; what cannot be read is listed, never dropped in silence
    run     batch by batch through the model
    keep    features in a file beside the output, with a note of how far they are, until they are whole

Shapes: N images that can be read, F features (of a token, where tokens are asked for), L tokens of an image.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial as partial_function
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from coke.atomic import atomic
from coke.errors import ConfigError
from coke.model.listed import Listed
from coke.model.model import Features, Model
from coke.output import check_output

NumberType = Literal["float16", "float32"]
_NOTE_SECONDS = 10.0  # between two notes of how far the features are
_ROW_GROUP = 1 << 24  # numbers of a row group of parquet, at most
Progress = Callable[[int, int], None]


class Embedded(NamedTuple):
    """What was written: rows, the shape of each, images that could not be read and why, and where work went on."""

    n_rows: int
    shape: tuple[int, ...]
    unreadable: dict[str, str]
    resumed_at: int = 0


def embed_data(
    model: Model,
    data: str | Path | Listed,
    out: str | Path,
    *,
    features: Features = "backbone",
    tokens: bool = False,
    number_type: NumberType = "float32",
    batch_size: int | None = None,
    workers: int = 0,
    progress: Progress = lambda done, total: None,
) -> Embedded:
    """Write the features of every image of a data set, in its order.

    ``.parquet`` gets a row per image: ``key`` (its path or row), ``label`` (its class's name, where there are any) and
    ``embedding``; with tokens a row per token, and which one. ``.npy`` gets [N, F] (or [N, L, F]) and, beside it,
    the keys as ``NAME.keys.csv``. Images that cannot be read are listed in ``NAME.unreadable.csv``. A program that
    was interrupted goes on where it was when it is asked for the same again.

    Args:
        model: from `coke.load` or `Model.of_timm`.
        data: what `coke pretrain` takes; all splits of it.
        out: a .parquet or .npy file.
        features: "backbone", or "projection" (unit vectors, which clusters are made of).
        tokens: the backbone's output before it is pooled: patches of a transformer, positions of a map.
        number_type: of what is written.
        workers: processes that decode.
        progress: called with images done and images in all.

    Raises:
        ConfigError: an unknown suffix, projections of tokens. UnreadableError: no image can be read.
    """
    out = Path(out)
    check(out, features, tokens, number_type)
    model.check_features(features)
    batch_size, images = model.images_of_a_pass(batch_size), Listed.of(data)
    asked = {
        "model": _hash_of_model(model),
        "images": images.digest(),
        "settings": [features, tokens, number_type, asdict(model.preprocessing), images.max_pixels],
    }
    partial = Partial(out.with_name(f".{out.name}.partial"), asked, number_type)
    resumed_at = partial.n_seen
    run = model.tokens if tokens else partial_function(model.features, features=features)
    try:
        for pixels, failed, stop in images.batches(model.preprocessing, batch_size, workers, resumed_at):
            partial.add(run(pixels) if len(pixels) else None, failed, stop)
            progress(stop, len(images))
    finally:  # also where Ctrl-C ends it
        partial.note()
    if not partial.n_rows:  # nothing to go on with
        partial.remove()
    unreadable = images.left_out(partial.failed, out)
    _write(out, partial.rows(), images.columns(partial.failed))
    partial.remove()
    return Embedded(partial.n_rows, partial.shape, unreadable, resumed_at)


def check(out: Path, features: str, tokens: bool, number_type: str, overwrite: bool = True) -> None:
    """Raise `ConfigError` for what cannot be written, before any work."""
    check_output(out, ".parquet", ".npy", overwrite=overwrite)
    if number_type not in get_args(NumberType):
        raise ConfigError(f"number_type must be 'float16' or 'float32', got {number_type!r}")
    if tokens and features == "projection":
        why = "tokens have no projection: the projector takes pooled features"
        raise ConfigError(f"{why}; leave one of them out")


class Partial:
    """Features on their way: a file that grows by rows, and a note of how many of them are done.

    Args:
        folder: beside the output; taken up where its note says that the same was asked, else begun anew.
        asked: what the features depend on.
        number_type: of the file.
    """

    def __init__(self, folder: Path, asked: dict[str, Any], number_type: str) -> None:
        self.folder, self.asked, self.number_type = folder, asked, np.dtype(number_type)
        nothing: dict[str, Any] = {"n_seen": 0, "n_rows": 0, "shape": [], "failed": {}}
        said = _read_note(folder, asked, self.number_type) or nothing
        self.n_seen, self.n_rows, self.shape = said["n_seen"], said["n_rows"], tuple(said["shape"])
        self.failed = {int(index): reason for index, reason in said["failed"].items()}
        if not self.n_rows:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self._file, self._noted = folder / "rows", time.monotonic()
        self._stream = open(self._file, "r+b" if self.n_rows else "wb")  # noqa: SIM115 closed in rows()
        self._stream.truncate(self.n_rows * self._row_bytes)
        self._stream.seek(0, os.SEEK_END)

    @property
    def _row_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.number_type.itemsize

    def add(self, features: Tensor | None, failed: dict[int, str], n_seen: int) -> None:
        """The features [b, ...] of the images up to ``n_seen`` that can be read, and the reasons of the others."""
        if features is not None:
            self.shape = tuple(features.shape[1:])
            self._stream.write(features.numpy().astype(self.number_type).tobytes())
            self.n_rows += len(features)
        self.failed |= failed
        self.n_seen = n_seen
        if time.monotonic() - self._noted > _NOTE_SECONDS:
            self.note()

    def note(self) -> None:
        """From here on an interrupted program would go on."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        said = {"asked": self.asked, "n_seen": self.n_seen, "n_rows": self.n_rows, "shape": self.shape}
        with atomic(self.folder / "note.json") as stream:
            json.dump({**said, "failed": self.failed}, stream)
        self._noted = time.monotonic()

    def rows(self) -> np.ndarray[Any, Any]:
        """All features that there are, [N, ...], mapped; no more can be added."""
        self._stream.close()
        return np.memmap(self._file, self.number_type, "r", shape=(self.n_rows, *self.shape))

    def remove(self) -> None:
        """The output is whole: nothing of this is needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read_note(folder: Path, asked: dict[str, Any], number_type: np.dtype[Any]) -> dict[str, Any] | None:
    """What a note says, where it is whole, was asked the same, and all its rows are there."""
    try:
        said: dict[str, Any] = json.loads((folder / "note.json").read_text())
        n_bytes = said["n_rows"] * int(np.prod(said["shape"])) * number_type.itemsize
        whole = said.keys() == {"asked", "n_seen", "n_rows", "shape", "failed"}
        whole &= (folder / "rows").stat().st_size >= n_bytes > 0
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # there is none, or it is damaged: then all is done anew
    return said if whole and said["asked"] == json.loads(json.dumps(asked)) else None


def _hash_of_model(model: Model) -> str:
    digest = hashlib.blake2b(model.name.encode(), digest_size=16)
    for module in (model.backbone, model.projector):
        for name, value in (module.state_dict() if module is not None else {}).items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write(out: Path, rows: np.ndarray[Any, Any], named: Mapping[str, list[Any]]) -> None:
    step = max(1, _ROW_GROUP // int(np.prod(rows.shape[1:])))
    blocks = (np.ascontiguousarray(rows[start : start + step]) for start in range(0, len(rows), step))
    if out.suffix == ".npy":
        with atomic(out, "wb") as stream:
            header = {"descr": rows.dtype.str, "fortran_order": False, "shape": rows.shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for block in blocks:
                stream.write(block.tobytes())
        with atomic(out.with_name(f"{out.stem}.keys.csv")) as stream:
            csv.writer(stream).writerows([tuple(named), *zip(*named.values(), strict=True)])
        return
    n_tokens, n_features = rows.shape[1] if rows.ndim == 3 else 1, rows.shape[-1]
    vector = pa.list_(pa.from_numpy_dtype(rows.dtype), n_features)
    tokens = {"token": pa.int32()} if rows.ndim == 3 else {}
    schema = pa.schema({**dict.fromkeys(named, pa.string()), **tokens, "embedding": vector})
    names, first = pa.table({name: pa.array(values, pa.string()) for name, values in named.items()}), 0
    with atomic(out, "wb") as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for block in blocks:
            which = np.repeat(np.arange(first, first + len(block)), n_tokens)
            columns = names.take(which).columns
            if tokens:
                columns.append(pa.array(np.tile(np.arange(n_tokens, dtype=np.int32), len(block))))
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), type=vector))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            first += len(block)
