"""map.parquet: where each image lies in the plane, what lies nearest to it, and its mean colour.

For people who look: the report and the explorer need neither network nor images then. Rows are those of
assignments.parquet.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coke.explore import Neighbours, find_neighbours, map_of
from coke.explore.neighbours import ALL_PAIRS
from coke.images import ImageSet
from coke.run import atomic

Array = np.ndarray[Any, Any]
_PAIRS = 2e10  # compared otherwise, at most: some minutes on two cores
_UMAP_SECONDS = (30.0, 1.2e-3)  # to compile, and of each row (docs/log.md)
_SHARE = 0.05  # of the training's time that a map may take


def write_map(
    path: Path, vectors: Any, clusters: Array, centers: Any, images: ImageSet, *, seconds: float = 0.0
) -> None:
    """Write it for images whose projections are ``vectors``.

    Args:
        vectors: unit vectors [N, D], an array or a memory map.
        clusters: [N] of one head, which say beside ``centers`` [K, D] what is compared with what above 20,000 rows.
        images: the same N in the same order, for their colours.
        seconds: of training; where UMAP is not installed or would take over a twentieth of them, the map is PCA.
    """
    n_rows = len(vectors)
    compile_seconds, row_seconds = _UMAP_SECONDS
    affordable = compile_seconds + n_rows * row_seconds <= _SHARE * seconds
    use_umap = affordable and n_rows > 5 and find_spec("umap") is not None
    near, compared = _neighbours(vectors, clusters, centers, k=15 if use_umap else 1)
    places, words = map_of(
        vectors, near, method="umap" if use_umap and bool((near.rows >= 0).all()) else "pca"
    )
    known = near.rows[:, 0] >= 0
    colours = images.sums[:, 0] / images.sizes.double().prod(dim=1, keepdim=True)
    columns: dict[str, Any] = {
        "x": places[:, 0].astype(np.float32),
        "y": places[:, 1].astype(np.float32),
        "nearest": pa.array(near.rows[:, 0].astype(np.int32), mask=~known),
        "similarity": pa.array(near.similarity[:, 0], mask=~known),
    }
    columns |= dict(zip(("red", "green", "blue"), colours.round().byte().numpy().T, strict=True))
    table = pa.table(columns).replace_schema_metadata({"map": words, "nearest": compared})
    with atomic(path, "wb") as stream:
        pq.write_table(table, stream)


def _neighbours(vectors: Any, clusters: Array, centers: Any, k: int) -> tuple[Neighbours, str]:
    """The nearest rows of each, and among which they were looked for."""
    n_rows = len(vectors)
    if n_rows <= ALL_PAIRS:
        return find_neighbours(vectors, k), "of all images"
    largest = int(np.bincount(clusters).max())
    n_near = next((n for n in (3, 1) if float(n_rows) * largest * (n + 1) <= _PAIRS), 0)
    found = find_neighbours(vectors, k, labels=clusters, centers=centers, n_near=n_near)
    others = f" and the {n_near} nearest ones" if n_near else ""
    return found, f"of its own cluster{others}"
