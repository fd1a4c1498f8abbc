"""A stream clustered batch by batch: the online method with soft bounds, for any metric of the estimator.

As in `coke.method.online`, every batch is assigned with the duals from before it; then each dual moves by what
its cluster lacked: rho_k <- rho_k + h (B t_k - m_k), where t_k is the minimum share for a raised cluster, the
maximum share for a lowered one, and a dual stops at 0 on its way from one to the other. The step is h = scale /
sqrt(2500 + rows seen): regret and violation grow no faster than sqrt(N), and the first batches do not swing
(docs/theory.md). The scale is the mean cost of a row, since costs here have a unit. Centers are running means, or
their directions.

Legend: B rows of a batch, D features, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from coke.bounded.candidates import Array
from coke.bounded.costs import COSINE, unit_rows
from coke.bounded.dual import target_sizes
from coke.bounded.fill import violation
from coke.bounded.rows import look_at
from coke.bounded.seeding import starting_centers
from coke.bounded.sizes import SizeBounds, resolve_bounds
from coke.bounded.sweep import Focus, sweep
from coke.errors import BoundsError, ConfigError
from coke.vectors import Vectors

if TYPE_CHECKING:
    from coke.bounded.estimator import ConstrainedKMeans


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

    @classmethod
    def begin(cls, estimator: ConstrainedKMeans, vectors: Vectors, random: Any) -> Stream:
        """Start from the first batch, or go on from what the estimator was fitted to."""
        n_clusters, share = estimator.n_clusters, _share(estimator)
        if hasattr(estimator, "cluster_centers_"):
            centers, known = estimator._centers(vectors), (estimator.counts_, estimator.duals_)
            counts, duals = (torch.as_tensor(values).cpu().double().numpy() for values in known)
            weights = estimator._weights.to(centers.device)
            return cls(centers, counts, weights, duals, share, estimator.metric, estimator.inertia_)
        if vectors.n_rows < n_clusters:
            raise BoundsError(
                f"n_samples={vectors.n_rows} should be >= n_clusters={n_clusters} in the first batch of a stream"
            )
        rows = look_at(vectors, n_clusters, metric=estimator.metric, seed=random.randint(2**31))
        centers, zeros = (
            starting_centers(estimator.init, rows.sample, n_clusters, random),
            np.zeros(n_clusters),
        )
        return cls(centers, zeros.copy(), torch.zeros_like(centers[:, 0]), zeros, share, estimator.metric)

    def follow(self, estimator: ConstrainedKMeans) -> None:
        """Take on ratios set anew; raise `ConfigError` where the number of clusters or the metric has changed."""
        for name, value in (("n_clusters", len(self.duals)), ("metric", self.metric)):
            if getattr(estimator, name) != value:
                raise ConfigError(
                    f"{name}={getattr(estimator, name)!r}, but the stream began with {value!r}: set it back, or begin "
                    "anew with a clone of the estimator"
                )
        self.share = _share(estimator)

    @property
    def violation(self) -> float:
        """Rows missing or too many so far, as a share of the stream."""
        total = self.counts.sum()
        bounds = SizeBounds(self.share.lower * total, self.share.upper * total)
        return float(violation(self.counts, bounds).sum() / max(total, 1))

    def take(self, vectors: Vectors, sample_weight: Tensor | None = None) -> tuple[Tensor, float]:
        """Assign one batch, then move duals and centers: labels int32 [B] and the batch's cost."""
        rows = look_at(vectors, len(self.duals), metric=self.metric, sample_weight=sample_weight)
        labels = torch.full((vectors.n_rows,), -1, dtype=torch.int32, device=vectors.device)
        swept = sweep(rows.costs(self.centers), self.duals, labels, Focus(0.0, 0, certify=True))
        self.cost += swept.cost
        self.counts += swept.sizes
        self._move_duals(swept.sizes)
        self._move_centers(vectors, labels, sample_weight)
        self.n_steps += 1
        return labels, swept.cost

    def _move_duals(self, sizes: Array) -> None:
        n_rows, seen = sizes.sum(), self.counts.sum()
        bounds = SizeBounds(self.share.lower * n_rows, self.share.upper * n_rows)
        step = self.cost / seen / np.sqrt(seen + _HELD_BACK)
        moved = self.duals + step * (target_sizes(sizes, self.duals, bounds) - sizes)
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


def _share(estimator: ConstrainedKMeans) -> SizeBounds:
    """What the estimator's ratios make of a single row."""
    if estimator.min_size is not None or estimator.max_size is not None:
        raise BoundsError(
            "min_size and max_size count rows, and a stream has no known number of them: give min_size_ratio and "
            "max_size_ratio"
        )
    ratios = {name: getattr(estimator, name) for name in ("min_size_ratio", "max_size_ratio")}
    return resolve_bounds(1.0, estimator.n_clusters, **ratios)
