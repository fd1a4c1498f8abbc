"""Near-duplicates: which rows are so similar to an earlier one that they go, and from which similarity on.

A row goes where a row that stays is at least as similar to it as is stated (cosine), so every row that goes has a
row in its place, named and itself kept. Compared is what lies in the same cluster or in the clusters near it; equal
rows are found wherever they lie.

Legend: N rows, D features, K clusters, k neighbours of a row.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from coke.explore import Neighbours
from coke.explore.neighbours import most_similar, unit_rows

Array = np.ndarray[Any, Any]
NEIGHBOURS = 10  # of a row: those that a threshold is judged by
N_NEAR = 3  # other clusters that a cluster is compared with
COPY = 1 - 1e-5  # from here on float32 may not tell rows apart
_BLOCK = 1024  # rows that are compared with all that stay
_HASHED = 1 << 14  # rows that are read at a time
_FALSE_COSTS = 9  # as many as that must be right for one that is wrong
# of 1 - cosine at the threshold: where it is counted how many rows would go
_SHOWN = (0.25, 0.5, 1.0, 2.0, 4.0)
_LEAST_SHOWN = 0.005  # of 1 - cosine, times these: beyond, where only copies go
_FLOOR = 0.5  # no threshold of ours lies below: a right angle is no likeness


class Duplicates(NamedTuple):
    """The rows that go, and for several similarities how many would."""

    similarity: float  # from which a row counts as a duplicate
    instead: Array  # int64 [N]: the row that stays in its place; -1 of a row that stays itself
    alike: Array  # float32 [N]: cosine to it; NaN of a row that stays
    counts: dict[float, int]


def find_duplicates(
    vectors: Any, labels: Array, centers: Array, neighbours: Neighbours, similarity: float | None = None
) -> Duplicates:
    """The rows of vectors [N, D] that have a row of cosine `similarity` or more before them.

    Of duplicates the first row of the data stays; where they lie in two clusters, that of the cluster whose
    first row comes first. ``similarity`` of None: what `likeness_of_copies` says.

    Args:
        labels: [N] cluster of each row; centers: [K, D].
        neighbours: of each row, looked for in the same clusters.
    """
    nearest = _nearest(neighbours)
    chosen = likeness_of_copies(neighbours) if similarity is None else similarity
    apart = max(1 - chosen, _LEAST_SHOWN)
    others = {round(1 - times * apart, 6) for times in _SHOWN if times != 1 or apart > 1 - chosen}
    near, first = near_clusters(centers, N_NEAR), first_equal(vectors)
    equal, found = np.flatnonzero(first != np.arange(len(first))), {}
    for each in sorted({chosen, *others}, reverse=True):
        wanted = nearest >= each
        wanted[equal] = False
        instead, alike = keep_first(vectors, np.flatnonzero(wanted), labels, near, each)
        if each <= 1 and len(
            equal
        ):  # equal rows go wherever they lie, for what stays in place of the first of them
            its = first[equal]
            stays = instead[its] < 0
            instead[equal], alike[equal] = np.where(stays, its, instead[its]), np.where(stays, 1, alike[its])
        found[each] = instead, alike
    counts = {each: int((instead >= 0).sum()) for each, (instead, _) in found.items()}
    return Duplicates(chosen, *found[chosen], counts)


def first_equal(vectors: Any) -> Array:
    """Of each row the first row of the same bytes, wherever it lies: int64 [N].

    >>> first_equal(np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])).tolist()
    [0, 1, 0]
    """
    digests = np.empty(len(vectors), np.uint64)
    for start in range(0, len(vectors), _HASHED):
        block = np.ascontiguousarray(vectors[start : start + _HASHED])
        each = [hashlib.blake2b(row, digest_size=8).digest() for row in block]
        digests[start : start + len(each)] = np.frombuffer(b"".join(each), np.uint64)
    _, first, which = np.unique(digests, return_index=True, return_inverse=True)
    return first[which]


def likeness_of_copies(neighbours: Neighbours) -> float:
    """From which cosine on rows are copies rather than neighbours, judged by how near neighbours lie of themselves.

    Were there no copies, the nearest of a row's k neighbours would lie within a distance t of it with probability
    1 - (1 - (t / r)^d)^(k - 1), where r is how far the k-th is and d the dimension that the data fill around a row
    (the ratio of the distances of two neighbours says it: Facco et al. 2017, arXiv 1803.06992). Copies are rows with
    a neighbour where none is to be expected. Taken is the distance that finds the most, a row that the formula
    expects there as well counting nine times against it. Exact copies count as copies in any case, and where no
    distance finds more than is expected, only they are.
    """
    k = neighbours.rows.shape[1]
    distance = np.sqrt(2 * (1 - neighbours.similarity.astype(np.float64)).clip(0))
    near, middle, far = distance[:, 0], distance[:, max(k // 2 - 1, 0)], distance[:, -1]
    known = np.isfinite(far) & (middle > np.sqrt(2 * (1 - COPY)))
    if k < 4 or known.sum() < 10:
        return COPY
    near, far = near[known], far[known]
    ratio = np.median(np.log(far / middle[known]))
    dimension = np.log(2) / max(float(ratio), 1e-6)
    steps = np.geomspace(np.sqrt(2 * (1 - COPY)), np.sqrt(2 * (1 - _FLOOR)), 200)
    gains = []
    for step in steps:
        expected = (1 - (1 - np.minimum(step / far, 1) ** dimension) ** (k - 1)).sum()
        gains.append((near < step).sum() - (1 + _FALSE_COSTS) * expected)
    best = int(np.argmax(gains))
    return round(float(1 - steps[best] ** 2 / 2), 4) if gains[best] > 0 and steps[best] > 0.01 else COPY


def near_clusters(centers: Array, n_near: int) -> list[Array]:
    """Of each cluster those that it is compared with, itself among them: of two, each is near the other."""
    directions = normalize(torch.as_tensor(np.asarray(centers)).float(), dim=1)
    near: list[set[int]] = [{cluster} for cluster in range(len(directions))]
    for cluster, direction in enumerate(directions):
        closeness = directions @ direction
        closeness[cluster] = -torch.inf
        for other in closeness.topk(min(n_near, len(directions) - 1)).indices.tolist():
            near[cluster].add(other)
            near[other].add(cluster)
    return [np.array(sorted(each)) for each in near]


def keep_first(
    vectors: Any, rows: Array, labels: Array, near: list[Array], similarity: float
) -> tuple[Array, Array]:
    """Of the given rows, those that go: the row that stays instead [N], -1 where there is none, and its cosine [N].

    Cluster by cluster, in the order in which they first appear in the data, and within them in the data's order.

    >>> rows = np.array([[1.0, 0.0], [0.0, 1.0], [0.99, 0.01], [0.98, 0.03]])
    >>> instead, alike = keep_first(rows, np.arange(4), np.zeros(4, int), [np.array([0])], 0.999)
    >>> instead, alike.round(3)
    (array([-1, -1,  0,  0]), array([nan, nan,  1.,  1.], dtype=float32))
    """
    instead = np.full(len(labels), -1, np.int64)
    alike = np.full(len(labels), np.nan, np.float32)
    stays: dict[int, Array] = {}
    clusters, first = np.unique(labels[rows], return_index=True)
    for cluster in clusters[np.argsort(first)].tolist():
        own = rows[labels[rows] == cluster]
        earlier = [stays[other] for other in near[cluster].tolist() if other in stays]
        kept = np.concatenate([np.empty(0, np.int64), *earlier])
        n_others = len(kept)
        for start in range(0, len(own), _BLOCK):
            block = own[start : start + _BLOCK]
            best, at = (column[:, 0] for column in most_similar(vectors, block, kept, 1))
            still = np.flatnonzero(at < similarity)
            products = (unit_rows(vectors, block) @ unit_rows(vectors, block[still]).T).numpy()
            leaders = _leaders(products[still] >= similarity)
            if leaders.any():
                among, where = products[:, leaders].max(axis=1), products[:, leaders].argmax(axis=1)
                closer = among > at
                best[closer], at[closer] = block[still[leaders]][where[closer]], among[closer]
            goes = np.ones(len(block), bool)
            goes[still[leaders]] = False
            instead[block[goes]], alike[block[goes]] = best[goes], at[goes]
            kept = np.concatenate([kept, block[~goes]])
        stays[cluster] = kept[n_others:]
    return instead, alike


def _leaders(similar: Array) -> Array:
    """Which of b rows stay: bool [b], no two of them similar [b, b], each taken unless an earlier one is."""
    stays = np.ones(len(similar), bool)
    for row in range(len(similar)):
        if stays[row]:
            stays[row + 1 :] &= ~similar[row, row + 1 :]
    return stays


def _nearest(neighbours: Neighbours) -> Array:
    """The highest cosine of each row to another, also where only the other had looked at it: float32 [N]."""
    nearest = neighbours.similarity[:, 0].copy()
    known = neighbours.rows >= 0
    np.maximum.at(nearest, neighbours.rows[known], neighbours.similarity[known])
    return nearest
