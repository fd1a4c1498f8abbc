"""From a choice that nearly holds the bounds to one that does, at the least cost: a flow between K clusters.

Rows are the goods, clusters the places. Moving a row from a to b costs what its preference for a was worth, and
a surplus travels along the cheapest chain of such moves: successive shortest paths on K + 1 nodes, not N + K.
The node beyond the clusters is the slack T: a cluster sends T anything between L_k and U_k.

As long as no reduced cost is negative the flow is optimal for what has been moved (Ahuja, Magnanti and Orlin,
Network Flows, section 9.7), so a table of all rows and all clusters gives the exact optimum, with duals that
prove it. With the near rows alone it is the best that these rows allow.
"""

from __future__ import annotations

import heapq

import numpy as np

from coke.bounded.candidates import Array, Candidates
from coke.bounded.dual import target_sizes
from coke.bounded.sizes import SizeBounds

_MOST_OFFERS = 2**20  # of a table that does not list all there is


class Exchange:
    """Which kept row leaves cluster a for b most cheaply, for every pair of clusters that shares rows.

    Offers are sorted once; a row that has moved makes its old offers void (seen when they come to the top) and
    new ones that go to a heap beside. Of very many only the cheapest under ``duals`` are looked at,
    unless all rows and clusters are there.
    """

    def __init__(self, candidates: Candidates, column: Array, duals: Array) -> None:
        self.candidates, self.column = candidates, column
        n_clusters, each = candidates.n_clusters, np.arange(len(candidates.rows))
        self.own = candidates.labels[column, each].astype(np.int64)
        price = candidates.costs - candidates.costs[column, each]
        pair = self.own * n_clusters + candidates.labels
        other = candidates.labels != self.own
        if not candidates.is_complete and np.count_nonzero(other) > _MOST_OFFERS:
            reduced = price - (duals[candidates.labels] - duals[self.own])
            other &= reduced <= np.partition(reduced[other], _MOST_OFFERS)[_MOST_OFFERS]
        row = np.broadcast_to(each, price.shape)
        price, pair, row = price[other], pair[other], row[other]
        order = np.lexsort((row, price, pair))
        self.price, self.row = price[order], row[order]
        keys, starts = np.unique(pair[order], return_index=True)
        self.edges = {int(key): index for index, key in enumerate(keys)}
        self.next = starts.tolist()
        self.stop = np.append(starts[1:], len(order)).tolist()
        self.late: dict[int, list[tuple[float, int]]] = {}  # offers of rows that have moved: heaps by edge
        self.tail, self.head = (keys // n_clusters).tolist(), (keys % n_clusters).tolist()
        self.best = self.price[starts].tolist()
        self.mover = self.row[starts].tolist()

    def move(self, edge: int) -> None:
        """Let the best row of an edge change its cluster."""
        row, source, goal = self.mover[edge], self.tail[edge], self.head[edge]
        labels, costs = self.candidates.labels[:, row], self.candidates.costs[:, row]
        self.own[row] = goal
        self.column[row] = place = int(np.flatnonzero(labels == goal)[0])
        n_clusters = self.candidates.n_clusters
        for label, cost in zip(labels.tolist(), (costs - costs[place]).tolist(), strict=True):
            left = self.edges.get(source * n_clusters + label)
            if left is not None and self.mover[left] == row:
                self._settle(left)
            if label != goal:
                joined = self._edge(goal, label)
                heapq.heappush(self.late.setdefault(joined, []), (cost, row))
                if cost < self.best[joined]:
                    self.best[joined], self.mover[joined] = cost, row
        self._settle(edge)

    def _edge(self, source: int, goal: int) -> int:
        key = source * self.candidates.n_clusters + goal
        if key not in self.edges:
            self.edges[key] = len(self.best)
            for values, value in (
                (self.next, 0),
                (self.stop, 0),
                (self.tail, source),
                (self.head, goal),
                (self.best, np.inf),
                (self.mover, -1),
            ):
                values.append(value)
        return self.edges[key]

    def _settle(self, edge: int) -> None:
        """Find an edge's best offer anew, void ones dropped."""
        source, late = self.tail[edge], self.late.get(edge, [])
        while self.next[edge] < self.stop[edge] and self.own[self.row[self.next[edge]]] != source:
            self.next[edge] += 1
        while late and self.own[late[0][1]] != source:
            heapq.heappop(late)
        first = self.next[edge]
        offers = [(self.price[first], self.row[first])] if first < self.stop[edge] else []
        offers += late[:1]
        self.best[edge], self.mover[edge] = min(offers, default=(np.inf, -1))


def round_to_bounds(candidates: Candidates, bounds: SizeBounds, duals: Array) -> tuple[Array, Array]:
    """The cheapest choice within the bounds that unit moves of kept rows reach: columns [M] and duals [K].

    Sizes may still be off where the kept rows connect no surplus with a shortage; the caller looks.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import dijkstra

    lower, upper = bounds.lower.numpy(), bounds.upper.numpy()
    n_clusters = slack = candidates.n_clusters
    choice = candidates.choose(duals)
    exchange = Exchange(candidates, choice.column.copy(), duals)
    flow = target_sizes(choice.sizes, duals, bounds)  # from each cluster to T
    excess = np.append(choice.sizes - flow, flow.sum() - choice.sizes.sum())
    potentials = np.append(duals, 0.0)
    clusters = np.arange(n_clusters)
    while (excess > 0).any():
        tail, head = np.array(exchange.tail, dtype=np.int64), np.array(exchange.head, dtype=np.int64)
        price = np.array(exchange.best)
        out, back = flow < upper, flow > lower
        tails = np.concatenate([tail, clusters[out], np.full(back.sum(), slack)])
        heads = np.concatenate([head, np.full(out.sum(), slack), clusters[back]])
        prices = np.concatenate([price, np.zeros(out.sum() + back.sum())])
        open_ = np.isfinite(prices)
        tails, heads, prices = tails[open_], heads[open_], prices[open_]
        lengths = np.maximum(prices + potentials[tails] - potentials[heads], 0.0)
        graph = csr_matrix((lengths, (tails, heads)), shape=(n_clusters + 1, n_clusters + 1))
        sources = np.flatnonzero(excess > 0)
        distance, before, _ = dijkstra(graph, indices=sources, min_only=True, return_predecessors=True)
        reached = np.isfinite(distance)
        sinks = np.flatnonzero((excess < 0) & reached)
        if not len(sinks):
            break
        potentials += np.where(reached, distance, distance[reached].max())
        potentials -= potentials[slack]
        asked = list(exchange.best)
        for sink in sinks[np.argsort(distance[sinks], kind="stable")].tolist():
            while _send(exchange, before, asked, sink, excess, flow, lower, upper, slack):
                pass
    return exchange.column, potentials[:slack]


def _send(
    exchange: Exchange,
    before: Array,
    asked: list[float],
    sink: int,
    excess: Array,
    flow: Array,
    lower: Array,
    upper: Array,
    slack: int,
) -> bool:
    """Send what a shortest path carries at once, if its edges still cost what they did when it was found."""
    path, node = [], sink
    while before[node] >= 0:
        path.append((int(before[node]), node))
        node = int(before[node])
    amount = min(excess[node], -excess[sink])
    edges = []
    for a, b in path:
        if b == slack:
            amount = min(amount, upper[a] - flow[a])
        elif a == slack:
            amount = min(amount, flow[b] - lower[b])
        else:
            edge = exchange.edges[a * exchange.candidates.n_clusters + b]
            if exchange.best[edge] != asked[edge]:
                return False
            edges.append(edge)
            amount = min(amount, 1.0)
    if amount <= 0:
        return False
    for edge in edges:
        exchange.move(edge)
    for a, b in path:
        if b == slack:
            flow[a] += amount
        elif a == slack:
            flow[b] -= amount
    excess[node] -= amount
    excess[sink] += amount
    return True
