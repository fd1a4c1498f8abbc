"""Lloyd's iterations under size bounds: assign exactly, move the centers, until nothing changes.

Every iteration solves its assignment, so the objective never rises, and a fit ends where neither another assignment
nor another place of the centers would lower it: centers are the means of their rows, and assigning again changes
nothing. Prices are carried from one iteration to the next, where they nearly fit.

Legend: N rows, D features, K clusters.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from coke import distributed
from coke.bounded.assignment import ALL_OFFERED, Assignment, assign_within, is_free, needed
from coke.bounded.at_once import AtOnce, is_small
from coke.bounded.centers import CenterSums
from coke.bounded.costs import Costs, Prices, exact_costs, returned_dtype
from coke.bounded.kernels import Array
from coke.bounded.rows import Rows
from coke.bounded.sizes import SizeBounds
from coke.bounded.thread_pool import torch_alone

_EQUAL = 1e-14  # relative: an objective that falls by less has not fallen


@dataclass(frozen=True, eq=False)
class Fit:
    """Centers, and the bounded assignment under them.

    Attributes:
        centers: float64 [K, D].
        assignment: of this process's rows.
        n_iterations: assignments that moved the centers.
        converged: whether it ended because nothing changed.
    """

    centers: Tensor
    assignment: Assignment
    n_iterations: int
    converged: bool


@torch_alone()
def lloyd(
    rows: Rows,
    centers: Tensor,
    bounds: SizeBounds,
    *,
    duals: Array | None = None,
    max_iter: int = 300,
    tolerance: float = 0.0,
    block_rows: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Fit:
    """Alternate assignment and centers from the given ones [K, D].

    duals: to start from, float64 [K]; they may be far from fitting.
    tolerance: end where the squared moves of the centers sum to no more than this; 0: only where nothing changes.
    progress: told a line for each iteration.
    """
    free, dtype = is_free(bounds, rows.total_size), returned_dtype(rows.vectors.dtype)
    centers = centers.to(dtype).double()  # labels must be those of the centers as they are returned
    labels = np.full(rows.vectors.n_rows, -1, dtype=np.int32)
    sums = rows.sums(len(centers))
    nothing = np.zeros(len(centers))
    prices = Prices(nothing if duals is None else duals, nothing, nothing)
    best, shift, seen, usual, sizes, n_done = None, np.inf, None, prices, nothing, 0
    at_once = _at_once(rows, bounds, free, block_rows)
    if at_once is not None and progress is None:
        n_done, centers, prices = at_once.iterate(centers, prices, labels, sums, max_iter, tolerance, dtype)
    for n_moves in range(n_done, max_iter + 1):
        began = time.monotonic()
        if not free and n_moves < 2:
            # the first centers are single rows, the second are means: all distances shrink
            prices = usual = _first_prices(rows, centers, bounds, prices.value)
        before = labels.copy()
        if at_once is not None:
            found = at_once.assign(centers, prices, labels, sums)
        else:
            seen = seen if n_moves > 1 else None  # what is as large goes before it is made again
            costs = rows.costs(centers, seen)
            found, seen = _assign(rows, costs, bounds, prices, labels, sums, block_rows, usual), costs.seen
        changed = found.n_changed
        if not free:
            if n_moves == 1:  # from here on centers move less
                usual = Prices(usual.value, usual.width / 2, usual.reach / 2)
            prices, sizes = following(found, bounds, usual, sizes), found.sizes
        if progress is not None:
            progress(
                f"iteration {n_moves + 1}: objective {found.cost:.8g}, {changed:,} labels changed, "
                f"{found.n_off:,.0f} rows off, {found.n_sweeps} sweeps, {time.monotonic() - began:.2f} s"
            )
        if best is not None and changed == 0:
            return Fit(centers, found, n_moves, True)
        if best is not None and found.cost >= found.former_cost * (1 - _EQUAL):
            # labels that cost the same: those whose means the centers are were the best already
            held = count_sizes(rows, before, len(centers))
            same = replace(found, labels=before, sizes=held, cost=found.former_cost, n_changed=0)
            return Fit(centers, same, n_moves, True)
        if (
            best is not None and found.cost >= best.assignment.cost
        ):  # centers were rounded: no better can be had
            return replace(best, n_iterations=n_moves, converged=True)
        if n_moves == max_iter or shift <= tolerance:
            return Fit(centers, found, n_moves, False)
        best = Fit(centers, replace(found, labels=labels.copy()), n_moves, False)
        moved, weights = sums.centers(centers)
        moved = _revived(rows, moved, weights <= 0, found.own).to(dtype).double()
        shift = float((moved - centers).square().sum()) if tolerance > 0 else np.inf
        centers = moved
    raise AssertionError("the last iteration returns")


@torch_alone()
def assign_rows(
    rows: Rows,
    centers: Tensor,
    bounds: SizeBounds,
    duals: Array | None = None,
    *,
    block_rows: int | None = None,
) -> Assignment:
    """Assign rows within the bounds under given centers [K, D], from duals [K] that may be far from fitting."""
    nothing = np.zeros(len(centers))
    prices = Prices(nothing, nothing, nothing)
    free = is_free(bounds, rows.total_size)
    if not free:
        prices = _first_prices(rows, centers, bounds, nothing if duals is None else duals)
    labels = np.full(rows.vectors.n_rows, -1, dtype=np.int32)
    at_once = _at_once(rows, bounds, free, block_rows)
    if at_once is not None:
        return at_once.assign(centers, prices, labels)
    return _assign(rows, rows.costs(centers), bounds, prices, labels, None, block_rows)


def _at_once(rows: Rows, bounds: SizeBounds, free: bool, block_rows: int | None) -> AtOnce | None:
    """The shorter way that few rows go, to the same labels."""
    n_clusters = len(bounds.lower)
    if block_rows is not None or not is_small(rows, n_clusters):
        return None
    return AtOnce(rows, bounds, free) if free or rows.n_total * n_clusters <= ALL_OFFERED else None


def _first_prices(rows: Rows, centers: Tensor, bounds: SizeBounds, value: Array) -> Prices:
    """Prices to begin with, and how wide offers are: of few pairs all are on offer."""
    if rows.heaviest_size == 0 and rows.n_total * len(centers) <= ALL_OFFERED:
        return Prices(value, np.full(len(centers), np.inf), np.zeros(len(centers)))
    return rows.sample.prices(centers, bounds, value)


def _assign(
    rows: Rows,
    costs: Costs,
    bounds: SizeBounds,
    prices: Prices,
    labels: Array,
    sums: CenterSums | None,
    block_rows: int | None,
    usual: Prices | None = None,
) -> Assignment:
    return assign_within(
        costs,
        bounds,
        rows.total_size,
        prices,
        labels,
        heaviest=rows.heaviest_size,
        sums=sums,
        take=rows.vectors.take,
        block_rows=block_rows,
        usual=usual,
    )


def _revived(rows: Rows, centers: Tensor, empty: Tensor, own: Array) -> Tensor:
    """Put each empty cluster's center on the row that costs most, one after the other; of equals on the last.

    own: what this process's rows cost. As scikit-learn does, but for rows that are alike.
    """
    lost = empty.nonzero()[:, 0].tolist()
    if not lost:
        return centers
    centers = centers.clone()
    values, cost = rows.costliest(own, 64 + 16 * len(lost))
    for cluster in lost:
        place = len(cost) - 1 - int(cost.flip(0).argmax())
        centers[cluster] = values[place]
        cost = torch.minimum(cost, exact_costs(values, values[place], rows.metric))
    return centers


def following(found: Assignment, bounds: SizeBounds, usual: Prices, former: Array) -> Prices:
    """What the next assignment starts from.

    Offers are cheap and sweeps are not: clusters whose price may move get offers of the usual width. They have a price,
    or come to a bound if sizes change twice as much as they did from the ``former`` [K].
    """
    if np.isinf(usual.width).all():  # all pairs are
        return usual._replace(value=found.prices.value)
    lower, upper, held = bounds.lower.numpy(), bounds.upper.numpy(), found.sizes
    change = 2 * held * float((np.abs(held - former) / np.maximum(held, 1)).max())
    near = (found.prices.value != 0) | (held <= lower + change) | (held >= upper - change)
    wide = [
        np.maximum(np.where(near, now, 0), 2 * need)
        for need, now in zip(needed(found.moved), usual[1:], strict=True)
    ]
    return Prices(found.prices.value, *wide)


def count_sizes(rows: Rows, labels: Array, n_clusters: int) -> Array:
    """Sizes of all processes' clusters: float64 [K]."""
    weight = None if rows.size_weight is None else rows.size_weight.cpu().numpy()
    held = np.bincount(labels, weight, n_clusters).astype(np.float64)
    return distributed.sum_over_processes(torch.from_numpy(held)).numpy()
