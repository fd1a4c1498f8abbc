"""A stream clustered batch by batch: the online method with soft bounds, for any metric of the estimator.

As in `coke.method.kmeans`, every batch is assigned with the duals from before it; then each dual moves by what
its cluster lacked: rho_k <- rho_k + h (B t_k - m_k), where t_k is the minimum share for a raised cluster, the
maximum share for a lowered one, and a dual stops at 0 on its way from one to the other. The step is h = scale /
sqrt(2500 + rows seen): regret and violation grow no faster than sqrt(N), and the first batches do not swing
(docs/theory.md). The scale is the mean cost of a row, since costs here have a unit. Centers are running means, or
their directions.

Legend: B rows of a batch, D features, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke.bounded.costs import COSINE, Prices, unit_rows
from coke.bounded.kernels import Array
from coke.bounded.rows import look_at
from coke.bounded.sizes import SizeBounds
from coke.bounded.sweep import sweep
from coke.errors import ConfigError
from coke.vectors import Vectors

_HELD_BACK = (
    2500  # rows: the step begins at a fiftieth of the scale, as the published one of 0.02 for cosines
)


@dataclass(eq=False)
class Stream:
    """What is kept between batches.

    Attributes:
        centers: float64 [K, D].
        counts: float64 [K] rows received.
        weights: float64 [K] their sample weights: what the running means divide by.
        duals: float64 [K].
        share: minimum and maximum share of a batch for every cluster, as bounds of one row.
        cost: summed cost of the rows seen.
        n_steps: batches.
    """

    centers: Tensor
    counts: Array
    weights: Tensor
    duals: Array
    share: SizeBounds
    metric: str
    cost: float = 0.0
    n_steps: int = 0

    def check_same(self, **now: Any) -> None:
        """Raise `ConfigError` where the number of clusters or the metric is another than when the stream began."""
        for name, began in (("n_clusters", len(self.duals)), ("metric", self.metric)):
            if now[name] != began:
                raise ConfigError(
                    f"{name}={now[name]!r}, but the stream began with {began!r}: set it back, or begin anew with a "
                    "clone of the estimator"
                )

    @property
    def violation(self) -> float:
        """Rows missing or too many so far, as a share of the stream."""
        total = self.counts.sum()
        bounds = SizeBounds(self.share.lower * total, self.share.upper * total)
        return float(np.abs(self.counts - _clipped(self.counts, bounds)).sum() / max(total, 1))

    def take(self, vectors: Vectors, sample_weight: Tensor | None = None) -> tuple[Tensor, float]:
        """Assign one batch, then move duals and centers: labels int32 [B] and the batch's cost."""
        rows = look_at(vectors, len(self.duals), metric=self.metric, sample_weight=sample_weight)
        labels = np.full(vectors.n_rows, -1, dtype=np.int32)
        nothing = np.zeros_like(self.duals)
        swept = sweep(rows.costs(self.centers), Prices(self.duals, nothing, nothing), labels)
        self.cost += swept.cost
        self.counts += swept.held
        self._move_duals(swept.held)
        kept = torch.from_numpy(labels).to(vectors.device)
        self._move_centers(vectors, kept, sample_weight)
        self.n_steps += 1
        return kept, swept.cost

    def _move_duals(self, sizes: Array) -> None:
        n_rows, seen = sizes.sum(), self.counts.sum()
        bounds = SizeBounds(self.share.lower * n_rows, self.share.upper * n_rows)
        step = self.cost / seen / np.sqrt(seen + _HELD_BACK)
        wanted = np.where(
            self.duals > 0, bounds.lower, np.where(self.duals < 0, bounds.upper, _clipped(sizes, bounds))
        )
        moved = self.duals + step * (wanted - sizes)
        self.duals = np.where(moved * self.duals < 0, 0.0, moved)

    def _move_centers(self, vectors: Vectors, labels: Tensor, sample_weight: Tensor | None) -> None:
        batch = torch.cat([block for _, block in vectors.blocks(max(vectors.n_rows, 1))])
        rows = unit_rows(batch) if self.metric == COSINE else batch.double()
        weights = torch.ones_like(rows[:, 0]) if sample_weight is None else sample_weight
        received = torch.zeros_like(self.weights).index_add_(0, labels.long(), weights)
        pull = torch.zeros_like(self.centers).index_add_(
            0, labels.long(), (rows - self.centers[labels.long()]) * weights[:, None]
        )
        self.weights = self.weights + received
        moved = self.centers + pull / self.weights.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
        if self.metric == COSINE:
            length = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
            moved = torch.where(length > 1e-12, moved / length.clamp_min(1e-12), self.centers)
        self.centers = torch.where(received[:, None] > 0, moved, self.centers)


def _clipped(sizes: Array, bounds: SizeBounds) -> Array:
    """Sizes [K] brought within their bounds."""
    return np.clip(sizes, bounds.lower.numpy(), bounds.upper.numpy())
