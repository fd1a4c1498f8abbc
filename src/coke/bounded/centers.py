"""Sums of the rows of every cluster, exact to the last bit, so that neither order nor blocks can matter.

Values are rounded to a grid that is coarse enough for every sum of them to be a float64 without rounding (about 2^-52
of the largest that can occur), and what is left of them to a second one, as much finer again. Exact sums may be added
up in any order, over any number of processes, and corrected row by row as labels change: from one iteration to the
next only rows that changed their cluster are touched.

Legend: N rows, D features, K clusters, n rows of a call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from coke import distributed
from coke.bounded.costs import COSINE, as_floats, row_factors
from coke.bounded.kernels import Array, add_changed, means


class CenterSums:
    """For every cluster the weighted sum of its rows and of their weights, over this process's rows.

    Args:
        n_clusters, n_features: K and D.
        total: N of all processes.
        largest: the largest absolute value of any row, after the shift (1 for cosine).
        weight, heaviest: float64 [N] of this process or None for 1, and the largest of all.
        metric, shift: as in `DistanceCosts`.
        device: of the rows.

    Examples:
        >>> sums = CenterSums(2, 1, total=4, largest=8.0)
        >>> rows, clusters = torch.tensor([[1.0], [3.0], [8.0]]), np.array([0, 0, 1])
        >>> sums.move(rows, np.arange(3), np.full(3, -1), clusters)
        >>> centers, weights = sums.centers(torch.zeros(2, 1).double())
        >>> centers.tolist(), weights.tolist()
        ([[2.0], [8.0]], [2.0, 1.0])
    """

    def __init__(
        self,
        n_clusters: int,
        n_features: int,
        *,
        total: int,
        largest: float,
        weight: Tensor | None = None,
        heaviest: float = 1.0,
        metric: str = "euclidean",
        shift: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.metric, self.shift, self.weight = metric, shift, weight
        self._origin = np.zeros(n_features) if shift is None else shift.cpu().numpy()
        self._parts: list[tuple[Array, Array]] = []
        coarse = _grid(largest * heaviest * total)
        self.grids = coarse, _grid(coarse * total)
        self.weight_grid = _grid(heaviest * total)
        self.sums = torch.zeros(n_clusters, 2 * n_features, dtype=torch.float64, device=device)
        self.weights = torch.zeros(n_clusters, dtype=torch.float64, device=device)

    def adder(self, alone: Lock) -> Callable[[int, Tensor, Array, Array], None]:
        """What one thread tells of its blocks: first row, rows [b, D], their clusters before (or -1) and now, [b].

        On a CPU every thread has sums of its own, since what is added is exact; `centers` puts them together.
        """
        if self.sums.device.type != "cpu":

            def elsewhere(start: int, rows: Tensor, former: Array, now: Array) -> None:
                with alone:
                    changed = np.flatnonzero(former != now)
                    at = torch.from_numpy(changed).to(rows.device)
                    self.move(rows[at], start + changed, former[changed], now[changed])

            return elsewhere
        sums, weights = np.zeros(self.sums.shape), np.zeros(len(self.sums))
        with alone:
            self._parts.append((sums, weights))

        def add(start: int, rows: Tensor, former: Array, now: Array) -> None:
            own = self._weights_of(slice(start, start + len(rows)))
            self._add(rows, own, former, now, sums, weights)

        return add

    def add_all(self, exact: Array, factors: Array, former: Array, now: Array) -> None:
        """Tell of all rows at once, float32 or float64 [N, D], each to be multiplied by its factor [N]."""
        weights = np.ones(len(exact)) if self.weight is None else self.weight.numpy()
        add_changed(
            exact, factors, self._origin, weights, self.grids, self.weight_grid, former, now, self.sums.numpy(),
            self.weights.numpy(),
        )  # fmt: skip

    def _weights_of(self, rows: slice | Array) -> Array | None:
        return None if self.weight is None else self.weight[rows].numpy()

    def _add(
        self, rows: Tensor, own: Array | None, former: Array, now: Array, sums: Array, weights: Array
    ) -> None:
        exact = as_floats(rows).contiguous()
        factors, own = self._factors(exact).numpy(), np.ones(len(rows)) if own is None else own
        add_changed(
            exact.numpy(),
            factors,
            self._origin,
            own,
            self.grids,
            self.weight_grid,
            former,
            now,
            sums,
            weights,
        )

    def move(self, rows: Tensor, numbers: Array, former: Array, now: Array) -> None:
        """Put rows [n, D] of these numbers into clusters ``now`` [n], and take them from their ``former`` ones [n]."""
        if self.sums.device.type == "cpu":
            self._add(rows, self._weights_of(numbers), former, now, self.sums.numpy(), self.weights.numpy())
            return
        add = torch.from_numpy(now).to(rows.device).long()
        take = torch.from_numpy(former).to(rows.device).long()
        exact = rows.double() * self._factors(rows)[:, None]
        if self.shift is not None:
            exact.sub_(self.shift)
        masses = torch.ones_like(exact[:, 0])
        if self.weight is not None:
            masses = self.weight[torch.from_numpy(numbers).to(rows.device)]
            exact.mul_(masses[:, None])
        coarse = (exact / self.grids[0]).round_().mul_(self.grids[0])
        fine = exact.sub_(coarse).div_(self.grids[1]).round_().mul_(self.grids[1])
        exact = torch.cat([coarse, fine], dim=1)
        masses = (masses / self.weight_grid).round_().mul_(self.weight_grid)
        self.sums.index_add_(0, add, exact)
        self.weights.index_add_(0, add, masses)
        had = take >= 0
        self.sums.index_add_(0, take[had], exact[had], alpha=-1)
        self.weights.index_add_(0, take[had], masses[had], alpha=-1)

    def _factors(self, rows: Tensor) -> Tensor:
        return row_factors(rows, self.metric)

    def centers(self, former: Tensor) -> tuple[Tensor, Tensor]:
        """New centers [K, D], and the weights [K] of all processes' rows.

        Centers are means, or their directions for cosine; an empty cluster keeps its former one.
        """
        for values, masses in self._parts:
            self.sums += torch.from_numpy(values)
            self.weights += torch.from_numpy(masses)
        self._parts.clear()
        sums, weights = self.sums, self.weights
        if distributed.active():
            totals = distributed.sum_over_processes(torch.cat([sums, weights[:, None]], dim=1))
            sums, weights = totals[:, :-1].contiguous(), totals[:, -1].contiguous()
        known = sums.cpu().numpy(), weights.cpu().numpy(), self._origin
        moved = means(*known, self.metric == COSINE, former.contiguous().cpu().numpy())
        return torch.from_numpy(moved).to(former.device), weights.clone()


def _grid(largest_sum: float) -> float:
    """The spacing, a power of two, at which float64 holds every multiple up to the largest sum."""
    return 2.0 ** max(math.ceil(math.log2(largest_sum)) - 52, -1022) if largest_sum > 0 else 1.0
