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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial as partial_function
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from coke.atomic import atomic, is_writable
from coke.errors import ConfigError, DataError, UnreadableError
from coke.images import Rows, find_rows
from coke.images.decode import MAX_IMAGE_PIXELS, decode
from coke.images.table import Files
from coke.images.unreadable import list_unreadable, to_install
from coke.model.files import Preprocessing
from coke.model.model import Features, Model

NumberType = Literal["float16", "float32"]
_NOTE_SECONDS = 10.0  # between two notes of how far the features are
_ROW_GROUP = 1 << 24  # numbers of a row group of parquet, at most
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Embedded:
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
    columns: Mapping[str, str] | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    progress: Progress | None = None,
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
        columns: ``image_column`` and ``label_column`` of parquet and CSV.
        max_image_pixels: of one image; larger ones are not decoded, and listed as unreadable.
        progress: called with images done and images in all.

    Raises:
        ConfigError: an unknown suffix, projections of tokens. UnreadableError: no image can be read.
    """
    out = Path(out)
    check_output(out, features, tokens, number_type)
    model.check_features(features)
    batch_size = model.images_of_a_pass(batch_size)
    images = Listed.of(data, columns, max_image_pixels)
    asked = {
        "model": _hash_of_model(model),
        "images": images.digest(),
        "settings": [features, tokens, number_type, asdict(model.preprocessing), images.max_pixels],
    }
    partial = Partial(out.with_name(f".{out.name}.partial"), asked, number_type)
    resumed_at = partial.n_seen
    run = model.tokens if tokens else partial_function(model.features, features=features)
    try:
        for pixels, failed, stop in images.batches(model, batch_size, workers, resumed_at):
            partial.add(run(pixels) if len(pixels) else None, failed, stop)
            if progress is not None:
                progress(stop, len(images))
    finally:  # also where Ctrl-C ends it
        partial.note()
    if not partial.n_rows:  # nothing to go on with
        partial.remove()
    unreadable = images.left_out(partial.failed, out)
    _write(out, partial.rows(), images.columns(partial.failed))
    partial.remove()
    return Embedded(partial.n_rows, partial.shape, unreadable, resumed_at)


def check_output(out: Path, features: str, tokens: bool, number_type: str) -> None:
    """Raise `ConfigError` for what cannot be written, before any work."""
    check_folder(out)
    if number_type not in get_args(NumberType):
        raise ConfigError(f"number_type must be 'float16' or 'float32', got {number_type!r}")
    if out.suffix not in (".parquet", ".npy"):
        raise ConfigError(f"{out}: features are written to .parquet or .npy, not {out.suffix!r}")
    if tokens and features == "projection":
        raise ConfigError(
            "tokens have no projection: the projector takes pooled features; leave one of them out"
        )


def check_folder(out: Path) -> None:
    """Raise `ConfigError` where no file can be written into an output's folder, or one to be made."""
    if not is_writable(out):
        raise ConfigError(f"{out} cannot be written: nothing can be made in {out.parent}")


class Listed(Dataset["Tensor | str"]):
    """The images of a data set, all splits, in order: what each is called, and its pixels as a model wants them."""

    def __init__(self, rows: list[Rows], max_pixels: int = MAX_IMAGE_PIXELS) -> None:
        self.rows, self.max_pixels = rows, max_pixels
        self.seen: Preprocessing | None = None  # set before workers are started
        self.places = [(part.source, row) for part in rows for row in range(len(part.keys))]
        self.keys = [key for part in rows for key in part.keys]
        if len(set(self.keys)) < len(self.keys):  # two splits number their rows
            self.keys = [f"{part.name.rpartition(', ')[2]}/{key}" for part in rows for key in part.keys]

    @classmethod
    def of(
        cls,
        data: str | Path | Listed,
        columns: Mapping[str, str] | None = None,
        max_pixels: int = MAX_IMAGE_PIXELS,
    ) -> Listed:
        """Those of ``data``, as `coke pretrain` takes it. Raises `DataError` where there are none."""
        if isinstance(data, Listed):
            return data
        if max_pixels < 1:
            raise ConfigError(f"max_image_pixels must be at least 1, got {max_pixels}")
        return cls(find_rows(data, **(columns or {})), max_pixels)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor | str:
        assert self.seen is not None
        source, row = self.places[index]
        try:
            return self.seen.center(decode(source.load(row), self.max_pixels))
        except (DataError, OSError) as error:
            return str(error)

    def batches(
        self, model: Model, batch_size: int | None = None, workers: int = 0, first: int = 0
    ) -> Iterator[tuple[Tensor, dict[int, str], int]]:
        """From number ``first`` on: pixels uint8 [b, 3, S, S] of those that can be read, why others of the batch cannot
        be, by their number, and the number of the next image.
        """
        if workers < 0:
            raise ConfigError(f"workers must be 0 or more processes, got {workers}")
        self.seen = model.preprocessing
        size = model.images_of_a_pass(batch_size)
        sampler = [
            list(range(start, min(start + size, len(self)))) for start in range(first, len(self), size)
        ]
        for batch in DataLoader(self, batch_sampler=sampler, num_workers=workers, collate_fn=list):
            read = [image for image in batch if isinstance(image, Tensor)]
            failed = {first + index: image for index, image in enumerate(batch) if isinstance(image, str)}
            first += len(batch)
            none = torch.zeros((0, 3, self.seen.size, self.seen.size), dtype=torch.uint8)
            yield (torch.stack(read) if read else none), failed, first

    def digest(self) -> str:
        """Of keys and content, so that other images of the same names differ; of a file, size and time stand for it."""
        digest = hashlib.blake2b(digest_size=16)
        for key, (source, row) in zip(self.keys, self.places, strict=True):
            digest.update(f"{key}\n".encode(errors="surrogateescape"))
            try:
                if isinstance(source, Files):
                    status = (source.root / source.paths[row]).stat()
                    digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
                else:
                    content = source.load(row)
                    digest.update(content if isinstance(content, bytes) else np.asarray(content).tobytes())
            except (DataError, OSError) as error:
                digest.update(str(error).encode(errors="surrogateescape"))
        return digest.hexdigest()

    def left_out(self, failed: Mapping[int, str], out: Path) -> dict[str, str]:
        """Reasons by the images' keys, also in NAME.unreadable.csv beside an output, if there are any.

        Raises `UnreadableError` where no image could be read.
        """
        unreadable = {self.keys[index]: reason for index, reason in failed.items()}
        path = out.with_name(f"{out.stem}.unreadable.csv")
        list_unreadable(path, unreadable.items())
        if len(failed) == len(self):
            why = next(iter(failed.values()))
            told = ". ".join(
                [f"none of {len(self)} images can be read ({why})", *to_install(failed.values())]
            )
            told = f"{self.rows[0].name}: {told}. All of them: {path}"
            raise UnreadableError(told, list(unreadable.items()))
        return unreadable

    def columns(self, failed: Mapping[int, str]) -> dict[str, list[Any]]:
        """``key`` and, where there are classes, ``label`` of the images that can be read."""
        columns: dict[str, list[Any]] = {"key": self.keys}
        if any(part.labels is not None for part in self.rows):
            columns["label"] = [name for part in self.rows for name in _class_names(part)]
        kept = [index for index in range(len(self)) if index not in failed]
        return {name: [values[index] for index in kept] for name, values in columns.items()}


def _class_names(part: Rows) -> list[str | None]:
    numbers = [-1] * len(part.keys) if part.labels is None else part.labels.tolist()
    classes = part.classes
    return [None if n < 0 else classes[n] if classes is not None else str(n) for n in numbers]


class Partial:
    """Features on their way: a file that grows by rows, and a note of how many of them are done.

    Args:
        folder: beside the output; taken up where its note says that the same was asked, else begun anew.
        asked: what the features depend on.
        number_type: of the file.
    """

    def __init__(self, folder: Path, asked: dict[str, Any], number_type: str) -> None:
        self.folder, self.asked, self.number_type = folder, asked, np.dtype(number_type)
        said = _read_note(folder, asked, self.number_type) or {
            "n_seen": 0,
            "n_rows": 0,
            "shape": [],
            "failed": {},
        }
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
    blocks = range(0, len(rows), step)
    if out.suffix == ".npy":
        with atomic(out, "wb") as stream:
            header = {"descr": rows.dtype.str, "fortran_order": False, "shape": rows.shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for start in blocks:
                stream.write(np.ascontiguousarray(rows[start : start + step]).tobytes())
        _write_csv(
            out.with_name(f"{out.stem}.keys.csv"), tuple(named), list(zip(*named.values(), strict=True))
        )
        return
    n_tokens, n_features = rows.shape[1] if rows.ndim == 3 else 1, rows.shape[-1]
    fields = [pa.field(name, pa.string()) for name in named]
    fields += [pa.field("token", pa.int32())] if rows.ndim == 3 else []
    vector = pa.list_(pa.from_numpy_dtype(rows.dtype), n_features)
    schema = pa.schema([*fields, pa.field("embedding", vector)])
    with atomic(out, "wb") as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for start in blocks:
            block = np.ascontiguousarray(rows[start : start + step])
            columns: list[Any] = [
                pa.array(
                    [name for name in values[start : start + step] for _ in range(n_tokens)], pa.string()
                )
                for values in named.values()
            ]
            if rows.ndim == 3:
                columns.append(pa.array(np.tile(np.arange(n_tokens, dtype=np.int32), len(block))))
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), type=vector))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _write_csv(path: Path, names: tuple[str, ...], lines: list[Any]) -> None:
    with atomic(path) as stream:
        csv.writer(stream).writerows([names, *lines])
