"""The last resort for feasibility: move rows from clusters that must give to clusters that can take, cheapest first.

Rounding along the near rows leaves nothing to do here, unless these connect no surplus with a shortage (ties
everywhere, a cluster far from all rows) or sizes are summed weights, where a row cannot be split. A move is made
only if it lowers the summed violation. With weights that ends with every bound held within the largest weight: as
long as a cluster exceeds its maximum by more, some other one lies below its own, and taking a row lowers the sum.
"""

from __future__ import annotations

import heapq

import numpy as np
import torch
from torch import Tensor

from coke import distributed
from coke.bounded.candidates import Array
from coke.bounded.costs import Costs
from coke.bounded.scorer import exactly_best
from coke.bounded.sizes import SizeBounds
from coke.bounded.sweep import default_block_rows

_PRICED_PASSES = 8  # then rows go to the cluster that lacks most, so that no data can make it endless
_OFFERS = 4  # clusters that a row offers to go to, in one pass
_MOST_OFFERS = 2**18  # kept beyond the number of rows that must move


def violation(sizes: Array, bounds: SizeBounds) -> Array:
    """How far each size lies outside its bounds: [K], 0 within.

    >>> violation(np.array([1.0, 5.0, 9.0]), SizeBounds(torch.full((3,), 3.0), torch.full((3,), 7.0))).tolist()
    [2.0, 0.0, 2.0]
    """
    lower, upper = bounds.lower.numpy(), bounds.upper.numpy()
    return np.maximum(lower - sizes, 0) + np.maximum(sizes - upper, 0)


def fill(
    costs: Costs, bounds: SizeBounds, labels: Tensor, sizes: Array, *, block_rows: int | None = None
) -> Array:
    """Move rows, in ``labels`` (of this process), until no move helps; the sizes [K] then.

    sizes: float64 [K] of all processes' rows under ``labels``.
    """
    block_rows = block_rows or default_block_rows(costs.n_clusters, costs.device, costs.n_features)
    forced = False
    for turn in range(costs.n_clusters + _PRICED_PASSES + 1):
        give, take = _sides(sizes, bounds)
        if not give.any() or not take.any() or not violation(sizes, bounds).any():
            break
        forced = forced or turn >= _PRICED_PASSES
        row, source, goal, size, _ = _offers(costs, labels, give, take, block_rows, forced=forced)
        accepted = _accept(source, goal, size, row, sizes, bounds, take, forced=forced)
        if not accepted and forced:
            break
        forced = forced or not accepted  # the clusters that few offers reach may still lack rows
        rows = np.fromiter(accepted, dtype=np.int64)
        goals = np.fromiter(accepted.values(), dtype=np.int32)
        local = (rows >= costs.first_row) & (rows < costs.first_row + costs.n_rows)
        where = torch.from_numpy(rows[local] - costs.first_row).to(labels.device)
        labels[where] = torch.from_numpy(goals[local]).to(labels.device)
    return sizes


def _sides(sizes: Array, bounds: SizeBounds) -> tuple[Array, Array]:
    """Which clusters give and which take: those outside their bounds first, else whoever can."""
    lower, upper = bounds.lower.numpy(), bounds.upper.numpy()
    over, under = sizes > upper, sizes < lower
    give = over if over.any() else sizes > lower
    take = under if under.any() else sizes < upper
    return give & ~take, take


def _offers(
    costs: Costs, labels: Tensor, give: Array, take: Array, block_rows: int, *, forced: bool
) -> tuple[Array, ...]:
    """Rows of giving clusters and where they would go: (row, source, goal, size, price), cheapest first."""
    giving, taking = torch.from_numpy(give).to(costs.device), torch.from_numpy(take).to(costs.device)
    n_offers = 1 if forced else min(_OFFERS, int(take.sum()))
    none = torch.zeros(costs.n_clusters, dtype=torch.float64, device=costs.device)
    lift = costs.lift(none)
    buffer = torch.empty(block_rows, costs.n_clusters, device=costs.device)
    held: list[tuple[Tensor, ...]] = []
    n_held = 0
    most = _MOST_OFFERS + 2 * int(distributed.sum_over_processes(torch.tensor(float(costs.n_rows))))
    for block in costs.blocks(block_rows):
        own = labels[block.start : block.start + len(block)].long()
        rows = giving[own].nonzero()[:, 0]
        if not len(rows):
            continue
        scores = buffer[: len(block)]
        block.scores(lift, scores)
        tolerance = block.tolerance(lift)[rows]
        scores[:, ~taking] = -torch.inf
        own_scores = scores[rows]
        least = own_scores.topk(n_offers, dim=1).values[:, -1] - 2 * tolerance
        goals = exactly_best(block, own_scores, none, rows, least, n_offers)
        from_ = own[rows]
        price = block.exact(rows.repeat_interleave(n_offers), goals.reshape(-1)).view(goals.shape)
        price = price - block.exact(rows, from_)[:, None]
        size = block.size_weights(rows)
        size = size if isinstance(size, Tensor) else price.new_ones(len(rows))
        columns = (costs.first_row + block.start + rows, from_, size)
        repeated = tuple(values.repeat_interleave(n_offers) for values in columns)
        held.append((repeated[0], repeated[1], goals.reshape(-1), repeated[2], price.reshape(-1)))
        n_held += goals.numel()
        if n_held > 2 * most:
            held = [_cheapest(held, most)]
            n_held = most
    if not held:
        empty = torch.empty(0, dtype=torch.long, device=costs.device)
        held = [(empty, empty, empty, none[:0], none[:0])]
    gathered = distributed.gather_uneven(_cheapest(held, most))
    return tuple(values.cpu().numpy() for values in _cheapest([gathered], most))


def _cheapest(held: list[tuple[Tensor, ...]], most: int) -> tuple[Tensor, ...]:
    joined = tuple(torch.cat(values) for values in zip(*held, strict=True))
    order = joined[-1].argsort(stable=True)[:most]
    return tuple(values[order] for values in joined)


def _accept(
    source: Array,
    goal: Array,
    size: Array,
    row: Array,
    sizes: Array,
    bounds: SizeBounds,
    take: Array,
    *,
    forced: bool,
) -> dict[int, int]:
    """Take offers in turn while they lower the summed violation: row -> new cluster; ``sizes`` follow."""
    lower, upper = bounds.lower.tolist(), bounds.upper.tolist()
    now = sizes.tolist()
    accepted: dict[int, int] = {}

    def room(cluster: int) -> tuple[float, float, int]:
        return min(now[cluster] - lower[cluster], 0.0), now[cluster] - upper[cluster], cluster

    def outside(cluster: int, at: float) -> float:
        return max(lower[cluster] - at, at - upper[cluster], 0.0)

    neediest = sorted(map(room, np.flatnonzero(take).tolist()))
    for r, a, b, s in zip(row.tolist(), source.tolist(), goal.tolist(), size.tolist(), strict=True):
        if r in accepted:
            continue
        if forced:
            if neediest[0][1] >= 0:
                break
            b = neediest[0][-1]
        before = outside(a, now[a]) + outside(b, now[b])
        if outside(a, now[a] - s) + outside(b, now[b] + s) < before:
            now[a] -= s
            now[b] += s
            accepted[r] = b
            if forced:
                heapq.heapreplace(neediest, room(b))
    sizes[:] = now
    return accepted


def total_cost(costs: Costs, labels: Tensor, *, block_rows: int | None = None) -> float:
    """Exact cost of labels [N], summed over all processes."""
    block_rows = block_rows or default_block_rows(costs.n_clusters, costs.device, costs.n_features)
    total = torch.zeros(1, dtype=torch.float64, device=costs.device)
    for block in costs.blocks(block_rows):
        rows = torch.arange(len(block), device=costs.device)
        total += block.exact(rows, labels[block.start : block.start + len(block)].long()).sum()
    return float(distributed.sum_over_processes(total))
