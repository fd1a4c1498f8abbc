"""Rows to clusters within the bounds, at a cost that is certified: sweep, search, round, prove.

A sweep finds every row's best cluster under the duals at hand and lists the rows near a boundary; the dual search
climbs over these; rounding moves the few that are left. The same table proves how far from the optimum the result
can be. Where the table was too narrow for the duals to get where they must, the next sweep starts from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coke import distributed
from coke.bounded.candidates import Array, Candidates
from coke.bounded.costs import Costs
from coke.bounded.dual import off_target, search_duals, slack_term
from coke.bounded.fill import fill, total_cost, violation
from coke.bounded.rounding import round_to_bounds
from coke.bounded.sizes import SizeBounds
from coke.bounded.sweep import Focus, sweep

GAP = 1e-5  # relative, at which an assignment is good enough where nothing else is said
NEAR_ROWS, MOST_NEAR = 2**17, 2**20  # the most that a search sees at first, and in the end
_NEAR_PER_CLUSTER = 32  # rows that it sees at first
LISTED = 8
_MOST_PAIRS = 2**23  # (row, cluster) of a table, but for twice `LISTED` clusters of a row
EXACT_PAIRS = 2**22  # rows times clusters, up to which an assignment is exact where that is asked for
_FAR = 0.25  # of all rows: a sample, whose sizes are off by some percent, brings duals nearer than that
_STUCK = 0.9  # of what was off, or of the gap, after a pass that saw all it can
_ROUNDABLE = 0.003  # of all rows: with more off target another sweep is cheaper than moving them one by one


BringNear = Callable[[Array, int], tuple[Array, float]]
"""From duals [K] and a number of rows: duals that nearly fit, and the margin that so many rows are within."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """Labels within the bounds and what is known of them.

    Attributes:
        labels: int32 [N] of this process's rows.
        sizes: float64 [K] of all processes' rows.
        duals: float64 [K] that prove the bound.
        cost: float64 sum of all rows' exact costs.
        lower_bound: no assignment within the bounds costs less.
        n_sweeps: passes over the data that it took.
    """

    labels: Tensor
    sizes: Array
    duals: Array
    cost: float
    lower_bound: float
    n_sweeps: int

    @property
    def gap(self) -> float:
        """(cost - lower bound) / lower bound; 0 where they agree to rounding, infinite where the bound is <= 0."""
        return relative_gap(self.cost, self.lower_bound)


def relative_gap(cost: float, lower_bound: float) -> float:
    """How far above the optimum a cost can be, relative to its lower bound.

    >>> relative_gap(101.0, 100.0), relative_gap(100.0, 100.0), relative_gap(1.0, -1.0)
    (0.01, 0.0, inf)
    """
    excess = cost - lower_bound
    if excess <= 1e-12 * max(abs(cost), abs(lower_bound)):
        return 0.0
    return excess / lower_bound if lower_bound > 0 else float("inf")


def is_free(bounds: SizeBounds, total: float) -> bool:
    """Whether no cluster can be too small or too large: plain k-means."""
    return bool((bounds.lower <= 0).all() and (bounds.upper >= total).all())


def assign_within(
    costs: Costs,
    bounds: SizeBounds,
    total: float,
    *,
    duals: Array | None = None,
    labels: Tensor | None = None,
    reach: float = np.inf,
    bring_near: BringNear | None = None,
    gap: float = GAP,
    max_sweeps: int = 12,
    near_rows: int | None = None,
    n_listed: int = LISTED,
    block_rows: int | None = None,
) -> Assignment:
    """Assign all rows (of all processes) within the bounds.

    Args:
        costs: of this process's rows.
        bounds: sizes of clusters; feasible ones (see `resolve_bounds`).
        total: N of all processes, or the sum of all size weights.
        duals: [K] to start from; default 0.
        labels: int32 [N] to write to; default: new.
        reach: how far from a boundary to look first; infinite: as far as ``near_rows`` allow.
        bring_near: what to ask for duals when those at hand are too far off for the rows listed.
        gap: relative gap at which to stop; 0 is exact, at once where rows times clusters are 4 million or fewer.
        max_sweeps: passes over the data, at most.
        near_rows, n_listed: how many rows the search may see at first, and how many clusters of each.
        block_rows: rows of a block; any gives the same labels.
    """
    duals = np.zeros(costs.n_clusters) if duals is None else duals
    if labels is None:
        labels = torch.full((costs.n_rows,), -1, dtype=torch.int32, device=costs.device)
    if is_free(bounds, total):
        swept = sweep(costs, np.zeros_like(duals), labels, Focus(0.0, 0, certify=True), block_rows=block_rows)
        return Assignment(labels, swept.sizes, np.zeros_like(duals), swept.cost, swept.cost, 1)
    n_total = int(distributed.sum_over_processes(torch.tensor(costs.n_rows)))
    least_near = min(max(_NEAR_PER_CLUSTER * costs.n_clusters, 2**12), NEAR_ROWS)
    near_rows = near_rows or min(max(least_near, n_total // 16), NEAR_ROWS)
    exact = gap == 0 and costs.size_weight is None and n_total * costs.n_clusters <= EXACT_PAIRS
    if exact:
        near_rows, n_listed, reach = n_total, costs.n_clusters, np.inf
    lower_bound, previous, best_duals, former_off = -np.inf, np.inf, duals, np.inf
    for n_sweeps in range(1, max_sweeps + 1):
        swept = sweep(
            costs, duals, labels, Focus(reach, n_listed, near_rows, certify=True), block_rows=block_rows
        )
        table = swept.table
        raised, choice = search_duals(table, bounds, duals)
        off = off_target(choice.sizes, raised, bounds)
        near_enough = off <= _ROUNDABLE * total
        exhausted = near_rows >= min(MOST_NEAR, n_total)
        stuck = exhausted and off > _STUCK * former_off
        last, former_off = n_sweeps == max_sweeps or exact or stuck, off
        column, proof = choice.column, raised
        if costs.size_weight is None and (last or near_enough):
            column, proof = round_to_bounds(table, bounds, raised)
        tried = (proof, raised, duals)  # the first of equals stays
        proven_at = [bound_at(table, bounds, at) for at in tried]
        here = tried[int(np.argmax(proven_at))]
        if max(proven_at) >= lower_bound - 1e-12 * abs(lower_bound):
            best_duals, lower_bound = here, max(lower_bound, *proven_at)
        where, now = kept_labels(table, column, costs.first_row, labels)
        labels[where] = now
        each = np.arange(len(table.rows))
        cost = table.settled_cost + float(table.costs[column, each].sum())
        sizes = table.settled_sizes + np.bincount(table.labels[column, each], table.weights, costs.n_clusters)
        outside = bool(violation(sizes, bounds).any())
        # a larger table may lead into the bounds where rows have no weights; else `fill` alone can
        leads_on = outside and costs.size_weight is None and not exhausted
        if last or (near_enough and not leads_on):
            if outside:
                sizes = fill(costs, bounds, labels, sizes, block_rows=block_rows)
                cost = total_cost(costs, labels, block_rows=block_rows)
            proven = relative_gap(cost, lower_bound)
            if last or proven <= gap or (exhausted and proven > _STUCK * previous):
                break
            previous = proven
        near_rows = int(min(max(4 * len(table.rows), 8 * off), n_total, MOST_NEAR))
        n_listed = min(2 * n_listed, costs.n_clusters, max(2 * LISTED, _MOST_PAIRS // near_rows))
        duals, reach = here, next_reach(table.choose(here).margin, table.settled_margin, near_rows)
        if near_rows >= n_total:
            reach = np.inf
        if off > _FAR * total and bring_near is not None:
            duals, reach = bring_near(raised, near_rows)
    return Assignment(labels, sizes, best_duals, cost, lower_bound, n_sweeps)


def next_reach(margin: Array, settled_margin: float, near_rows: int) -> float:
    """The margin that about ``near_rows`` rows will be within, from the margins [M] of those listed now."""
    n_listed = len(margin)
    if near_rows < n_listed:
        return float(np.partition(margin, near_rows)[near_rows])
    return settled_margin * near_rows / max(n_listed, 1)


def bound_at(table: Candidates, bounds: SizeBounds, duals: Array) -> float:
    """The certified dual bound at ``duals``, from a table of a sweep that summed the costs."""
    return table.settled_cost + table.reduced_cost(table.choose(duals), duals) + slack_term(duals, bounds)


def kept_labels(table: Candidates, column: Array, first_row: int, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which of this process's rows ``labels`` [n] the table keeps, and the clusters chosen for them."""
    local = (table.rows >= first_row) & (table.rows < first_row + len(labels))
    clusters = table.labels[column, np.arange(len(table.rows))][local]
    where = torch.from_numpy(table.rows[local] - first_row)
    return where.to(labels.device), torch.from_numpy(clusters).to(labels.device, labels.dtype)
