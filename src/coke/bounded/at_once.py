"""Small data at once: an assignment, or a fit's iterations, in one compiled call.

Where a pass takes less time than the steps of Python around it, these are what counts. So of rows that are at hand and
few, what does not change is laid out once, and one call assigns them all, or goes on from assignment to assignment
until a fit is about to end; the end itself is left to `coke.bounded.lloyd`. What is decided, and how, is the same as
elsewhere to the last bit (float64 costs pair by pair, exact sums), so labels do not tell which way they came.

Without bounds a row's nearest cluster is found by float32 scores of `TILE` rows side by side, and where these leave a
doubt by exact costs. Within bounds every pair is on offer to the search.

Legend: N rows, D features, K clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from coke import distributed
from coke.bounded.assignment import Assignment, bound_below
from coke.bounded.centers import CenterSums
from coke.bounded.costs import COSINE, Prices, as_floats, row_factors
from coke.bounded.kernels import (
    Array,
    add_changed,
    add_one,
    compiled,
    error_terms,
    means,
    reordered,
    squared_distance,
)
from coke.bounded.rows import Rows
from coke.bounded.search import Offers, Sizes, move_rows
from coke.bounded.sizes import SizeBounds

TILE = 128  # rows side by side
_MOST_WORK, _MOST_VALUES = (
    2**25,
    2**22,
)  # multiplications of a pass, which is one thread's, and values of all rows
_ALMOST = 1 - 1e-13  # whether costs as close as that have fallen is asked elsewhere


class Data(NamedTuple):
    """Rows, laid out.

    Attributes:
        exact: float32 or float64 [N, D], as they are.
        tiles: float32 [T, D, `TILE`], as they are multiplied with centers: scaled, and less the shift; 0 past the last.
        lengths: float64 [N], of those.
        factors: float64 [N], what rows are multiplied by: 1 / length for cosine, or 1.
        weights: float64 [N], what costs are multiplied by.
        shift: float64 [D].
        scale: of a squared distance in the cost.
    """

    exact: Array
    tiles: Array
    lengths: Array
    factors: Array
    weights: Array
    shift: Array
    scale: float


def is_small(rows: Rows, n_clusters: int) -> bool:
    """Whether these rows are few enough, and this process's own."""
    vectors = rows.vectors
    n_values = vectors.n_rows * vectors.n_features
    return (
        vectors.kind in ("numpy", "tensor")
        and vectors.device.type == "cpu"
        and rows.size_weight is None
        and not distributed.active()
        and 0 < n_values <= min(_MOST_VALUES, _MOST_WORK // n_clusters)
    )


class AtOnce:
    """Rows that are few (`is_small`), for K clusters, within bounds or free of any."""

    def __init__(self, rows: Rows, bounds: SizeBounds, free: bool) -> None:
        _, values = next(rows.vectors.blocks(rows.vectors.n_rows))
        exact = as_floats(values).contiguous()
        factors, shift = row_factors(exact, rows.metric).numpy(), np.zeros(exact.shape[1])
        shift = shift if rows.shift is None else rows.shift.numpy()
        n, k = len(exact), len(bounds.lower)
        tiles = np.zeros((-(-n // TILE) if free else 0, exact.shape[1], TILE), np.float32)
        lengths = np.empty(n)
        lay_out(exact.numpy(), factors, shift, tiles, lengths)
        weights = np.ones(len(exact)) if rows.sample_weight is None else rows.sample_weight.numpy()
        scale = 0.5 if rows.metric == COSINE else 1.0
        self.data = Data(exact.numpy(), tiles, lengths, factors, weights, shift, scale)
        self.metric, self.limits, self.offers = (
            rows.metric,
            (bounds.lower.numpy(), bounds.upper.numpy()),
            None,
        )
        if not free:
            every = np.arange(k, dtype=np.int32)
            self.offers = Offers(
                np.arange(n + 1) * k, np.tile(every, n), np.empty(n * k), np.empty(n, np.int64), np.ones(n)
            )

    def assign(
        self, centers: Tensor, prices: Prices, labels: Array, sums: CenterSums | None = None
    ) -> Assignment:
        """As `coke.bounded.assignment.assign_within`."""
        value, before, own = prices.value.copy(), labels.copy(), np.empty(len(labels))
        sizes = Sizes(np.empty(len(centers)), *self.limits)
        cost, former_cost, n_changed, n_off = assign(
            self.data, centers.numpy(), value, sizes, self.offers, labels, own
        )
        if sums is not None:
            sums.add_all(self.data.exact, self.data.factors, before, labels)
        rounding = (centers.shape[1] + 8) * 2.0**-53
        lower_bound, error = bound_below(value, cost, sizes.held, *self.limits, rounding)
        return Assignment(
            labels=labels,
            own=own,
            sizes=sizes.held,
            prices=prices._replace(value=value),
            moved=value - prices.value,
            cost=cost,
            lower_bound=max(lower_bound, 0.0),
            rounding=error,
            former_cost=former_cost,
            n_changed=n_changed,
            n_off=n_off,
            n_sweeps=1,
        )

    def iterate(
        self, centers: Tensor, prices: Prices, labels: Array, sums: CenterSums, max_iter: int, tolerance: float,
        dtype: torch.dtype,
    ) -> tuple[int, Tensor, Prices]:  # fmt: skip
        """All iterations but the last few: how many, and the centers and prices after them; labels and sums follow."""
        moved, value = centers.numpy().copy(), prices.value.copy()
        masses = sums.weights.numpy()
        n_done = iterate(
            self.data, moved, value, Sizes(np.empty(len(moved)), *self.limits), self.offers, labels, sums.sums.numpy(),
            masses, sums.grids, sums.weight_grid, max_iter, tolerance, dtype == torch.float32, self.metric == COSINE,
        )  # fmt: skip
        return n_done, torch.from_numpy(moved), prices._replace(value=value)


@compiled
def lay_out(exact, factors, shift, tiles, lengths):
    """Write rows to tiles, if there are any, and their lengths."""
    for i in range(len(exact) if len(tiles) else 0):
        square = 0.0
        for d in range(len(shift)):
            value = exact[i, d] * factors[i] - shift[d]
            tiles[i // TILE, d, i % TILE] = value
            square += value * value
        lengths[i] = np.sqrt(square)


@reordered
def _scores(columns, centers, value):
    """Products of a tile's rows with one of the centers."""
    n_features = len(columns)
    value[:] = 0
    for d in range(0, n_features - 3, 4):
        c0, c1, c2, c3 = centers[d], centers[d + 1], centers[d + 2], centers[d + 3]
        x0, x1, x2, x3 = columns[d], columns[d + 1], columns[d + 2], columns[d + 3]
        for r in range(len(value)):
            value[r] += (x0[r] * c0 + x1[r] * c1) + (x2[r] * c2 + x3[r] * c3)
    for d in range(n_features // 4 * 4, n_features):
        center, column = centers[d], columns[d]
        for r in range(len(value)):
            value[r] += column[r] * center


@reordered
def _compare(value, square, k, best, second, at):
    """Tell the least and the second score of each row of those of cluster k."""
    for r in range(len(value)):
        score, least, next_one, chosen = square - value[r], best[r], second[r], at[r]
        larger = least if least > score else score
        second[r] = larger if larger < next_one else next_one
        at[r] = k if score < least else chosen
        best[r] = score if score < least else least


@compiled
def _nearest(data, centers, sizes, labels, own):
    """Put each row to its nearest cluster; of equals the one that it is in, else the lowest."""
    n_clusters, n_features = centers.shape
    squares, doubled, largest = np.zeros(n_clusters), np.empty(centers.shape, np.float32), 0.0
    for k in range(n_clusters):
        for d in range(n_features):
            moved = centers[k, d] - data.shift[d]
            doubled[k, d] = 2 * moved
            squares[k] += moved * moved
        largest = max(largest, squares[k])
    e = error_terms(n_features, 2.0**-24, np.sqrt(largest), 0.0)
    value, best, second = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    at = np.empty(TILE, np.int32)
    total, former_total, n_changed = np.zeros(2), np.zeros(2), 0
    sizes.held[:] = 0
    for tile in range(len(data.tiles)):
        best[:], second[:] = np.inf, np.inf
        for k in range(n_clusters):
            _scores(data.tiles[tile], doubled[k], value)
            _compare(value, np.float32(squares[k]), np.int32(k), best, second, at)
        first = tile * TILE
        for r in range(min(TILE, len(labels) - first)):
            i = first + r
            length, weight, former = data.lengths[i], data.scale * data.weights[i], labels[i]
            error = e[0] * length + e[1] + e[3] * (1 + length)
            if weight > 1e-200 and np.float64(second[r]) - np.float64(best[r]) > 2 * error:
                label = at[r]
                cost = weight * squared_distance(data.exact, i, data.factors[i], centers, label)
            else:
                label, cost = -1, np.inf
                for k in range(n_clusters):
                    other = weight * squared_distance(data.exact, i, data.factors[i], centers, k)
                    if other < cost or (other == cost and k == former):
                        label, cost = k, other
            former_cost = cost
            if former != label:
                n_changed += 1
                if former >= 0:
                    former_cost = weight * squared_distance(data.exact, i, data.factors[i], centers, former)
            labels[i], own[i] = label, cost
            sizes.held[label] += 1
            add_one(cost, total)
            add_one(former_cost, former_total)
    return total[0] + total[1], former_total[0] + former_total[1], n_changed, 0.0


@compiled
def _within(data, centers, prices, sizes, offers, labels, own):
    """Assign within bounds, every pair on offer."""
    n_clusters = len(centers)
    total, former_total, gained, n_changed = np.zeros(2), np.zeros(2), np.zeros(2), 0
    sizes.held[:] = 0
    for i in range(len(labels)):
        weight, begin, former = data.scale * data.weights[i], i * n_clusters, labels[i]
        least, label = np.inf, -1
        for k in range(n_clusters):
            cost = weight * squared_distance(data.exact, i, data.factors[i], centers, k)
            offers.cost[begin + k] = cost
            if cost - prices[k] < least or (cost - prices[k] == least and k == former):
                least, label = cost - prices[k], k
        offers.at[i], own[i] = begin + label, offers.cost[begin + label]
        sizes.held[label] += 1
        add_one(own[i], total)
        add_one(offers.cost[begin + (former if former >= 0 else label)], former_total)
    n_off = 0.0
    for k in range(n_clusters):
        n_off += max(sizes.lower[k] - sizes.held[k], sizes.held[k] - sizes.upper[k], 0.0)
    width = np.full(n_clusters, np.inf)
    move_rows(offers, sizes, prices, width, np.zeros(n_clusters), np.inf, 0.0, True)
    for i in range(len(labels)):
        cost, label = offers.cost[offers.at[i]], offers.cluster[offers.at[i]]
        add_one(cost - own[i], gained)
        n_changed += label != labels[i]
        labels[i], own[i] = label, cost
    cost = (total[0] + total[1]) + (gained[0] + gained[1])
    return cost, former_total[0] + former_total[1], n_changed, n_off


@compiled
def assign(data, centers, prices, sizes, offers, labels, own):
    """Assign all rows, free where no ``offers`` are given. ``prices``, ``sizes.held``, ``labels`` and ``own`` follow.

    Returns:
        The cost, that of the labels before, how many have changed, and by how many rows sizes were off at first.
    """
    if offers is not None:
        return _within(data, centers, prices, sizes, offers, labels, own)
    return _nearest(data, centers, sizes, labels, own)


@compiled
def _copy(values, to):
    """As ``to[:] = values``, which compiles a sentence on shapes for seconds."""
    for i in range(len(values)):
        to[i] = values[i]


@compiled
def _least(values):
    least = np.inf
    for value in values:
        least = min(least, value)
    return least


@compiled
def _step(centers, moved, is_single):
    """Move centers, to float32 values if asked for; their squared way."""
    way = 0.0
    for k in range(len(centers)):
        for d in range(centers.shape[1]):
            value = np.float64(np.float32(moved[k, d])) if is_single else moved[k, d]
            way += (value - centers[k, d]) ** 2
            centers[k, d] = value
    return way


@compiled
def iterate(
    data, centers, prices, sizes, offers, labels, sums, masses, grids, weight_grid, max_iter, tolerance, is_single,
    is_cosine,
):  # fmt: skip
    """Assign and move centers, in turns, until the last two turns; what is passed stands as these begin.

    That is where nothing changes, costs do not fall, centers have moved little or not every cluster has rows.
    """
    n_done, least, shift, own, now = 0, np.inf, np.inf, np.empty(len(labels)), labels.copy()
    before = centers.copy(), prices.copy(), labels.copy()
    while n_done < max_iter and shift > tolerance * (1 + 1e-9):
        kept = centers.copy(), prices.copy(), labels.copy()
        cost, former_cost, n_changed, _ = assign(data, centers, prices, sizes, offers, now, own)
        if n_done > 0 and (n_changed == 0 or cost >= _ALMOST * min(former_cost, least)):
            break
        add_changed(
            data.exact, data.factors, data.shift, data.weights, grids, weight_grid, labels, now, sums, masses
        )
        if _least(masses) <= 0:
            break
        moved = means(sums, masses, data.shift, is_cosine, centers)
        step = _step(centers, moved, is_single)
        shift = step if tolerance > 0 else np.inf
        _copy(now, labels)
        before = kept
        least, n_done = cost, n_done + 1
    _copy(before[0].ravel(), centers.ravel())
    _copy(before[1], prices)
    _copy(before[2], labels)
    sums[:], masses[:] = 0.0, 0.0
    if labels[0] >= 0:
        none = np.full(len(labels), -1, np.int32)
        add_changed(
            data.exact, data.factors, data.shift, data.weights, grids, weight_grid, none, labels, sums, masses
        )
    return max(n_done - 1, 0)
