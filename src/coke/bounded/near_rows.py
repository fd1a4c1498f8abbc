"""The rows near a boundary, collected block by block, as a table for the dual search.

Legend: K clusters, P rows of a block that may be near, m clusters listed of each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from coke import distributed
from coke.bounded.candidates import Array, Candidates
from coke.bounded.costs import CostBlock, Costs
from coke.bounded.scorer import Scored, exactly_best

_SPARE = 2  # clusters taken beyond m while they are sorted: rough scores may swap neighbours


class Near(NamedTuple):
    """Rows and what is to be known of them, exactly."""

    row: Tensor
    """int64 [P] row numbers among all processes'."""
    clusters: Tensor
    """int32 [P, m], the best one first."""
    cost: Tensor
    """float64 [P, m] of each."""
    beyond: Tensor
    """float64 [P] reduced cost of the best cluster not listed."""
    margin: Tensor
    """float64 [P] by which the best one leads, per unit of size weight."""
    size: Tensor
    """float64 [P] size weight."""


class NearRows:
    """Rows whose best cluster leads by no more than ``reach``; the ``max_rows`` closest of them.

    Args:
        costs: of the rows.
        duals: float64 [K] on the costs' device.
        reach: per unit of size weight.
        n_listed: m; with fewer than two nothing is to be known of a row, and none is looked at.
        max_rows: the most rows of all processes.
    """

    def __init__(self, costs: Costs, duals: Tensor, reach: float, n_listed: int, max_rows: int) -> None:
        self.costs, self.duals, self.max_rows = costs, duals, max_rows
        self.n_listed = min(n_listed, costs.n_clusters)
        self.looks = self.n_listed >= 2
        self.reach = reach if self.looks else 0.0  # nothing is known of rows not looked at
        self.held: list[Near] = []
        self.n_held = 0

    def look(self, block: CostBlock, scored: Scored) -> Near | None:
        """The rows of a block that are within reach."""
        rows, scores = scored.near, scored.scores
        if not self.looks or not len(rows):
            return None
        n_clusters = self.costs.n_clusters
        n_taken = min(self.n_listed + _SPARE, n_clusters)
        rough, clusters = scores.topk(n_taken, dim=1)
        if n_taken < n_clusters:
            # Where the last one taken is as good as the first one not listed, others left out may be so, too.
            doubt = 4 * scored.tolerance
            tied = (rough[:, self.n_listed] - rough[:, -1] <= doubt).nonzero()[:, 0]
            if len(tied):
                least = rough[tied, self.n_listed] - doubt[tied]
                clusters[tied] = exactly_best(block, scores[tied], self.duals, rows[tied], least, n_taken)
        pair_rows = rows[:, None].expand_as(clusters)
        cost = block.exact(pair_rows.reshape(-1), clusters.reshape(-1)).view(clusters.shape)
        weights = block.size_weights(rows)
        size = weights if isinstance(weights, Tensor) else torch.ones_like(rows, dtype=torch.float64)
        reduced = cost - size[:, None] * self.duals[clusters]
        # By exact reduced cost, then by cluster: two stable sorts.
        order = clusters.argsort(dim=1, stable=True)
        order = order.gather(1, reduced.gather(1, order).argsort(dim=1, stable=True))
        reduced, cost, clusters = (values.gather(1, order) for values in (reduced, cost, clusters))
        margin = (reduced[:, 1] - reduced[:, 0]) / size
        none_left = self.n_listed == n_clusters
        beyond = torch.full_like(margin, torch.inf) if none_left else reduced[:, self.n_listed]
        keep = (margin <= self.reach).nonzero()[:, 0]
        row, m = self.costs.first_row + block.start + rows, self.n_listed
        found = (row, clusters[:, :m].to(torch.int32), cost[:, :m], beyond, margin, size)
        return Near(*(values[keep] for values in found))

    def hold(self, found: Near | None) -> None:
        """Keep what `look` found; beyond twice ``max_rows`` only the closest."""
        if found is None:
            return
        self.held.append(found)
        self.n_held += len(found.row)
        if self.n_held > 2 * self.max_rows:
            self._thin()

    def _thin(self) -> None:
        """Keep the closest rows, and one more that says how far the others are, at least."""
        held = self._joined()
        order = held.margin.argsort(stable=True)[: self.max_rows + 1]
        kept = Near(*(values[order.sort().values] for values in held))
        if len(order) > self.max_rows:
            self.reach = min(self.reach, float(held.margin[order[-1]]))
        self.held, self.n_held = [kept], len(order)

    def _joined(self) -> Near:
        if self.held:
            joined = [torch.cat(values) for values in zip(*self.held, strict=True)]
            order = joined[0].argsort()
            return Near(*(values[order] for values in joined))
        m, device = max(self.n_listed, 1), self.costs.device
        none = torch.empty(0, dtype=torch.float64, device=device)
        clusters, cost = none.new_empty((0, m), dtype=torch.int32), none.new_empty((0, m))
        return Near(none.long(), clusters, cost, none, none, none)

    def table(self, sizes: Array, cost_of_all: float) -> Candidates:
        """The near rows of all processes, and what ``sizes`` [K] and ``cost_of_all``, or nan, are without them."""
        if self.n_held > self.max_rows:
            self._thin()
        self.held = [Near(*distributed.gather_uneven(self._joined()))]
        self._thin()
        row, clusters, cost, beyond, margin, size = (values.cpu().numpy() for values in self.held[0])
        n_clusters = self.costs.n_clusters
        reach = self.reach
        if len(row) > self.max_rows:
            last = int(margin.argsort(kind="stable")[-1])
            reach = min(reach, float(margin[last]))
            row, clusters, cost, beyond, size = (
                np.delete(values, last, axis=0) for values in (row, clusters, cost, beyond, size)
            )
        first, own = clusters[:, 0], cost[:, 0]
        order = clusters.argsort(axis=1)
        weights = None if self.costs.size_weight is None else size
        return Candidates(
            rows=row,
            labels=np.ascontiguousarray(np.take_along_axis(clusters, order, 1).T),
            costs=np.ascontiguousarray(np.take_along_axis(cost, order, 1).T),
            beyond=beyond,
            weights=weights,
            settled_sizes=np.maximum(sizes - np.bincount(first, weights, n_clusters), 0),
            settled_cost=float(cost_of_all - own.sum()),
            settled_margin=reach if n_clusters > 1 else np.inf,
            duals=self.duals.cpu().numpy().copy(),
        )
