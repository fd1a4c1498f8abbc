"""Clusters of a run as people look at them: sizes beside the bound, how well each hangs together, who shows it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from coke.explore.join import heads_of

Array = np.ndarray[Any, Any]
Kind = Literal["central", "borderline", "random", "farthest"]
DOUBT = 0.02  # a margin below it leaves it nearly to chance which of two clusters an image is in


@dataclass(frozen=True)
class Groups:
    """One head's columns of assignments.parquet, [N] each.

    Args:
        index: the head.
        clusters: -1 where an image has none.
        scores, margins: NaN where they are not known.
        seconds: the nearest other cluster, -1 where there is none.
        n_clusters: K, empty clusters too.
        bound: the least size asked of a cluster, None where it is not known.
    """

    index: int
    clusters: Array
    scores: Array
    margins: Array
    seconds: Array
    n_clusters: int
    bound: float | None = None

    @classmethod
    def read(cls, table: Any, recorded: list[dict[str, Any]], min_size_ratio: float | None) -> list[Groups]:
        """All heads of a table of assignments, by what the last epoch recorded of each (``n_clusters``, ``bound``)."""
        heads = []
        for index in heads_of(table.column_names):

            def column(name: str, missing: float, index: int = index) -> Array:
                known = f"{name}_{index}" in table.column_names
                found = table[f"{name}_{index}"].to_numpy() if known else np.full(len(table), np.nan)
                return np.nan_to_num(found.astype(np.float64), nan=missing)

            said = recorded[index] if index < len(recorded) else {}
            clusters, seconds = (column(name, -1).astype(np.int64) for name in ("cluster", "second"))
            n_clusters = max(int(said.get("n_clusters") or 0), int(clusters.max(initial=-1)) + 1)
            bound = said.get("bound")
            if bound is None and min_size_ratio is not None and n_clusters:
                bound = min_size_ratio * len(clusters) / n_clusters
            scores, margins = column("score", np.nan), column("margin", np.nan)
            heads.append(cls(index, clusters, scores, margins, seconds, n_clusters, bound))
        return heads

    @cached_property
    def sizes(self) -> Array:
        """How many images each cluster holds, [K]; images without a cluster count nowhere."""
        return np.bincount(self.clusters[self.clusters >= 0], minlength=self.n_clusters)

    @cached_property
    def by_size(self) -> list[int]:
        """Clusters that hold an image, the largest first; ties by number."""
        order = np.argsort(-self.sizes, kind="stable")
        return [int(cluster) for cluster in order[self.sizes[order] > 0]]

    @cached_property
    def _members(self) -> list[Array]:
        order = np.lexsort((-self.scores, self.clusters))
        return np.split(order[self.clusters[order] >= 0], self.sizes.cumsum()[:-1])

    def members(self, cluster: int) -> Array:
        """Rows of a cluster's images, the highest score first."""
        return self._members[cluster]

    def chosen(self, cluster: int, kind: Kind, contents: Array) -> Array:
        """Rows of a cluster's images in the order of a kind; of those of equal contents [N] the first alone."""
        rows = self.members(cluster)
        if kind == "borderline":
            rows = rows[np.argsort(self.margins[rows], kind="stable")]
        elif kind == "random":
            rows = np.random.default_rng([self.index, cluster]).permutation(rows)
        elif kind == "farthest":
            rows = rows[::-1]
        return rows[np.sort(np.unique(contents[rows], return_index=True)[1])]

    def describe(self, cluster: int, labels: Array | None = None) -> dict[str, Any]:
        """A cluster's size, mean score (cohesion), share of images in doubt, nearest clusters, most frequent label.

        Nearest are those that most of its images would go to next. labels: [N], -1 where an image has none.
        """
        rows = self.members(cluster)
        nearest = np.bincount(self.seconds[rows][self.seconds[rows] >= 0], minlength=self.n_clusters)
        known = np.bincount(labels[rows][labels[rows] >= 0]) if labels is not None else np.zeros(0, int)
        cohesion, doubt = self.scores[rows].mean(), (self.margins[rows] < DOUBT).mean()
        return {
            "number": cluster,
            "size": len(rows),
            "cohesion": None if np.isnan(cohesion) else float(cohesion),
            "doubt": None if np.isnan(self.margins[rows]).any() else float(doubt),
            "nearest": [int(near) for near in np.argsort(-nearest, kind="stable")[:3] if nearest[near]],
            "label": int(known.argmax()) if known.any() else None,
            "purity": float(known.max() / known.sum()) if known.any() else None,
            "short": self.bound is not None and len(rows) < self.bound,
        }


def share_between(values: Array, clusters: Array) -> float:
    """Which share of the variance of values [N, d] lies between clusters [N], beyond chance's (omega squared).

    >>> share_between(np.array([[1.0], [1.0], [9.0], [9.0]]), np.array([0, 0, 1, 1]))
    1.0
    >>> share_between(np.array([[1.0], [9.0], [1.0], [9.0]]), np.array([0, 0, 1, 1]))
    0.0
    """
    centred, sizes = values - values.mean(axis=0), np.bincount(clusters)
    sums = np.stack([np.bincount(clusters, column) for column in centred.T], axis=1)
    total = float((centred**2).sum())
    within = max(0.0, total - float((sums**2 / np.maximum(sizes, 1)[:, None]).sum()))
    n_used = int((sizes > 0).sum())
    if total <= 1e-9 or len(values) <= n_used:
        return 0.0
    by_chance = within / (len(values) - n_used)
    return max(0.0, (total - within - (n_used - 1) * by_chance) / (total + by_chance))
