"""Sums of the rows of every cluster, exact to the last bit, so that neither order nor blocks can matter.

Values are rounded to a grid fine enough to be no loss (about 2^-52 of the largest sum that can occur) and coarse
enough that every sum of them is a float64 without rounding. Exact sums may be added up in any order, over any
number of processes, and corrected row by row as labels change: from one iteration to the next only rows that
changed their cluster are touched.

Legend: N rows, D features, K clusters, n rows of a call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from coke import distributed
from coke.bounded.costs import COSINE, CostBlock, DistanceBlock, unit_rows


class CenterSums:
    """For every cluster the weighted sum of its rows and of their weights, over this process's rows.

    Args:
        n_clusters, n_features: K and D.
        total: N of all processes.
        largest: the largest absolute value of any row, after the shift (1 for cosine).
        heaviest: the largest sample weight.
        metric, shift: as in `DistanceCosts`.
        device: of the rows.

    Example:
        >>> sums = CenterSums(2, 1, total=4, largest=8.0)
        >>> rows, clusters = torch.tensor([[1.0], [3.0], [8.0]]), torch.tensor([0, 0, 1])
        >>> sums.add(rows, None, clusters)
        >>> centers, weights, gain = sums.centers(torch.zeros(2, 1).double())
        >>> centers.tolist(), weights.tolist(), gain.tolist()
        ([[2.0], [8.0]], [2.0, 1.0], [4.0, 64.0])
    """

    def __init__(
        self,
        n_clusters: int,
        n_features: int,
        *,
        total: int,
        largest: float,
        heaviest: float = 1.0,
        metric: str = "euclidean",
        shift: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.metric, self.shift = metric, shift
        self.grid = _grid(largest * heaviest * total)
        self.weight_grid = _grid(heaviest * total)
        self.sums = torch.zeros(n_clusters, n_features, dtype=torch.float64, device=device)
        self.weights = torch.zeros(n_clusters, dtype=torch.float64, device=device)

    def add(
        self, rows: Tensor, weights: Tensor | None, clusters: Tensor, former: Tensor | None = None
    ) -> None:
        """Put rows [n, D] of given weights [n] into clusters [n], and take them from their former ones [n].

        former: -1 where a row was nowhere before.
        """
        values = unit_rows(rows) if self.metric == COSINE else rows.to(torch.float64, copy=True)
        if self.shift is not None:
            values.sub_(self.shift)
        if weights is not None:
            values.mul_(weights[:, None])
        values.div_(self.grid).round_().mul_(self.grid)
        masses = torch.ones_like(values[:, 0]) if weights is None else weights
        masses = (masses / self.weight_grid).round_().mul_(self.weight_grid)
        self.sums.index_add_(0, clusters, values)
        self.weights.index_add_(0, clusters, masses)
        if former is not None and bool((had := former >= 0).any()):
            if not bool(had.all()):
                values, masses, former = values[had], masses[had], former[had]
            self.sums.index_add_(0, former, values, alpha=-1)
            self.weights.index_add_(0, former, masses, alpha=-1)

    def moved(self, block: CostBlock, changed: Tensor, former: Tensor, now: Tensor) -> None:
        """What `sweep` calls for the rows of a block whose label has changed."""
        assert isinstance(block, DistanceBlock)
        weights = None if block.weights is None else block.weights[changed]
        self.add(block.rows[changed], weights, now, former)

    def centers(self, former: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """New centers [K, D], the weights [K] of all processes' rows, and what a row gains by the move, [K].

        Centers are means, or their directions for cosine; an empty cluster keeps its former one. The gain is
        the fall in cost of a cluster's rows per unit of weight, which for a mean is its squared move.
        """
        totals = distributed.sum_over_processes(torch.cat([self.sums, self.weights[:, None]], dim=1))
        weights = totals[:, -1]
        means = totals[:, :-1] / weights.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
        if self.shift is not None:
            means = means + self.shift
        moved = means
        if self.metric == COSINE:
            length = torch.linalg.vector_norm(means, dim=1, keepdim=True)
            moved = torch.where(length > 1e-12, means / length.clamp_min(1e-12), former)
        moved = torch.where(weights[:, None] > 0, moved, former)
        move = moved - former
        gain = (move * (means if self.metric == COSINE else move)).sum(1)
        return moved, weights, torch.where(weights > 0, gain, 0.0)


def _grid(largest_sum: float) -> float:
    """The spacing, a power of two, at which float64 holds every multiple up to the largest sum."""
    return 2.0 ** max(math.ceil(math.log2(largest_sum)) - 52, -1022) if largest_sum > 0 else 1.0
