"""The most similar rows of each row, looked for in its own cluster and the nearest few.

All pairs of a million rows are 5e11 products; within clusters of 1,000 rows and three neighbouring clusters they
are 4e9. What this can miss are neighbours across a border beyond the nearest clusters; with fewer clusters than
are looked at, or none, every pair is compared and nothing is missed.

Legend: N rows, D features, K clusters, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

Array = np.ndarray[Any, Any]
ALL_PAIRS = 20_000
"""Rows up to which comparing every pair is a matter of seconds; above, those of a cluster and of the nearest ones."""
_PRODUCTS = 1 << 24  # similarities held at a time: 64 MiB
_CANDIDATES = 1 << 14  # rows that a block of rows is compared with at a time


class Neighbours(NamedTuple):
    """The k most similar other rows of each row, the most similar first."""

    rows: Array  # int64 [N, k]; -1 where fewer were compared
    similarity: Array  # cosine, float32 [N, k]; -inf there


def find_neighbours(
    vectors: Any,
    k: int = 10,
    *,
    labels: Any = None,
    centers: Any = None,
    n_near: int = 3,
) -> Neighbours:
    """The k rows of highest cosine to each row of vectors [N, D], from its own cluster and the `n_near` nearest ones.

    Memory beyond the vectors: 20 k bytes a row, and the rows of a few clusters as float32.

    Args:
        vectors: an array or a memory map; rows of any length, a row of zeros is similar to nothing (0).
        labels: [N] cluster of each row, 0 ... K-1; None compares all pairs.
        centers: [K, D] of the clusters, which say what is near what by cosine.
        n_near: other clusters that are looked at.

    >>> import numpy as np
    >>> rows = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> find_neighbours(rows, k=1).rows.ravel()
    array([1, 0, 3, 2])
    """
    n_rows = len(vectors)
    found = Neighbours(np.full((n_rows, k), -1, np.int64), np.full((n_rows, k), -np.inf, np.float32))
    for own, candidates in _comparisons(n_rows, labels, centers, n_near):
        block_rows = max(1, _PRODUCTS // min(len(candidates), _CANDIDATES))
        for first in range(0, len(own), block_rows):
            block = own[first : first + block_rows]
            found.rows[block], found.similarity[block] = most_similar(vectors, block, candidates, k)
    return found


def _comparisons(n_rows: int, labels: Any, centers: Any, n_near: int) -> Iterator[tuple[Array, Array]]:
    """Rows of a cluster, and those that they are compared with: they and the rows of the nearest clusters."""
    if labels is None:
        yield np.arange(n_rows), np.arange(n_rows)
        return
    labels, centers = np.asarray(labels), torch.as_tensor(np.asarray(centers)).float()
    assert labels.shape == (n_rows,)
    members = np.split(
        np.argsort(labels, kind="stable"), np.bincount(labels, minlength=len(centers)).cumsum()[:-1]
    )
    directions = normalize(centers, dim=1)
    for cluster, own in enumerate(members):
        if len(own):
            closeness = directions @ directions[cluster]
            closeness[cluster] = torch.inf  # its own rows always
            nearest = closeness.topk(min(n_near + 1, len(centers))).indices.tolist()
            yield own, np.concatenate([members[one] for one in nearest])


def most_similar(vectors: Any, block: Array, candidates: Array, k: int) -> tuple[Array, Array]:
    """The most similar candidates of a block of rows, but not they themselves: rows and cosines as `Neighbours`."""
    queries = unit_rows(vectors, block)
    rows = torch.full((len(block), k), -1)
    similarity = torch.full((len(block), k), -torch.inf)
    for first in range(0, len(candidates), _CANDIDATES):
        others = candidates[first : first + _CANDIDATES]
        products = queries @ unit_rows(vectors, others).T
        products[torch.from_numpy(block[:, None] == others)] = -torch.inf  # not itself
        best = products.topk(min(k, len(others)), dim=1)
        ids = torch.from_numpy(others)[best.indices].where(best.values > -torch.inf, -1)
        similarity, order = torch.cat([similarity, best.values], dim=1).topk(k, dim=1)
        rows = torch.cat([rows, ids], dim=1).gather(1, order)
    return rows.numpy(), similarity.numpy()


def sums_of_directions(vectors: Any, labels: Array, n_clusters: int) -> Array:
    """The sum of each cluster's rows as unit vectors, float64 [K, D]: its direction is that of their mean.

    labels: [N], of 0 ... K-1; a row of -1 counts nowhere.

    >>> sums_of_directions(np.array([[2.0, 0.0], [0.0, 3.0], [0.0, 1.0]]), np.array([0, 1, 1]), 2).tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    """
    sums = torch.zeros(n_clusters, vectors.shape[1], dtype=torch.float64)
    for first in range(0, len(labels), _CANDIDATES):
        own = torch.as_tensor(labels[first : first + _CANDIDATES]).long()
        block = torch.from_numpy(np.array(vectors[first : first + _CANDIDATES], np.float64))
        sums.index_add_(0, own[own >= 0], normalize(block[own >= 0], dim=1))
    return sums.numpy()


def unit_rows(vectors: Any, rows: Array) -> Tensor:
    """Rows as unit vectors, float32."""
    return normalize(torch.from_numpy(np.asarray(vectors[rows])).float(), dim=1)
