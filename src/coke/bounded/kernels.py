"""Behind the product of rows and centers, compiled: every row's best cluster, and which others may be offered to it.

The product is float32, and its last digits depend on how rows are cut into blocks. So its scores only say which pairs
are looked at, with a bound on their error; what is decided, and all that leaves here, is float64, pair by pair, in an
order that no block changes. numba compiles this at the first call and keeps it on disk.

Legend: b rows of a block, D features, K clusters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]
CHUNK = 64  # columns whose least score is looked at before they are
_compiled = njit(cache=True, nogil=True, error_model="numpy")
_reordered = njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "nnan"}
)


class Found(NamedTuple):
    """What is known of a block's rows, written by the kernels.

    Attributes:
        label: int32 [b], in: each row's cluster so far, or -1; out: its best one.
        former_cost: float64 [b], what the cluster so far costs; of a row without one, as ``cost``.
        cost: float64 [b], what the best one costs.
        n_offers: int32 [b]; 0 for a row without a choice.
        cluster, offer: int32 and float64, the clusters that the listed rows may go to, ascending, and the costs.
    """

    label: Array
    former_cost: Array
    cost: Array
    n_offers: Array
    cluster: Array
    offer: Array


@_reordered
def _squared_distance(row, factor, center):
    total = 0.0
    for d in range(len(center)):
        step = np.float64(row[d]) * factor - center[d]
        total += step * step
    return total


@_compiled
def _ordered(value):
    """A float32 as a whole number of the same order: minima of these are vectorised, those of floats are not."""
    bits = np.float32(value).view(np.int32)
    return np.int32(bits ^ ((bits >> 31) & 0x7FFFFFFF))


@_reordered
def _least(scores, squares, prices, widths, row_scale, price_scale, product_scale, least):
    """The least reduced cost of all columns; of every `CHUNK` columns that less its width, `_ordered`.

    Everything is padded to whole chunks. The compiler vectorises loops whose length it knows, and over indices that it
    can see to be no negative ones: hence the bound of the outer loop.
    """
    best = np.int32(0x7FFFFFFF)
    for chunk in range(len(squares) // CHUNK):
        first = chunk * CHUNK
        low, low_wide = np.int32(0x7FFFFFFF), np.int32(0x7FFFFFFF)
        for k in range(first, first + CHUNK):
            value = row_scale * squares[k] - product_scale * scores[k] - price_scale * prices[k]
            low = min(low, _ordered(value))
            low_wide = min(low_wide, _ordered(value - price_scale * widths[k]))
        least[chunk] = low_wide
        best = min(best, low)
    return np.int32(best ^ ((best >> 31) & 0x7FFFFFFF)).view(np.float32)


@_compiled
def _padded(values, filling):
    """Float32, in whole chunks."""
    padded = np.full(-(-len(values) // CHUNK) * CHUNK, filling, np.float32)
    for k in range(len(values)):
        padded[k] = values[k]
    return padded


@_compiled
def _best(i, first, end, weight, prices, found):
    """Which of the exact costs listed for a row is the best: of equals the cluster it is in, else the lowest."""
    best, chosen = np.inf, -1
    for place in range(first, end):
        reduced = found.offer[place] - weight * prices[found.cluster[place]]
        if reduced < best or (reduced == best and found.cluster[place] == found.label[i]):
            best, chosen = reduced, place
    return chosen


@_compiled
def _keep(i, first, end, chosen, weight, prices, widths, reaches, found):
    """Write what is known of a row, and keep of its exact costs what is on offer: the end of those that are listed."""
    cluster, cost = found.cluster[chosen], found.offer[chosen]
    bar = cost - weight * prices[cluster] + weight * reaches[cluster]
    kept = first
    for place in range(first, end):
        k = found.cluster[place]
        if found.offer[place] - weight * prices[k] <= bar + weight * widths[k]:
            found.cluster[kept], found.offer[kept] = k, found.offer[place]
            kept += 1
    listed = kept > first + 1 and weight > 0
    found.label[i], found.cost[i] = cluster, cost
    found.n_offers[i] = kept - first if listed else 0
    return kept if listed else first


@_compiled
def _list(bar, score, row, factor, centers, scale, terms, row_scale, price_scale, first, least, found):
    """List all clusters of a row whose score, less their width, may be below ``bar``, with exact costs."""
    squares, prices, widths = terms
    end, lowest = first, _ordered(bar)
    product_scale = row_scale * np.float32(factor)
    for chunk in range(len(least)):
        if least[chunk] <= lowest:
            for k in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, len(centers))):
                value = row_scale * squares[k] - product_scale * score[k] - price_scale * prices[k]
                if not (value - price_scale * widths[k] > bar):
                    found.cluster[end] = k
                    found.offer[end] = scale * _squared_distance(row, factor, centers[k])
                    end += 1
    return end


@_compiled
def offers_by_distance(
    scores, rows, factors, centers, scale, squares, prices, widths, reaches, costs, sizes, errors, found
):
    """Offers of a block's rows by squared distance.

    Args:
        scores: float32 [b, K and more, to whole chunks], products of (shifted) rows and twice the (shifted) centers.
        rows: float32 or float64 [b, D].
        factors: float64 [b], what rows are multiplied by: 1 / length, or 1.
        centers: float64 [K, D].
        scale: of a squared distance in the cost.
        squares: float64 [K], squared lengths of (shifted) centers.
        prices, widths, reaches: float64 [K]; a row at its best cluster b is offered to k if that is worse by at most
            widths[k] + reaches[b], per unit of size.
        costs, sizes: float64 [b], what a row's costs are multiplied by, and what it counts for in a size.
        errors: float32 [b], by how much a score may be off, as part of a reduced cost.
        found: written to.

    Returns:
        How many offers are listed, and how many rows fitted: where ``found`` is too small, fewer than b.
    """
    n_clusters = len(squares)
    level = prices - prices.mean()  # a common shift decides nothing
    terms = _padded(squares, 3e38), _padded(level, 0), _padded(widths, 0)
    least = np.empty(len(terms[0]) // CHUNK, np.int32)
    n_listed = 0
    for i in range(len(rows)):
        if n_listed + n_clusters > len(found.cluster):
            return n_listed, i
        own_scale, factor, size = scale * costs[i], factors[i], sizes[i]
        row_scale, price_scale = np.float32(own_scale), np.float32(size)
        product_scale = row_scale * np.float32(factor)
        row, score = rows[i], scores[i]
        bar = 2 * errors[i] + _least(score, *terms, row_scale, price_scale, product_scale, least)
        end = _list(
            bar, score, row, factor, centers, own_scale, terms, row_scale, price_scale, n_listed, least, found
        )
        chosen = _best(i, n_listed, end, size, prices, found)
        reach = reaches[found.cluster[chosen]]
        if reach > 0:
            bar += price_scale * np.float32(reach)
            end = _list(
                bar,
                score,
                row,
                factor,
                centers,
                own_scale,
                terms,
                row_scale,
                price_scale,
                n_listed,
                least,
                found,
            )
            chosen = _best(i, n_listed, end, size, prices, found)
        former = found.label[i]
        found.former_cost[i] = found.offer[chosen]
        if former >= 0 and former != found.cluster[chosen]:
            found.former_cost[i] = own_scale * _squared_distance(row, factor, centers[former])
        n_listed = _keep(i, n_listed, end, chosen, size, prices, widths, reaches, found)
    return n_listed, len(rows)


@_compiled
def offers_by_cost(cost, prices, widths, reaches, sizes, found):
    """As `offers_by_distance`, for costs float64 [b, K] that are given."""
    n_clusters = len(prices)
    n_listed = 0
    for i in range(len(cost)):
        if n_listed + n_clusters > len(found.cluster):
            return n_listed, i
        for k in range(n_clusters):
            found.cluster[n_listed + k], found.offer[n_listed + k] = k, cost[i, k]
        chosen = _best(i, n_listed, n_listed + n_clusters, sizes[i], prices, found)
        former = found.label[i]
        found.former_cost[i] = cost[i, former] if former >= 0 else found.offer[chosen]
        n_listed = _keep(i, n_listed, n_listed + n_clusters, chosen, sizes[i], prices, widths, reaches, found)
    return n_listed, len(cost)


@_compiled
def add_changed(rows, factors, shift, weights, grids, weight_grid, former, now, sums, masses):
    """Take rows [b, D] whose cluster has changed from the sums [K, 2 D] and masses [K] of the former, to the new one.

    What is added are multiples of two grids, so that sums are exact in whatever order; see `coke.bounded.centers`.
    """
    n_features = len(shift)
    for i in range(len(rows)):
        if now[i] != former[i]:
            mass = np.rint(weights[i] / weight_grid) * weight_grid
            masses[now[i]] += mass
            if former[i] >= 0:
                masses[former[i]] -= mass
            for d in range(n_features):
                value = (rows[i, d] * factors[i] - shift[d]) * weights[i]
                coarse = np.rint(value / grids[0]) * grids[0]
                fine = np.rint((value - coarse) / grids[1]) * grids[1]
                sums[now[i], d] += coarse
                sums[now[i], n_features + d] += fine
                if former[i] >= 0:
                    sums[former[i], d] -= coarse
                    sums[former[i], n_features + d] -= fine


@_compiled
def add_exactly(values, total):
    """Add values [n] to ``total`` [2], a sum and what rounding has taken from it (Knuth's two-sum)."""
    high, low = total[0], total[1]
    for value in values:
        added = high + value
        part = added - high
        low += (high - (added - part)) + (value - part)
        high = added
    total[0], total[1] = high, low
