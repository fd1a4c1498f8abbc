"""What is compared on one problem: coke, the peers, the bare product. All start and stop alike.

Each is timed as a user would call it, from data and starting centers in memory to its result: coke with its checks,
its sample and the last, certified assignment; faiss to trained centers, and with the labels (one search) beside it.

Legend: N rows, D features, K clusters.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
PACKAGES = {
    "k-means-constrained": "k_means_constrained",
    "faiss": "faiss",
    "scikit-learn": "sklearn",
}  # peer -> module
AUDIT_ROWS = 2**14


@dataclass(frozen=True, eq=False)
class Problem:
    """What every candidate gets.

    Attributes:
        rows: float32 [N, D], or float16 in a memory map.
        centers: float32 [K, D] to start from.
        iterations: moves of the centers.
        sizes: least and most rows of a cluster, or None.
    """

    rows: Array
    centers: Array
    iterations: int
    sizes: tuple[int, int] | None

    def part(self, n_rows: int, n_clusters: int) -> Problem:
        """A small problem like this one, to warm up with."""
        sizes = None if self.sizes is None else (1, n_rows)
        return Problem(self.rows[:n_rows], self.centers[:n_clusters], 2, sizes)


@dataclass(eq=False)
class Found:
    """What one run of a candidate gave.

    Attributes:
        laps: name -> seconds since the run began.
        centers, labels: [K, D] and [N], or None.
        figures: what else is known: iterations, gap, passes over the rows.
    """

    laps: dict[str, float]
    centers: Array | None = None
    labels: Array | None = None
    figures: dict[str, float] = field(default_factory=dict)


Candidate = Callable[[Problem], Found]


def coke(problem: Problem) -> Found:
    """`ConstrainedKMeans`, with the problem's sizes if it has any."""
    from coke import ConstrainedKMeans

    low, high = problem.sizes or (None, None)
    with counted_passes() as passes:
        began = time.perf_counter()
        fitted = ConstrainedKMeans(
            len(problem.centers),
            min_size=low,
            max_size=high,
            init=problem.centers,
            max_iter=problem.iterations,
            tol=0,
            random_state=0,
        ).fit(problem.rows)
        seconds = time.perf_counter() - began
    figures = {"iterations": fitted.n_iter_, "gap": fitted.gap_, "own_inertia": fitted.inertia_}
    figures["passes"] = passes[0]
    return Found({"coke": seconds}, fitted.cluster_centers_, fitted.labels_, figures)


def k_means_constrained(problem: Problem) -> Found:
    """Min-cost flow in every iteration; its solver has one thread."""
    from k_means_constrained import KMeansConstrained

    assert problem.sizes is not None
    began = time.perf_counter()
    fitted = KMeansConstrained(
        len(problem.centers),
        size_min=problem.sizes[0],
        size_max=problem.sizes[1],
        init=problem.centers,
        n_init=1,
        max_iter=problem.iterations,
        tol=0,
        random_state=0,
    ).fit(problem.rows)
    laps = {"k-means-constrained": time.perf_counter() - began}
    return Found(laps, fitted.cluster_centers_, fitted.labels_, {"iterations": fitted.n_iter_})


def faiss(problem: Problem) -> Found:
    """Unconstrained, on all rows; then, as it keeps no labels, one search for them."""
    import faiss as library

    began = time.perf_counter()
    trained = library.Kmeans(
        problem.rows.shape[1],
        len(problem.centers),
        niter=problem.iterations,
        max_points_per_centroid=10**9,
        min_points_per_centroid=1,
        seed=1,
    )
    trained.train(problem.rows, init_centroids=problem.centers)
    laps = {"faiss": time.perf_counter() - began}
    _, labels = trained.index.search(problem.rows, 1)
    laps["faiss with labels"] = time.perf_counter() - began
    return Found(laps, trained.centroids, labels[:, 0], {"iterations": len(trained.iteration_stats)})


def scikit_learn(problem: Problem) -> Found:
    """Unconstrained."""
    from sklearn.cluster import KMeans

    began = time.perf_counter()
    fitted = KMeans(
        len(problem.centers),
        init=problem.centers,
        n_init=1,
        max_iter=problem.iterations,
        tol=0,
        algorithm="lloyd",
        random_state=0,
    ).fit(problem.rows)
    laps = {"scikit-learn": time.perf_counter() - began}
    return Found(laps, fitted.cluster_centers_, fitted.labels_, {"iterations": fitted.n_iter_})


def product(problem: Problem) -> Found:
    """Nothing but rows times centers: one product an iteration and one for the labels.

    As many rows at a time as are quickest, which is as many as coke scores at a time. A large problem is passed over
    twice, and the time taken times what is missing.
    """
    import torch

    from coke.bounded.scorer import CPU_PAIRS

    n_clusters, n_features = problem.centers.shape
    block_rows = max(CPU_PAIRS // n_clusters, 64)
    columns = torch.from_numpy(problem.centers).t().contiguous()
    scores = torch.empty(block_rows, n_clusters)
    wanted = problem.iterations + 1
    done = wanted if len(problem.rows) * n_clusters * n_features < 1e10 else 2
    began = time.perf_counter()
    for _ in range(done):
        for first in range(0, len(problem.rows), block_rows):
            rows = torch.from_numpy(problem.rows[first : first + block_rows]).float()
            torch.mm(rows, columns, out=scores[: len(rows)])
    return Found({"product": (time.perf_counter() - began) * wanted / done})


CANDIDATES: dict[str, Candidate] = {
    "coke": coke,
    "k-means-constrained": k_means_constrained,
    "faiss": faiss,
    "scikit-learn": scikit_learn,
    "product": product,
}


def missing(names: tuple[str, ...]) -> list[str]:
    """Which candidates cannot run, for want of their package."""
    return [name for name in names if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None]


@contextlib.contextmanager
def counted_passes() -> Iterator[list[int]]:
    """How often the rows are gone through by coke meanwhile: the check of the values, and every sweep."""
    from coke.vectors import Vectors

    kept, count = Vectors.blocks, [0]

    def blocks(vectors: Any, block_rows: int) -> Any:
        count[0] += 1
        return kept(vectors, block_rows)

    Vectors.blocks = blocks  # type: ignore[method-assign]
    try:
        yield count
    finally:
        Vectors.blocks = kept  # type: ignore[method-assign]


def inertia(rows: Array, centers: Array, labels: Array) -> float:
    """Sum of squared distances of rows to the centers of their labels, in float64.

    >>> inertia(np.array([[1.0], [5.0]]), np.array([[0.0], [3.0]]), np.array([0, 1]))
    5.0
    """
    centers, total = centers.astype(np.float64), 0.0
    for first in range(0, len(rows), AUDIT_ROWS):
        part = slice(first, first + AUDIT_ROWS)
        away = rows[part].astype(np.float64) - centers[labels[part]]
        total += float(np.einsum("nd,nd->", away, away))
    return total


def violation(labels: Array, n_clusters: int, sizes: tuple[int, int] | None) -> int:
    """Rows missing from clusters below their least size, and too many in those above their most.

    >>> violation(np.array([0, 0, 0, 1]), 3, (1, 2))
    2
    """
    if sizes is None:
        return 0
    counts = np.bincount(labels, minlength=n_clusters)
    return int(np.maximum(sizes[0] - counts, 0).sum() + np.maximum(counts - sizes[1], 0).sum())
