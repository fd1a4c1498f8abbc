"""What is looked at or chosen from: the images of a run, or rows of embeddings, with whatever is known of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from coke.errors import DataError, ResumeError
from coke.explore.join import read_clusters
from coke.explore.map import Map
from coke.explore.neighbours import Neighbours
from coke.images import Rows, find_rows, has_columns
from coke.images.table import Files, Source
from coke.model.files import load
from coke.model.listed import Listed, class_names
from coke.model.model import Model
from coke.run import Run
from coke.vectors import Vectors, open_vectors
from coke.vectors.names import names_of

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]
_BLOCK = 1 << 14  # rows


@dataclass
class Items:
    """N rows to look at.

    name: what they are, for people.
    names: columns [N] that say which row is which: ``key`` and ``label``, as far as there are any.
    clusters: columns [N] as `read_clusters` gives them; empty without clusters.
    images: their images, in this order, as far as they are found; None without images.
    map: where they lie, where that is known already.
    near: what lies nearest, where that is known already.
    said: sentences about what is not as one might expect.
    vectors: gives their vectors [N, D]; None where there are none.
    """

    name: str
    n_rows: int
    names: dict[str, Any]
    clusters: dict[str, Any] = field(default_factory=dict)
    images: Rows | None = None
    map: Map | None = None
    near: Neighbours | None = None
    said: list[str] = field(default_factory=list)
    vectors: Callable[[Progress], Array] | None = None


def items_of_embeddings(
    path: Path,
    *,
    column: str | None = None,
    clusters: Path | None = None,
    head: int | None = None,
    data: str | None = None,
    image_column: str | None = None,
) -> Items:
    """Rows of vectors, as `coke cluster` takes them; with keys as `coke embed` writes them.

    Raises `DataError` for no vectors there, and for clusters or images that are not about these rows.
    """
    vectors = open_vectors(path, column=column)
    items = Items(str(path), vectors.n_rows, names_of(vectors))
    items.vectors = lambda progress: as_array(vectors, progress)
    keys = items.names.get("key")
    if clusters is not None:
        items.clusters, said = read_clusters(clusters, vectors.n_rows, keys, head)
        items.said.append(said)
    if data is None:
        items.said.append("no pictures: name their images with --data")
    else:
        items.images = images_of(data, vectors.n_rows, keys, image_column)
        items.said += _missing(items.images)
    return items


def items_of_run(
    run: Run, *, head: int | None = None, data: str | None = None, image_column: str | None = None
) -> Items:
    """The images that a run learned from: its clusters, its map, and its images where they are still to be had.

    Raises:
        ResumeError: no finished run. DataError: no such head; neither images nor a map; images of another data set.
    """
    config = run.config
    if not run.assignments.is_file() or not run.backbone.is_file():
        raise ResumeError(
            f"{run.path} is not finished: coke pretrain --resume --out {run.path} goes on with it"
        )
    table = run.read_assignments()
    keys = table["key"].combine_chunks()
    items = Items(f"{run.path}, {config.get('data', '')}", table.num_rows, {"key": keys})
    items.clusters, _ = read_clusters(run.assignments, table.num_rows, keys, head)
    _read_map(run.map, items)
    asked = run.data if data is None else data
    try:
        column = image_column or (config.get("image_column") if has_columns(asked) else None)
        contents = table["content"] if "content" in table.column_names else None  # of an earlier coke
        items.images = images_of(asked, table.num_rows, keys, column, contents)
    except DataError as error:
        if data is not None or items.map is None:
            raise DataError(f"{error}; --data says where the images of {run.path} lie now") from error
        items.said.append(f"no pictures, and of each image the most similar other one alone: {error}")
    if "label" in table.column_names:
        classes = items.images.classes if items.images is not None else None
        items.names["label"] = pa.array(class_names(table["label"].to_pylist(), classes), pa.string())
    if items.images is not None:
        missing, images = _missing(items.images), Listed([items.images])
        items.said += missing
        if items.map is None or not missing:
            items.vectors = lambda progress: projections(model_of(run), images, len(images), progress)
    return items


def _read_map(path: Path, items: Items) -> None:
    """The run's own map, where it has one: places, and the most similar other image of each."""
    if not path.is_file():
        return
    table = pq.read_table(path)
    if table.num_rows != items.n_rows:
        raise DataError(f"{path} has {table.num_rows:,} rows, the run has {items.n_rows:,} images: remove it")
    metadata = table.schema.metadata or {}
    words = (metadata.get(b"map") or metadata.get(b"words") or b"the run's own map").decode()
    items.map = Map(np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1), words)
    rows = table["nearest"].fill_null(-1).to_numpy().astype(np.int64)[:, None]
    similarity = table["similarity"].fill_null(-np.inf).to_numpy().astype(np.float32)[:, None]
    items.near = Neighbours(rows, similarity)


class Places:
    """Images of several splits in another order, a `Source`: where each lies, None where it is not there.

    contents: the hash of each image's stored content, where it is known, so that no other image takes its place.
    """

    def __init__(self, places: list[tuple[Source, int] | None], contents: Any = None) -> None:
        self.places, self.contents = places, contents

    def path(self, row: int) -> str | None:
        """The file of a row's image, from the root of the file system; None where it lies in a table or in memory."""
        source, index = self.places[row] or (None, 0)
        return str((source.root / source.paths[index]).absolute()) if isinstance(source, Files) else None

    def load(self, row: int) -> Any:
        """The content of a row's image. Raises `DataError` or `OSError` where there is none any more."""
        place = self.places[row]
        if place is None:
            raise DataError("it is not among the images")
        content = place[0].load(place[1])
        if self.contents is not None and isinstance(content, bytes):
            digest = hashlib.blake2b(content, digest_size=16).digest()
            if digest != self.contents[row].as_py():
                raise DataError("it is another image than the run's")
        return content


def images_of(
    data: str, n_rows: int, keys: Any | None, image_column: str | None = None, contents: Any = None
) -> Rows:
    """The images of N rows, at `Places`: by their keys, or, where rows have none, by their order.

    Raises `DataError` where none of them is there, or where there are not as many without keys.
    """
    listed = Listed(find_rows(data, **({} if image_column is None else {"image_column": image_column})))
    if keys is None and len(listed) != n_rows:
        have = f"{data} has {len(listed):,} images, and there are {n_rows:,} rows without keys"
        raise DataError(f"{have}: whose row is whose? Use the .parquet that `coke embed` writes")
    names = listed.keys if keys is None else [str(key) for key in keys.to_pylist()]
    places: list[tuple[Source, int] | None] = [*listed.places]
    if keys is not None:
        known = dict(zip(listed.keys, listed.places, strict=True))
        for part in listed.rows:  # a run calls the images of its own split by their keys alone
            for row, key in enumerate(part.keys):
                known.setdefault(key, (part.source, row))
        places = [known.get(key) for key in names]
    if not any(places):
        raise DataError(
            f"{data}: none of the {n_rows:,} rows is among its {len(listed):,} images (the first of them is "
            f"{names[0]!r}, of these {listed.keys[0]!r}): name the data that they were made of"
        )
    return Rows(str(data), names, Places(places, contents), classes=listed.rows[0].classes)


def _missing(images: Rows) -> list[str]:
    """A sentence on the images that are not there, if there are such."""
    assert isinstance(images.source, Places)
    n_missing = images.source.places.count(None)
    said = f"{n_missing:,} of {len(images.keys):,} rows are not among the images of {images.name}"
    return [said] if n_missing else []


def as_array(vectors: Vectors, progress: Progress = lambda done, total: None) -> Array:
    """All rows [N, D] so that any can be taken: mapped where they lie in one .npy file, else in memory.

    >>> as_array(open_vectors([[1.0, 2.0]]))
    array([[1., 2.]])
    """
    if len(vectors.files) == 1 and vectors.files[0].suffix.lower() == ".npy":
        return np.load(vectors.files[0], mmap_mode="r")
    held = np.empty((0, 0))
    for first, block in vectors.blocks(_BLOCK):
        part = (block.float() if block.dtype == torch.bfloat16 else block).cpu().numpy()  # numpy has none
        held = held if first else np.empty((vectors.n_rows, vectors.n_features), part.dtype)
        held[first : first + len(part)] = part
        progress(first + len(part), vectors.n_rows)
    return held


def check_directions(vectors: Any, name: str, *, zeros: bool) -> None:
    """Raise `DataError` with the first row that has NaN or infinity or, unless ``zeros`` may be, is zero."""
    bad, first, why = 0, 0, ""
    for start in range(0, len(vectors), _BLOCK):
        lengths = np.linalg.norm(np.asarray(vectors[start : start + _BLOCK], np.float64), axis=1)
        wrong = np.flatnonzero(~np.isfinite(lengths) | ((lengths == 0) & (not zeros)))
        if len(wrong) and not bad:
            first, why = start + int(wrong[0]), "zero" if lengths[wrong[0]] == 0 else "NaN or infinite"
        bad += len(wrong)
    if bad:
        raise DataError(
            f"{name}: {bad:,} of {len(vectors):,} rows have no direction, the first is row {first:,} ({why}): "
            "leave such rows out, or embed their images again"
        )


def model_of(run: Run) -> Model:
    """A finished run's model, on a GPU where there is one."""
    return load(run.path, device="cuda" if torch.cuda.is_available() else "cpu")


def projections(model: Model, images: Any, n_images: int, progress: Progress) -> Array:
    """Unit vectors [N, D] of a run's images, in memory: what its clusters are made of."""
    kind: Any = "projection" if model.projector is not None else "backbone"
    found, done = np.empty((0, 0), np.float32), 0
    try:
        for pixels in model.batches(images, model.batch_size):
            block = model.features(pixels, kind).numpy()
            found = np.empty((n_images, block.shape[1]), np.float32) if not done else found
            found[done : done + len(block)] = block
            done += len(block)
            progress(done, n_images)
    except DataError as error:
        raise DataError(f"{error}. --data says where the run's images lie") from error
    return found
