"""Rows that stand for all: prices to begin with.

All processes hold the same sample and search it alone, in the same way, without asking each other.

Legend: S rows of the sample, D features, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from coke import distributed
from coke.bounded.assignment import assign_within
from coke.bounded.costs import COSINE, Costs, DistanceCosts, Prices, as_floats, unit_rows
from coke.bounded.kernels import Array
from coke.bounded.sizes import SizeBounds
from coke.vectors.arrays import ArrayVectors

_FIRST_ROWS, _LEAST_ROWS = (
    32,
    2**11,
)  # a cluster, and in all, that come first; each next part is eight times as large
_FEW = 4  # times the sample: of so few rows the whole itself is the last part
_WIDEST = 2  # times a usual width: what a small part needed is more than a larger one does
_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
_DENSE_PAIRS, _DENSE_ROWS = (
    2**22,
    16,
)  # reduced costs that first widths are read off, of so many rows a cluster


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of all processes.

    Attributes:
        rows: float32 or float64 [S, D], unit vectors for cosine.
        metric: ``"euclidean"`` or ``"cosine"``.
        shift: as in `DistanceCosts`.
        sample_weight, size_weight: float64 [S] or None for 1.
        total: N, or the sum of all size weights, of which the sample is a part.
        n_total: N.
    """

    rows: Tensor
    metric: str
    shift: Tensor | None
    sample_weight: Tensor | None
    size_weight: Tensor | None
    total: float
    n_total: int

    @property
    def variance(self) -> float:
        """The rows' variance, averaged over features."""
        return float(self.rows.double().var(0, correction=0).mean())

    def costs(self, centers: Tensor, step: int = 1) -> Costs:
        """Costs of every ``step``-th row for centers [K, D], on the CPU."""
        weight, size = (
            None if values is None else values[::step].cpu()
            for values in (self.sample_weight, self.size_weight)
        )
        rows = ArrayVectors(self.rows[::step].cpu().numpy())
        shift = None if self.shift is None else self.shift.cpu()
        return DistanceCosts(rows, centers.cpu(), self.metric, shift, weight, size)

    def prices(self, centers: Tensor, bounds: SizeBounds, value: Array | None) -> Prices:
        """Prices that nearly fit all rows; ``value`` [K] to begin with."""
        value = np.zeros(len(centers)) if value is None else value
        is_all = _FEW * len(self.rows) >= self.n_total  # or nearly
        return fitting_prices(lambda step: self.costs(centers, step), bounds, self.total, value, is_all)


def fitting_prices(
    costs_of: Callable[[int], Costs], bounds: SizeBounds, total: float, value: Array, is_all: bool
) -> Prices:
    """Prices that nearly fit all rows, since they fit a larger and larger part of some.

    Args:
        costs_of: costs of every n-th row.
        bounds: of all rows, whose sizes sum to ``total``.
        value: prices [K] to begin with.
        is_all: whether these rows are all there are: then the last part is left to the caller.
    """
    costs, n_clusters = costs_of(1), len(value)
    dense = costs.some(max(min(_DENSE_PAIRS // n_clusters, _DENSE_ROWS * n_clusters), 2 * _DENSE_ROWS))
    prices = first_prices(dense, _shortened(dense, bounds, total, value))
    step = max(costs.n_rows // max(_FIRST_ROWS * n_clusters, _LEAST_ROWS), 1)
    while step > 1 or not is_all:
        prices = _fit(costs_of(step), bounds, total, prices)
        usual = first_prices(dense, prices.value)
        most = _WIDEST * np.maximum(usual.width, np.median(usual.width))
        wide = [np.clip(now, plenty, most) for now, plenty in zip(prices[1:], usual[1:], strict=True)]
        prices = Prices(prices.value, *wide)
        if step == 1 or (step <= 4 and is_all):
            break
        step = max(step // 8, 1)
    return prices


def _fit(costs: Costs, bounds: SizeBounds, total: float, prices: Prices) -> Prices:
    """Prices under which some of all rows hold their share of the bounds, which are of sizes that sum to ``total``."""
    labels = np.full(costs.n_rows, -1, dtype=np.int32)
    if costs.size_weight is None:
        share = costs.n_rows / total
        scaled = SizeBounds((bounds.lower * share).floor(), (bounds.upper * share).ceil())
        heaviest = 0.0
    else:
        share = float(costs.size_weight.sum()) / total
        scaled, heaviest = (
            SizeBounds(bounds.lower * share, bounds.upper * share),
            float(costs.size_weight.max()),
        )
    with distributed.alone():
        return assign_within(costs, scaled, total * share, prices, labels, heaviest=heaviest).prices


def first_prices(dense: tuple[Array, Array], value: Array) -> Prices:
    """Prices with widths under which a cluster is offered as many rows from elsewhere as an equal share holds.

    Rows of a cluster that has too many are offered as widely as half of that. ``dense``: costs of some rows for all
    clusters, and what these rows count for, see `Costs.some`.
    """
    (cost, sizes), n_clusters = dense, len(value)
    reduced = cost - (sizes[:, None] * value).astype(cost.dtype)
    reduced -= reduced.min(1, keepdims=True)
    lead = np.ascontiguousarray(
        (reduced / np.where(sizes > 0, sizes, np.inf)[:, None].astype(reduced.dtype)).T
    )
    lead[lead == 0] = np.inf  # rows that are there already, or count for nothing
    rank = min(lead.shape[1] // n_clusters, lead.shape[1] - 1)
    width = np.partition(lead, rank, axis=1)[:, rank].astype(np.float64)
    most = np.max(width, initial=0.0, where=np.isfinite(width))
    width[~np.isfinite(width)] = most  # fewer rows are elsewhere
    return Prices(value, width, width / 2)


def _shortened(dense: tuple[Array, Array], bounds: SizeBounds, total: float, value: Array) -> Array:
    """Prices [K] times that share of 1 under which the dual is highest: those of other centers may be far too large.

    The first centers are single rows, the next are means, and in many dimensions half of all distances goes with that.
    """
    cost, sizes = dense
    if not (value.any() and sizes.any()):
        return value
    dual, lower, upper = [], bounds.lower.numpy(), bounds.upper.numpy()
    for share in _SHARES:
        prices = share * value
        bound = np.where(prices > 0, lower, np.where(prices < 0, upper, 0))
        best = (cost - sizes[:, None] * prices).min(1).sum(dtype=np.float64)
        dual.append(total / sizes.sum() * best + (bound * prices).sum())
    return _SHARES[int(np.argmax(dual))] * value


def stored(rows: Tensor, metric: str) -> Tensor:
    """Rows as a sample holds them: floats that hold their values, unit vectors for cosine."""
    kept = as_floats(rows)
    return unit_rows(rows).to(kept.dtype) if metric == COSINE else kept
