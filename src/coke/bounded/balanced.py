"""`assign_balanced`: the cheapest assignment within size bounds, for costs that are already there.

Legend: N rows, K clusters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke.bounded.assignment import EXACT_PAIRS, GAP, Assignment, assign_within, bound_at
from coke.bounded.candidates import Array, Candidates
from coke.bounded.costs import MatrixCosts
from coke.bounded.dual import search_duals
from coke.bounded.rounding import round_to_bounds
from coke.bounded.rows import as_weights
from coke.bounded.sizes import SizeBounds, resolve_bounds
from coke.errors import DataError
from coke.vectors.arrays import as_tensor, to_numbers

_SAMPLE_ROWS = 2**15


def assign_balanced(
    cost: Any, min_size: Any = None, max_size: Any = None, *, size_weight: Any = None, gap: float = GAP
) -> Any:
    """Assign each row to one cluster, sizes within bounds, at the least summed cost.

    Up to 4 million costs the result is optimal; beyond that it is within a relative ``gap`` of the optimum
    wherever passes over near rows reach that (`balanced_assignment` says what was proven).

    Args:
        cost: [N, K] array or tensor of any finite values, negative ones too.
        min_size, max_size: rows of a cluster: one number, one per cluster, or None for no bound.
        size_weight: [N], what a row counts for in a size; bounds then hold up to the largest of them.
        gap: see above.

    Returns:
        int32 [N] labels; a tensor on the costs' device for a tensor.

    Raises:
        BoundsError: sizes that cannot hold.
        DataError: costs that are not a finite [N, K].

    Example:
        >>> assign_balanced(np.array([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]]), min_size=1, max_size=2).tolist()
        [1, 0, 0]
    """
    labels = balanced_assignment(cost, min_size, max_size, size_weight=size_weight, gap=gap).labels
    return labels if isinstance(cost, Tensor) else labels.numpy()


def balanced_assignment(
    cost: Any, min_size: Any = None, max_size: Any = None, *, size_weight: Any = None, gap: float = GAP
) -> Assignment:
    """As `assign_balanced`, with sizes, duals, cost and the lower bound that proves it."""
    values = cost.detach() if isinstance(cost, Tensor) else _real(cost)
    if values.is_complex():
        raise DataError(f"cost must hold real numbers, got {values.dtype}")
    if values.ndim != 2 or 0 in values.shape:
        raise DataError(f"cost must be [N, K], rows and clusters, got shape {tuple(values.shape)}")
    values = values if values.is_floating_point() else values.double()
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        row, cluster = (~finite).nonzero()[0].tolist()
        raise DataError(
            f"cost holds {float(values[row, cluster])} at row {row}, cluster {cluster}: give a large finite one instead"
        )
    n_rows, n_clusters = values.shape
    weight = as_weights(size_weight, "size_weight", n_rows, values.device)
    total = n_rows if weight is None else float(weight.sum())
    whole = None if weight is None else weight.cpu().numpy()
    bounds = resolve_bounds(total, n_clusters, min_size=min_size, max_size=max_size, size_weight=whole)
    if weight is None and values.numel() <= EXACT_PAIRS:
        return exact_assignment(values, bounds)
    duals, bring_near = np.zeros(n_clusters), None
    if n_rows > _SAMPLE_ROWS:

        def bring_near(duals: Array, n_near: int) -> tuple[Array, float]:
            return _sample_duals(values, weight, bounds, float(total), duals, n_near / n_rows)

        duals = bring_near(duals, n_rows)[0]
    return assign_within(
        MatrixCosts(values, weight), bounds, float(total), duals=duals, bring_near=bring_near, gap=gap
    )


def exact_assignment(cost: Tensor, bounds: SizeBounds) -> Assignment:
    """The optimum for finite costs [N, K], by shortest paths over all rows and clusters."""
    costs = cost.double().cpu().numpy()
    table = Candidates.of_costs(costs)
    duals, _ = search_duals(table, bounds, np.zeros(costs.shape[1]))
    column, duals = round_to_bounds(table, bounds, duals)
    labels = torch.from_numpy(column.astype(np.int32)).to(cost.device)
    total = float(costs[np.arange(len(costs)), column].sum())
    sizes = np.bincount(column, minlength=costs.shape[1]).astype(np.float64)
    return Assignment(labels, sizes, duals, total, bound_at(table, bounds, duals), 1)


def _sample_duals(
    cost: Tensor, weight: Tensor | None, bounds: SizeBounds, total: float, duals: Array, near: float
) -> tuple[Array, float]:
    """Duals that nearly fit, from every n-th row, and the margin that a share ``near`` of the rows is within."""
    step = -(-cost.shape[0] // _SAMPLE_ROWS)
    weights = None if weight is None else weight[::step].cpu().numpy()
    table = Candidates.of_costs(cost[::step].double().cpu().numpy(), weights)
    share = (len(table.rows) if weights is None else float(weights.sum())) / total
    scaled = SizeBounds(bounds.lower * share, bounds.upper * share)
    duals, choice = search_duals(table, scaled, duals, tolerance=0.002 * total * share)
    return duals, float(np.quantile(choice.margin, near, method="higher")) if near < 1 else np.inf


def _real(cost: Any) -> Tensor:
    array = to_numbers(cost, "cost")
    if array.dtype.kind not in "fiu":
        raise DataError(f"cost must hold real numbers, got {array.dtype}")
    return as_tensor(array)
