"""A map of embeddings: a place in the plane for each row, so that similar rows lie together.

UMAP (McInnes, Healy and Melville 2018, arXiv 1802.03426) where umap-learn is installed (`coke-ssl[map]`), on
neighbours that `find_neighbours` found; else the two main directions of the rows (PCA), and the map says so.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np

from coke.errors import ConfigError
from coke.explore.neighbours import Neighbours

Array = np.ndarray[Any, Any]
Method = Literal["umap", "pca"]
_BLOCK = 1 << 14  # rows


class Map(NamedTuple):
    """Where rows lie in the plane, and a sentence on how they came there."""

    places: Array  # float32 [N, 2]
    words: str


def map_of(
    vectors: Any, neighbours: Neighbours | None = None, *, method: Method | None = None, seed: int = 0
) -> Map:
    """A place in the plane for each of the vectors [N, D], by their directions.

    Args:
        vectors: an array or a memory map.
        neighbours: of each row, for UMAP; at least 5.
        method: "umap" or "pca"; None: UMAP where it is installed and neighbours are given.
        seed: of UMAP. The same seed gives the same map on the same machine.

    Raises `ConfigError` for UMAP without enough neighbours.

    >>> import numpy as np
    >>> map_of(np.eye(4), method="pca").words
    'the two main directions (PCA), which hold 67 % of the spread'
    """
    enough = neighbours is not None and neighbours.rows.shape[1] >= 5 and bool((neighbours.rows >= 0).all())
    if method is None:
        method = "umap" if enough and find_spec("umap") is not None else "pca"
    if method == "umap":
        if neighbours is None or not enough:
            raise ConfigError("UMAP needs at least 5 neighbours of every row: ask for pca")
        return Map(_umap(vectors, neighbours, seed), "UMAP: who is near whom is meant, distances are not")
    places, held = _pca(vectors)
    return Map(places, f"the two main directions (PCA), which hold {100 * held:.0f} % of the spread")


def _pca(vectors: Any) -> tuple[Array, float]:
    """Rows along the two main directions of their unit vectors, and the share of variance in these."""
    n_rows, n_features = vectors.shape
    total, products = np.zeros(n_features), np.zeros((n_features, n_features))
    for first in range(0, n_rows, _BLOCK):
        block = _directions(vectors[first : first + _BLOCK])
        total += block.sum(axis=0)
        products += block.T @ block
    mean = total / n_rows
    spread, directions = np.linalg.eigh(products / n_rows - np.outer(mean, mean))
    spread, axes = spread.clip(0), np.zeros((n_features, 2))
    axes[:, : min(2, n_features)] = directions[:, :-3:-1]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]] + 1e-300)  # the same sign on every machine
    places = np.empty((n_rows, 2), np.float32)
    for first in range(0, n_rows, _BLOCK):
        places[first : first + _BLOCK] = (_directions(vectors[first : first + _BLOCK]) - mean) @ axes
    return places, float(spread[-2:].sum() / max(spread.sum(), 1e-300))


def _directions(rows: Any) -> Array:
    block = np.asarray(rows, np.float64)
    return block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)


def _umap(vectors: Any, neighbours: Neighbours, seed: int) -> Array:
    """UMAP of given neighbours, begun at the main directions; each row counts as its own first neighbour."""
    import umap

    n_rows, k = neighbours.rows.shape
    own = np.arange(n_rows)[:, None]
    distances = (1 - neighbours.similarity).clip(0).astype(np.float32)
    none = np.zeros((n_rows, 1), np.float32)
    known = (np.hstack([own, neighbours.rows]), np.hstack([none, distances]), None)
    start = _pca(vectors)[0]
    start = 10 * start / max(float(np.abs(start).max()), 1e-12)
    start += np.random.default_rng(seed).normal(0, 1e-4, start.shape).astype(np.float32)  # equal rows part
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one thread, which a seed asks for
        mapper = umap.UMAP(n_neighbors=k + 1, init=start, random_state=seed, precomputed_knn=known)
        return np.asarray(mapper.fit_transform(np.asarray(vectors, np.float32)), np.float32)
