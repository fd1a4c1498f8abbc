"""The choice itself: M of N rows, even over clusters of clusters, without near-duplicates.

    compare     within bounded clusters and their nearest few: of near-duplicates the first stays
    cluster     bounded k-means by direction, in which a row weighs the more the farther its neighbours are
    share       of the coarsest groups of clusters equal parts, and so on down; who has less gives all
    take        of each cluster first the row nearest its center, then whichever is farthest from those taken

Legend: N rows, M chosen, D features, K clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from coke.curation.duplicates import COPY, N_NEAR, NEIGHBOURS, Duplicates, find_duplicates
from coke.curation.shares import shares_by_level
from coke.curation.sources import Candidates
from coke.curation.spread import spread_out
from coke.errors import ConfigError
from coke.explore import Neighbours, find_neighbours

Array = np.ndarray[Any, Any]
_OF_A_GROUP = 10  # clusters of a group of the next level, on average
_FEW = 20  # clusters that need no groups
_SMALLEST = 0.1  # of N / K, of all clusters
_TO_COMPARE, _TO_CHOOSE = (
    4.0,
    10.0,
)  # the largest: what a row is compared with; these may be large: shares are not
_POWER = 4  # of the distance to the 10th neighbour, which rows weigh
_FITTED = 100_000  # rows that clusters are made of
_ITERATIONS = 20  # of k-means: clusters to choose from need not be at rest


@dataclass(frozen=True, eq=False)
class Choice:
    """M of N rows, and why the others went.

    Attributes:
        rows: int64 [M], in the order in which they were taken: any first m of them are spread over clusters as well.
        labels: int64 [N], the cluster of each row, of duplicates too.
        centers: [K, D].
        levels: of each level from the finest up the group of each cluster: [K], [K1], ...
        sizes: int64 [K], rows of each cluster that are no duplicates.
        taken: int64 [K], rows that were chosen of each.
        similarity: cosine from which a row is a duplicate.
        by_data: whether the data said so, not the caller.
        instead: int64 [N], the row that stays in a duplicate's place; -1 of a row that is none.
        alike: float32 [N], cosine to it; NaN of a row that is none.
        counts: for several similarities how many rows would go.
    """

    rows: Array
    labels: Array
    centers: Array
    levels: tuple[Array, ...]
    sizes: Array
    taken: Array
    similarity: float
    by_data: bool
    instead: Array
    alike: Array
    counts: dict[float, int]

    def why(self, row: int) -> str:
        """Why a chosen row is: its cluster is taken whole, or this is its share."""
        whole = self.taken[self.labels[row]] == self.sizes[self.labels[row]]
        return "small cluster, taken whole" if whole else "share of its cluster"

    def sentence(self) -> str:
        """What became of all rows, in words."""
        n_rows, copies = len(self.labels), int((self.instead >= 0).sum())
        full, used = n_rows - copies - len(self.rows), self.taken > 0
        whole = int((used & (self.taken == self.sizes)).sum())
        return (
            f"{len(self.rows):,} chosen out of {int(used.sum()):,} of {len(self.taken):,} clusters, {whole:,} of these "
            f"whole; {copies:,} went as duplicates of a row that stays, and {full:,} because their cluster had given "
            "its share."
        )

    @property
    def words_on_similarity(self) -> str:
        """Where the threshold comes from, in words."""
        if not self.by_data:
            return f"A row is a duplicate from a cosine of {self.similarity:g} on, as asked for."
        if self.similarity >= COPY:
            return (
                "No more rows lie close together than their neighbourhoods let expect, so only exact copies count as "
                "duplicates."
            )
        return (
            f"A row is a duplicate from a cosine of {self.similarity:g} on: down to there more rows lie close together "
            "than their neighbourhoods let expect."
        )


def choose(
    candidates: Candidates, n: int, similarity: float | None, n_clusters: int | None, seed: int
) -> Choice:
    """Choose ``n`` of them. See `coke.curate`, which checks what it is given."""
    vectors, labels, centers = candidates.vectors, candidates.labels, candidates.centers
    n_clusters = n_clusters or auto_clusters(len(vectors))
    if labels is None or centers is None:
        labels, centers = cluster(vectors, n_clusters, seed)
    neighbours = find_neighbours(vectors, NEIGHBOURS, labels=labels, centers=centers, n_near=N_NEAR)
    found = find_duplicates(vectors, labels, centers, neighbours, similarity)
    kept = found.instead < 0
    if n > kept.sum():
        raise too_many(n, found, similarity is None)
    random = np.random.default_rng(seed)
    n_clusters = min(n_clusters, int(kept.sum()))
    labels, centers = cluster(vectors, n_clusters, seed, np.where(kept, loneliness(neighbours), 0))
    levels = groups_of(centers, seed)
    sizes = np.bincount(labels[kept], minlength=len(centers))
    taken = shares_by_level(sizes, levels, n, random)
    members = np.split(np.flatnonzero(kept)[np.argsort(labels[kept], kind="stable")], sizes.cumsum()[:-1])
    rows, turns = [], []
    for own, center, share in zip(members, centers, taken.tolist(), strict=True):
        if share:
            rows.append(spread_out(vectors, own, center, share))
            turns.append(np.arange(share))
    order = np.argsort(np.concatenate(turns), kind="stable")  # the first of each cluster, then the second
    chosen = np.concatenate(rows)[order]
    likeness, by_data = found.similarity, similarity is None
    gone = (found.instead, found.alike, found.counts)
    return Choice(chosen, labels, centers, tuple(levels), sizes, taken, likeness, by_data, *gone)


def too_many(n: int, found: Duplicates, by_data: bool) -> ConfigError:
    """More are asked for than are left without duplicates: what can be done."""
    n_rows, gone = len(found.instead), int((found.instead >= 0).sum())
    above = [similarity for similarity, count in found.counts.items() if n <= n_rows - count]
    remedy = f"{min(above):.6g}, which leaves enough" if above else "1.01, which keeps all, exact copies too"
    said = " (which the data gave)" if by_data else ""
    return ConfigError(
        f"--n {n:,} of {n_rows:,} rows, but {n_rows - gone:,} are left: {gone:,} are duplicates at a similarity of "
        f"{found.similarity:.6g}{said}. Lower --n to {n_rows - gone:,}, or set --similarity {remedy}"
    )


def auto_clusters(n_rows: int) -> int:
    """K where none is asked for: as many clusters as a cluster has rows on average.

    >>> auto_clusters(12_000), auto_clusters(1_000_000), auto_clusters(7)
    (110, 1000, 3)
    """
    return max(1, round(math.sqrt(n_rows)))


def cluster(vectors: Any, n_clusters: int, seed: int, weights: Array | None = None) -> tuple[Array, Array]:
    """Labels [N] and centers [K, D] of bounded k-means by direction; weights [N]: of each row in the means.

    Of more than 100,000 rows the centers are those of as many, within the bounds, and every row goes to the nearest:
    all of them within bounds would take memory of several times the rows where a few groups hold most rows.
    """
    from coke.bounded import ConstrainedKMeans

    largest, many = _TO_COMPARE if weights is None else _TO_CHOOSE, n_clusters > 1
    km = ConstrainedKMeans(
        n_clusters,
        metric="cosine",
        max_iter=_ITERATIONS,
        tol=1e-3,
        random_state=seed,
        min_size_ratio=_SMALLEST if many else None,
        max_size_ratio=largest if many else None,
    )
    n_rows = len(vectors)
    if n_rows <= _FITTED:
        km.fit(vectors, sample_weight=weights)
        return np.asarray(km.labels_).astype(np.int64), np.asarray(km.cluster_centers_)
    sample = np.sort(np.random.default_rng(seed).choice(n_rows, _FITTED, replace=False))
    km.fit(vectors[sample], sample_weight=None if weights is None else weights[sample])
    return np.asarray(km.predict(vectors)).astype(np.int64), np.asarray(km.cluster_centers_)


def loneliness(neighbours: Neighbours) -> Array:
    """What rows weigh, so that clusters follow where rows lie rather than how many lie there: float64 [N], mean 1.

    The fourth power of the distance to the 10th neighbour (the farthest that there is, of fewer rows). The density's
    inverse would be a power as high as the data's dimension, and a few outliers would then weigh all.
    """
    known = np.where(neighbours.rows >= 0, neighbours.similarity, np.inf).min(axis=1).astype(np.float64)
    distance = np.sqrt(2 * (1 - np.where(np.isfinite(known), known, 0)).clip(1e-9))
    weights = distance**_POWER
    return weights / weights.mean()


def groups_of(centers: Array, seed: int) -> list[Array]:
    """Clusters of clusters, level after level until there are few: of each level, the group of each member."""
    levels = []
    while len(centers) > _FEW:
        groups, centers = cluster(centers, math.ceil(len(centers) / _OF_A_GROUP), seed)
        levels.append(groups)
    return levels
