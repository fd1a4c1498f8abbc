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
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coke import distributed
from coke.bounded.candidates import Array, Candidates
from coke.bounded.costs import CostBlock, Costs
from coke.bounded.crew import work_through
from coke.bounded.near_rows import NearRows
from coke.bounded.scorer import Scorer

_CPU_PAIRS, _DEVICE_PAIRS = 2**23, 2**28  # scores of a block: enough that its small operations do not count
_CPU_VALUES = 2**22  # of a block's rows


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


def default_block_rows(n_clusters: int, device: torch.device, n_features: int = 1) -> int:
    """Rows of a block: many, as long as their values and scores take little memory.

    >>> default_block_rows(1000, torch.device("cpu"), 128)
    8192
    """
    if device.type != "cpu":
        return int(min(max(2 ** int(np.log2(_DEVICE_PAIRS / n_clusters)), 128), 2**20))
    rows = min(_CPU_PAIRS / n_clusters, _CPU_VALUES / n_features, 2**16)
    return 2 ** int(np.log2(max(rows, 128)))


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
    suitable = default_block_rows(costs.n_clusters, costs.device, costs.n_features)
    block_rows = min(block_rows or suitable, max(costs.n_rows, 1))
    lift = torch.from_numpy(duals).to(costs.device)
    near = NearRows(costs, lift, focus.reach, focus.n_listed, focus.max_rows)
    sizes = torch.zeros(costs.n_clusters, dtype=torch.float64, device=costs.device)
    n_changed = torch.zeros((), dtype=torch.float64, device=costs.device)
    own_costs: dict[int, Tensor] = {}
    alone = threading.Lock()

    def begin() -> Callable[[CostBlock], None]:
        scorer = Scorer(costs, lift, near.reach if near.looks else None, block_rows)

        def work(block: CostBlock) -> None:
            rows = slice(block.start, block.start + len(block))
            scored = scorer.score(block)
            label, found = scored.label, near.look(block, scored)
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
    return Sweep(sizes_all, int(totals[-1]), cost, near.table(sizes_all, cost))


def count_labels(labels: Tensor, n_clusters: int) -> Tensor:
    """Rows of every cluster over all processes: int64 [K]."""
    counts = torch.zeros(n_clusters, dtype=torch.int64, device=labels.device)
    for part in labels.split(2**20):
        counts += torch.bincount(part, minlength=n_clusters)
    return distributed.sum_over_processes(counts)
