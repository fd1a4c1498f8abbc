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
GROUP = 8  # clusters of a group, whose least score is looked at before they are
UNDERFLOW = 2.0**-101  # times unit rounding: products below that are lost in float32, so they count as equal
TRIED_ROWS = 32  # of a block, by which is told whether looking again at some groups is faster than at all
compiled = njit(cache=True, nogil=True, error_model="numpy")
reordered = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "nnan"})


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


class Groups(NamedTuple):
    """The clusters as a sweep looks at them: G groups of `GROUP`, which lie across 8 G columns.

    Attributes:
        order: int32 [8 G], the cluster of column place * G + group, or -1 for none.
        group: int32 [K], of each cluster.
        square, level, width, reach: float32 [8 G], squared lengths of (shifted) centers, prices less their mean, and
            how wide offers are.
        widest: float32 [G], the largest width of each group.
        centers: float32 [G, 8, D], twice the (shifted) centers; of no features where nothing is seen again.
    """

    order: Array
    group: Array
    square: Array
    level: Array
    width: Array
    reach: Array
    widest: Array
    centers: Array


class Block(NamedTuple):
    """Some rows.

    Attributes:
        exact, rough: float32 or float64 [b, D] as they are, and float32 less the shift.
        factors: float64 [b], what rows are multiplied by: 1 / length, or 1.
        costs, sizes: float64 [b], what a row's costs are multiplied by, and what it counts for in a size.
    """

    exact: Array
    rough: Array
    factors: Array
    costs: Array
    sizes: Array


class Known(NamedTuple):
    """What earlier sweeps have left, see `coke.bounded.seen`.

    Attributes:
        base: float32 [b], no reduced cost of a row was less,
        above: uint16 [b, G], nor for a cluster of a group by less than this above it; of no rows: nothing is kept.
        fall: float32 [K, G], by how much that has changed at least, of a row in this cluster,
        stride: float32 [G], times the row's distance from its center,
        distance: float32 [b].
    """

    base: Array
    above: Array
    fall: Array
    stride: Array
    distance: Array


@reordered
def squared_distance(rows, i, factor, centers, k):
    """Of row i, times its factor, from center k, in float64."""
    total = 0.0
    for d in range(centers.shape[1]):
        step = np.float64(rows[i, d]) * factor - centers[k, d]
        total += step * step
    return total


@reordered
def _least(scores, i, square, level, row_scale, product_scale, price_scale, least):
    """The least reduced cost in each group, and of all; groups lie across, so that minima are taken side by side."""
    n_groups = len(least)
    for place in range(GROUP):
        for group in range(n_groups):
            k = place * n_groups + group
            value = row_scale * square[k] - product_scale * scores[i, k] - price_scale * level[k]
            least[group] = value if place == 0 or value < least[group] else least[group]
    best = np.float32(np.inf)
    for group in range(n_groups):
        best = min(best, least[group])
    return best


@reordered
def _look(rows, i, group, centers, offset, product_scale, scores, least):
    """Scores of a row for the eight (`GROUP`) centers of a group, in sums that need not wait for each other."""
    p0 = p1 = p2 = p3 = p4 = p5 = p6 = p7 = np.float32(0)
    row, center = rows[i], centers[group]
    for d in range(len(row)):
        value = row[d]
        p0 += value * center[0, d]
        p1 += value * center[1, d]
        p2 += value * center[2, d]
        p3 += value * center[3, d]
        p4 += value * center[4, d]
        p5 += value * center[5, d]
        p6 += value * center[6, d]
        p7 += value * center[7, d]
    score, first, low = scores[group], offset[group], np.float32(np.inf)
    score[0], score[1], score[2], score[3], score[4], score[5], score[6], score[7] = (
        p0,
        p1,
        p2,
        p3,
        p4,
        p5,
        p6,
        p7,
    )
    for place in range(GROUP):
        low = min(low, first[place] - product_scale * score[place])
    least[group] = low
    return low


@reordered
def _recall(known, i, former, error, least):
    """What is known of a row's groups, fallen by as much as their clusters may have come nearer.

    The errors are that of the scores and those of this sum, whose terms may be several times as large.
    """
    base, above, fall, stride, distance = known
    for group in range(len(least)):
        kept = np.uint32(np.uint32(above[i, group]) << np.uint32(15)).view(np.float32)
        least[group] = base[i] + kept + fall[former, group] - distance[i] * stride[group] - 4 * error


@reordered
def _keep_known(least, known, i):
    """Keep how far each group is above the lowest, in eight bits of exponent and eight of what follows, cut off."""
    base = np.float32(np.inf)
    for group in range(len(least)):
        base = min(base, least[group])
    known.base[i] = base
    for group in range(len(least)):
        known.above[i, group] = np.float32(least[group] - base).view(np.uint32) >> np.uint32(15)


@compiled
def _near(bar, price_scale, widest, least, near):
    """List the groups that may hold something below the bar; how many."""
    n_near = 0
    for group in range(len(least)):
        near[n_near] = group
        n_near += least[group] - price_scale * widest[group] <= bar
    return n_near


@reordered
def error_of(rows, i, factor, own_scale, size, errors):
    """By how much a reduced cost may be off, see `coke.bounded.costs.DistanceCosts.errors`."""
    total = np.float32(0)
    for d in range(rows.shape[1]):
        total += rows[i, d] * rows[i, d]
    length = np.sqrt(np.float64(total)) * factor
    return np.float32(
        own_scale * (errors[0] * length + errors[1]) + errors[2] * size + errors[3] * (1 + length)
    )


@compiled
def shifted(rows, shift):
    """Rows [b, D] less the shift [D], float32."""
    moved = np.empty(rows.shape, np.float32)
    for i in range(len(rows)):
        for d in range(len(shift)):
            moved[i, d] = rows[i, d] - shift[d]
    return moved


@compiled
def error_terms(n_features, unit, longest, highest):
    """See `coke.bounded.costs.DistanceCosts.errors`. unit: of rounding; longest: center; highest: price."""
    n_terms = n_features + 8
    return 2 * unit * longest * n_terms, 8 * unit * longest**2, 8 * unit * highest, unit * UNDERFLOW * n_terms


@compiled
def _in_order(first, end, clusters, offers):
    """Sort what is listed of a row by its clusters: few as a rule, and in order already where all are."""
    if end - first > 64:
        order = np.argsort(clusters[first:end])
        clusters[first:end] = clusters[first:end][order]
        offers[first:end] = offers[first:end][order]
        return
    for place in range(first + 1, end):
        cluster, offer = clusters[place], offers[place]
        while place > first and clusters[place - 1] > cluster:
            clusters[place], offers[place] = clusters[place - 1], offers[place - 1]
            place -= 1
        clusters[place], offers[place] = cluster, offer


@compiled
def _best(former, first, end, weight, prices, clusters, offers):
    """Which of the exact costs listed for a row is the best: of equals the cluster it is in, else the lowest."""
    best, chosen = np.inf, -1
    for place in range(first, end):
        reduced = offers[place] - weight * prices[clusters[place]]
        if reduced < best or (reduced == best and clusters[place] == former):
            best, chosen = reduced, place
    return chosen


@compiled
def _keep(first, end, chosen, weight, prices, widths, reach, clusters, offers):
    """Keep of a row's exact costs what is on offer: the end of those that are listed."""
    bar = offers[chosen] - weight * prices[clusters[chosen]] + weight * reach
    kept = first
    for place in range(first, end):
        k = clusters[place]
        if offers[place] - weight * prices[k] <= bar + weight * widths[k]:
            clusters[kept], offers[kept] = k, offers[place]
            kept += 1
    return kept if kept > first + 1 and weight > 0 else first


@compiled
def _reduced(i, group, place, scores, again, square, level, row_scale, product_scale, price_scale):
    """A row's reduced cost by its score."""
    k = place * (len(square) // GROUP) + group
    score = scores[group, place] if again else scores[i, k]
    return row_scale * square[k] - product_scale * score - price_scale * level[k]


@compiled
def _list(
    bar, scores, again, rows, i, factor, centers, own_scale, square, level, width, order, row_scale, product_scale,
    price_scale, n_near, near, first, clusters, offers,
):  # fmt: skip
    """List all clusters of a row whose score, less their width, may be below ``bar``, with exact costs."""
    end, n_groups = first, len(order) // GROUP
    for number in range(n_near):
        group = near[number]
        for place in range(GROUP):
            k = place * n_groups + group
            value = _reduced(
                i, group, place, scores, again, square, level, row_scale, product_scale, price_scale
            )
            if order[k] >= 0 and not (value - price_scale * width[k] > bar):
                clusters[end] = order[k]
                offers[end] = own_scale * squared_distance(rows, i, factor, centers, order[k])
                end += 1
    _in_order(first, end, clusters, offers)
    return end


@compiled
def _reach(bar, scores, again, i, square, level, reach, row_scale, product_scale, price_scale, n_near, near):
    """The largest reach of all clusters that may be a row's best one: whose score is below ``bar``."""
    most, n_groups = np.float32(0), len(square) // GROUP
    for number in range(n_near):
        group = near[number]
        for place in range(GROUP):
            k = place * n_groups + group
            value = _reduced(
                i, group, place, scores, again, square, level, row_scale, product_scale, price_scale
            )
            if value <= bar and reach[k] > most:
                most = reach[k]
    return most


@compiled
def is_too_much(n_looked, n_rows, n_groups):
    """Whether products of whole blocks would have been faster, which take a third of the time a pair."""
    return 3 * n_looked > n_rows * n_groups


@compiled
def offers_by_distance(
    scores, block, centers, scale, errors, groups, prices, widths, reaches, seen, again, found
):
    """Offers of a block's rows by squared distance.

    Args:
        scores: float32 [b, 8 G], products of (shifted) rows and twice the (shifted) centers; where rows are seen again
            a buffer [G, 8], and products are made here of groups that may hold what is on offer.
        block: the rows.
        centers: float64 [K, D].
        scale: of a squared distance in the cost.
        errors: four numbers that tell by how much a score may be off.
        groups: of the clusters.
        prices, widths, reaches: float64 [K]; a row at its best cluster b is offered to k if that is worse by at most
            widths[k] + reaches[b], per unit of size.
        seen: what is known of these rows, written to; or of no rows.
        again: whether that is to be used. Rows weigh 1 then.
        found: written to.

    Returns:
        How many offers are listed; how many rows fitted: fewer than b where ``found`` is too small, or where so much
        was looked at again that products of whole blocks are faster; and how many groups were looked at.
    """
    n_clusters, n_groups, n_listed, n_looked = len(centers), len(groups.widest), 0, 0
    rows, rough, factors, costs, sizes = block
    order, group_of, square, level, width, reach, widest, beside = groups
    label, former_cost, cost, n_offers, clusters, offers = found
    near, least, kept = np.empty(n_groups + 1, np.int32), np.empty(n_groups, np.float32), len(seen.base) > 0
    looked, nothing, is_reached = np.full(n_groups, -1), np.zeros_like(widest), reaches.max() > 0
    offset = np.empty((n_groups, GROUP), np.float32)
    for k in range(GROUP * n_groups if again else 0):
        offset[k % n_groups, k // n_groups] = np.float32(scale) * square[k] - level[k]
    for i in range(len(rows)):
        if again and i == TRIED_ROWS and is_too_much(n_looked, i, n_groups):
            return n_listed, i, n_looked
        if n_listed + n_clusters > len(clusters):
            return n_listed, i, n_looked
        own_scale, factor, size = scale * costs[i], factors[i], sizes[i]
        price_scale, error = np.float32(size), error_of(rough, i, factor, own_scale, size, errors)
        row_scale = np.float32(own_scale)
        product_scale = row_scale * np.float32(factor)
        former = label[i]
        if again:
            _recall(seen, i, former, error, least)
            own = group_of[former]
            bar = _look(rough, i, own, beside, offset, product_scale, scores, least) + 2 * error
            looked[own] = i
            n_near = _near(bar, price_scale, widest, least, near)
            for number in range(n_near):
                group = near[number]
                if looked[group] != i and least[group] - widest[group] <= bar:
                    low = _look(rough, i, group, beside, offset, product_scale, scores, least)
                    bar, looked[group], n_looked = min(bar, low + 2 * error), i, n_looked + 1
        else:
            bar = 2 * error + _least(scores, i, square, level, row_scale, product_scale, price_scale, least)
        if is_reached:
            n_near = _near(bar, price_scale, nothing, least, near)
            bar += price_scale * _reach(
                bar, scores, again, i, square, level, reach, row_scale, product_scale, price_scale, n_near, near,
            )  # fmt: skip
        n_near = _near(bar, price_scale, widest, least, near)
        for number in range(n_near if again else 0):
            group = near[number]
            if looked[group] != i:
                looked[group], n_looked = i, n_looked + 1
                _look(rough, i, group, beside, offset, product_scale, scores, least)
        end = _list(
            bar, scores, again, rows, i, factor, centers, own_scale, square, level, width, order, row_scale,
            product_scale, price_scale, n_near, near, n_listed, clusters, offers,
        )  # fmt: skip
        chosen = _best(former, n_listed, end, size, prices, clusters, offers)
        label[i], cost[i], former_cost[i] = clusters[chosen], offers[chosen], offers[chosen]
        if former >= 0 and former != label[i]:
            former_cost[i] = own_scale * squared_distance(rows, i, factor, centers, former)
        end = _keep(n_listed, end, chosen, size, prices, widths, reaches[label[i]], clusters, offers)
        n_offers[i], n_listed = end - n_listed, end
        if kept:
            _keep_known(least, seen, i)
    return n_listed, len(rows), n_looked


@compiled
def offers_by_cost(costs, prices, widths, reaches, sizes, found):
    """As `offers_by_distance`, for costs float64 [b, K] that are given."""
    n_clusters, n_listed = len(prices), 0
    label, former_cost, cost, n_offers, clusters, offers = found
    for i in range(len(costs)):
        end = n_listed + n_clusters
        if end > len(clusters):
            return n_listed, i
        for k in range(n_clusters):
            clusters[n_listed + k], offers[n_listed + k] = k, costs[i, k]
        former = label[i]
        chosen = _best(former, n_listed, end, sizes[i], prices, clusters, offers)
        label[i], cost[i], former_cost[i] = clusters[chosen], offers[chosen], offers[chosen]
        if former >= 0:
            former_cost[i] = costs[i, former]
        end = _keep(n_listed, end, chosen, sizes[i], prices, widths, reaches[label[i]], clusters, offers)
        n_offers[i], n_listed = end - n_listed, end
    return n_listed, len(costs)


@compiled
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


@compiled
def add_exactly(values, total):
    """Add values [n] to ``total`` [2], a sum and what rounding has taken from it (Knuth's two-sum)."""
    for value in values:
        add_one(value, total)


@compiled
def add_one(value, total):
    """As `add_exactly`."""
    high = total[0]
    added = high + value
    part = added - high
    total[1] += (high - (added - part)) + (value - part)
    total[0] = added


@compiled
def means(sums, masses, shift, is_cosine, former):
    """Centers [K, D] of sums [K, 2 D]: means, or their directions; the former ones of clusters without either."""
    n_features = former.shape[1]
    moved = former.copy()
    for k in range(len(masses)):
        if masses[k] > 0:
            square = 0.0
            for d in range(n_features):
                moved[k, d] = (sums[k, d] + sums[k, n_features + d]) / masses[k] + shift[d]
                square += moved[k, d] ** 2
            length = np.sqrt(square)
            for d in range(n_features if is_cosine else 0):
                moved[k, d] = moved[k, d] / length if length > 1e-12 else former[k, d]
    return moved
