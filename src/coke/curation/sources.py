"""What is chosen from: rows, what they are called, and their images where those are at hand.

    a run folder      its own images through its own network, in its own clusters
    embeddings        .npy, .parquet (as `coke embed` writes them, with keys), a folder of them, or an array;
                      the images themselves where DATA is named, found by their keys or, without keys, by order

Legend: N rows, D features, K clusters.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from coke.errors import ConfigError, DataError, ResumeError
from coke.explore.items import Places, Progress, as_array, check_directions, images_of, model_of, projections
from coke.images import Rows, open_data
from coke.model.files import CLUSTERS, PROJECTOR
from coke.run import Run, is_run
from coke.vectors import Vectors, open_vectors
from coke.vectors.names import names_of

Array = np.ndarray[Any, Any]
_IN_MEMORY = 256 << 20  # bytes of pixels of a run's images that are held


@dataclass(frozen=True, eq=False)
class Candidates:
    """N rows to choose from.

    name: what they are, for people. vectors: [N, D], an array or a memory map, of which rows are read as needed.
    keys: what they are called, or None. images: theirs, at `Places`, or None.
    labels, centers: a run's own clusters, [N] and [K, D], within which rows are compared; or None.
    """

    name: str
    vectors: Any
    keys: list[str] | None = None
    images: Rows | None = None
    labels: Array | None = None
    centers: Array | None = None

    def __post_init__(self) -> None:
        check_directions(self.vectors, self.name, zeros=False)

    def __len__(self) -> int:
        return len(self.vectors)

    def key(self, row: int) -> str:
        """What a row is called: by its key, or by its number."""
        return f"row {row}" if self.keys is None else self.keys[row]


def open_candidates(
    data: Any, images: str | os.PathLike[str] | None, column: str | None, progress: Progress
) -> Candidates:
    """What `coke curate` is asked to choose from. Raises `CokeError` for what cannot be used."""
    if is_run(data):
        if column is not None:
            raise ConfigError(f"{data} is a run, which has no column {column!r}: leave --column out")
        return _of_run(Run(data), images, progress)
    vectors = open_vectors(data, column=column)
    keys = names_of(vectors).get("key")
    found = None if images is None else _every_image(str(images), vectors, keys)
    return Candidates(
        vectors.name, as_array(vectors, progress), None if keys is None else keys.to_pylist(), found
    )


def _every_image(data: str, vectors: Vectors, keys: Any | None) -> Rows:
    """One image for each row. Raises `DataError` where one is missing, or has several rows, as tokens have."""
    images = images_of(data, vectors.n_rows, keys)
    assert isinstance(images.source, Places)
    if n_missing := images.source.places.count(None):
        first = images.keys[images.source.places.index(None)]
        raise DataError(
            f"{n_missing:,} of {vectors.n_rows:,} rows of {vectors.name} have no image in {data}, the first is "
            f"{first!r}: name the DATA that was embedded"
        )
    if len(set(images.keys)) < len(images.keys):
        counts = keys.value_counts().to_pylist() if keys is not None else []
        twice = next(one["values"] for one in counts if one["counts"] > 1)
        raise DataError(f"{vectors.name}: {twice!r} has more than one row: one for each image is needed")
    return images


def _of_run(run: Run, images: str | os.PathLike[str] | None, progress: Progress) -> Candidates:
    """A run's own images, or others, as projections in the clusters of its head with the most of them."""
    config = run.config
    for name in (PROJECTOR, CLUSTERS):
        if not (run.path / name).is_file():
            raise ResumeError(f"{run.path} is not finished: {name} is missing; continue it with --resume")
    asked = run.data if images is None else str(images)
    names = ("image_column", "label_column") if images is None else ()
    columns = {name: config[name] for name in names if name in config}
    model = model_of(run)
    try:
        train = open_data(asked, seed=config.get("seed", 0), resident_bytes=_IN_MEMORY, **columns).train
    except DataError as error:
        if images is None:
            raise DataError(f"{error}; --data says where the images of {run.path} lie now") from error
        raise
    is_own = run.fingerprint == train.fingerprint
    if images is None and not is_own:
        raise DataError(
            f"{asked} holds {len(train):,} images, which are not those of {run.path} any more: say with --data where "
            f"these lie now, or --data {asked} to choose among those that are there"
        )
    vectors = projections(model, train, len(train), progress)
    head = int(np.argmax([km.n_clusters for km in model.heads]))
    if is_own and run.assignments.is_file():  # within the run's bounds
        labels = run.read_assignments([f"cluster_{head}"]).column(0).to_numpy()
    else:
        labels = np.asarray(model.heads[head].predict(vectors))
    # as they lie: the scan keeps small images decoded
    found = images_of(asked, len(train), pa.array(train.keys), columns.get("image_column"))
    name, centers = f"{train.name}, as {run.path} sees it", np.asarray(model.heads[head].cluster_centers_)
    return Candidates(name, vectors, train.keys, found, labels.astype(np.int64), centers)
