"""Every row's place among the clusters it was put into: how far its own center is, and how far the nearest other.

Legend: N rows, D features, K clusters, b rows of a block, P pairs of a row and a cluster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke.vectors import Vectors

PLACE = np.dtype([("cluster", "<i4"), ("distance", "<f4"), ("margin", "<f4"), ("second", "<i4")])
_VALUES = 2**22  # float64 at a time: scores of a block, or differences of pairs


def places(vectors: Vectors, labels: Any, centers: Any, metric: str) -> np.ndarray[Any, Any]:
    """The places of N rows in order, as records `PLACE` [N]. labels: [N]; centers: [K, D].

    ``distance`` is to the row's own center: Euclidean, or 1 - cosine. ``second`` is the nearest other cluster,
    the lowest of equals, and ``margin`` how much farther it is: negative where a bound moved the row. A lone
    cluster has -1 for a second one, and an infinite margin.

    >>> from coke.vectors import open_vectors
    >>> rows, centers = open_vectors([[0.0], [9.0]]), torch.tensor([[1.0], [5.0], [13.0]])
    >>> places(rows, torch.tensor([0, 2]), centers, "euclidean").tolist()
    [(0, 1.0, 4.0, 1), (2, 4.0, 0.0, 1)]
    """
    goals = torch.as_tensor(centers).to(vectors.device, torch.float64)
    goals = _unit(goals) if metric == "cosine" else goals
    labels, found = torch.as_tensor(labels), np.empty(vectors.n_rows, PLACE)
    found["margin"], found["second"] = np.inf, -1
    for first, block in vectors.blocks(max(1, _VALUES // max(goals.shape))):
        rows = _unit(block.double()) if metric == "cosine" else block.double()
        own, part = labels[first : first + len(rows)].to(rows.device).long(), found[first : first + len(rows)]
        distance = _distances(rows, goals[own], metric)
        part["cluster"], part["distance"] = own.cpu(), distance.cpu()
        if len(goals) > 1:
            second, nearest = _nearest_other(rows, own, goals, metric)
            part["margin"], part["second"] = (nearest - distance).cpu(), second.cpu()
    return found


def _nearest_other(rows: Tensor, own: Tensor, centers: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """For each row the nearest cluster that is not its own, and its distance: [b] twice.

    A product's last digits depend on how rows are cut into blocks. So it only says which clusters can be the
    nearest, within its rounding, and differences, pair by pair, say which is: no block or process shows.
    """
    squares = centers.square().sum(1)
    rough = torch.addmm(squares, rows, centers.t(), alpha=-2).scatter_(1, own[:, None], torch.inf)
    length = torch.linalg.vector_norm(rows, dim=1) + squares.max().sqrt()
    rounding = 2.0**-52 * (rows.shape[1] + 8) * length.square()
    pairs = (rough <= (rough.amin(1) + 2 * rounding)[:, None]).nonzero()
    steps = (pair.t() for pair in pairs.split(max(1, _VALUES // rows.shape[1])))
    distance = torch.cat([_distances(rows[row], centers[cluster], metric) for row, cluster in steps])
    row, cluster = pairs.t()
    nearest = distance.new_full(own.shape, torch.inf).scatter_reduce_(0, row, distance, "amin")
    wins = distance == nearest[row]
    second = torch.full_like(own, len(centers)).scatter_reduce_(0, row[wins], cluster[wins], "amin")
    return second, nearest


def _distances(rows: Tensor, centers: Tensor, metric: str) -> Tensor:
    """Between the rows of two tensors [P, D]: float64 [P]."""
    squares = (rows - centers).square_().sum(1)
    return squares / 2 if metric == "cosine" else squares.sqrt_()


def _unit(rows: Tensor) -> Tensor:
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
