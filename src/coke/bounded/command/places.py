"""Every row's place among the clusters it was put into: how far its own center is, and how far the nearest other.

Legend: N rows, D features, K clusters, b rows of a block, P pairs of a row and a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke.bounded.command.files import PLACE
from coke.bounded.costs import COSINE, DistanceBlock, DistanceCosts, Lift, unit_rows
from coke.bounded.sweep import default_block_rows
from coke.vectors import Vectors

_MOST_ROWS = 2**16  # of a block
_EXACT_VALUES = 2**22  # float64 values that exact distances may take at a time


def places(
    vectors: Vectors, labels: Tensor, centers: Tensor, metric: str, *, block_rows: int | None = None
) -> Iterator[np.ndarray[Any, Any]]:
    """The rows' places in order, block by block, as records `coke.bounded.command.files.PLACE` [b].

    ``distance`` is to the row's own center: Euclidean, or 1 - cosine. ``second`` is the nearest other cluster,
    the lowest of equals, and ``margin`` how much farther it is: negative where a bound moved the row. Both are
    float64 before they are stored, so that neither block size nor processes show in them.

    Args:
        vectors: N rows.
        labels: [N], each row's cluster.
        centers: [K, D].
        metric: ``"euclidean"`` or ``"cosine"``.
        block_rows: rows of a block; default: what suits K.

    >>> from coke.vectors import open_vectors
    >>> rows, centers = open_vectors([[0.0], [9.0]]), torch.tensor([[1.0], [5.0], [13.0]])
    >>> (found,) = places(rows, torch.tensor([0, 2]), centers, "euclidean")
    >>> found.tolist()
    [(0, 1.0, 4.0, 1), (2, 4.0, 0.0, 1)]
    """
    centers = centers.to(vectors.device, torch.float64)
    shift = None
    if metric == COSINE:
        centers = unit_rows(centers)
    else:
        shift = centers.mean(0)  # an origin near the data, for what float32 resolves
    costs = DistanceCosts(vectors, centers, metric, shift)
    lift = costs.lift(torch.zeros_like(centers[:, 0]))
    block_rows = block_rows or min(
        default_block_rows(len(centers), vectors.device, vectors.n_features), _MOST_ROWS
    )
    scores = torch.empty(min(block_rows, vectors.n_rows), len(centers), device=vectors.device)
    for start, values in vectors.blocks(block_rows):
        block = DistanceBlock(costs, start, values)
        own = labels[start : start + len(block)].to(vectors.device).long()
        rows = torch.arange(len(block), device=vectors.device)
        found = np.empty(len(block), PLACE)
        distance = _distances(block, rows, own, metric)
        found["cluster"], found["distance"] = own.cpu(), distance.cpu()
        if len(centers) == 1:
            found["margin"], found["second"] = np.inf, -1
        else:
            second, other = _nearest_other(block, own, lift, scores[: len(block)], metric)
            found["margin"], found["second"] = (other - distance).cpu(), second.cpu()
        yield found


def _nearest_other(
    block: DistanceBlock, own: Tensor, lift: Lift, scores: Tensor, metric: str
) -> tuple[Tensor, Tensor]:
    """For each row the nearest cluster that is not its own, and its distance: [b] twice.

    Float32 scores say which clusters can be it, exact distances which is.
    """
    block.scores(lift, scores)
    scores.scatter_(1, own[:, None], -torch.inf)
    least = scores.amax(1) - 2 * block.tolerance(lift)
    second = torch.full_like(own, scores.shape[1])
    nearest = torch.full_like(own, torch.inf, dtype=torch.float64)
    step = max(1, _EXACT_VALUES // scores.shape[1])
    for first in range(0, len(own), step):
        part = slice(first, first + step)
        rows, clusters = (scores[part] >= least[part, None]).nonzero(as_tuple=True)
        distance = _distances(block, rows + first, clusters, metric)
        nearest[part].scatter_reduce_(0, rows, distance, "amin")
        wins = distance == nearest[part][rows]
        second[part].scatter_reduce_(0, rows[wins], clusters[wins], "amin")
    return second, nearest


def _distances(block: DistanceBlock, rows: Tensor, clusters: Tensor, metric: str) -> Tensor:
    """Distances of pairs, float64 [P], a bounded number at a time."""
    step = max(1, _EXACT_VALUES // block.rows.shape[1])
    parts = [
        block.exact(rows[first : first + step], clusters[first : first + step])
        for first in range(0, len(rows), step)
    ]
    costs = torch.cat(parts)
    return costs if metric == COSINE else costs.sqrt()
