"""One pass over all rows under given prices: every row's best cluster, and the pairs on offer to the search.

With several processes each passes over its own rows; sizes and costs are summed, and offers (a row's number, clusters
and costs, no features) are shared, so that all search the same.

Legend: N rows of this process, K clusters, M rows with more than one offer, P their offers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coke import distributed
from coke.bounded.centers import CenterSums
from coke.bounded.costs import Costs, Prices
from coke.bounded.kernels import Array, Found, add_exactly
from coke.bounded.search import Offers
from coke.bounded.thread_pool import n_threads, work_through


@dataclass(frozen=True, eq=False)
class Swept:
    """What a pass found over the rows of all processes. The labels themselves are written where the caller asked.

    Attributes:
        held: float64 [K], sizes.
        n_rows: int64 [K], rows of each cluster.
        cost: sum of the exact costs of the labels.
        former_cost: the same for the labels before the pass; of rows that had none, the new ones.
        n_changed: rows whose label is another than before.
        own: float64 [N], what each of this process's rows costs.
        rows: int64 [M], numbers of the rows in ``offers``.
        offers: what the search may move.
    """

    held: Array
    n_rows: Array
    cost: float
    former_cost: float
    n_changed: int
    own: Array
    rows: Array
    offers: Offers


def sweep(
    costs: Costs,
    prices: Prices,
    labels: Array,
    *,
    sums: CenterSums | None = None,
    block_rows: int | None = None,
) -> Swept:
    """Put each row into its best cluster under ``prices``, and list what else may be offered to it.

    A row keeps its cluster where that is as good as the best, else of equals it goes to the lowest. Neither block
    size nor threads nor processes change a label.

    Args:
        costs: of this process's rows.
        prices: and how wide offers are.
        labels: int32 [N], in and out; -1: none yet.
        sums: of the rows of every cluster by ``labels``, kept in step.
        block_rows: rows of a block; None: what suits.
    """
    block_rows = min(block_rows or costs.block_rows(), max(costs.n_rows, 1))
    n_clusters = costs.n_clusters
    parts: dict[int, list[Found]] = {}
    alone = threading.Lock()
    totals = []
    new_look = costs.under(prices, block_rows)

    def begin() -> Callable[[tuple[int, Tensor]], None]:
        look = new_look()
        total = np.zeros((2, 2))
        totals.append(total)
        add = None if sums is None else sums.adder(alone)

        def work(block: tuple[int, Tensor]) -> None:
            start, rows = block
            former = labels[start : start + len(rows)]
            found = [Found(*(values.copy() for values in part)) for part in look.offers(start, rows, former)]
            now = np.concatenate([part.label for part in found])
            for part in found:
                add_exactly(part.cost, total[0])
                add_exactly(part.former_cost, total[1])
            if add is not None:
                add(start, rows, former, now)
            parts[start] = found

        return work

    apart = costs.device.type == "cpu" and costs.n_rows > 2 * block_rows
    work_through(costs.blocks(block_rows), begin, n_threads() if apart else 1)
    found = [part for start in sorted(parts) for part in parts[start]]
    if not found:  # a process without rows
        none, nothing = np.zeros(0, np.int32), np.zeros(0)
        found = [Found(none, nothing, nothing, none, none, nothing)]
    label, n_offers, own = (
        np.concatenate([getattr(part, name) for part in found]) for name in ("label", "n_offers", "cost")
    )
    costs.keep(own)
    n_changed = int((label != labels).sum())
    labels[:] = label
    weights = None if costs.size_weight is None else costs.size_weight.cpu().numpy()
    held = np.bincount(label, weights, n_clusters).astype(np.float64)
    rows = np.flatnonzero(n_offers)
    gathered = [
        costs.first_row + rows,
        n_offers[rows].astype(np.int64),
        label[rows],
        np.ones(len(rows)) if weights is None else weights[rows],
    ]
    pairs = [np.concatenate([getattr(part, name) for part in found]) for name in ("cluster", "offer")]
    cost, former_cost = (math.fsum(_everywhere([total[i] for total in totals])) for i in (0, 1))
    counted = np.stack([held, np.bincount(label, minlength=n_clusters), np.full(n_clusters, n_changed)])
    held, n_rows, changed = distributed.sum_over_processes(torch.from_numpy(counted)).numpy()
    return Swept(held, n_rows, cost, former_cost, int(changed[0]), own, *_shared(gathered, pairs))


def _everywhere(sums: Iterable[Array]) -> list[float]:
    """Parts of a sum over all processes."""
    own = torch.from_numpy(np.concatenate([np.zeros(1), *sums]))
    return list(distributed.gather_uneven((own,))[0].tolist())


def _shared(rows: list[Array], pairs: list[Array]) -> tuple[Array, Offers]:
    """Row numbers and offers of all processes."""
    number, count, label, weight = (
        t.numpy() for t in distributed.gather_uneven(tuple(map(torch.from_numpy, rows)))
    )
    cluster, cost = (t.numpy() for t in distributed.gather_uneven(tuple(map(torch.from_numpy, pairs))))
    start = np.concatenate([[0], np.cumsum(count)])
    at = np.flatnonzero(cluster == np.repeat(label, count))
    return number, Offers(start, cluster, cost, at, weight)
