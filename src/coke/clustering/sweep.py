"""One pass over all rows under given duals: every row's best cluster, and a table of those that waver.

The product of rows and centers is what must be paid. Beside it stand the search for the two best clusters, exact
costs for rows whose two best are closer than float32 can tell, and the rows near a boundary with their few best
clusters, for the dual search. With several processes each passes over its own rows; sizes are summed, and the
near rows (row number, cluster numbers and costs, no features) are shared, so that all go on with the same table.

Legend: N rows, K clusters, b rows of a block, M near rows, m clusters listed of each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from coke import distributed
from coke.clustering.candidates import Array, Candidates
from coke.clustering.costs import CostBlock, Costs
from coke.clustering.crew import work_through

_SPARE = 2  # clusters listed beyond m while they are sorted: rough scores may swap neighbours
_CPU_PAIRS, _DEVICE_PAIRS = 2**22, 2**28  # scores of a block: what a cache, or a GPU, likes to hold


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a pass found. ``labels`` of the pass are written where the caller asked.

    Attributes:
        sizes: float64 [K] of all processes' rows.
        n_changed: rows of all processes whose label is another than before.
        cost: float64 sum of exact costs (weighted), where asked for; else nan.
        table: near rows of all processes.
    """

    sizes: Array
    n_changed: int
    cost: float
    table: Candidates


@dataclass(frozen=True)
class Focus:
    """Which rows a sweep lists for the dual search.

    Attributes:
        reach: list a row if its best cluster leads by at most this, per unit of size weight.
        n_listed: m, clusters of a row.
        max_rows: the most rows of all processes; beyond it the closest are kept.
        certify: also sum the exact costs of all rows, which makes the table's dual bound a certificate.
    """

    reach: float
    n_listed: int = 4
    max_rows: int = 2**19
    certify: bool = False


def default_block_rows(n_clusters: int, device: torch.device) -> int:
    """Rows of a block: as many as let their scores stay close to the processor.

    >>> default_block_rows(1000, torch.device("cpu"))
    4096
    """
    pairs = _CPU_PAIRS if device.type == "cpu" else _DEVICE_PAIRS
    return int(min(max(2 ** int(np.log2(pairs / n_clusters)), 128), 2**16 if device.type == "cpu" else 2**20))


Moved = Callable[[CostBlock, Tensor, Tensor, Tensor], None]
"""Called with a block, its changed rows, their former labels and their new ones."""


def sweep(
    costs: Costs,
    duals: Array,
    labels: Tensor,
    focus: Focus,
    *,
    block_rows: int | None = None,
    moved: Moved | None = None,
) -> Sweep:
    """Write each row's best cluster under ``duals`` [K] to ``labels`` (int32 [N] on the costs' device).

    Equal reduced costs go to the lowest cluster. Neither block size nor processes change a label.
    """
    block_rows = min(block_rows or default_block_rows(costs.n_clusters, costs.device), max(costs.n_rows, 1))
    lift = torch.from_numpy(duals).to(costs.device)
    near = _NearRows(costs, focus, lift)
    sizes = torch.zeros(costs.n_clusters, dtype=torch.float64, device=costs.device)
    n_changed = torch.zeros((), dtype=torch.float64, device=costs.device)
    own_costs: dict[int, Tensor] = {}
    alone = threading.Lock()

    def begin() -> Callable[[CostBlock], None]:
        scorer = _Scorer(costs, lift, block_rows)

        def work(block: CostBlock) -> None:
            rows = slice(block.start, block.start + len(block))
            scores, tolerance, label, lead = scorer.best(block)
            found = near.look(block, scores, tolerance, lead)
            if focus.certify:
                every = torch.arange(len(block), device=costs.device)
                own_costs[block.start] = block.exact(every, label).sum()
            weights = None if costs.size_weight is None else costs.size_weight[rows]
            counted = torch.bincount(label, weights, costs.n_clusters)
            new = label.to(torch.int32)
            changed = (labels[rows] != new).nonzero()[:, 0]
            with alone:  # what is summed here is exact, so that the order of blocks cannot show
                near.hold(found)
                sizes.add_(counted)
                if len(changed):
                    if moved is not None:
                        moved(block, changed, labels[rows][changed].long(), label[changed])
                    labels[rows] = new
                    n_changed.add_(len(changed))

        return work

    apart = costs.device.type == "cpu" and costs.size_weight is None and costs.n_rows > 2 * block_rows
    work_through(costs.blocks(block_rows), begin, torch.get_num_threads() if apart else 1)
    own_cost = sum((own_costs[start] for start in sorted(own_costs)), torch.zeros_like(n_changed))
    totals = (
        distributed.sum_over_processes(torch.cat([sizes, torch.stack([own_cost, n_changed])])).cpu().numpy()
    )
    sizes_all = totals[: costs.n_clusters]
    cost = float(totals[-2]) if focus.certify else float("nan")
    table = near.table(sizes_all, cost, duals)
    return Sweep(sizes_all, int(totals[-1]), cost, table)


def count_labels(labels: Tensor, n_clusters: int) -> Tensor:
    """Rows of every cluster over all processes: int64 [K]."""
    counts = torch.zeros(n_clusters, dtype=torch.int64, device=labels.device)
    for part in labels.split(2**20):
        counts += torch.bincount(part, minlength=n_clusters)
    return distributed.sum_over_processes(counts)


class _Scorer:
    """The best cluster of each row of a block and how far it leads, ties and near ties decided exactly."""

    def __init__(self, costs: Costs, duals: Tensor, block_rows: int) -> None:
        self.duals, self.n_clusters = duals, costs.n_clusters
        self.width = 64 if costs.n_clusters >= 512 else 32
        on_cpu = costs.device.type == "cpu"
        self.folded = on_cpu and costs.n_clusters >= 2 * self.width
        n_columns = -(-costs.n_clusters // self.width) * self.width if self.folded else costs.n_clusters
        self.buffer = torch.full((block_rows, n_columns), -torch.inf, device=costs.device)
        self.steps = torch.arange(0, n_columns, self.width, device=costs.device)

    def best(self, block: CostBlock) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores [b, K], tolerance [b], the cluster of the best [b] and its lead [b] over the second."""
        buffer = self.buffer[: len(block)]
        scores = buffer[:, : self.n_clusters]
        tolerance = block.scores(self.duals, scores)
        if self.n_clusters == 1:
            only = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
            return scores, tolerance, only, torch.full_like(scores[:, 0], torch.inf)
        best, label, second = self._two_best(buffer) if self.folded else _two_best(scores)
        lead = best - second
        doubt = (lead <= 2 * tolerance).nonzero()[:, 0]
        if len(doubt):
            least = best[doubt] - 2 * tolerance[doubt]
            label[doubt] = exactly_best(block, scores, self.duals, doubt, least, 1)[:, 0]
        return scores, tolerance, label, lead

    def _two_best(self, buffer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Largest score, its column, and the second largest: maxima over every 64th column first, which are fast."""
        maxima = buffer.view(len(buffer), -1, self.width).amax(1)
        residue = maxima.argmax(1, keepdim=True)
        best = maxima.gather(1, residue)
        maxima.scatter_(1, residue, -torch.inf)
        column = buffer.gather(1, residue + self.steps)
        turn = column.argmax(1, keepdim=True)
        column.scatter_(1, turn, -torch.inf)
        second = torch.maximum(maxima.amax(1), column.amax(1))
        return best[:, 0], (residue + turn * self.width)[:, 0], second


def exactly_best(
    block: CostBlock, scores: Tensor, duals: Tensor, rows: Tensor, least: Tensor, n_wanted: int
) -> Tensor:
    """The ``n_wanted`` clusters of least exact reduced cost of each row, best first, the lower of equals first.

    Only scores [b, K] of at least ``least`` [P], and above minus infinity, are asked: n_wanted of them or more.
    rows: [P] of the block. Returns int64 [P, n_wanted].
    """
    found = torch.empty(len(rows), n_wanted, dtype=torch.long, device=rows.device)
    step = max(1, 2**22 // scores.shape[1])
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        own = scores[rows[part]]
        place, cluster = ((own >= least[part, None]) & (own > -torch.inf)).nonzero(as_tuple=True)
        pair_rows = rows[part][place]
        reduced = block.exact(pair_rows, cluster) - block.size_weights(pair_rows) * duals[cluster]
        order = reduced.argsort(stable=True)
        order = order[place[order].argsort(stable=True)]
        n_asked = torch.bincount(place, minlength=len(own))
        rank = torch.arange(len(place), device=rows.device) - (n_asked.cumsum(0) - n_asked)[place]
        found[part] = cluster[order][rank < n_wanted].view(-1, n_wanted)
    return found


def _two_best(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values, columns = scores.topk(2, dim=1)
    return values[:, 0], columns[:, 0], values[:, 1]


@dataclass
class _NearRows:
    """Rows near a boundary, collected block by block; the closest ``max_rows`` of them."""

    costs: Costs
    focus: Focus
    duals: Tensor
    held: list[tuple[Tensor, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.n_listed = min(self.focus.n_listed, self.costs.n_clusters)
        self.reach, self.n_held = self.focus.reach, 0

    def look(
        self, block: CostBlock, scores: Tensor, tolerance: Tensor, lead: Tensor
    ) -> tuple[Tensor, ...] | None:
        """The rows of a block that waver, and what is to be known of them."""
        if self.n_listed < 2:
            return None
        everything = torch.arange(len(block), device=lead.device)
        weights = block.size_weights(everything)
        near = (lead <= self.reach * weights + 2 * tolerance).nonzero()[:, 0]
        if not len(near):
            return None
        n_clusters = self.costs.n_clusters
        n_taken = min(self.n_listed + _SPARE, n_clusters)
        rough, clusters = scores[near].topk(n_taken, dim=1)
        if n_taken < n_clusters:
            # Where the last one taken is as good as the first one not listed, others left out may be so, too.
            doubt = 4 * tolerance[near]
            tied = (rough[:, self.n_listed] - rough[:, -1] <= doubt).nonzero()[:, 0]
            if len(tied):
                least = rough[tied, self.n_listed] - doubt[tied]
                clusters[tied] = exactly_best(block, scores, self.duals, near[tied], least, n_taken)
        pair_rows = near[:, None].expand_as(clusters)
        cost = block.exact(pair_rows.reshape(-1), clusters.reshape(-1)).view(clusters.shape)
        own = block.size_weights(near)
        own = own[:, None] if isinstance(own, Tensor) else own
        reduced = cost - own * self.duals[clusters]
        # By exact reduced cost, then by cluster: two stable sorts.
        order = clusters.argsort(dim=1, stable=True)
        order = order.gather(1, reduced.gather(1, order).argsort(dim=1, stable=True))
        reduced, cost, clusters = (values.gather(1, order) for values in (reduced, cost, clusters))
        scale = own[:, 0] if isinstance(own, Tensor) else own
        margin = (reduced[:, 1] - reduced[:, 0]) / scale
        none_left = self.n_listed == n_clusters
        beyond = torch.full_like(margin, torch.inf) if none_left else reduced[:, self.n_listed]
        keep = (margin <= self.reach).nonzero()[:, 0]
        size = scale[keep] if isinstance(scale, Tensor) else margin.new_ones(len(keep))
        row = self.costs.first_row + block.start + near
        m = self.n_listed
        return row[keep], clusters[keep, :m].to(torch.int32), cost[keep, :m], beyond[keep], margin[keep], size

    def hold(self, found: tuple[Tensor, ...] | None) -> None:
        """Keep what `look` found; beyond twice ``max_rows`` only the closest."""
        if found is None:
            return
        self.held.append(found)
        self.n_held += len(found[0])
        if self.n_held > 2 * self.focus.max_rows:
            self._thin()

    def _thin(self) -> None:
        """Keep the closest rows, and one more that says how far the others are, at least."""
        held = self._joined()
        order = held[4].argsort(stable=True)[: self.focus.max_rows + 1]
        kept = tuple(values[order.sort().values] for values in held)
        if len(order) > self.focus.max_rows:
            self.reach = min(self.reach, float(held[4][order[-1]]))
        self.held, self.n_held = [kept], len(order)

    def _joined(self) -> tuple[Tensor, ...]:
        if self.held:
            joined = tuple(torch.cat(values) for values in zip(*self.held, strict=True))
            order = joined[0].argsort()
            return tuple(values[order] for values in joined)
        m, device = max(self.n_listed, 1), self.costs.device
        none = torch.empty(0, dtype=torch.float64, device=device)
        return (
            none.long(),
            torch.empty(0, m, dtype=torch.int32, device=device),
            torch.empty(0, m, dtype=torch.float64, device=device),
            none,
            none,
            none,
        )

    def table(self, sizes: Array, cost_of_all: float, duals: Array) -> Candidates:
        """The near rows of all processes, and what the others add up to."""
        if self.n_held > self.focus.max_rows:
            self._thin()
        self.held = [distributed.gather_uneven(self._joined())]
        self._thin()
        row, clusters, cost, beyond, margin, size = (values.cpu().numpy() for values in self.held[0])
        reach = self.focus.reach if self.n_listed > 1 else 0.0  # nothing is known of rows not looked at
        if len(row) > self.focus.max_rows:
            last = int(margin.argsort(kind="stable")[-1])
            reach = min(reach, float(margin[last]))
            row, clusters, cost, beyond, size = (
                np.delete(values, last, axis=0) for values in (row, clusters, cost, beyond, size)
            )
        n_clusters = self.costs.n_clusters
        first, own = clusters[:, 0], cost[:, 0]
        order = clusters.argsort(axis=1)
        weighted = self.costs.size_weight is not None
        return Candidates(
            rows=row,
            labels=np.ascontiguousarray(np.take_along_axis(clusters, order, 1).T),
            costs=np.ascontiguousarray(np.take_along_axis(cost, order, 1).T),
            beyond=beyond,
            weights=size if weighted else None,
            settled_sizes=np.maximum(sizes - np.bincount(first, size if weighted else None, n_clusters), 0),
            settled_cost=float(cost_of_all - own.sum()) if self.focus.certify else 0.0,
            settled_margin=reach if n_clusters > 1 else np.inf,
            duals=duals.copy(),
        )
