"""What it costs to put a row into a cluster, block by block: roughly for all pairs, exactly for a few.

All N x K pairs go through one float32 product, whose last digits depend on how rows are cut into blocks. So a
rough score comes with a bound on its error, and whoever decides something closer than that asks for the exact
cost: float64, pair by pair, in an order that no block changes. Decisions are then the same for every block size
and number of processes.

Costs are squared Euclidean distances, or 1 - cosine = half the squared distance of unit vectors.
Legend: N rows, D features, K clusters, b rows of a block, P pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from coke.vectors import Vectors

EUCLIDEAN, COSINE = "euclidean", "cosine"
_EXACT_VALUES = {True: 2**19, False: 2**26}  # at a time, by whether it is a CPU, whose cache they should fit
_LARGEST = 2.0**126  # in float32, with room for a difference
_UNDERFLOW = 2.0**-101  # times unit rounding: products below that are lost in float32, so they count as equal
_EVERY = slice(None)
_UNIT_ROUNDING = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}


@dataclass(frozen=True, eq=False)
class Lift:
    """Duals as scores take them, made once for all blocks.

    Attributes:
        duals: float64 [K].
        bias: float32 [K] that the scores of every row get.
        highest: the largest absolute dual, times the largest size weight.
    """

    duals: Tensor
    bias: Tensor
    highest: float


class CostBlock(ABC):
    """Rows ``start`` ... ``start + len - 1`` of a process and their costs."""

    start: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def scores(self, lift: Lift, out: Tensor, rows: slice = _EVERY) -> None:
        """Write minus the reduced costs of some rows, but for a constant of each row, to ``out`` [rows, K]."""

    @abstractmethod
    def tolerance(self, lift: Lift) -> Tensor:
        """What each row's scores are off by at most: float32 [b]."""

    @abstractmethod
    def exact(self, rows: Tensor, clusters: Tensor) -> Tensor:
        """Costs, float64 [P], of pairs (row of the block, cluster): weighted, not reduced."""

    def size_weights(self, rows: Tensor) -> Tensor | float:
        """What rows [P] of the block count for in a size: 1, or float64 [P]."""
        return 1.0


class Costs(ABC):
    """Costs of a process's rows for every cluster."""

    n_rows: int
    n_clusters: int
    n_features: int
    """Values that a row takes in memory."""
    device: torch.device
    first_row: int = 0
    """Number of the process's first row among all rows."""
    size_weight: Tensor | None = None
    """float64 [N] that sizes add up, or None for 1."""

    def lift(self, duals: Tensor) -> Lift:
        """What `CostBlock.scores` takes for duals, float64 [K]."""
        highest = float(duals.abs().max())
        if self.size_weight is not None:
            highest *= float(self.size_weight.max())
        return Lift(duals, self._bias(duals).float(), highest)

    def _bias(self, duals: Tensor) -> Tensor:
        return duals

    @abstractmethod
    def blocks(self, block_rows: int) -> Iterator[CostBlock]:
        """All rows in order."""


class DistanceCosts(Costs):
    """Distances of `Vectors` to centers.

    Args:
        vectors: N rows.
        centers: float64 [K, D] on the vectors' device; unit vectors for cosine.
        metric: ``"euclidean"`` or ``"cosine"``.
        shift: float64 [D], an origin near the data: float32 resolves what is left. Not for cosine.
        sample_weight: float64 [N] that multiplies a row's costs, or None for 1.
        size_weight: float64 [N], or None for 1.
    """

    def __init__(
        self,
        vectors: Vectors,
        centers: Tensor,
        metric: str = EUCLIDEAN,
        shift: Tensor | None = None,
        sample_weight: Tensor | None = None,
        size_weight: Tensor | None = None,
    ) -> None:
        self.vectors, self.centers, self.metric, self.shift = vectors, centers, metric, shift
        self.sample_weight, self.size_weight = sample_weight, size_weight
        self.n_rows, self.n_features = vectors.n_rows, vectors.n_features
        self.n_clusters, self.device = len(centers), vectors.device
        self.scale = 0.5 if metric == COSINE else 1.0
        moved = centers if shift is None else centers - shift
        self.columns = (2 * self.scale * moved).float().t().contiguous()
        self.squares = self.scale * moved.square().sum(1)
        self.longest = float(moved.square().sum(1).max().sqrt()) if len(moved) else 0.0
        precision = "highest" if self.device.type == "cpu" else torch.get_float32_matmul_precision()
        self.unit = _UNIT_ROUNDING[precision]

    @property
    def is_weighted(self) -> bool:
        """Whether rows differ in what a dual or a distance counts for."""
        return self.sample_weight is not None or self.size_weight is not None

    def _bias(self, duals: Tensor) -> Tensor:
        return -self.squares if self.is_weighted else duals - self.squares

    def blocks(self, block_rows: int) -> Iterator[CostBlock]:
        """All rows in order."""
        for start, rows in self.vectors.blocks(block_rows):
            yield DistanceBlock(self, start, rows)


class DistanceBlock(CostBlock):
    """A block of vectors, normalised where the metric asks for it."""

    def __init__(self, costs: DistanceCosts, start: int, rows: Tensor) -> None:
        self.costs, self.start, self.rows = costs, start, rows
        self.weights = None
        if costs.sample_weight is not None:
            self.weights = costs.sample_weight[start : start + len(rows)]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def rough(self) -> Tensor:
        """What the product takes: float32 [b, D], normalised or shifted."""
        rows = self.rows
        if self.costs.metric == COSINE:
            rows = unit_rows(rows)
        elif self.costs.shift is not None:
            rows = rows.double() - self.costs.shift
        return rows.float()

    def scores(self, lift: Lift, out: Tensor, rows: slice = _EVERY) -> None:
        """See `CostBlock`."""
        costs = self.costs
        torch.addmm(lift.bias, self.rough[rows], costs.columns, out=out)
        if self.weights is not None:
            out.mul_(self.weights[rows].float()[:, None])
        if costs.size_weight is not None:
            sizes = costs.size_weight[self.start : self.start + len(self)][rows]
            out.addcmul_(sizes.float()[:, None], lift.duals.float())
        elif costs.is_weighted:
            out.add_(lift.duals.float())

    def tolerance(self, lift: Lift) -> Tensor:
        """See `CostBlock`."""
        costs = self.costs
        length = torch.linalg.vector_norm(self.rough, dim=1)
        n_terms = self.rough.shape[1] + 8
        bound = 2 * costs.scale * n_terms * costs.longest * length + 8 * costs.scale * costs.longest**2
        if self.weights is not None:
            bound = bound * self.weights.float()
        return costs.unit * (bound + 8 * lift.highest + _UNDERFLOW * n_terms * (1 + length))

    def exact(self, rows: Tensor, clusters: Tensor) -> Tensor:
        """See `CostBlock`."""
        step = max(1, _EXACT_VALUES[self.rows.device.type == "cpu"] // self.rows.shape[1])
        parts = [
            exact_costs(self.rows[some], self.costs.centers[goals], self.costs.metric)
            for some, goals in zip(rows.split(step), clusters.split(step), strict=True)
        ]
        costs = torch.cat(parts) if len(parts) > 1 else parts[0]
        return costs if self.weights is None else costs * self.weights[rows]

    def size_weights(self, rows: Tensor) -> Tensor | float:
        """See `CostBlock`."""
        return 1.0 if self.costs.size_weight is None else self.costs.size_weight[self.start + rows]


class MatrixCosts(Costs):
    """Costs that are given: ``cost`` [N, K], any finite values."""

    def __init__(self, cost: Tensor, size_weight: Tensor | None = None) -> None:
        self.cost, self.size_weight = cost, size_weight
        self.n_rows, self.n_clusters = cost.shape
        self.n_features = self.n_clusters
        self.device = cost.device

    def blocks(self, block_rows: int) -> Iterator[CostBlock]:
        """All rows in order."""
        for start in range(0, self.n_rows, block_rows):
            yield MatrixBlock(self, start, self.cost[start : start + block_rows])


class MatrixBlock(CostBlock):
    """Some rows of a cost matrix."""

    def __init__(self, costs: MatrixCosts, start: int, cost: Tensor) -> None:
        self.costs, self.start, self.cost = costs, start, cost

    def __len__(self) -> int:
        return len(self.cost)

    def scores(self, lift: Lift, out: Tensor, rows: slice = _EVERY) -> None:
        """See `CostBlock`."""
        out.copy_((self._raised(lift, rows) - self.cost[rows]).clamp_(-_LARGEST, _LARGEST))

    def _raised(self, lift: Lift, rows: slice) -> Tensor:
        if self.costs.size_weight is None:
            return lift.duals[None, :]
        return lift.duals * self.costs.size_weight[self.start : self.start + len(self.cost)][rows, None]

    def tolerance(self, lift: Lift) -> Tensor:
        """See `CostBlock`."""
        size = self.cost.abs().amax(1).double() + self._raised(lift, _EVERY).abs().amax(1)
        return torch.where(size < _LARGEST, 2.0**-22 * size, torch.inf).float()

    def exact(self, rows: Tensor, clusters: Tensor) -> Tensor:
        """See `CostBlock`."""
        return self.cost[rows, clusters].double()

    def size_weights(self, rows: Tensor) -> Tensor | float:
        """See `CostBlock`."""
        return 1.0 if self.costs.size_weight is None else self.costs.size_weight[self.start + rows]


def exact_costs(rows: Tensor, centers: Tensor, metric: str = EUCLIDEAN) -> Tensor:
    """Cost of each row [P, D] for the center beside it, float64 [P, D]: float64 [P].

    >>> exact_costs(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0]]).double()).item()
    4.0
    >>> exact_costs(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]]).double(), "cosine").item()
    1.0
    """
    if metric == COSINE:
        return (unit_rows(rows) - centers).square_().sum(-1) / 2
    return torch.sub(rows, centers).square_().sum(-1)  # float64, as the centers are


def unit_rows(rows: Tensor) -> Tensor:
    """Rows over their length, float64."""
    rows = rows.double()
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
