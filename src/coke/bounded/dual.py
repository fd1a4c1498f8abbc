"""The dual bound of size-constrained assignment, and the duals that maximise it.

With costs d_ik, size weights s_i (1 if not given) and bounds L_k <= sum of sizes <= U_k, every rho in R^K gives

    LB(rho) = sum_i min_k (d_ik - s_i rho_k) + sum_k [ L_k max(rho_k, 0) - U_k max(-rho_k, 0) ]  <=  optimum

by weak duality. rho_k > 0 raises a cluster that must be filled, rho_k < 0 lowers one that must be capped. LB is
concave; its slope in rho_k is what cluster k still lacks, and its curvature counts the rows on the boundary of
two clusters, which is a graph Laplacian. So Newton's method climbs it in a few steps (for semi-discrete optimal
transport: Kitagawa, Merigot and Thibert, JEMS 2019); what is left is a handful of rows, for `rounding`.

Amid heavy tails costs differ by many orders of magnitude from cluster to cluster. So a table of all rows and
clusters, where a dual can go as far as it must, has every cluster's curvature measured at a scale of its own.
"""

from __future__ import annotations

import numpy as np

from coke.bounded.candidates import Array, Candidates, Choice
from coke.bounded.sizes import SizeBounds

_ROWS_PER_CLUSTER = 10  # boundary rows, at least, behind an estimate of curvature
_FEW = 256  # clusters whose Laplacian is solved as a full matrix
_LEAST_DAMPING, _MOST_DAMPING = 1e-4, 1e4  # of the curvature
_ONE_BY_ONE = 8  # clusters, where no common step helps
_OCTAVES = 64  # margins are told apart down to 2^-64 of the largest


def slack_term(duals: Array, bounds: SizeBounds) -> float:
    """sum_k L_k max(rho_k, 0) - U_k max(-rho_k, 0): what the bounds add to LB.

    >>> import torch
    >>> slack_term(np.array([2.0, -1.0]), SizeBounds(torch.tensor([3.0, 0.0]), torch.tensor([9.0, 4.0])))
    2.0
    """
    lower, upper = bounds.lower.numpy(), bounds.upper.numpy()
    return float(lower @ np.maximum(duals, 0) - upper @ np.maximum(-duals, 0))


def target_sizes(sizes: Array, duals: Array, bounds: SizeBounds) -> Array:
    """Where complementary slackness wants each size: L_k if rho_k > 0, U_k if rho_k < 0, else within both."""
    lower, upper = bounds.lower.numpy(), bounds.upper.numpy()
    within = np.clip(sizes, lower, upper)
    return np.where(duals > 0, lower, np.where(duals < 0, upper, within))


def off_target(sizes: Array, duals: Array, bounds: SizeBounds) -> float:
    """Summed distance of the sizes from `target_sizes`: 0 at an optimum."""
    return float(np.abs(target_sizes(sizes, duals, bounds) - sizes).sum())


def recentre(duals: Array, bounds: SizeBounds, total: float) -> Array:
    """The best uniform shift of the duals: it changes no preference, and LB is piecewise linear in it.

    A shift by t takes total t from the row part and gives L_k t or U_k t to the slack of a cluster above or
    below 0. The slope falls as t rises, and changes where a dual crosses 0: so one dual, at least, ends at 0.
    """
    lower, upper = bounds.lower.numpy(), bounds.upper.numpy()
    order = np.argsort(duals, kind="stable")
    below = np.concatenate([[0.0], np.cumsum(upper[order])])
    above = np.concatenate([np.cumsum(lower[order][::-1])[::-1], [0.0]])
    slopes = below + above - total  # [K + 1]: with the j lowest duals below 0 and the others above
    n_below = min(int((slopes < 0).sum()), len(duals))  # K + 1: sum U = total, but for rounding of weights
    if n_below == 0:  # sum L = total: no cluster may fall below 0, beyond that no shift matters
        return duals - duals.min(initial=np.inf)
    return duals - duals[order[n_below - 1]]


def close_ranks(duals: Array, widest: float) -> Array:
    """Duals without a distance that no row can bridge, where sizes of 0 or N would let them drift apart for ever.

    Where the costs of a row, over its size weight, span at most ``widest``, no row goes to a cluster whose dual
    is lower than another one by more than that. So those below such a distance hold none, and to raise them, as
    long as they hold none, lowers LB by nothing: L_k and U_k are not negative. Twice that is left, for rounding.

    >>> close_ranks(np.array([0.0, 90.0, 1.0]), 2.0).tolist()
    [85.0, 90.0, 86.0]
    """
    order = np.argsort(duals, kind="stable")
    steps = np.diff(duals[order])
    if not (steps > 2 * widest).any():
        return duals
    closed = np.empty_like(duals)
    excess = np.maximum(steps - 2 * widest, 0.0)
    closed[order] = duals[order] + np.append(excess[::-1].cumsum()[::-1], 0.0)
    return closed


def _widest(candidates: Candidates) -> float:
    """The widest span of a row's costs over its size weight, where they are all there: see `close_ranks`."""
    if not candidates.is_complete:
        return np.inf
    span = candidates.costs.max(axis=0) - candidates.costs.min(axis=0)
    if candidates.weights is not None:
        span = np.divide(span, candidates.weights, out=np.zeros(len(span)), where=candidates.weights > 0)
    return float(span.max(initial=0.0))


def search_duals(
    candidates: Candidates, bounds: SizeBounds, duals: Array, *, max_steps: int = 60, tolerance: float = 0.0
) -> tuple[Array, Choice]:
    """Climb LB over the kept rows: duals [K] and the choice they lead to.

    tolerance: summed distance of the sizes from `target_sizes` at which to stop.
    """
    total = float(candidates.settled_sizes.sum()) + (
        float(len(candidates.rows)) if candidates.weights is None else float(candidates.weights.sum())
    )

    def look(at: Array) -> tuple[Choice, float]:
        choice = candidates.choose(at)
        return choice, candidates.reduced_cost(choice, at) + slack_term(at, bounds)

    widest = _widest(candidates)
    duals = recentre(close_ranks(duals, widest), bounds, total)
    choice, height = look(duals)
    damping = _LEAST_DAMPING
    for _ in range(max_steps):
        missing = target_sizes(choice.sizes, duals, bounds) - choice.sizes
        if np.abs(missing).sum() <= tolerance:
            break
        if damping > _MOST_DAMPING:
            if not candidates.is_complete:
                break
            before, damping = height, _LEAST_DAMPING
            for cluster in np.argsort(-np.abs(missing), kind="stable")[:_ONE_BY_ONE].tolist():
                moved = _alone(candidates, choice, duals, bounds, cluster)
                next_choice, next_height = look(moved)
                if next_height > height:
                    duals, choice, height = moved, next_choice, next_height
            if not height > before:
                break
            continue
        step = _newton_step(candidates, choice, duals, missing, damping)
        moved = duals + np.clip(step, -candidates.settled_margin, candidates.settled_margin)
        moved = np.where(moved * duals < 0, 0.0, moved)  # one bound is let go before the other one is met
        moved = recentre(close_ranks(moved, widest), bounds, total)
        next_choice, next_height = look(moved)
        promised = float(missing @ (moved - duals))
        gain = (next_height - height) / promised if promised > 0 else float(next_height > height)
        if next_height > height:
            duals, choice, height = moved, next_choice, next_height
        damping = max(damping * (8 if gain < 0.1 else 1 if gain < 0.35 else 1 / 8), _LEAST_DAMPING)
    return duals, choice


def _alone(candidates: Candidates, choice: Choice, duals: Array, bounds: SizeBounds, cluster: int) -> Array:
    """Duals [K] with the one of ``cluster`` where LB is highest as long as the others stay.

    >>> import torch
    >>> table = Candidates.of_costs(np.array([[0.0, 8.0], [1.0, 5.0], [0.0, 7.0]]))
    >>> bounds = SizeBounds(torch.tensor([0.0, 1.0]), torch.tensor([3.0, 3.0]))
    >>> _alone(table, table.choose(np.zeros(2)), np.zeros(2), bounds, 1).tolist()  # row 1 comes at 4, row 2 at 7
    [0.0, 5.5]
    """
    place, row = np.nonzero(candidates.labels == cluster)
    weights = np.ones(len(row)) if candidates.weights is None else candidates.weights[row]
    place, row, weights = place[weights > 0], row[weights > 0], weights[weights > 0]
    if not len(row) or candidates.n_clusters == 1:
        return duals
    others = choice.best[row] + np.where(choice.column[row] == place, choice.margin[row], 0.0)
    price = (candidates.costs[place, row] - others) / weights  # a row comes once the dual exceeds it
    order = price.argsort(kind="stable")
    price = price[order]
    held = candidates.settled_sizes[cluster] + np.concatenate([[0.0], weights[order].cumsum()])

    def dual_for(size: float) -> float:
        ends = np.array([held.searchsorted(size), held.searchsorted(size, side="right")]) - 1
        return float(price[ends.clip(0, len(price) - 1)].mean())

    lower, upper = float(bounds.lower[cluster]), float(bounds.upper[cluster])
    found = max(dual_for(lower), 0.0) if held[0] < lower else 0.0
    if found == 0 and held[-1] > upper:
        found = min(dual_for(upper), 0.0)
    moved = duals.copy()
    moved[cluster] = found
    return moved


def _newton_step(
    candidates: Candidates, choice: Choice, duals: Array, missing: Array, damping: float
) -> Array:
    """Solve (Laplacian of boundary rows + damping) step = missing, over the clusters that are off target."""
    n_clusters = candidates.n_clusters
    free = (missing != 0) | (duals != 0)
    weights = np.ones(len(candidates.rows)) if candidates.weights is None else candidates.weights
    margin = np.divide(choice.margin, weights, out=np.full(len(weights), np.inf), where=weights > 0)
    each = np.flatnonzero(np.isfinite(margin))
    if not len(each):
        return missing
    first, second = candidates.labels[choice.column[each], each].astype(np.int64), choice.second[each]
    margin, weights = margin[each], weights[each]
    if candidates.is_complete:
        own = _widths(margin, weights, first, second, np.maximum(4 * np.abs(missing), _ROWS_PER_CLUSTER))
        width = np.sqrt(own[first]) * np.sqrt(own[second])  # their product may be too small for a float
    else:
        wanted = min(int(max(4 * np.abs(missing).sum(), _ROWS_PER_CLUSTER * n_clusters)), len(each))
        width = np.full(len(each), np.partition(margin, wanted - 1)[wanted - 1])
    width = np.maximum(width, np.finfo(np.float64).tiny * 1e6)  # ties: their density stays finite
    near = margin <= width
    density = weights[near] / (2 * width[near])
    degree = np.bincount(first[near], density, n_clusters) + np.bincount(second[near], density, n_clusters)
    least = degree.min(where=degree > 0, initial=degree.max())
    damped = np.maximum(degree, least) if candidates.is_complete else degree.mean()
    step = np.zeros(n_clusters)
    step[free] = _solve(first[near], second[near], density, degree + damping * damped, missing, free)
    return step


def _widths(margin: Array, weights: Array, first: Array, second: Array, wanted: Array) -> Array:
    """The margin that ``wanted`` [K] of each cluster's boundary rows are within, to a power of 2: [K].

    >>> margin, first, second = np.array([1.0, 2.0, 5.0, 100.0]), np.array([0, 0, 0, 2]), np.array([1, 1, 1, 1])
    >>> _widths(margin, np.ones(4), first, second, np.array([2.0, 3.0, 1.0])).tolist()
    [4.0, 8.0, 128.0]
    """
    exponent = np.frexp(margin)[1]
    lowest = int(exponent.max()) - _OCTAVES + 1
    octave = np.maximum(exponent - lowest, 0)
    n_cells = len(wanted) * _OCTAVES
    held = np.bincount(first * _OCTAVES + octave, weights, n_cells)
    held += np.bincount(second * _OCTAVES + octave, weights, n_cells)
    held = held.reshape(-1, _OCTAVES).cumsum(axis=1)
    enough = (held >= np.minimum(wanted, held[:, -1])[:, None]).argmax(axis=1)
    return np.ldexp(1.0, enough + lowest)


def _solve(
    first: Array, second: Array, density: Array, diagonal: Array, missing: Array, free: Array
) -> Array:
    """(diagonal - pairs) step = missing, over the free clusters: at once if they are few, else roughly."""
    n_clusters = len(missing)
    if n_clusters <= _FEW:
        pairs = np.bincount(first * n_clusters + second, density, n_clusters**2)
        pairs = pairs.reshape(n_clusters, n_clusters)
        laplacian = np.diag(diagonal) - pairs - pairs.T
        return np.linalg.solve(laplacian[np.ix_(free, free)], missing[free])
    from scipy.sparse import coo_matrix, diags
    from scipy.sparse.linalg import cg

    pairs = coo_matrix((density, (first, second)), shape=(n_clusters, n_clusters)).tocsr()
    system = (diags(diagonal) - pairs - pairs.T)[free][:, free]
    return cg(system, missing[free], rtol=1e-2, maxiter=100, M=diags(1 / system.diagonal()))[0]
