"""Images that have no like, and those that have too much of it: outliers, exact copies, near-duplicates.

Legend: N images; rows are their numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def outliers(closeness: Array, n_most: int) -> list[int]:
    """The rows of least closeness [N] to anything, at most a quarter of all; rows of which it is NaN come last.

    >>> outliers(np.array([0.9, 0.1, np.nan, 0.8]), 3)
    [1]
    """
    return [int(row) for row in np.argsort(closeness, kind="stable")[: min(n_most, len(closeness) // 4)]]


def exact_copies(contents: Array, n_most: int) -> list[list[int]]:
    """Groups of rows whose contents [N] are equal, the largest first.

    >>> exact_copies(np.array([4, 7, 4, 9, 9, 9]), 5)
    [[3, 4, 5], [0, 2]]
    """
    numbers, counts = np.unique(contents, return_counts=True)
    often = [place for place in np.argsort(-counts, kind="stable")[:n_most] if counts[place] > 1]
    return [np.flatnonzero(contents == numbers[place]).tolist() for place in often]


def nearest_pairs(nearest: Array, similarity: Array, contents: Array) -> list[tuple[int, int]]:
    """Each row with its nearest other one, the most similar first, each pair once, without those of equal contents.

    nearest: a row, or -1; similarity: to it; contents: all [N].

    >>> nearest_pairs(np.array([1, 0, 0, -1]), np.array([0.9, 0.9, 0.5, 0.0]), np.arange(4))
    [(0, 1), (2, 0)]
    """
    rows = np.arange(len(nearest))
    twice = (nearest[nearest] == rows) & (nearest < rows)
    kept = rows[(nearest >= 0) & (contents != contents[nearest]) & ~twice]
    order = kept[np.argsort(-similarity[kept], kind="stable")]
    return list(zip(order.tolist(), nearest[order].tolist(), strict=True))
