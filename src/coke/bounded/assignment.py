"""Rows to clusters within the bounds, at the least cost: sweep, search, and again where offers were too narrow.

A sweep under prices rho offers a row at its best cluster b to cluster k where

    (c_ik - rho_k) - (c_ib - rho_b) <= width_k + reach_b,

and the search sees these pairs alone. After it has moved prices by delta, a pair that was not on offer cannot matter if
delta_k - delta_b <= width_k + reach_b for all k and b: then the result is exact, and its cost is its own lower bound.
Else the next sweep starts from the new prices, where almost nothing is left to do, with wider offers where they lacked.

Legend: N rows, K clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coke import distributed
from coke.bounded.again import Anchor, asked, sweep_again
from coke.bounded.ascent import ascend, off
from coke.bounded.centers import CenterSums
from coke.bounded.costs import Costs, DistanceCosts, Prices
from coke.bounded.kernels import Array
from coke.bounded.search import Sizes, move_rows
from coke.bounded.sizes import SizeBounds
from coke.bounded.sweep import Swept, sweep

ALL_OFFERED = 2**17  # pairs: so few are all on offer, and the search alone is as fast as with a head start
_MOST_SWEEPS = 60  # of one assignment: offers have doubled so often that they hold every pair long before


@dataclass(frozen=True, eq=False)
class Assignment:
    """Labels within the bounds and what is known of them.

    Attributes:
        labels: int32 [N] of this process's rows.
        own: float64 [N], what each of these rows costs.
        sizes: float64 [K] of all processes' rows.
        prices: with which it ended: that prove the bound, where no later sweep was wanting.
        moved: float64 [K], by how much each price has moved.
        cost: float64 sum of all rows' exact costs.
        lower_bound: no assignment within the bounds costs less.
        rounding: by how much that was rounded down.
        former_cost: what the labels that it began with cost.
        n_changed: rows whose label is another than it began with.
        n_off: rows by which sizes were off in the first sweep.
        n_sweeps: passes over the data that it took.
    """

    labels: Array
    own: Array
    sizes: Array
    prices: Prices
    moved: Array
    cost: float
    lower_bound: float
    rounding: float
    former_cost: float
    n_changed: int
    n_off: float
    n_sweeps: int

    @property
    def gap(self) -> float:
        """(cost - lower bound) / lower bound; 0 where they agree to rounding, infinite where the bound is <= 0."""
        return relative_gap(self.cost, self.lower_bound, self.rounding)


def relative_gap(cost: float, lower_bound: float, rounding: float = 0.0) -> float:
    """How far above the optimum a cost can be, relative to its lower bound; ``rounding`` is what that may be off by.

    >>> relative_gap(101.0, 100.0), relative_gap(100.0, 100.0), relative_gap(1.0, -1.0)
    (0.01, 0.0, inf)
    """
    excess = cost - lower_bound
    if excess <= max(1e-12 * max(abs(cost), abs(lower_bound)), 4 * rounding):
        return 0.0
    return excess / lower_bound if lower_bound > 0 else float("inf")


def is_free(bounds: SizeBounds, total: float) -> bool:
    """Whether no cluster can be too small or too large: plain k-means."""
    return len(bounds.lower) == 1 or bool((bounds.lower <= 0).all() and (bounds.upper >= total).all())


def assign_within(
    costs: Costs,
    bounds: SizeBounds,
    total: float,
    prices: Prices,
    labels: Array,
    *,
    heaviest: float = 0.0,
    sums: CenterSums | None = None,
    take: Callable[[Array], Tensor] | None = None,
    block_rows: int | None = None,
    usual: Prices | None = None,
) -> Assignment:
    """Assign all rows (of all processes) within the bounds.

    Args:
        costs: of this process's rows.
        bounds: sizes of clusters; feasible ones (see `resolve_bounds`).
        total: N of all processes, or the sum of all size weights.
        prices: to start from; they may be far from fitting.
        labels: int32 [N], the clusters that rows are in, or -1; changed.
        heaviest: the largest size weight, by which a size may miss its bound; 0 where every row counts for 1.
        sums: of the rows of every cluster by ``labels``, kept in step; ``take`` gives rows by number.
        block_rows: rows of a block; any gives the same labels.
        usual: how wide offers are where they have to be; None: as in ``prices``.
    """
    before, former_cost, n_off, lower_bound = labels.copy(), 0.0, 0.0, -np.inf
    lower, upper = bounds.lower.numpy(), bounds.upper.numpy()
    if is_free(bounds, total):
        prices = Prices(*np.zeros((3, costs.n_clusters)))
    first_value, swept, anchor = prices.value, None, None
    for n_sweeps in range(1, _MOST_SWEEPS + 1):
        if swept is None:
            swept = sweep(costs, prices, labels, sums=sums, block_rows=block_rows)
            anchor = None
        value, sizes, cost = prices.value.copy(), Sizes(swept.held.copy(), lower, upper), swept.cost
        short = np.zeros((2, costs.n_clusters))
        if n_sweeps == 1:
            former_cost, n_off = swept.former_cost, float(np.abs(off(sizes, np.zeros_like(value))).sum())
        if anchor is None:
            anchor = Anchor(labels.copy(), swept.own.copy())
        if off(sizes, value).any():  # else prices and sizes are right as they are
            scale = max(costs.magnitude, float(np.ptp(value)))
            margin = max(float(np.median(prices.width)), scale * 2.0**-16) * 2.0 ** (n_sweeps - 1)
            first_at, offered = swept.offers.at.copy(), (*prices[1:], margin)
            if len(swept.offers.cluster) > ALL_OFFERED or not np.isinf(prices.width).all():
                ascend(swept.offers, sizes, value, *prices[1:])
            short, _ = move_rows(swept.offers, sizes, value, *offered, 0.0, heaviest == 0)
            if heaviest > 0:
                # whole rows of different weights need not meet bounds: what misses them by too much has to
                short, _ = move_rows(swept.offers, sizes, value, *offered, heaviest * (1 + 1e-12), False)
            cost += swept.offers.gained(first_at)
        _follow(swept, labels, costs, sums, take)
        moved = value - prices.value
        exact = (
            not short.any() and (moved - prices.width).max() <= (moved + prices.reach)[swept.n_rows > 0].min()
        )
        proven = (value, cost, sizes.held) if exact else (prices.value, swept.cost, swept.held)
        found, rounding = bound_below(*proven, lower, upper, costs.rounding)
        lower_bound = max(lower_bound, found, costs.least)
        if exact:
            break
        wide = _wider(value, moved, short, prices, prices if usual is None else usual, 2.0**n_sweeps)
        here = costs if isinstance(costs, DistanceCosts) and costs.device.type == "cpu" else None
        what = None if here is None else asked(value, short, prices, wide, swept.n_rows)
        if here is None or what is None:
            prices, swept = wide, None
        else:
            prices = what.prices
            swept = sweep_again(here, swept, anchor, what, labels, sizes.held, cost, block_rows)
    else:
        raise AssertionError("offers did not become wide enough")
    n_changed = distributed.sum_over_processes(torch.tensor(int((labels != before).sum())))
    return Assignment(
        labels=labels,
        own=swept.own,
        sizes=sizes.held,
        prices=prices._replace(value=value),
        moved=value - first_value,
        cost=cost,
        lower_bound=lower_bound,
        rounding=rounding,
        former_cost=former_cost,
        n_changed=int(n_changed),
        n_off=n_off,
        n_sweeps=n_sweeps,
    )


def needed(moved: Array) -> tuple[Array, Array]:
    """Width and reach, [K] each, that offers must have where prices move by ``moved``: pair by pair the difference."""
    level = float(np.median(moved))
    return np.maximum(moved - level, 0), np.maximum(level - moved, 0)


def _wider(value: Array, moved: Array, short: Array, prices: Prices, usual: Prices, times: float) -> Prices:
    """The new prices, with what offers lacked; where a search got lost at most so many times of what they had."""
    wide = []
    for need, missing, now, plenty in zip(needed(moved), short, prices[1:], usual[1:], strict=True):
        most = times * np.maximum(now, np.maximum(plenty, np.median(plenty)))
        more = np.minimum(now + 1.5 * missing, np.where(most > 0, most, np.inf))
        wide.append(np.maximum(np.where(missing > 0, np.maximum(more, plenty), now), 1.5 * need))
    return Prices(value, *wide)


def bound_below(
    prices: Array, cost: float, held: Array, lower: Array, upper: Array, rounding: float
) -> tuple[float, float]:
    """The dual bound at ``prices``, under which every row is at its best, and by how much it was rounded down."""
    raised, lowered = np.maximum(prices, 0), np.maximum(-prices, 0)
    terms = [cost, *(-prices * held).tolist(), *(lower * raised).tolist(), *(-upper * lowered).tolist()]
    error = rounding * abs(cost) + 2.0**-51 * math.fsum(map(abs, terms))
    return math.fsum(terms) - error, error


def _follow(
    swept: Swept,
    labels: Array,
    costs: Costs,
    sums: CenterSums | None,
    take: Callable[[Array], Tensor] | None,
) -> None:
    """Write where the search has put rows to this process's labels and costs, and to the sums."""
    here = slice(*np.searchsorted(swept.rows, [costs.first_row, costs.first_row + costs.n_rows]))
    rows, at = swept.rows[here] - costs.first_row, swept.offers.at[here]
    moved = np.flatnonzero(swept.offers.cluster[at] != labels[rows])
    rows, at = rows[moved], at[moved]
    now = swept.offers.cluster[at]
    if sums is not None and take is not None and len(rows):
        sums.move(take(rows), rows, labels[rows], now)
    labels[rows] = now
    swept.own[rows] = swept.offers.cost[at]
