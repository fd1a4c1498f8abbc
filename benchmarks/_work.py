"""The rows of bounded.py's table: how much work, on which data, within which sizes, beside whom.

Legend: N rows, D features, K clusters, J components of a mixture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Work:
    """One row of the table.

    Attributes:
        data: name -> components and noise of `_mixtures.Data`.
        ratio: sizes from N / (ratio K) to ratio N / K; None: any.
        budget: seconds, after which no further repetition begins.
    """

    n_rows: int
    n_features: int
    n_clusters: int
    iterations: int
    ratio: float | None
    candidates: tuple[str, ...]
    data: dict[str, tuple[int, float]]
    repetitions: int = 3
    budget: float = 400.0
    mapped: bool = False

    def sizes(self, n_rows: int) -> tuple[int, int] | None:
        """Least and most rows of a cluster.

        >>> WORK["20k"].sizes(20_000), WORK["1M"].sizes(1_000_000), WORK["200k"].sizes(200_000)
        ((50, 200), (250, 4000), None)
        """
        if self.ratio is None:
            return None
        mean = n_rows / self.n_clusters
        return -int(-mean // self.ratio), int(mean * self.ratio)


_FLOW, _FREE = ("coke", "k-means-constrained", "product"), ("coke", "faiss", "product")
_FEW = {"normal": (0, 1.0), "mixture": (100, 0.5)}
_FEWER = {"normal": (0, 1.0), "mixture": (50, 0.5)}
_MANY = {"mixture": (500, 1.0)}
_NORMAL = {"normal": (0, 1.0)}
_BOTH = {**_NORMAL, **_MANY}
WORK = {
    "20k": Work(20_000, 32, 200, 10, 2, _FLOW, _FEW, budget=220),
    "50k": Work(50_000, 64, 100, 5, 2, _FLOW, _FEWER, budget=220),
    "1M": Work(1_000_000, 128, 1000, 10, 4, _FREE, _BOTH),
    "10M": Work(10_000_000, 128, 1000, 2, 4, ("coke",), _NORMAL, budget=440, mapped=True),
    "200k": Work(200_000, 128, 1000, 10, None, ("coke", "scikit-learn", *_FREE[1:]), _MANY, repetitions=5),
}


def tiny(work: Work) -> Work:
    """The same with so few rows that it takes a second: it shows that it runs, and nothing else."""
    few = replace(work, n_rows=2_000, n_clusters=20, iterations=3, repetitions=2, budget=20)
    return replace(few, n_rows=20_000, repetitions=1) if work.mapped else few


def words_of(work: Work) -> str:
    """One line about it.

    >>> words_of(WORK["200k"])
    '200,000 x 128, K 1000, no bounds, 10 iterations'
    """
    sizes = work.sizes(work.n_rows)
    bounds = "no bounds" if sizes is None else f"sizes {sizes[0]:,} ... {sizes[1]:,}"
    return f"{work.n_rows:,} x {work.n_features}, K {work.n_clusters}, {bounds}, {work.iterations} iterations"


def setting_of(work: Work) -> dict[str, Any]:
    """What a result says of it."""
    return {
        "N": work.n_rows,
        "D": work.n_features,
        "K": work.n_clusters,
        "iterations": work.iterations,
        "sizes": work.sizes(work.n_rows),
        "dtype": "float16 in a memory map" if work.mapped else "float32",
        "centers": "k-means++ on at most 32,000 rows",
    }
