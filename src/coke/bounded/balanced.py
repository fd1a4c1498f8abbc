"""`assign_balanced`: the cheapest assignment within size bounds, for costs that are already there.

Legend: N rows, K clusters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke.bounded.assignment import Assignment, assign_within
from coke.bounded.costs import MatrixCosts, Prices
from coke.bounded.rows import as_weights
from coke.bounded.sample import fitting_prices
from coke.bounded.sizes import resolve_bounds
from coke.errors import DataError
from coke.vectors.arrays import as_tensor, to_numbers

_OFFERED_AT_ONCE = 2**24  # pairs: where there are no more, the search sees them all
_LARGEST_WHOLE = 2**53  # float64 holds every whole number up to here


def assign_balanced(cost: Any, min_size: Any = None, max_size: Any = None, *, size_weight: Any = None) -> Any:
    """Assign each row to one cluster, sizes within bounds, at the least summed cost: the optimum.

    Args:
        cost: [N, K] array or tensor of any finite values, negative ones too.
        min_size: rows of a cluster, at least: one number, one per cluster, or None for no bound.
        max_size: rows of a cluster, at most, likewise.
        size_weight: [N], what a row counts for in a size; bounds then hold up to the largest of them, and the cost is
            near the optimum (`balanced_assignment` says how near).

    Returns:
        int32 [N] labels; a tensor on the costs' device for a tensor.

    Raises:
        BoundsError: sizes that cannot hold.
        DataError: costs that are not a finite [N, K], or whole numbers that float64 does not hold.

    Examples:
        >>> assign_balanced(np.array([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]]), min_size=1, max_size=2).tolist()
        [1, 0, 0]
    """
    labels = balanced_assignment(cost, min_size, max_size, size_weight=size_weight).labels
    return torch.from_numpy(labels).to(cost.device) if isinstance(cost, Tensor) else labels


def balanced_assignment(
    cost: Any, min_size: Any = None, max_size: Any = None, *, size_weight: Any = None
) -> Assignment:
    """As `assign_balanced`, with sizes, duals, cost and the lower bound that proves it."""
    values = cost.detach() if isinstance(cost, Tensor) else _real(cost)
    if values.is_complex():
        raise DataError(f"cost must hold real numbers, got {values.dtype}")
    if values.ndim != 2 or 0 in values.shape:
        raise DataError(f"cost must be [N, K], rows and clusters, got shape {tuple(values.shape)}")
    if values.is_floating_point():
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            row, cluster = (~finite).nonzero()[0].tolist()
            raise DataError(
                f"cost holds {float(values[row, cluster])} at row {row}, cluster {cluster}: give a large finite one "
                "instead"
            )
    elif max(abs(int(end)) for end in values.aminmax()) > _LARGEST_WHOLE:
        raise DataError(
            "cost holds whole numbers beyond 2^53, which float64 cannot tell apart: subtract what all have in common, "
            "or divide them"
        )
    n_rows, n_clusters = values.shape
    weight = as_weights(size_weight, "size_weight", n_rows, torch.device("cpu"))
    total = n_rows if weight is None else float(weight.sum())
    bounds = resolve_bounds(
        total,
        n_clusters,
        min_size=min_size,
        max_size=max_size,
        size_weight=None if weight is None else weight.numpy(),
    )
    value, every = np.zeros(n_clusters), np.full(n_clusters, np.inf)
    if values.numel() <= _OFFERED_AT_ONCE:
        prices = Prices(value, every, value)
    else:

        def some(step: int) -> MatrixCosts:
            return MatrixCosts(values[::step], None if weight is None else weight[::step])

        prices = fitting_prices(some, bounds, float(total), value, is_all=True)
    return assign_within(
        MatrixCosts(values, weight),
        bounds,
        float(total),
        prices,
        np.full(n_rows, -1, dtype=np.int32),
        heaviest=0.0 if weight is None else float(weight.max()),
    )


def _real(cost: Any) -> Tensor:
    array = to_numbers(cost, "cost")
    if array.dtype.kind not in "fiu":
        raise DataError(f"cost must hold real numbers, got {array.dtype}")
    return as_tensor(array)
