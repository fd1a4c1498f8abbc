"""Who is compared on one problem, in turns, and by what all of them are judged.

Each is timed as a user would call it, from rows and starting centers in memory to its result: coke with its checks and
its certified assignment, faiss to trained centers (its labels are searched afterwards, outside of the time).

Legend: N rows, D features, K clusters.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import _common as common

Array = np.ndarray[Any, Any]
FLOW = "k-means-constrained"
PACKAGES = {
    FLOW: "k_means_constrained",
    "faiss": "faiss",
}  # peer -> its module, if coke does not need it itself
STEERING = ("OPENBLAS_", "GOTO_", "BLIS_", "MKL_", "ATEN_", "FAISS_", "OMP_", "GOMP_", "KMP_")


@dataclass(frozen=True, eq=False)
class Problem:
    """Rows float32 [N, D], centers [K, D] to start from, moves of the centers, least and most rows of a cluster."""

    rows: Array
    centers: Array
    iterations: int
    sizes: tuple[int, int] | None


@dataclass(eq=False)
class Found:
    """What a run took and gave; says: what the candidate claims of its result itself."""

    seconds: float
    labels: Any = None
    centers: Any = None
    iterations: int = 0
    predict: float | None = None  # seconds
    says: dict[str, float] = field(default_factory=dict)


def _estimator(estimator: Any, problem: Problem, predicts: bool = True) -> Found:
    start = {
        "init": problem.centers,
        "n_init": 1,
        "max_iter": problem.iterations,
        "tol": 0,
        "random_state": 0,
    }
    estimator.set_params(n_clusters=len(problem.centers), **start)
    began = time.perf_counter()
    estimator.fit(problem.rows)
    fitted = time.perf_counter()
    found = Found(fitted - began, estimator.labels_, estimator.cluster_centers_, estimator.n_iter_)
    if predicts:
        estimator.predict(problem.rows)
        found.predict = time.perf_counter() - fitted
    return found


def coke(problem: Problem) -> Found:
    """`ConstrainedKMeans`, with the problem's sizes if it has any."""
    from coke import ConstrainedKMeans

    low, high = problem.sizes or (None, None)
    estimator = ConstrainedKMeans(min_size=low, max_size=high)
    found = _estimator(estimator, problem)
    found.says = {"own inertia": float(estimator.inertia_), "gap": float(estimator.gap_)}
    return found


def k_means_constrained(problem: Problem) -> Found:
    """Min-cost flow in every iteration, also to predict; its solver has one thread."""
    from k_means_constrained import KMeansConstrained

    low, high = problem.sizes or (None, None)
    return _estimator(KMeansConstrained(size_min=low, size_max=high), problem, predicts=False)


def scikit_learn(problem: Problem, algorithm: str = "lloyd") -> Found:
    """Without bounds."""
    from sklearn.cluster import KMeans

    return _estimator(KMeans(algorithm=algorithm), problem)


def faiss(problem: Problem) -> Found:
    """Without bounds, on all rows."""
    import faiss as library

    n_clusters, n_features = problem.centers.shape
    limits = {"max_points_per_centroid": 10**9, "min_points_per_centroid": 1}
    began = time.perf_counter()
    trained = library.Kmeans(n_features, n_clusters, niter=problem.iterations, seed=1, **limits)
    trained.train(problem.rows, init_centroids=problem.centers)
    seconds = time.perf_counter() - began
    labels = trained.index.search(problem.rows, 1)[1][:, 0]
    return Found(seconds, labels, trained.centroids, len(trained.iteration_stats))


CANDIDATES: dict[str, Callable[[Problem], Found]] = {
    "coke": coke, FLOW: k_means_constrained, "faiss": faiss,
    "scikit-learn": scikit_learn, "elkan": lambda problem: scikit_learn(problem, "elkan"),
}  # fmt: skip


def present(*names: str) -> list[str]:
    """Those that are installed; the others are named in a line."""
    absent = [name for name in names if importlib.util.find_spec(PACKAGES.get(name, "coke")) is None]
    for name in absent:
        print(f"  without {name}: not installed")
    return [name for name in names if name not in absent]


def inertia(rows: Array, centers: Array, labels: Array) -> float:
    """Sum of squared distances of rows to the centers of their labels, in float64."""
    centers, total = centers.astype(np.float64), 0.0
    for first in range(0, len(rows), 2**14):
        away = rows[first : first + 2**14].astype(np.float64) - centers[labels[first : first + 2**14]]
        total += float(np.einsum("nd,nd->", away, away))
    return total


def outside(labels: Any, n_clusters: int, sizes: tuple[int, int] | None) -> int:
    """Rows missing from clusters below their least size, and too many in those above their most.

    >>> outside(np.array([0, 0, 0, 1]), 3, (1, 2))
    2
    """
    counts, (low, high) = np.bincount(labels, minlength=n_clusters), sizes or (0, len(labels))
    return int(np.maximum(low - counts, 0).sum() + np.maximum(counts - high, 0).sum())


def turns(
    calls: Mapping[str, Callable[[], Found]], repetitions: int, once: Sequence[str] = ()
) -> tuple[dict[str, dict[str, Any]], dict[str, Found]]:
    """Run all in rotating order; once: those too slow to repeat. Times by name, and each one's last result.

    Times hold n, seconds, and as ratio how many times as long the first takes, pair by pair. Printed too.
    """
    seconds: dict[str, list[float]] = {}
    last: dict[str, Found] = {}
    names, times = list(calls), {}
    for repetition in range(repetitions):
        shift = repetition % len(names)
        for name in names[shift:] + names[:shift]:
            if not repetition or name not in once:
                found = last[name] = calls[name]()
                seconds.setdefault(name, []).append(found.seconds)
                if found.predict is not None:
                    seconds.setdefault(f"{name}, predict", []).append(found.predict)
    for name, values in seconds.items():
        own = names[0] + (", predict" if name.endswith(", predict") else "")
        row = times[name] = {"n": len(values), "seconds": spread(values)}
        row["ratio"] = spread([a / b for a, b in zip(seconds[own], values, strict=False)])
        ratio = "" if name == own else f"   {own} takes {_words(row['ratio'])} x"
        print(f"  {name:22} {_words(row['seconds'])} s   n {len(values)}{ratio}", flush=True)
    return times, last


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _words(values: Mapping[str, float]) -> str:
    return f"{values['median']:.4g} [{values['least']:.4g}, {values['most']:.4g}]"


def judge(figures: Mapping[str, float], wanted: Mapping[str, float]) -> list[dict[str, Any]]:
    """Each figure beside the most that is wanted of it, printed too; what was not measured is neither met nor missed.

    >>> [check["met"] for check in judge({"gap": 2e-5, "time": 2.0}, {"gap": 1e-4, "time": 1.5, "memory": 1})]
      gap 2e-05, wanted <= 0.0001: met
      time 2, wanted <= 1.5: MISSED
      memory not measured, wanted <= 1
    [True, False, None]
    """
    checks = []
    for what, most in wanted.items():
        value = figures.get(what)
        met = None if value is None else bool(value <= most)
        verdict = "" if met is None else ": met" if met else ": MISSED"
        print(
            f"  {what} {'not measured' if met is None else f'{value:.4g}'}, wanted <= {most:g}{verdict}",
            flush=True,
        )
        checks.append({"what": what, "value": value, "wanted": most, "met": met})
    return checks


def set_threads(threads: int, libraries: Sequence[str] = ("faiss",)) -> None:
    """Let torch, every OpenMP and BLAS that is loaded, and these libraries use so many."""
    import sklearn.cluster  # noqa: F401  # loads its OpenMP, which threadpoolctl then finds
    import threadpoolctl
    import torch

    for name in present(*libraries):
        importlib.import_module(name).omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    threadpoolctl.threadpool_limits(threads)


def environment(threads: int) -> dict[str, Any]:
    """Set the threads; machine, versions, and what steers the kernels, printed."""
    import threadpoolctl

    set_threads(threads)
    common.PACKAGES += ("scipy", "faiss-cpu", "k-means-constrained")
    found = common.environment()
    found["steering"] = {name: value for name, value in os.environ.items() if name.startswith(STEERING)}
    found["pools"] = [
        f"{pool['internal_api']} {pool.get('architecture')} {pool['num_threads']}"
        for pool in threadpoolctl.threadpool_info()
    ]
    common.print_environment(found)
    print(f"libraries, kernels, threads: {'; '.join(found['pools'])}")
    print(f"variables that steer them: {found['steering'] or 'none'}", flush=True)
    return found
