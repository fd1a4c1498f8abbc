"""What is chosen from: rows, what they are called, and their images where those are at hand.

    a run folder      its own images through its own network, in its own clusters
    embeddings        .npy, .parquet (as `coke embed` writes them, with keys), a folder of them, or an array;
                      the images themselves where DATA is named, found by their keys or, without keys, by order

Legend: N rows, D features, K clusters.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke.errors import ConfigError, DataError, ResumeError, did_you_mean
from coke.images import find_rows, open_data
from coke.images.decode import Content, decode
from coke.images.table import Files, Source
from coke.model.embed import Listed
from coke.model.files import CLUSTERS, PROJECTOR, load
from coke.run import Run, is_run
from coke.vectors import Vectors, open_vectors
from coke.vectors.names import names_of

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]
_BLOCK = 1 << 14  # rows
_IN_MEMORY = 256 << 20  # bytes of pixels of a run's images that are held


@dataclass(frozen=True, eq=False)
class Pictures:
    """The images of N rows: where the content of each lies."""

    places: Sequence[tuple[Source, int]]

    def path(self, row: int) -> str | None:
        """The file of a row's image, from the root of the file system; None where it lies in a table or in memory."""
        source, index = self.places[row]
        return str((source.root / source.paths[index]).absolute()) if isinstance(source, Files) else None

    def content(self, row: int) -> Content:
        """Encoded bytes, or pixels. Raises `DataError` or `OSError` where there are none any more."""
        source, index = self.places[row]
        return source.load(index)

    def pixels(self, row: int) -> Tensor:
        """The decoded image, uint8 [3, H, W]."""
        return decode(self.content(row))


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows to choose from.

    name: what they are, for people. vectors: [N, D], an array or a memory map, of which rows are read as needed.
    keys: what they are called, or None. pictures: their images, or None.
    labels, centers: a run's own clusters, [N] and [K, D], within which rows are compared; or None.
    """

    name: str
    vectors: Any
    keys: list[str] | None = None
    pictures: Pictures | None = None
    labels: Array | None = None
    centers: Array | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def key(self, row: int) -> str:
        """What a row is called: by its key, or by its number."""
        return f"row {row}" if self.keys is None else self.keys[row]


def open_rows(
    data: Any, images: str | os.PathLike[str] | None, column: str | None, progress: Progress | None = None
) -> Rows:
    """What `coke curate` is asked to choose from. Raises `CokeError` for what cannot be used."""
    if not is_run(data):
        return _embeddings(open_vectors(data, column=column), images)
    if column is not None:
        raise ConfigError(f"{data} is a run, which has no column {column!r}: leave --column out")
    return _run(Run(data), images, progress)


def _embeddings(vectors: Vectors, images: str | os.PathLike[str] | None) -> Rows:
    named = names_of(vectors).get("key")
    keys = None if named is None else named.to_pylist()
    pictures = None if images is None else _pictures(Listed.of(Path(images)), vectors, keys)
    return Rows(vectors.name, checked(as_array(vectors), vectors.name), keys, pictures)


def as_array(vectors: Vectors) -> Any:
    """All rows [N, D] so that any can be taken: mapped where they lie in one .npy file, else in memory.

    >>> as_array(open_vectors([[1.0, 2.0]]))
    array([[1., 2.]])
    """
    if len(vectors.files) == 1 and vectors.files[0].suffix.lower() == ".npy":
        return np.load(vectors.files[0], mmap_mode="r")
    held: Array | None = None
    for first, block in vectors.blocks(_BLOCK):
        if block.dtype == torch.bfloat16:  # numpy has none
            block = block.float()
        part = block.cpu().numpy()
        if len(part) == vectors.n_rows:
            return part
        held = np.empty((vectors.n_rows, vectors.n_features), part.dtype) if held is None else held
        held[first : first + len(part)] = part
    assert held is not None
    return held


def checked(vectors: Any, name: str) -> Any:
    """Rows that all have a direction. Raises `DataError` with the first that has none."""
    bad, first, why = 0, 0, ""
    for start in range(0, len(vectors), _BLOCK):
        lengths = np.linalg.norm(np.asarray(vectors[start : start + _BLOCK], np.float64), axis=1)
        wrong = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
        if len(wrong) and not bad:
            first, why = start + int(wrong[0]), "zero" if lengths[wrong[0]] == 0 else "NaN or infinite"
        bad += len(wrong)
    if bad:
        raise DataError(
            f"{name}: {bad:,} of {len(vectors):,} rows have no direction, the first is row {first:,} ({why}): "
            "leave such rows out, or embed their images again"
        )
    return vectors


def _pictures(listed: Listed, vectors: Vectors, keys: list[str] | None) -> Pictures:
    """The images of rows, by key, or in the order of the data where rows have no keys."""
    if keys is None:
        if len(listed) != vectors.n_rows:
            have = f"{vectors.n_rows:,} rows without keys, and there are {len(listed):,} images"
            raise DataError(
                f"{vectors.name} has {have}: whose row is whose? Use the .parquet that `coke embed` writes"
            )
        return Pictures(listed.places)
    places = dict(zip(listed.keys, listed.places, strict=True))
    missing = [key for key in keys if key not in places]
    if missing:
        hint = did_you_mean(missing[0], listed.keys[:10_000])
        raise DataError(
            f"{len(missing):,} of {len(keys):,} rows of {vectors.name} have no image in {listed.rows[0].name}, the "
            f"first is {missing[0]!r}{hint}: name the DATA that was embedded"
        )
    if len(set(keys)) < len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DataError(f"{vectors.name}: {twice!r} has more than one row: one for each image is needed")
    return Pictures([places[key] for key in keys])


def _run(run: Run, images: str | os.PathLike[str] | None, progress: Progress | None) -> Rows:
    """A run's own images, or others, as projections in the clusters of its head with the most of them."""
    config = run.config
    for name in (PROJECTOR, CLUSTERS):
        if not (run.path / name).is_file():
            raise ResumeError(f"{run.path} is not finished: {name} is missing; continue it with --resume")
    asked = run.data if images is None else images
    names = ("image_column", "label_column") if images is None else ()
    columns = {name: config[name] for name in names if name in config}
    model = load(run.path, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        train = open_data(asked, seed=config.get("seed", 0), resident_bytes=_IN_MEMORY, **columns).train
    except DataError as error:
        if images is None:
            raise DataError(f"{error}; --data says where the images of {run.path} lie now") from error
        raise
    if images is None and run.fingerprint != train.fingerprint:
        raise DataError(
            f"{asked} holds {len(train):,} images, which are not those of {run.path} any more: say with --data where "
            f"these lie now, or --data {asked} to choose among those that are there"
        )
    vectors = np.empty((len(train), model.heads[0].cluster_centers_.shape[1]), np.float32)
    done = 0
    for pixels in model.batches(train, model.images_of_a_pass(None)):
        block = model.features(pixels, "projection").numpy()
        vectors[done : done + len(block)] = block
        done += len(block)
        if progress is not None:
            progress(done, len(train))
    head = int(np.argmax([km.n_clusters for km in model.heads]))
    km = model.heads[head]
    labels = _known_labels(run, head, train.fingerprint)
    labels = np.asarray(km.predict(vectors)) if labels is None else labels
    found = find_rows(asked, **columns)[0]  # as they lie: the scan keeps small images decoded
    places = {key: (found.source, row) for row, key in enumerate(found.keys)}
    name = f"{train.name}, as {run.path} sees it"
    return Rows(
        name,
        checked(vectors, name),
        train.keys,
        Pictures([places[key] for key in train.keys]),
        labels,
        np.asarray(km.cluster_centers_),
    )


def _known_labels(run: Run, head: int, fingerprint: str) -> Array | None:
    """The clusters that a run's own images were put in, within its bounds; None of other images."""
    if run.fingerprint != fingerprint or not run.assignments.is_file():
        return None
    return run.read_assignments([f"cluster_{head}"]).column(0).to_numpy().astype(np.int64)
