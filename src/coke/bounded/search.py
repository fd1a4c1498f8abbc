"""The exact search: shortest paths over K clusters, along which rows are moved until every size holds.

The assignment within bounds is a transport problem with many rows and few prices. Rows are kept out of the search: they
are labels of its arcs. An arc a -> b stands for the row of cluster a that loses least by going to b,

    w(a -> b) = min over rows i of a, offered to b:  (c_ib - rho_b) - (c_ia - rho_a)  >= 0,

and since c_ib - c_ia knows no prices, an arc's least row is looked for again only when rows have moved. A ground node
of price 0 stands for the slack of sizes: cluster k may give a row away while s_k > L_k, for -rho_k, and take one while
s_k < U_k, for rho_k. Rows and prices are optimal when no cluster lacks rows (s_k < L_k, or rho_k < 0 and s_k < U_k) and
none has too many (s_k > U_k, or rho_k > 0 and s_k > L_k): complementary slackness, from whatever prices it began with.

From each cluster that lacks a row Dijkstra's search goes backwards to the nearest that can give one; prices of all that
it has settled rise by what is left of the distance, together; and one row moves along each arc of the path, or as many
as tie on all of its arcs. Then likewise forwards from each that has too many, and prices fall. Related: Tokuyama and
Nakano, "Efficient algorithms for the Hitchcock transportation problem" (SIAM J. Computing 24, 1995).

All of it is compiled by numba at the first call, kept on disk, and runs without the interpreter's lock.

Legend: K clusters, M rows offered to more than one cluster, P pairs of such a row and a cluster.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from coke.bounded.kernels import Array, compiled


class Offers(NamedTuple):
    """Which rows may go where, and for how much.

    Attributes:
        start: int64 [M + 1], where each row's offers begin.
        cluster: int32 [P], ascending within a row.
        cost: float64 [P].
        at: int64 [M], each row's present offer; the search moves it.
        weight: float64 [M], what a row counts for in a size.
    """

    start: Array
    cluster: Array
    cost: Array
    at: Array
    weight: Array

    def gained(self, before: Array) -> float:
        """By how much rows cost more at their present offers than at those they had ``before`` [M]."""
        gained = self.cost[self.at] - self.cost[before]
        return math.fsum(gained[gained != 0].tolist())


class Sizes(NamedTuple):
    """Float64 [K] each: what clusters hold, which the search changes, what they must and what they may hold."""

    held: Array
    lower: Array
    upper: Array


class _Graph(NamedTuple):
    """Arcs by number, those into a cluster side by side; and the rows of each cluster, as linked lists.

    Attributes:
        source, target: int32, the clusters of an arc.
        top: float64, the least (c_ib - c_ia) / weight among rows of a that are offered to b.
        first: int32, the row that has it, the lowest of equals.
        n_ties: int32, how many rows have it; 0: none is left; -1: to be looked for again, and no less than ``top``.
        out: int32, numbers of arcs, those out of a cluster side by side.
        begin, n_in, n_out: [K], where arcs into a cluster begin, and in ``out`` those out of it; how many there are.
        table: int32, arc numbers by hash of (source, target); empty where every arc has its place, b * K + a.
        head: int32 [K], the first row of each cluster; following, previous: int32 [M], the next ones.
    """

    source: Array
    target: Array
    top: Array
    first: Array
    n_ties: Array
    out: Array
    begin: Array
    n_in: Array
    n_out: Array
    table: Array
    head: Array
    following: Array
    previous: Array


class _Search(NamedTuple):
    """What Dijkstra's search keeps of clusters.

    Attributes:
        distance, via: how far each is, and the arc it was reached by.
        touched, is_settled: which were reached, and which of them for good.
        queued_distance, queued: a heap.
        path: arcs of a path.
    """

    distance: Array
    via: Array
    touched: Array
    is_settled: Array
    queued_distance: Array
    queued: Array
    path: Array


@compiled
def _arc(a, b, graph):
    """The number of arc a -> b, made where there is none yet."""
    n_clusters = len(graph.head)
    if len(graph.table) == 0:
        return np.int64(b) * n_clusters + a
    mask = len(graph.table) - 1
    code = (np.int64(a) * n_clusters + b) * 2654435761
    place = (code ^ (code >> 17)) & mask
    while graph.table[place] >= 0:
        known = np.int64(graph.table[place])
        if graph.source[known] == a and graph.target[known] == b:
            return known
        place = (place + 1) & mask
    made = graph.begin[b] + graph.n_in[b]
    graph.n_in[b] += 1
    graph.source[made], graph.target[made] = a, b
    graph.top[made], graph.n_ties[made] = np.inf, 0
    graph.out[graph.begin[a] + graph.n_out[a]] = made
    graph.n_out[a] += 1
    graph.table[place] = made
    return made


@compiled
def _enter(row, key, arc, top, first, n_ties):
    """Tell an arc of a row that may go along it."""
    if n_ties[arc] == 0 or key < top[arc]:
        top[arc], first[arc], n_ties[arc] = key, row, 1
    elif n_ties[arc] > 0 and key == top[arc]:
        first[arc] = min(first[arc], row)
        n_ties[arc] += 1


@compiled
def _pair(start, stop, b, cluster):
    """The offer, among these of a row, that is of cluster b; -1: none."""
    if stop - start > b and cluster[start + b] == b:
        return start + b
    end = stop
    while start < end:
        middle = (start + end) >> 1
        if cluster[middle] < b:
            start = middle + 1
        else:
            end = middle
    return start if start < stop and cluster[start] == b else -1


@compiled
def _look(arc, offers, graph):
    """Find the least of an arc's rows again."""
    start, cluster, cost, at, weight = offers
    following = graph.following
    b = graph.target[arc]
    top, first, n_ties = np.inf, -1, 0
    row = graph.head[graph.source[arc]]
    while row >= 0:
        pair = _pair(start[row], start[row + 1], b, cluster)
        if pair >= 0:
            key = (cost[pair] - cost[at[row]]) / weight[row]
            if key < top:
                top, first, n_ties = key, row, 1
            elif key == top:
                first = min(first, row)
                n_ties += 1
        row = following[row]
    graph.top[arc], graph.first[arc], graph.n_ties[arc] = top, first, n_ties


@compiled
def _graph(offers, n_clusters):
    """Arcs, and the rows of each cluster."""
    n_rows, n_pairs = len(offers.at), len(offers.cluster)
    dense = n_pairs == n_rows * n_clusters
    begin, n_in = np.zeros(n_clusters, np.int64), np.zeros(n_clusters, np.int64)
    for row in range(n_rows):
        others = offers.start[row + 1] - offers.start[row] - 1
        for pair in range(offers.start[row], offers.start[row + 1]):
            n_in[offers.cluster[pair]] += others
    n_arcs = 0
    for k in range(n_clusters):
        begin[k] = n_arcs
        n_arcs += n_clusters if dense else min(n_in[k], n_clusters - 1)
        n_in[k] = n_clusters if dense else 0
    n_places = 0 if dense else 16
    while not dense and n_places < 2 * n_arcs:
        n_places *= 2
    graph = _Graph(
        np.empty(n_arcs, np.int32),
        np.empty(n_arcs, np.int32),
        np.full(n_arcs, np.inf),
        np.empty(n_arcs, np.int32),
        np.zeros(n_arcs, np.int32),
        np.empty(n_arcs, np.int32),
        begin,
        n_in,
        n_in.copy(),
        np.full(n_places, -1, np.int32),
        np.full(n_clusters, -1, np.int32),
        np.empty(n_rows, np.int32),
        np.empty(n_rows, np.int32),
    )
    if dense:
        for arc in range(n_arcs):
            a, b = arc % n_clusters, arc // n_clusters
            graph.source[arc], graph.target[arc] = a, b
            graph.out[a * n_clusters + b] = arc
    for row in range(n_rows - 1, -1, -1):
        _join(row, offers.cluster[offers.at[row]], graph)
    top, first, n_ties = np.empty(n_clusters), np.empty(n_clusters, np.int32), np.zeros(n_clusters, np.int32)
    targets = np.empty(n_clusters, np.int32)
    for a in range(n_clusters):  # one after the other: what is written lies close together
        n_targets, row = 0, graph.head[a]
        while row >= 0:
            own = offers.cost[offers.at[row]]
            for pair in range(offers.start[row], offers.start[row + 1]):
                b = offers.cluster[pair]
                if b != a:
                    targets[n_targets] = b
                    n_targets += n_ties[b] == 0
                    _enter(row, (offers.cost[pair] - own) / offers.weight[row], b, top, first, n_ties)
            row = graph.following[row]
        for b in targets[:n_targets]:
            arc = _arc(a, b, graph)
            graph.top[arc], graph.first[arc], graph.n_ties[arc] = top[b], first[b], n_ties[b]
            n_ties[b] = 0
    return graph


@compiled
def _join(row, cluster, graph):
    after = graph.head[cluster]
    graph.following[row], graph.previous[row] = after, -1
    if after >= 0:
        graph.previous[after] = row
    graph.head[cluster] = row


@compiled
def _move(row, b, offers, sizes, graph):
    """Put a row into cluster b."""
    first, stop, at = offers.start[row], offers.start[row + 1], offers.at[row]
    a, own, weight = offers.cluster[at], offers.cost[at], offers.weight[row]
    before, after = graph.previous[row], graph.following[row]
    if before >= 0:
        graph.following[before] = after
    else:
        graph.head[a] = after
    if after >= 0:
        graph.previous[after] = before
    _join(row, b, graph)
    cluster, cost, top, least, n_ties = offers.cluster, offers.cost, graph.top, graph.first, graph.n_ties
    n_clusters, is_dense = len(graph.head), len(graph.table) == 0
    goal = _pair(first, stop, b, cluster)
    for pair in range(first, stop):
        k = cluster[pair]
        if pair != at:
            arc = np.int64(k) * n_clusters + a if is_dense else _arc(a, k, graph)
            if n_ties[arc] > 0 and (cost[pair] - own) / weight <= top[arc]:  # it leaves
                n_ties[arc] = n_ties[arc] - 1 if row != least[arc] else -1
        if pair != goal:
            arc = np.int64(k) * n_clusters + b if is_dense else _arc(b, k, graph)
            _enter(row, (cost[pair] - cost[goal]) / weight, arc, top, least, n_ties)
    offers.at[row] = goal
    sizes.held[a] -= weight
    sizes.held[b] += weight


@compiled
def _push(distances, clusters, n_queued, distance, cluster):
    """Put a cluster into the queue of ``n_queued``."""
    place = n_queued
    while place > 0:
        above = (place - 1) >> 1
        if distances[above] < distance or (distances[above] == distance and clusters[above] <= cluster):
            break
        distances[place], clusters[place] = distances[above], clusters[above]
        place = above
    distances[place], clusters[place] = distance, cluster


@compiled
def _pop(distances, clusters, n_queued):
    """Take the first out of the queue of ``n_queued``."""
    last = n_queued - 1
    distance, cluster = distances[last], clusters[last]
    place = 0
    while True:
        below = 2 * place + 1
        if below >= last:
            break
        other = below + 1
        if other < last and (
            distances[other] < distances[below]
            or (distances[other] == distances[below] and clusters[other] < clusters[below])
        ):
            below = other
        if distance < distances[below] or (distance == distances[below] and cluster <= clusters[below]):
            break
        distances[place], clusters[place] = distances[below], clusters[below]
        place = below
    distances[place], clusters[place] = distance, cluster


@compiled
def _misses(k, sign, sizes, prices, slack):
    """How far a cluster is from where it has to be: rows that it lacks (sign 1) or has too many of (-1), else 0."""
    held, lower, upper = sizes.held[k], sizes.lower[k], sizes.upper[k]
    if sign > 0:
        if held < lower - slack:
            return lower - held
        return upper - held if prices[k] < 0 and held < upper else 0.0
    if held > upper + slack:
        return held - upper
    return held - lower if prices[k] > 0 and held > lower else 0.0


@compiled
def _spare(k, sign, sizes, prices, weight, slack):
    """What ends a path: how much cluster k can give (sign 1) or take, a row of this weight at least, and the toll."""
    missed = _misses(k, -sign, sizes, prices, slack)
    if missed >= weight:
        return missed, 0.0
    spare = sizes.held[k] - sizes.lower[k] if sign > 0 else sizes.upper[k] - sizes.held[k]
    if spare + slack >= weight and spare > 0:
        return spare, max(-sign * prices[k], 0.0)
    return 0.0, np.inf


@compiled
def _find(origin, sign, offers, sizes, prices, slack, graph, search):
    """The nearest cluster that can give what ``origin`` lacks, or take what it has too many of.

    Returns its number (``origin``: its own price reaches 0 first; -1: none can be reached), its distance, and how
    many clusters were touched: their numbers, distances and arcs are in ``search``.
    """
    source, target, top, n_ties, out = graph.source, graph.target, graph.top, graph.n_ties, graph.out
    far, is_settled = search.distance, search.is_settled
    n_touched, n_queued, end, nearest = 1, 1, -1, np.inf
    search.touched[0], search.distance[origin] = origin, 0.0
    search.queued_distance[0], search.queued[0] = 0.0, origin
    while n_queued > 0:
        distance, v = search.queued_distance[0], search.queued[0]
        if distance >= nearest:
            break
        _pop(search.queued_distance, search.queued, n_queued)
        n_queued -= 1
        if is_settled[v]:
            continue
        is_settled[v] = True
        toll = np.inf
        if v != origin:
            weight = offers.weight[graph.first[search.via[v]]]
            _, toll = _spare(v, sign, sizes, prices, weight, slack)
        elif sign * prices[v] < 0 and (
            sizes.held[v] >= sizes.lower[v] if sign > 0 else sizes.held[v] <= sizes.upper[v]
        ):
            toll = -sign * prices[v]
        if distance + toll < nearest:
            nearest, end = distance + toll, v
        begin, n_arcs = graph.begin[v], graph.n_in[v] if sign > 0 else graph.n_out[v]
        for arc in range(begin, begin + n_arcs):
            if sign < 0:
                arc = out[arc]
            if n_ties[arc] != 0:
                u = source[arc] if sign > 0 else target[arc]
                if not is_settled[u]:
                    most, step = min(far[u], nearest), sign * (prices[u] - prices[v])
                    length = distance + max(top[arc] + step, 0.0)
                    if n_ties[arc] < 0 and length < most:
                        _look(arc, offers, graph)
                        length = distance + max(top[arc] + step, 0.0)
                    if length < most:
                        if far[u] == np.inf:
                            search.touched[n_touched] = u
                            n_touched += 1
                        far[u], search.via[u] = length, arc
                        _push(search.queued_distance, search.queued, n_queued, length, u)
                        n_queued += 1
    return end, nearest, n_touched


@compiled
def _send(origin, end, sign, offers, sizes, prices, slack, graph, search, unit):
    """Move a row along each arc of the path, from its end on, or as many as tie on all arcs; whether any moved."""
    n_hops, n_ties, v = 0, np.int64(len(offers.at)), end
    while v != origin:
        arc = search.via[v]
        search.path[n_hops] = arc
        n_hops += 1
        n_ties = min(n_ties, np.int64(graph.n_ties[arc]))
        v = graph.target[arc] if sign > 0 else graph.source[arc]
    if not unit:
        return _send_one(n_hops, sign, offers, sizes, slack, graph, search)
    spare, _ = _spare(end, sign, sizes, prices, 1.0, slack)
    count = min(np.int64(min(spare, _misses(origin, sign, sizes, prices, slack))), n_ties)
    for hop in range(n_hops):
        arc = search.path[hop]
        b = graph.target[arc]
        if count == 1:
            _move(graph.first[arc], b, offers, sizes, graph)
        else:
            left, top = count, graph.top[arc]
            row = graph.head[graph.source[arc]]
            while left > 0 and row >= 0:
                after = graph.following[row]
                pair = _pair(offers.start[row], offers.start[row + 1], b, offers.cluster)
                if (
                    pair >= 0
                    and (offers.cost[pair] - offers.cost[offers.at[row]]) / offers.weight[row] == top
                ):
                    _move(row, b, offers, sizes, graph)
                    left -= 1
                row = after
            count -= left  # rows that came here may have left fewer that tie, by rounding
        if hop + 1 < n_hops and graph.n_ties[search.path[hop + 1]] < 0:
            _look(search.path[hop + 1], offers, graph)
    return count > 0


@compiled
def _send_one(n_hops, sign, offers, sizes, slack, graph, search):
    """As `_send`, for rows of different weights: as far as the clusters between miss no more than they may."""
    for hop in range(n_hops):
        arc = search.path[hop]
        if graph.n_ties[arc] < 0:
            _look(arc, offers, graph)
        a, b = graph.source[arc], graph.target[arc]
        row = graph.first[arc]
        weight = offers.weight[row]
        giver, taker = (a, b) if sign > 0 else (b, a)
        given, taken = sizes.held[giver] - sign * weight, sizes.held[taker] + sign * weight
        if hop > 0 and (
            (given < sizes.lower[giver] - slack) if sign > 0 else (given > sizes.upper[giver] + slack)
        ):
            return True
        if hop == n_hops - 1 and (
            taken > max(sizes.upper[taker], sizes.lower[taker] + weight) + slack
            if sign > 0
            else taken < min(sizes.lower[taker], sizes.upper[taker] - weight) - slack
        ):
            return hop > 0
        _move(row, b, offers, sizes, graph)
    return n_hops > 0


@compiled
def move_rows(offers, sizes, prices, width, reach, margin, slack, unit):
    """Move rows and prices until sizes hold and no row would rather be elsewhere, as far as offers lead.

    Args:
        offers: rows at their best cluster under ``prices``; `Offers.at` is moved.
        sizes: of all rows, also of those without a second offer; ``held`` is moved.
        prices: float64 [K], moved.
        width, reach: float64 [K], what is on offer: see `coke.bounded.costs.Prices`.
        margin: how far a path may lead beyond what offers are known to be complete for: a little, since most such paths
            are right, and the next sweep tells. A path that leads far is none.
        slack: what a size may miss: 0, or with weights up to the largest.
        unit: whether every row weighs 1.

    Returns:
        Float64 [2, K], by how much width and reach fell short of what paths needed that could not be gone, since a pair
        that is not on offer may be nearer; and how many paths were gone.
    """
    n_clusters = len(prices)
    graph = _graph(offers, n_clusters)
    n_queued = len(graph.source) + 2 * n_clusters  # at most
    search = _Search(
        np.full(n_clusters, np.inf),
        np.zeros(n_clusters, np.int64),
        np.empty(n_clusters, np.int64),
        np.zeros(n_clusters, np.bool_),
        np.empty(n_queued, np.float64),
        np.empty(n_queued, np.int64),
        np.empty(n_clusters, np.int64),
    )
    before, known, short = prices.copy(), np.empty(n_clusters), np.zeros((2, n_clusters))
    n_paths, n_before = 0, -1
    most = np.inf if unit else 20.0 * (len(offers.at) + n_clusters)
    while n_before < n_paths < most:
        n_before = n_paths
        short[:] = 0.0
        for sign in (1, -1):
            for origin in range(n_clusters):
                served = True
                while served and _misses(origin, sign, sizes, prices, slack) > 0 and n_paths < most:
                    _know(sign, prices, before, width, reach, known)
                    served = _serve(
                        origin, sign, margin, known, short[0 if sign > 0 else 1], slack, unit, offers, sizes, prices,
                        graph, search,
                    )  # fmt: skip
                    n_paths += served
    return short, n_paths


@compiled
def _serve(origin, sign, margin, known, short, slack, unit, offers, sizes, prices, graph, search):
    """Find one path from a cluster that misses something, move prices and rows; whether it was served."""
    end, nearest, n_touched = _find(origin, sign, offers, sizes, prices, slack, graph, search)
    if _is_beyond(nearest, n_touched, margin, known, short, search):
        end, nearest = -1, _farthest(n_touched, known, search)
    for place in range(n_touched):
        v = search.touched[place]
        if search.is_settled[v]:
            _shift(v, v == origin, sign, nearest - search.distance[v], sizes, prices)
    if end == origin or (
        end >= 0 and sign * prices[end] < 0 and _misses(end, -sign, sizes, prices, slack) <= 0
    ):
        prices[end] = 0.0  # it has come to 0, but for rounding
    moved = end == origin
    if end >= 0 and not moved:
        moved = _send(origin, end, sign, offers, sizes, prices, slack, graph, search, unit)
    for place in range(n_touched):
        v = search.touched[place]
        search.is_settled[v] = False
        search.distance[v] = np.inf
    return moved


@compiled
def _know(sign, prices, before, width, reach, known):
    """How far each cluster's price may move before a pair that is not on offer could matter."""
    nearest = np.inf
    for k in range(len(prices)):
        moved = prices[k] - before[k]
        nearest = min(nearest, moved + reach[k] if sign > 0 else width[k] - moved)
    for k in range(len(prices)):
        moved = prices[k] - before[k]
        known[k] = nearest + (width[k] - moved if sign > 0 else reach[k] + moved)


@compiled
def _shift(v, is_origin, sign, rise, sizes, prices):
    """Raise (or lower) a settled cluster's price; where a unit is free to pass, not beyond 0 by rounding."""
    if rise > 0:
        before = sign * prices[v]
        prices[v] += sign * rise
        free = sizes.held[v] > sizes.lower[v] if sign > 0 else sizes.held[v] < sizes.upper[v]
        if before <= 0 and 0 < sign * prices[v] <= 1e-12 * rise and free and not is_origin:
            prices[v] = 0.0


@compiled
def _is_beyond(nearest, n_touched, margin, known, short, search):
    """Whether a path leads far beyond what offers are known for; notes by how much each cluster's fell short."""
    beyond = False
    for place in range(n_touched):
        v = search.touched[place]
        if search.is_settled[v]:
            missing = max(margin, 5e-324) if nearest == np.inf else nearest - search.distance[v] - known[v]
            beyond |= missing > margin or nearest == np.inf
    if beyond:
        for place in range(n_touched):
            v = search.touched[place]
            if search.is_settled[v]:
                missing = (
                    max(margin, 5e-324) if nearest == np.inf else nearest - search.distance[v] - known[v]
                )
                if known[v] < np.inf:
                    short[v] = max(short[v], missing)
    return beyond


@compiled
def _farthest(n_touched, known, search):
    """How far prices of what was settled may move before a pair that is not on offer could matter."""
    farthest, left = 0.0, np.inf
    for place in range(n_touched):
        v = search.touched[place]
        if search.is_settled[v]:
            farthest = max(farthest, search.distance[v])
            left = min(left, search.distance[v] + known[v])
    return max(left, 0.0) if left < np.inf else farthest  # where every pair is on offer
