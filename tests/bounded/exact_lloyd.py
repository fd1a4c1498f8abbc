"""Exact bounded Lloyd with scipy, and a proof that labels cost the least: what a right fit is compared with.

It shares no code with coke, and imports none of it. Ties: the same objective may belong to other labels, and other
labels lead elsewhere, so two exact Lloyds from one start may end apart where rows tie. Whether labels are optimal
under given centers has one answer.

Legend: N rows, D features, K clusters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import coo_matrix

Array = np.ndarray[Any, Any]


def sizes_asked(
    n_rows: int,
    n_clusters: int,
    *,
    min_size: ArrayLike | None = None,
    max_size: ArrayLike | None = None,
    min_size_ratio: float | None = None,
    max_size_ratio: float | None = None,
) -> tuple[Array, Array]:
    """Least and largest size of each cluster, int64 [K] each; ratios are of N / K, minima up, maxima down.

    >>> [sizes.tolist() for sizes in sizes_asked(10, 4, min_size_ratio=0.5, max_size=[5, 5, 4, 3])]
    [[2, 2, 2, 2], [5, 5, 4, 3]]
    """
    share = n_rows / n_clusters
    least: ArrayLike = 0 if min_size is None else min_size
    largest: ArrayLike = n_rows if max_size is None else max_size
    if min_size_ratio is not None:
        least = np.ceil(min_size_ratio * share - 1e-9)
    if max_size_ratio is not None:
        largest = np.floor(max_size_ratio * share + 1e-9)
    if min_size_ratio == max_size_ratio == 1:
        least, largest = np.floor(share), np.ceil(share)
    lower = np.broadcast_to(np.asarray(least), (n_clusters,)).astype(np.int64)
    upper = np.broadcast_to(np.asarray(largest), (n_clusters,)).astype(np.int64)
    return lower, np.minimum(upper, n_rows)


def squared_distances(rows: ArrayLike, centers: ArrayLike) -> Array:
    """Float64 [N, K], by the definition: no product that cancels."""
    rows, centers = np.asarray(rows, np.float64), np.asarray(centers, np.float64)
    return np.stack([((rows - center) ** 2).sum(1) for center in centers], axis=1)


def cost_of(costs: Array, labels: ArrayLike) -> float:
    """What labels [N] cost in all."""
    return float(costs[np.arange(len(costs)), np.asarray(labels)].sum())


def cheapest(costs: Array, lower: Array, upper: Array) -> Array:
    """Labels [N] of the least cost within the bounds: scipy's assignment of rows to places.

    A cluster has as many places as it may hold. Those it must fill are cheaper by more than what the longest chain
    of moves, one to each other cluster, can cost; so they are filled wherever that is possible.
    """
    n_rows, n_clusters = costs.shape
    upper = np.minimum(upper, n_rows - (lower.sum() - lower))
    clusters = np.arange(n_clusters)
    place = np.concatenate([np.repeat(clusters, lower), np.repeat(clusters, upper - lower)])
    table = costs[:, place]
    table[:, : lower.sum()] -= (n_clusters + 1) * (np.ptp(costs) or 1.0)
    row, chosen = linear_sum_assignment(table)
    labels = np.empty(n_rows, np.int64)
    labels[row] = place[chosen]
    sizes = np.bincount(labels, minlength=n_clusters)
    assert (sizes >= lower).all()
    assert (sizes <= upper).all()
    return labels


def cheapest_by_programme(costs: Array, lower: Array, upper: Array) -> Array:
    """The same by HiGHS: the corners of the transport polytope are whole."""
    n_rows, n_clusters = costs.shape
    every = np.arange(costs.size)
    row, cluster = np.divmod(every, n_clusters)
    ones = np.ones(costs.size)
    once = coo_matrix((ones, (row, every)))
    sizes = coo_matrix(
        (np.concatenate([ones, -ones]), (np.r_[cluster, n_clusters + cluster], np.r_[every, every]))
    )
    solved = linprog(
        ((costs - costs.min(1, keepdims=True)) / (np.ptp(costs) or 1.0)).ravel(),
        A_eq=once,
        b_eq=np.ones(n_rows),
        A_ub=sizes,
        b_ub=np.concatenate([upper, -lower]),
        method="highs-ds",
    )
    assert solved.success, solved.message
    return np.asarray(solved.x).reshape(costs.shape).argmax(1)


def proved_bound(costs: Array, lower: Array, upper: Array, labels: ArrayLike) -> float:
    """A number that no labels within the bounds cost less than; what ``labels`` cost, if they are optimal.

    Labels are optimal if and only if no cycle of moves is worth it: a row from cluster a to b costs at least
    w_ab = min (c_ib - c_ia) over the rows i of a, and node K stands for clusters whose size may change. Without such
    a cycle shortest distances are prices that prove it (Bellman and Ford); with one they are still prices, and any
    prices give a bound (weak duality).
    """
    labels = np.asarray(labels)
    n_clusters = costs.shape[1]
    sizes = np.bincount(labels, minlength=n_clusters)
    arcs = np.full((n_clusters + 1, n_clusters + 1), np.inf)
    for cluster in np.flatnonzero(sizes):
        own = costs[labels == cluster]
        arcs[cluster, :n_clusters] = (own - own[:, [cluster]]).min(0)
    arcs[n_clusters, :n_clusters] = np.where(sizes > lower, 0.0, np.inf)
    arcs[:n_clusters, n_clusters] = np.where(sizes < upper, 0.0, np.inf)
    prices = np.zeros(n_clusters + 1)
    for _ in range(n_clusters + 1):
        prices = np.minimum(prices, (prices[:, None] + arcs).min(0))
    price = prices[:n_clusters] - prices[n_clusters]
    held = np.where(price > 0, lower * price, upper * price)
    return float((costs - price).min(1).sum() + held.sum())


def rounding(costs: Array, cost: float) -> float:
    """By how much float64 sums of a cost for each row may be off."""
    return 1e-12 * abs(cost) + 1e-15 * len(costs) * float(np.abs(costs).max())


def least_cost(costs: Array, lower: Array, upper: Array, labels: ArrayLike) -> float:
    """The least cost within the bounds, quickly where ``labels`` have it; else of many rows only what is proved."""
    bound, cost = proved_bound(costs, lower, upper, labels), cost_of(costs, labels)
    if bound >= cost - rounding(costs, cost) or len(costs) > 3000:
        return bound
    return min(cost, cost_of(costs, cheapest(costs, lower, upper)))


def means(rows: Array, labels: ArrayLike, former: Array) -> Array:
    """The mean of each cluster's rows, [K, D]; an empty one keeps its former center."""
    labels = np.asarray(labels)
    return np.stack(
        [
            rows[labels == cluster].mean(0) if (labels == cluster).any() else center
            for cluster, center in enumerate(np.asarray(former, np.float64))
        ]
    )


def exact_lloyd(
    rows: ArrayLike, centers: ArrayLike, lower: Array, upper: Array, max_iter: int = 300
) -> tuple[float, Array]:
    """Objective and labels where exact bounded Lloyd from the given centers comes to rest."""
    rows, centers = np.asarray(rows, np.float64), np.asarray(centers, np.float64)
    labels = np.full(len(rows), -1)
    for _ in range(max_iter):
        costs = squared_distances(rows, centers)
        found = cheapest(costs, lower, upper)
        if labels[0] >= 0 and cost_of(costs, labels) <= cost_of(costs, found) * (1 + 1e-12):
            return cost_of(costs, labels), labels
        labels = found
        centers = means(rows, labels, centers)
    raise AssertionError(f"not at rest after {max_iter} iterations")


def spread_start(rows: Array, n_clusters: int, seed: int) -> Array:
    """Rows [K, D] drawn as k-means++ does, the same for whoever is compared; any rows once all distances are 0."""
    random = np.random.default_rng(seed)
    chosen = [int(random.integers(len(rows)))]
    nearest = np.full(len(rows), np.inf)
    for _ in range(n_clusters - 1):
        nearest = np.minimum(nearest, squared_distances(rows, rows[chosen[-1:]])[:, 0])
        weights = nearest if nearest.any() else np.ones(len(rows))
        chosen.append(int(random.choice(len(rows), p=weights / weights.sum())))
    return np.asarray(rows, np.float64)[chosen]
