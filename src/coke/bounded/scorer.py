"""The best cluster of every row of a block: by float32 scores, and exactly where these cannot tell.

Scores are made for as many rows at a time as stay close to the processor. Those of rows near a boundary are kept.

Legend: K clusters, b rows of a block, P of them near a boundary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from coke.bounded.costs import CostBlock, Costs

CPU_PAIRS = 2**20  # scores at a time: what a cache holds


class Scored(NamedTuple):
    """What scores say of a block's rows."""

    label: Tensor
    """int64 [b] cluster of the least reduced cost, the lower of equals."""
    near: Tensor
    """int64 [P] rows that may be within reach of a boundary, or that scores alone cannot tell; ascending."""
    scores: Tensor
    """float32 [P, K] theirs: minus the reduced costs, but for a constant of each row."""
    tolerance: Tensor
    """float32 [P] that a score may be off by."""


class Scorer:
    """Scores blocks of rows under duals [K], with buffers of its own.

    Args:
        costs: of the rows.
        duals: float64 [K] on the costs' device.
        reach: keep the scores of rows whose best cluster leads by at most this, per unit of size weight; None: of
            none but those that scores cannot tell.
        block_rows: the most rows of a block.
    """

    def __init__(self, costs: Costs, duals: Tensor, reach: float | None, block_rows: int) -> None:
        self.lift, self.n_clusters, self.reach = costs.lift(duals), costs.n_clusters, reach
        on_cpu = costs.device.type == "cpu"
        self.step = min(block_rows, max(CPU_PAIRS // self.n_clusters, 64)) if on_cpu else block_rows
        self.width = 64 if self.n_clusters >= 512 else 32
        self.folded = on_cpu and self.n_clusters >= 2 * self.width
        n_columns = -(-self.n_clusters // self.width) * self.width if self.folded else self.n_clusters
        self.buffer = torch.full((self.step, n_columns), -torch.inf, device=costs.device)
        self.steps = torch.arange(0, n_columns, self.width, device=costs.device)

    def score(self, block: CostBlock) -> Scored:
        """The best cluster of each row, and the scores of those near a boundary."""
        tolerance = block.tolerance(self.lift)
        if self.n_clusters == 1:
            label = torch.zeros_like(tolerance, dtype=torch.long)
            return Scored(label, label[:0], tolerance.new_empty((0, 1)), tolerance[:0])
        within = 2 * tolerance
        if self.reach is not None:
            weights = block.size_weights(torch.arange(len(block), device=tolerance.device))
            within = torch.fmax(within, self.reach * weights + within)  # infinite reach of no weight is none
        parts = [self._part(block, first, within) for first in range(0, len(block), self.step)]
        label, lead, near, scores = (torch.cat(values) for values in zip(*parts, strict=True))
        tolerance = tolerance[near]
        doubt = (lead[near] <= 2 * tolerance).nonzero()[:, 0]
        if len(doubt):
            rows, own = near[doubt], scores[doubt]
            least = own.amax(1) - 2 * tolerance[doubt]
            label[rows] = exactly_best(block, own, self.lift.duals, rows, least, 1)[:, 0]
        return Scored(label, near, scores, tolerance)

    def _part(self, block: CostBlock, first: int, within: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Label and lead of some rows, and which of them lead by no more than ``within``, with their scores."""
        rows = slice(first, min(first + self.step, len(block)))
        buffer = self.buffer[: rows.stop - first]
        scores = buffer[:, : self.n_clusters]
        block.scores(self.lift, scores, rows)
        best, label, second = self._two_best(buffer) if self.folded else _two_best(scores)
        lead = best - second
        near = (lead <= within[rows]).nonzero()[:, 0]
        return label, lead, near + first, scores[near]

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


def _two_best(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values, columns = scores.topk(2, dim=1)
    return values[:, 0], columns[:, 0], values[:, 1]


def exactly_best(
    block: CostBlock, scores: Tensor, duals: Tensor, rows: Tensor, least: Tensor, n_wanted: int
) -> Tensor:
    """The ``n_wanted`` clusters of least exact reduced cost of each row, best first, the lower of equals first.

    Only scores [P, K] of at least ``least`` [P], and above minus infinity, are asked: n_wanted of them or more.
    rows: [P] of the block. Returns int64 [P, n_wanted].
    """
    found = torch.empty(len(rows), n_wanted, dtype=torch.long, device=rows.device)
    step = max(1, 2**22 // scores.shape[1])
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        own = scores[part]
        place, cluster = ((own >= least[part, None]) & (own > -torch.inf)).nonzero(as_tuple=True)
        pair_rows = rows[part][place]
        reduced = block.exact(pair_rows, cluster) - block.size_weights(pair_rows) * duals[cluster]
        order = reduced.argsort(stable=True)
        order = order[place[order].argsort(stable=True)]
        n_asked = torch.bincount(place, minlength=len(own))
        rank = torch.arange(len(place), device=rows.device) - (n_asked.cumsum(0) - n_asked)[place]
        found[part] = cluster[order][rank < n_wanted].view(-1, n_wanted)
    return found
