"""Duals that nearly fit, from a sample of the rows: where a fit starts, and what brings far duals near.

All processes hold the same sample and search it alone, in the same way, without asking each other.

Legend: S rows of the sample, D features, K clusters, m clusters listed of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from coke.bounded.candidates import Array, Candidates
from coke.bounded.costs import COSINE, exact_costs, unit_rows
from coke.bounded.dual import off_target, search_duals
from coke.bounded.sizes import SizeBounds

_LISTED = 16  # clusters of a row at first: four times as many each time they do not suffice
_TOLERANCE = 0.005  # of the sample may be off target: its sizes are no more exact than that
_PAIRS = 2**20  # scores at a time
_COARSER, _ROWS_PER_CLUSTER, _FAR = 8, 8, 0.3  # with so much off target, an eighth of the sample comes first


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows that stand for all.

    Attributes:
        rows: float64 [S, D], unit vectors for cosine.
        metric: ``"euclidean"`` or ``"cosine"``.
        shift: as in `DistanceCosts`.
        sample_weight, size_weight: float64 [S] or None for 1.
        share: of all rows, or of all size weights, that is in the sample.
    """

    rows: Tensor
    metric: str
    shift: Tensor | None
    sample_weight: Tensor | None
    size_weight: Tensor | None
    share: float

    @property
    def variance(self) -> float:
        """The rows' variance, averaged over features."""
        return float(self.rows.var(0, correction=0).mean())

    def noise(self, n_clusters: int) -> float:
        """By which share of all rows sizes are typically off under duals that fit the sample, and never quite 0.

        Half of what drawing makes of all sizes, about, since only those held at a bound count.
        """
        return max(0.02, 0.5 * float(np.sqrt(n_clusters / len(self.rows) * max(1 - self.share, 0))))

    def fit_duals(
        self, centers: Tensor, bounds: SizeBounds, duals: Array, near: float, *, max_rounds: int = 6
    ) -> tuple[Array, float]:
        """Duals [K] under which the sample nearly holds the bounds, and the margin that ``near`` rows are within.

        Args:
            centers: float64 [K, D].
            bounds: of all rows; the sample's are smaller by its share.
            duals: to start from.
            near: a share of the rows.
        """
        if len(self.rows) >= _COARSER * _ROWS_PER_CLUSTER * len(centers):
            part = self._every(_COARSER)
            if part._off(centers, bounds, duals) > _FAR:
                duals, _ = part.fit_duals(centers, bounds, duals, 1.0, max_rounds=2)
        scaled = SizeBounds(bounds.lower * self.share, bounds.upper * self.share)
        total = float(len(self.rows) if self.size_weight is None else self.size_weight.sum())
        n_listed = min(_LISTED, len(centers))
        for _ in range(max_rounds):
            table = self._table(centers, duals, n_listed)
            duals, choice = search_duals(table, scaled, duals, tolerance=_TOLERANCE * total)
            if off_target(choice.sizes, duals, scaled) <= 2 * _TOLERANCE * total:
                break
            n_listed = min(4 * n_listed, len(centers))
        return duals, float(np.quantile(choice.margin, near, method="higher")) if near < 1 else np.inf

    def _every(self, step: int) -> Sample:
        """A sample of the sample."""
        weight, size = self.sample_weight, self.size_weight
        rows = self.rows[::step]
        part = len(rows) / len(self.rows) if size is None else float(size[::step].sum() / size.sum())
        return replace(
            self,
            rows=rows,
            sample_weight=None if weight is None else weight[::step],
            size_weight=None if size is None else size[::step],
            share=self.share * part,
        )

    def _off(self, centers: Tensor, bounds: SizeBounds, duals: Array) -> float:
        """Which share of the rows is off target under these duals."""
        scaled = SizeBounds(bounds.lower * self.share, bounds.upper * self.share)
        sizes = self._table(centers, duals, 1).choose(duals).sizes
        return off_target(sizes, duals, scaled) / max(float(sizes.sum()), 1e-300)

    def _table(self, centers: Tensor, duals: Array, n_listed: int) -> Candidates:
        """All rows with their ``n_listed`` best clusters, to float32."""
        lift, size = torch.from_numpy(duals).float().to(centers.device), self.size_weight
        shift = torch.zeros_like(centers[0]) if self.shift is None else self.shift
        moved = (centers - shift).float()
        scale = 0.5 if self.metric == COSINE else 1.0
        labels, costs, beyond = [], [], []
        for first in range(0, len(self.rows), max(1, _PAIRS // len(centers))):
            part = slice(first, first + max(1, _PAIRS // len(centers)))
            rows = (self.rows[part] - shift).float()
            cost = torch.addmm(moved.square().sum(1), rows, moved.t(), alpha=-2)
            cost = cost.add_(rows.square().sum(1, keepdim=True)).clamp_(min=0).mul_(scale)
            if self.sample_weight is not None:
                cost *= self.sample_weight[part, None].float()
            reduced = cost - (lift if size is None else size[part, None].float() * lift)
            taken = min(n_listed + 1, len(centers))
            best, order = reduced.topk(taken, dim=1, largest=False)
            listed = order[:, :n_listed].sort(dim=1).values
            labels.append(listed.to(torch.int32).t())
            costs.append(cost.gather(1, listed).double().t())
            beyond.append(
                best[:, -1].double() if taken > n_listed else torch.full_like(best[:, 0], torch.inf).double()
            )
        return Candidates(
            rows=np.arange(len(self.rows)),
            labels=torch.cat(labels, dim=1).cpu().numpy(),
            costs=torch.cat(costs, dim=1).cpu().numpy(),
            beyond=torch.cat(beyond).cpu().numpy(),
            weights=None if size is None else size.cpu().numpy(),
            settled_sizes=np.zeros(len(centers)),
            settled_cost=0.0,
            settled_margin=np.inf,
            duals=duals.copy(),
        )

    def revive(self, centers: Tensor, empty: Tensor) -> Tensor:
        """Put each empty cluster's center on the row that is farthest from all centers, one after the other.

        Where every row has a center of its own already, the rest stay where they are. empty: bool [K].
        """
        if not bool(empty.any()):
            return centers
        centers = centers.clone()
        distance = torch.full_like(self.rows[:, 0], torch.inf)
        for part in centers[~empty].split(64):
            distance = torch.minimum(distance, torch.cdist(self.rows, part).amin(1).square())
        if self.sample_weight is not None:
            distance = distance * (self.sample_weight > 0)
        for cluster in empty.nonzero()[:, 0].tolist():
            farthest = int(distance.argmax())
            if not float(distance[farthest]) > 1e-12 * float(self.rows.abs().amax()) ** 2:
                break
            centers[cluster] = self.rows[farthest]
            distance = torch.minimum(distance, exact_costs(self.rows, self.rows[farthest]))
        return centers


def stored(rows: Tensor, metric: str) -> Tensor:
    """Rows as a sample holds them: float64, unit vectors for cosine."""
    return unit_rows(rows) if metric == COSINE else rows.double()
