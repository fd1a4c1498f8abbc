"""What is looked at: the images of a run, or rows of embeddings, with whatever is known of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
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
from coke.images.table import Source
from coke.model.embed import Listed, Partial
from coke.model.files import load
from coke.model.model import Features
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
    vectors: gives their vectors [N, D], into a folder; None where there are none.
    """

    name: str
    n_rows: int
    names: dict[str, Any]
    clusters: dict[str, Any] = field(default_factory=dict)
    images: Rows | None = None
    map: Map | None = None
    near: Neighbours | None = None
    said: list[str] = field(default_factory=list)
    vectors: Callable[[Path, Progress], Array] | None = None


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

    Raises:
        DataError: no vectors there; clusters or images that are not about these rows.
    """
    vectors = open_vectors(path, column=column)
    items = Items(str(path), vectors.n_rows, names_of(vectors))
    items.vectors = lambda folder, progress: _kept(vectors, folder / "vectors", progress)
    keys = items.names.get("key")
    if clusters is not None:
        items.clusters, said = read_clusters(clusters, vectors.n_rows, keys, head)
        items.said.append(said)
    if data is None:
        items.said.append("no pictures: name their images with --data")
    else:
        items.images = _found(data, vectors.n_rows, keys, image_column, items.said)
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
    labels = table["label"].to_pylist() if "label" in table.column_names else None
    if labels is not None:
        items.names["label"] = _class_names(labels)
    items.clusters, _ = read_clusters(run.assignments, table.num_rows, keys, head)
    _read_map(run.path / "map.parquet", items)
    asked = run.data if data is None else data
    try:
        column = image_column or (config.get("image_column") if has_columns(asked) else None)
        contents = table["content"] if "content" in table.column_names else None  # of an earlier coke
        found = _found(asked, table.num_rows, keys, column, items.said, contents)
    except DataError as error:
        if data is not None or items.map is None:
            raise DataError(f"{error}; --data says where the images of {run.path} lie now") from error
        items.said.append(f"no pictures, and of each image the most similar other one alone: {error}")
        return items
    items.images = found
    if labels is not None:
        items.names["label"] = _class_names(labels, found.classes)
    if items.map is None or not _missing(found):
        items.vectors = lambda folder, progress: _projections(run, found, folder, progress)
    return items


def _class_names(numbers: list[int], classes: Sequence[str] | None = None) -> Any:
    """Names, as far as they are known, else the numbers themselves; null where there is no label (-1)."""
    known = classes or []
    names = [None if n < 0 else known[n] if n < len(known) else str(n) for n in numbers]
    return pa.array(names, pa.string())


def _kept(vectors: Vectors, place: Path, progress: Progress) -> Array:
    """All of them in one file, mapped: their neighbours are looked for in any order. Refuses NaN and infinity."""
    stored, done = Partial(place, {}, "float32"), 0
    for first, block in vectors.blocks(_BLOCK):
        bad = ~torch.isfinite(block.float()).all(dim=1)
        if bool(bad.any()):
            row = first + int(bad.int().argmax())
            raise DataError(
                f"{vectors.name}: row {row:,} has NaN or infinity, which lie nowhere: leave it out"
            )
        done = first + len(block)
        stored.add(block.float(), {}, done)
        progress(done, vectors.n_rows)
    return stored.rows()


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


class _Places:
    """Images of several splits in another order; `Missing` where one is not there.

    contents: the hash of each image's stored content, where it is known, so that no other image takes its place.
    """

    def __init__(self, places: Sequence[tuple[Source, int] | None], contents: Any = None) -> None:
        self.places, self.contents = places, contents

    def load(self, row: int) -> Any:
        """The content of a row's image."""
        place = self.places[row]
        if place is None:
            raise DataError("it is not among the images")
        content = place[0].load(place[1])
        if self.contents is not None and isinstance(content, bytes):
            digest = hashlib.blake2b(content, digest_size=16).digest()
            if digest != self.contents[row].as_py():
                raise DataError("it is another image than the run's")
        return content


def _found(
    data: str, n_rows: int, keys: Any | None, image_column: str | None, said: list[str], contents: Any = None
) -> Rows:
    """The images of N rows by their keys, or, where rows have none, by their order."""
    listed = Listed(find_rows(data, **({} if image_column is None else {"image_column": image_column})))
    if keys is None:
        if len(listed) != n_rows:
            raise DataError(
                f"{data} has {len(listed):,} images, and there are {n_rows:,} rows without keys: they must be as many"
            )
        names = listed.keys
        places: list[tuple[Source, int] | None] = [*listed.places]
    else:
        names = [str(key) for key in keys.to_pylist()]
        known: dict[str, tuple[Source, int]] = dict(zip(listed.keys, listed.places, strict=True))
        for part in listed.rows:  # a run calls the images of its own split by their keys alone
            for row, key in enumerate(part.keys):
                known.setdefault(key, (part.source, row))
        places = [known.get(key) for key in names]
    found = Rows(str(data), names, _Places(places, contents), classes=listed.rows[0].classes)
    n_missing = _missing(found)
    if n_missing == n_rows:
        raise DataError(
            f"{data}: none of the {n_rows:,} rows is among its {len(listed):,} images (the first of them is "
            f"{names[0]!r}, of these {listed.keys[0]!r}): name the data that they were made of"
        )
    if n_missing:
        said.append(f"{n_missing:,} of {n_rows:,} rows are not among the images of {data}")
    return found


def _missing(images: Rows) -> int:
    return sum(place is None for place in images.source.places)  # type: ignore[attr-defined]


def _projections(run: Run, images: Rows, folder: Path, progress: Progress) -> Array:
    """Unit vectors [N, D] of a run's images: what its clusters are made of."""
    model = load(run.path, device="cuda" if torch.cuda.is_available() else "cpu")
    kind: Features = "projection" if model.projector is not None else "backbone"
    listed, stored = Listed([images]), Partial(folder / "projections", {}, "float32")
    for pixels, failed, stop in listed.batches(model):
        if failed:
            row, reason = next(iter(failed.items()))
            raise DataError(
                f"{images.keys[row]} of {images.name} is needed for its place and cannot be had: {reason}; "
                "--data says where the run's images lie"
            )
        stored.add(model.features(pixels, kind), failed, stop)
        progress(stop, len(listed))
    return stored.rows()
