"""What a fit knows of its rows before it starts: that they are finite, how large, where they lie, a sample.

With several processes each holds its own rows; together they count as one set, in the order of the processes.

Legend: N rows of all processes, n of this one, D features, S rows of the sample, K clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke import distributed
from coke.bounded.centers import CenterSums
from coke.bounded.costs import COSINE, DistanceCosts, unit_rows
from coke.bounded.kernels import Array
from coke.bounded.sample import Sample, stored
from coke.bounded.seen import Seen
from coke.errors import DataError
from coke.vectors import Vectors

_LARGEST_VALUE = 1e15
_SMALLEST_TOP = 1e-150  # of a row whose length float64 can tell
SAMPLE_ROWS, SAMPLE_ROWS_PER_CLUSTER, MOST_SAMPLE_ROWS = 2**14, 64, 2**17


@dataclass(frozen=True, eq=False)
class Rows:
    """Checked rows of this process, and what all processes know together.

    Attributes:
        vectors: n rows.
        metric: ``"euclidean"`` or ``"cosine"``.
        n_total: N.
        first_row: number of this process's first row among all.
        largest: the largest absolute value of any row, after the shift.
        heaviest: the largest sample weight.
        heaviest_size: the largest size weight, or 0 where there are none.
        shift: float64 [D], a place amid the rows where it matters for precision, else None.
        drawn: a sample of all processes' rows, or None where none is wanted.
        sample_weight, size_weight: float64 [n], or None for 1.
        total_size: N, or the sum of all size weights.
    """

    vectors: Vectors
    metric: str
    n_total: int
    first_row: int
    largest: float
    heaviest: float
    heaviest_size: float
    shift: Tensor | None
    drawn: Sample | None
    sample_weight: Tensor | None
    size_weight: Tensor | None
    total_size: float

    @property
    def sample(self) -> Sample:
        """What was drawn."""
        assert self.drawn is not None, "rows looked at for given centers have no sample"
        return self.drawn

    def costs(self, centers: Tensor, seen: Seen | None = None) -> DistanceCosts:
        """Costs of this process's rows for centers [K, D]; ``seen`` under others."""
        costs = DistanceCosts(
            self.vectors, centers, self.metric, self.shift, self.sample_weight, self.size_weight, seen
        )
        costs.first_row = self.first_row
        return costs

    def costliest(self, own: Array, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` rows of all processes that cost most, in order: float64 [count, D] and their costs.

        own: float64 [n], what this process's rows cost. Rows are unit vectors for cosine.
        """
        chosen = np.sort(np.argsort(own, kind="stable")[-count:])
        values = self.vectors.take(chosen)
        values = unit_rows(values) if self.metric == COSINE else values.double()
        cost = torch.from_numpy(own[chosen]).to(values.device)
        values, cost = distributed.gather_uneven((values, cost))
        kept = cost.argsort(stable=True)[-count:].sort().values
        return values[kept], cost[kept]

    def sums(self, n_clusters: int) -> CenterSums:
        """Empty sums for ``n_clusters`` centers."""
        return CenterSums(
            n_clusters,
            self.vectors.n_features,
            total=self.n_total,
            largest=self.largest,
            weight=self.sample_weight,
            heaviest=self.heaviest,
            metric=self.metric,
            shift=self.shift,
            device=self.vectors.device,
        )


def look_at(
    vectors: Vectors,
    n_clusters: int,
    *,
    metric: str = "euclidean",
    sample_weight: Tensor | None = None,
    size_weight: Tensor | None = None,
    seed: int = 0,
    centers: Tensor | None = None,
    block_rows: int = 2**14,
) -> Rows:
    """Draw the sample, then check every row in one pass. Of rows that are only to find the nearest of ``centers``
    [K, D] nothing is drawn: these say where the rows may lie.

    Raises:
        DataError: NaN or infinity, or for cosine a row of zeros, in any process (named with its row).
    """
    n_total = int(distributed.sum_over_processes(torch.tensor(vectors.n_rows)))
    first_row = distributed.offset(vectors.n_rows)
    total_size = float(n_total)
    if size_weight is not None:
        total_size = float(distributed.sum_over_processes(size_weight.sum()[None]))
    if centers is not None:
        drawn, shift = None, _origin(centers, metric)
    else:
        drawn = _draw(
            vectors, n_clusters, metric, sample_weight, size_weight, n_total, first_row, total_size, seed
        )
        shift = drawn.shift
    largest = _check_pass(vectors, metric, shift, first_row, block_rows)
    heaviest = 1.0 if sample_weight is None else _largest(sample_weight)
    return Rows(
        vectors=vectors,
        metric=metric,
        n_total=n_total,
        first_row=first_row,
        largest=distributed.largest(largest),
        heaviest=distributed.largest(heaviest),
        heaviest_size=0.0 if size_weight is None else distributed.largest(_largest(size_weight)),
        shift=shift,
        drawn=drawn,
        sample_weight=sample_weight,
        size_weight=size_weight,
        total_size=total_size,
    )


def _largest(weights: Tensor) -> float:
    return float(weights.max()) if len(weights) else 0.0


def _draw(
    vectors: Vectors,
    n_clusters: int,
    metric: str,
    sample_weight: Tensor | None,
    size_weight: Tensor | None,
    n_total: int,
    first_row: int,
    total_size: float,
    seed: int,
) -> Sample:
    """Rows at random, in order, the same on every process; all of them where they are few."""
    wanted = min(max(SAMPLE_ROWS, SAMPLE_ROWS_PER_CLUSTER * n_clusters), MOST_SAMPLE_ROWS, n_total)
    columns = [weight for weight in (sample_weight, size_weight) if weight is not None]
    if wanted == n_total == vectors.n_rows:
        own_rows = next(vectors.blocks(n_total))[1]
    else:
        drawn = np.sort(np.random.default_rng(seed).choice(n_total, wanted, replace=False))
        own = torch.from_numpy(drawn[(drawn >= first_row) & (drawn < first_row + vectors.n_rows)] - first_row)
        own_rows = vectors.take(own)
        columns = [weight[own.to(vectors.device)] for weight in columns]
    columns.insert(0, stored(own_rows, metric))
    gathered = list(distributed.gather_uneven(tuple(columns)))
    rows = gathered.pop(0)
    weight = None if sample_weight is None else gathered.pop(0)
    size = None if size_weight is None else gathered.pop(0)
    return Sample(rows, metric, _origin(rows, metric), weight, size, total_size, n_total)


def _origin(rows: Tensor, metric: str) -> Tensor | None:
    """A place near the mean of rows that lie far from 0, of few binary digits: whole numbers less it are exact."""
    if metric == COSINE:
        return None
    variance, mean = torch.var_mean(rows.double(), 0, correction=0)
    if not bool(mean.square().sum() > 0.25 * variance.sum()):
        return None
    spread = float((rows - mean).abs().amax())
    unit = 2.0 ** (math.floor(math.log2(spread)) - 8) if spread > 0 else 1.0
    return (mean / unit).round() * unit if unit > 0 else mean


def _without_direction(rows: Tensor) -> Tensor:
    """Which rows [b] are zero, or of float64 and too small to have a length."""
    return (rows.abs() < _SMALLEST_TOP if rows.dtype == torch.float64 else rows == 0).all(1)


def _check_pass(
    vectors: Vectors, metric: str, shift: Tensor | None, first_row: int, block_rows: int
) -> float:
    """The largest absolute value after the shift; an error for rows that are not finite, or have no direction."""
    largest = 0.0
    error = None
    for start, rows in vectors.blocks(block_rows):
        if error is not None:
            break
        ends = torch.stack(rows.aminmax(dim=0)).double()
        top = float((ends if shift is None else ends - shift).abs().amax())
        if not math.isfinite(top):
            error = _not_finite(vectors, rows, first_row + start)
        elif metric == COSINE and bool((lost := _without_direction(rows)).any()):
            row = int(lost.nonzero()[0])
            what = "below 1e-150 throughout" if bool((rows[row] != 0).any()) else "all zeros"
            error = DataError(
                f"row {first_row + start + row} of {vectors.name} is {what} and has no direction: leave it out for "
                "metric='cosine'"
            )
        elif metric == COSINE and top > 1 / _SMALLEST_TOP:
            error = DataError(
                f"{vectors.name} holds values up to {top:.3g}, whose squares leave the range of float64: "
                "divide the data by its largest value"
            )
        largest = max(largest, top)
    if error is None and metric != COSINE and largest > _LARGEST_VALUE:
        error = DataError(
            f"{vectors.name} holds values up to {largest:.3g} from the mean, whose squares leave the range of "
            f"float32: divide the data by {largest:.0e}, or leave the outlier out"
        )
    distributed.fail_together(error)
    return 1.0 if metric == COSINE else largest


def _not_finite(vectors: Vectors, rows: Tensor, first: int) -> DataError:
    wrong = ~torch.isfinite(rows)
    place = wrong.nonzero()[0].tolist()
    what = "NaN" if bool(rows[place[0], place[1]].isnan()) else "infinity (inf)"
    return DataError(
        f"Input {vectors.name} contains {what}: row {first + place[0]}, column {place[1]}; "
        "drop such rows, or fill them in, first"
    )


def open_weights(
    vectors: Vectors, sample_weight: Any, size_weight: Any
) -> tuple[Tensor | None, Tensor | None]:
    """Both kinds of weights as float64 [N] beside the rows, or None; an error of one process is one of all."""
    error: Exception | None = None
    found: list[Tensor | None] = []
    try:
        for name, values in (("sample_weight", sample_weight), ("size_weight", size_weight)):
            found.append(as_weights(values, name, vectors.n_rows, vectors.device))
    except (ValueError, TypeError) as raised:
        error = raised
    distributed.fail_together(error)
    return found[0], found[1]


def as_weights(values: Any, name: str, n_rows: int, device: torch.device) -> Tensor | None:
    """Weights [n] as float64 on the rows' device; None stays None.

    Raises `DataError` for a wrong length, a negative weight, NaN or infinity, or all zeros.

    >>> as_weights([1, 2], "sample_weight", 2, torch.device("cpu")).tolist()
    [1.0, 2.0]
    """
    if values is None:
        return None
    if not isinstance(values, Tensor):
        values = torch.from_numpy(np.asarray(values, dtype=np.float64).copy())
    weights = values.detach().to(device, torch.float64)
    if weights.ndim == 0:
        weights = weights.expand(n_rows).clone()
    if weights.ndim != 1:
        raise DataError(
            f"{name} must be 1D array or scalar: one weight a row, got shape {tuple(weights.shape)}"
        )
    if len(weights) != n_rows:
        raise DataError(f"{name}.shape == {tuple(weights.shape)}, expected {(n_rows,)}: one weight a row")
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        place = int((~torch.isfinite(weights) | (weights < 0)).nonzero()[0])
        raise DataError(f"{name} must be finite and not negative; row {place} has {float(weights[place])}")
    if n_rows and float(weights.max()) > _LARGEST_VALUE:
        raise DataError(
            f"{name} must be at most {_LARGEST_VALUE:.0e}, row {int(weights.argmax())} has {float(weights.max()):.3g}: "
            "take a larger unit"
        )
    if n_rows and not bool((weights > 0).any()):
        raise DataError(f"{name} is zero for every row: nothing would count")
    return weights
