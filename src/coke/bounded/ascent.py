"""A head start for the search: damped Newton steps on the dual, over the rows on offer.

How many rows a cluster gains by a higher price is seen in the rows beside its boundaries: where m rows lie within h of
that between two clusters, a price that rises by t <= h moves about m t / h of them. So K prices follow from the K sizes
that are off by one sparse linear system, that of a network whose wires are those rows, and a few such steps leave a few
rows for each hundred that were off. They need not arrive: the search, which is exact, begins where they end, and what
it proves does not depend on where it began. Damping: Levenberg and Marquardt's, by as many more wires to the ground.

Legend: K clusters, M rows offered to more than one cluster, E of these that lie beside a boundary.
"""

from __future__ import annotations

import numpy as np

from coke.bounded.kernels import Array, compiled
from coke.bounded.search import Offers, Sizes

_ROWS_BESIDE = 8  # a cluster, at least: fewer say little of how many more there are
_LARGEST_SHARE = 1 / 8  # of rows that can be beside a boundary
_MOST_STEPS, _MOST_DAMPING, _SOLVER_STEPS, _SOLVER_TOLERANCE = 50, 4.0**5, 200, 1e-4
_LEAST_GAIN = 0.1  # of the dual, as a share of what its slope promises


def ascend(offers: Offers, sizes: Sizes, prices: Array, width: Array, reach: Array) -> None:
    """Move prices towards those under which sizes hold, and each row to its best cluster under them.

    Args:
        offers: rows at their best cluster under ``prices``; ``at`` is moved.
        sizes: of all rows; ``held`` is moved.
        prices: float64 [K], moved.
        width, reach: float64 [K], by how much prices may rise and fall: as far as ``offers`` are complete.
    """
    n_clusters, heaviest = len(prices), offers.weight.max(initial=0.0)
    missing = off(sizes, prices)
    if len(offers.at) == 0 or np.abs(missing).sum() <= n_clusters * heaviest:
        return  # rows count then, and not how many
    lowest, highest, damping = prices - reach, prices + width, 1.0
    alone = sizes.held - np.bincount(offers.cluster[offers.at], offers.weight, n_clusters)
    second, lead, best = choose(offers, prices, sizes.held)
    unit, farthest, dual = offers.weight.mean(), lead.max(), _dual(best, alone, sizes, prices)
    for _ in range(_MOST_STEPS):
        n_beside = min(2 * np.abs(missing).sum() / unit, len(lead) * _LARGEST_SHARE)
        rank = min(int(max(n_beside, _ROWS_BESIDE * n_clusters)), len(lead) - 1)
        within = np.partition(lead, rank)[rank]
        beside = np.flatnonzero(lead <= within)
        wires = offers.cluster[offers.at[beside]], second[beside], offers.weight[beside] / unit
        while True:
            potential = _solve(
                *wires, damping, np.where((missing != 0) | (prices != 0), missing / unit, np.nan)
            )
            with np.errstate(over="ignore"):
                step = np.clip(within * potential, -farthest, farthest)  # beyond, every row has moved
            tried = np.clip(prices + step, lowest, highest)
            tried[np.sign(tried) == -np.sign(np.where(prices != 0, prices, missing))] = 0.0
            moved, left = offers._replace(at=offers.at.copy()), sizes._replace(held=sizes.held.copy())
            chosen = choose(moved, tried, left.held)
            higher = _dual(chosen[2], alone, sizes, tried)
            if higher - dual > _LEAST_GAIN * (missing * (tried - prices)).sum():
                break
            damping *= 4
            if damping > _MOST_DAMPING:
                return
        (second, lead, _), dual, damping = chosen, higher, max(damping / 2, 1.0)
        prices[:], offers.at[:], sizes.held[:], missing = tried, moved.at, left.held, off(left, tried)
        if np.abs(missing).sum() <= n_clusters * heaviest:
            return


def off(sizes: Sizes, prices: Array) -> Array:
    """What clusters lack, [K], or have too much of (negative): the slope of the dual.

    A price above 0 asks for the least size, one below 0 for the largest.
    """
    goal = np.where(prices > 0, sizes.lower, sizes.upper)
    return np.where(prices == 0, np.clip(sizes.held, sizes.lower, sizes.upper), goal) - sizes.held


def _dual(best: float, alone: Array, sizes: Sizes, prices: Array) -> float:
    """The dual's value, of rows with a choice (in all at ``best``) and the others, which weigh ``alone`` [K]."""
    bound = np.where(prices > 0, sizes.lower, sizes.upper)
    return float(best + ((bound - alone) * prices).sum())


def choose(offers: Offers, prices: Array, held: Array) -> tuple[Array, Array, float]:
    """Put each row to its best offer; its second's cluster and how much worse that is, [M]; the sum of the best."""
    second, lead = np.empty(len(offers.at), np.int32), np.empty(len(offers.at))
    return second, lead, _choose_each(offers, prices, held, second, lead)


@compiled
def _choose_each(offers, prices, held, second, lead):
    start, cluster, cost, at, weight = offers
    total = 0.0
    for row in range(len(at)):
        best, low, chosen, other = np.inf, np.inf, at[row], at[row]
        for pair in range(start[row], start[row + 1]):
            reduced = cost[pair] - weight[row] * prices[cluster[pair]]
            if reduced < best or (reduced == best and pair == at[row]):
                best, low, chosen, other = reduced, best, pair, chosen
            elif reduced < low:
                low, other = reduced, pair
        if chosen != at[row]:
            held[cluster[at[row]]] -= weight[row]
            held[cluster[chosen]] += weight[row]
            at[row] = chosen
        second[row], lead[row] = cluster[other], (low - best) / weight[row]
        total += best
    return total


@compiled
def _solve(one, other, conductance, ground, off):
    """Potentials [K] of a network of wires [E] that carry what is off away, where it is not NaN: conjugate gradients.

    Every cluster has one more wire, of conductance ``ground``, to the ground.
    """
    n_clusters = len(off)
    diagonal, product = np.full(n_clusters, ground), np.empty(n_clusters)
    for wire in range(len(one)):
        diagonal[one[wire]] += conductance[wire]
        diagonal[other[wire]] += conductance[wire]
    potential, left = np.zeros(n_clusters), np.where(np.isnan(off), 0.0, off)
    direction = left / diagonal
    first = rest = (left * direction).sum()
    for _ in range(_SOLVER_STEPS):
        if rest <= _SOLVER_TOLERANCE * first:
            break
        product[:] = ground * direction
        for wire in range(len(one)):
            flow = conductance[wire] * (direction[one[wire]] - direction[other[wire]])
            product[one[wire]] += flow
            product[other[wire]] -= flow
        product[np.isnan(off)] = 0.0
        length = rest / (product * direction).sum()
        potential += length * direction
        left -= length * product
        before, rest = rest, (left * left / diagonal).sum()
        direction = left / diagonal + rest / before * direction
    return potential
