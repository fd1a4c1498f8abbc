"""The rows that stand near a boundary, each with its few best clusters: all that a dual search has to see.

A row whose best reduced cost leads by more than the duals will move is *settled*: it keeps its cluster, so a
cluster's settled rows enter only through their number and their cost. The others, M of N, are kept with their
m best clusters. Duals can then be tried thousands of times without touching the data.

Legend: M rows kept, m clusters each (stored [m, M]: column after column is what numpy is fast at), K clusters.
All arrays are numpy, on the host: this is capped work, whatever N is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Choice(NamedTuple):
    """What each kept row prefers under given duals: the best cluster, and the second one behind it."""

    column: Array
    """[M] which of the row's m clusters is best; the lowest cluster index wins a tie."""
    best: Array
    """[M] its reduced cost."""
    second: Array
    """[M] cluster index of the runner-up; equal to the best one where there is no other."""
    margin: Array
    """[M] how far the runner-up stands behind, >= 0; infinite where there is no other."""
    sizes: Array
    """[K] rows, or summed size weights, of every cluster; settled rows included."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Kept rows with their best clusters, and what settled rows add up to.

    Attributes:
        rows: [M] row numbers, ascending.
        labels: [m, M] clusters of each row, ascending by index.
        costs: [m, M] float64 cost of each (weighted, not reduced).
        beyond: [M] float64 lower bound on the reduced cost, at ``duals``, of every cluster not listed.
        weights: [M] size weight of each row, or None for 1.
        settled_sizes: [K] rows (or size weight) that keep their cluster.
        settled_cost: sum of their costs; nan where the sweep was not asked for it.
        settled_margin: by how much, per unit of size weight, each of them leads at ``duals``.
        duals: [K] float64 at which the table was made.

    Example: two rows and two clusters, both rows nearer to cluster 0; a dual of 2 for cluster 1 wins it one.

        >>> table = Candidates.of_costs(np.array([[1.0, 2.0], [1.0, 5.0]]))
        >>> table.choose(np.array([0.0, 0.0])).sizes.tolist()
        [2.0, 0.0]
        >>> table.choose(np.array([0.0, 2.0])).sizes.tolist()
        [1.0, 1.0]
    """

    rows: Array
    labels: Array
    costs: Array
    beyond: Array
    weights: Array | None
    settled_sizes: Array
    settled_cost: float
    settled_margin: float
    duals: Array

    @classmethod
    def of_costs(cls, costs: Array, weights: Array | None = None) -> Candidates:
        """Every row of a small problem with every cluster: costs [N, K]."""
        n_rows, n_clusters = costs.shape
        return cls(
            rows=np.arange(n_rows),
            labels=np.repeat(np.arange(n_clusters, dtype=np.int32)[:, None], n_rows, axis=1),
            costs=np.ascontiguousarray(costs.T, dtype=np.float64),
            beyond=np.full(n_rows, np.inf),
            weights=weights,
            settled_sizes=np.zeros(n_clusters),
            settled_cost=0.0,
            settled_margin=np.inf,
            duals=np.zeros(n_clusters),
        )

    @property
    def n_clusters(self) -> int:
        """K."""
        return len(self.settled_sizes)

    @cached_property
    def is_complete(self) -> bool:
        """Whether no row is settled and no cluster beyond the listed ones."""
        return self.settled_margin == np.inf and bool(np.isinf(self.beyond).all())

    def choose(self, duals: Array) -> Choice:
        """Each kept row's best and second cluster under ``duals`` [K], and the sizes that follow."""
        n_rows = len(self.rows)
        best, runner_up = np.full(n_rows, np.inf), np.full(n_rows, np.inf)
        column, second = np.zeros(n_rows, np.intp), np.zeros(n_rows, np.intp)
        for place, (labels, costs) in enumerate(zip(self.labels, self.costs, strict=True)):
            lift = duals[labels]
            reduced = costs - (lift if self.weights is None else lift * self.weights)
            wins = reduced < best
            runs = ~wins & (reduced < runner_up)
            runner_up = np.where(wins, best, np.where(runs, reduced, runner_up))
            second = np.where(wins, column, np.where(runs, place, second))
            best, column = np.where(wins, reduced, best), np.where(wins, place, column)
        margin = np.subtract(runner_up, best, out=np.full(n_rows, np.inf), where=np.isfinite(runner_up))
        return Choice(column, best, self.labels[second, np.arange(n_rows)], margin, self.sizes(column))

    def sizes(self, column: Array) -> Array:
        """Of the clusters [K], with each kept row in the one of its ``column`` [M]."""
        chosen = self.labels[column, np.arange(len(column))]
        return np.bincount(chosen, self.weights, self.n_clusters) + self.settled_sizes

    def reduced_cost(self, choice: Choice, duals: Array) -> float:
        """sum_i min_k (d_ik - s_i rho_k) without the settled rows' own costs: the row part of the dual bound.

        A true lower bound: clusters that are not listed, and settled rows that the duals may have unsettled,
        enter by the margins known of them.
        """
        lift = duals - self.duals
        top = float(lift.max(initial=-np.inf))
        weights = 1.0 if self.weights is None else self.weights
        best = np.minimum(choice.best, self.beyond - weights * top)
        stay = np.maximum(lift, top - self.settled_margin)
        return float(best.sum() - self.settled_sizes @ (self.duals + stay))
