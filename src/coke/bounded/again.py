"""A sweep once more, of the few pairs alone that may have come near since prices moved.

A sweep lists a row that is in cluster b for cluster k where that is worse by at most width_k + reach_b. When prices
have moved by delta, a pair that it left out is still worse by more than

    (width_k - delta_k) + (reach_b + delta_b).

So, for any level t, a look is needed at clusters with width_k - delta_k < -t, for all rows, and at rows of clusters
with reach_b + delta_b < t, for all clusters; of all other pairs what is left of widths and reaches is known. Mostly
these are one or two in a hundred, where a whole sweep would look at every pair. What is found joins what was on offer.

Legend: N rows of this process, D features, K clusters, M rows with more than one offer, P their offers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from coke import distributed
from coke.bounded.ascent import choose
from coke.bounded.costs import DistanceCosts, Prices
from coke.bounded.kernels import Array, Block, compiled, error_of, squared_distance
from coke.bounded.search import Offers
from coke.bounded.sweep import Swept
from coke.bounded.thread_pool import n_threads, work_through

_LEFT = 1 / 4  # of a width or reach: clusters that have less left are looked at, if they are few
_MOST = 1 / 4  # of all pairs: beyond, a whole sweep is as fast
_ROUNDING = 2.0**-48  # of prices and widths, relative to the largest


@dataclass(frozen=True, eq=False)
class Anchor:
    """Where rows were in the sweep that listed their offers: clusters int32 [N], and what these cost, float64 [N]."""

    label: Array
    cost: Array


@dataclass(frozen=True, eq=False)
class Asked:
    """What is to be looked at again: bool [K] each; and what offers are complete for then.

    Attributes:
        columns: clusters, for all rows.
        origins: clusters whose rows are looked at for all clusters.
        prices: under which that is, and how wide offers are.
    """

    columns: Array
    origins: Array
    prices: Prices


def asked(value: Array, short: Array, former: Prices, wide: Prices, n_rows: Array) -> Asked | None:
    """The least that has to be looked at now that prices are ``value`` [K]; None where a whole sweep is as fast.

    Args:
        value: float64 [K].
        short: float64 [2, K], not 0 where a search found widths and reaches too small.
        former: prices under which offers were listed, and how wide.
        wide: how wide offers are to be where they are listed anew.
        n_rows: rows of each cluster, [K], as offers were listed.
    """
    moved = value - former.value
    most = max(np.abs(value).max(), np.abs(former.value).max(), former.width.max(), former.reach.max())
    rounding = np.where(moved != 0, _ROUNDING * most, 0.0)
    width, reach = former.width - moved - rounding, former.reach + moved - rounding
    share = n_rows / n_rows.sum()
    for left in (_LEFT, 0.0):
        column = np.where(short[0] > 0, -np.inf, width - left * wide.width)
        origin = np.where(short[1] > 0, -np.inf, reach - left * wide.reach)
        levels = np.concatenate([-column, origin[n_rows > 0]])
        n_columns = np.searchsorted(np.sort(column), -levels) / len(value)
        by_level = np.argsort(origin, kind="stable")
        of_rows = np.concatenate([[0.0], np.cumsum(share[by_level])])[
            np.searchsorted(origin[by_level], levels)
        ]
        best = int(np.argmin(n_columns + of_rows))
        if n_columns[best] + of_rows[best] <= _MOST:
            level = levels[best]
            columns, origins = column < -level, origin < level
            lost = _ROUNDING * most if level != 0 else 0.0
            left_of_width = np.where(columns, wide.width, np.maximum(width + level - lost, 0))
            left_of_reach = np.where(origins, wide.reach, np.maximum(reach - level - lost, 0))
            return Asked(columns, origins, Prices(value, left_of_width, left_of_reach))
    return None


def sweep_again(
    costs: DistanceCosts,
    swept: Swept,
    anchor: Anchor,
    what: Asked,
    labels: Array,
    held: Array,
    cost: float,
    block_rows: int | None = None,
) -> Swept:
    """Look at what is asked, put it on offer, and each row to its best offer.

    Args:
        costs: of this process's rows, on the CPU.
        swept: the sweep, with offers as the search has left them.
        anchor: where it had found the rows.
        what: to look at.
        labels: int32 [N], where rows are now.
        held: float64 [K], sizes by these of all processes; cost: the sum of what they cost.
        block_rows: rows of a block; any gives the same.
    """
    found: list[tuple[Array, Array, Array]] = []
    looks = _looks(costs, what)

    def begin() -> Callable[[tuple[int, Tensor]], None]:
        def work(block: tuple[int, Tensor]) -> None:
            start, rows = block
            here = slice(start, start + len(rows))
            for row, cluster, cost in looks(
                costs.prepared(start, rows), anchor.label[here], anchor.cost[here]
            ):
                found.append((start + row, cluster, cost))

        return work

    block_rows = min(block_rows or costs.block_rows(), max(costs.n_rows, 1))
    work_through(costs.blocks(block_rows), begin, n_threads() if costs.n_rows > 2 * block_rows else 1)
    nothing = np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0)
    row, cluster, pair_cost = (np.concatenate(parts) for parts in zip(nothing, *found, strict=True))
    weight = np.ones(len(row)) if costs.size_weight is None else costs.size_weight.numpy()[row]
    pairs = row + costs.first_row, cluster, pair_cost, labels[row], swept.own[row], weight
    gathered = distributed.gather_uneven(tuple(map(torch.from_numpy, pairs)))
    rows, offers = _joined(swept.rows, swept.offers, costs.n_clusters, *(part.numpy() for part in gathered))
    held, before = held.copy(), offers.at.copy()
    choose(offers, what.prices.value, held)
    return replace(swept, held=held, cost=cost + offers.gained(before), rows=rows, offers=offers)


def _looks(costs: DistanceCosts, what: Asked) -> Callable[[Block, Array, Array], Iterator[tuple[Array, ...]]]:
    """What finds in a block, of rows in clusters [b] that cost so much [b], pairs on offer: rows, clusters, costs."""
    level = what.prices.value - what.prices.value.mean()
    square, flat = costs.squares.numpy().astype(np.float32), level.astype(np.float32)
    centers, doubled = costs.centers.contiguous().numpy(), costs.doubled.contiguous()
    columns = np.flatnonzero(what.columns)
    given = (
        centers,
        doubled.numpy(),
        costs.scale,
        costs.errors(float(np.abs(level).max())),
        square,
        flat,
        *what.prices,
    )
    sides = (
        (False, columns, doubled[torch.from_numpy(columns)].t()),
        (True, np.arange(len(square)), doubled.t()),
    )

    def looks(block: Block, label: Array, own: Array) -> Iterator[tuple[Array, ...]]:
        is_origin, rough = what.origins[label], torch.from_numpy(block.rough)
        for side, clusters, product in sides:
            number = np.flatnonzero(is_origin == side)
            n_pairs = len(number) * len(clusters)
            if n_pairs:
                scores = rough[torch.from_numpy(number)] @ product
                pairs = np.empty(n_pairs, np.int64), np.empty(n_pairs, np.int32), np.empty(n_pairs)
                n_listed = _list_again(scores.numpy(), number, clusters, block, label, own, *given, *pairs)
                yield tuple(values[:n_listed].copy() for values in pairs)

    return looks


@compiled
def _list_again(
    scores, number, clusters, block, label, own, centers, doubled, scale, errors, square, level, prices, widths,
    reaches, listed, targets, offers,
):  # fmt: skip
    """List pairs of some rows of a block and some clusters that are on offer, with exact costs; how many.

    Args:
        scores: float32 [m, C], products of the rows ``number`` [m] and twice the centers of ``clusters`` [C].
        block: the rows, of which ``label`` and ``own`` [b] are the clusters they were in, and what these cost.
        listed, targets, offers: int64, int32 and float64 [m C], rows, clusters and costs; written to.
    """
    rows, rough, factors, costs, sizes = block
    n_listed = 0
    for place in range(len(number)):
        i = number[place]
        size, factor, own_scale, b = sizes[i], factors[i], scale * costs[i], label[i]
        if not size > 0:
            continue
        row_scale, price_scale = np.float32(own_scale), np.float32(size)
        product_scale = row_scale * np.float32(factor)
        product = np.float32(0)
        for d in range(doubled.shape[1]):
            product += rough[i, d] * doubled[b, d]
        bar = row_scale * square[b] - product_scale * product - price_scale * level[b]
        most = np.float64(bar) + 2 * error_of(rough, i, factor, own_scale, size, errors)
        limit = own[i] - size * prices[b]
        for column in range(len(clusters)):
            k = clusters[column]
            value = row_scale * square[k] - product_scale * scores[place, column] - price_scale * level[k]
            wide = widths[k] + reaches[b]
            if value <= most + size * wide and k != b:
                cost = own_scale * squared_distance(rows, i, factor, centers, k)
                if cost - size * prices[k] <= limit + size * wide:
                    listed[n_listed], targets[n_listed], offers[n_listed] = i, k, cost
                    n_listed += 1
    return n_listed


def _joined(
    rows: Array, offers: Offers, n_clusters: int, row: Array, cluster: Array, cost: Array, label: Array, own: Array,
    weight: Array,
) -> tuple[Array, Offers]:  # fmt: skip
    """Rows [M] and their offers, with further pairs: of rows in ``label``, for ``own``, that weigh ``weight``."""
    is_new = np.ones(len(row), bool)
    if len(rows):
        is_new = rows[np.minimum(np.searchsorted(rows, row), len(rows) - 1)] != row
    fresh, first = np.unique(row[is_new], return_index=True)
    home = fresh * n_clusters + label[is_new][first]
    key, index = np.unique(np.concatenate([row * n_clusters + cluster, home]), return_index=True)
    cost = np.concatenate([cost, own[is_new][first]])[index]
    listed = np.repeat(rows, np.diff(offers.start)) * n_clusters + offers.cluster
    place = np.searchsorted(listed, key)
    further = np.append(listed, -1)[place] != key
    place, key, cost = place[further], key[further], cost[further]
    keys = np.insert(listed, place, key)
    at = np.searchsorted(keys, np.sort(np.concatenate([listed[offers.at], home])))
    where = np.searchsorted(rows, fresh)
    start = np.flatnonzero(np.diff(keys // n_clusters, prepend=-1, append=-1))
    joined = Offers(
        start,
        (keys % n_clusters).astype(np.int32),
        np.insert(offers.cost, place, cost),
        at,
        np.insert(offers.weight, where, weight[is_new][first]),
    )
    return np.insert(rows, where, fresh), joined
