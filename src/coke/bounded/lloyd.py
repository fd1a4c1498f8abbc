"""Lloyd's iterations under size bounds: assign with duals, correct the near rows, move the centers.

An iteration makes one sweep. The duals of the iteration before nearly fit, once each is lowered by what its
cluster's rows have gained from the move of their center; the table of near rows gives the search what it needs to
correct them, and the rows that this moves are corrected in the sums. Only the last assignment has to be exact.

Legend: N rows, D features, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coke.bounded.assignment import (
    GAP,
    NEAR_ROWS,
    Assignment,
    assign_within,
    is_free,
    kept_labels,
    next_reach,
)
from coke.bounded.candidates import Array, Candidates
from coke.bounded.centers import CenterSums
from coke.bounded.costs import COSINE, unit_rows
from coke.bounded.dual import off_target, search_duals
from coke.bounded.rounding import round_to_bounds
from coke.bounded.rows import Rows
from coke.bounded.sizes import SizeBounds
from coke.bounded.sweep import Focus, sweep
from coke.vectors import Vectors

_NEAR_PER_CLUSTER = 20  # near rows, at first
_FEWEST_NEAR = 4  # near rows per cluster, where little was off before
_LEAST_NEAR = 2**10  # of any table: so few cost nothing
_LISTED = 4  # clusters of a near row: enough for small corrections
_CLOSE_ENOUGH = 0.002  # of all rows may be off their target while centers still move
_TOO_FAR = 0.03  # of all rows: beyond it the iteration sweeps again before it moves its centers
_MOST_SWEEPS = 4  # of one iteration
_FEW_ROWS, _FEW_WRONG = 2**14, 2**10  # in all, and off target: those are moved at once, before centers follow


@dataclass(frozen=True, eq=False)
class Fit:
    """Centers, and the bounded assignment under them.

    Attributes:
        centers: float64 [K, D].
        assignment: of this process's rows.
        n_iterations: moves of the centers.
        converged: whether they came to rest before the last iteration allowed.
    """

    centers: Tensor
    assignment: Assignment
    n_iterations: int
    converged: bool


def lloyd(
    rows: Rows,
    centers: Tensor,
    bounds: SizeBounds,
    *,
    duals: Array | None = None,
    max_iter: int = 300,
    tolerance: float = 0.0,
    gap: float = GAP,
    block_rows: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Fit:
    """Alternate assignment and centers from the given ones [K, D], then assign within the bounds.

    tolerance: summed squared move of the centers at which they have come to rest.
    progress: told a line for each iteration.
    """
    free, dtype = is_free(bounds, rows.total_size), returned_dtype(rows.vectors.dtype)
    centers = centers.to(dtype).double()  # labels must be those of the centers as they are returned
    labels = torch.full((rows.vectors.n_rows,), -1, dtype=torch.int32, device=rows.vectors.device)
    sums = rows.sums(len(centers))
    near_rows = min(_NEAR_PER_CLUSTER * len(centers), NEAR_ROWS)
    reach, n_done, converged = np.inf, 0, False
    if duals is None:
        duals = np.zeros(len(centers))
        if not free:
            duals, reach = rows.bring_near(centers, bounds)(duals, near_rows)
    for n_done in range(1, max_iter + 1):
        costs = rows.costs(centers)
        n_changed, n_listed = 0, 0 if free else _LISTED
        for turn in range(_MOST_SWEEPS):
            focus = Focus(reach, n_listed, near_rows)
            swept = sweep(costs, duals, labels, focus, block_rows=block_rows, moved=sums.moved)
            n_changed = max(n_changed, swept.n_changed)
            if free:
                break
            table = swept.table
            wrong = off_target(swept.sizes, duals, bounds)
            duals, choice = search_duals(table, bounds, duals, tolerance=_CLOSE_ENOUGH * rows.total_size)
            off = off_target(choice.sizes, duals, bounds)
            far = off > _TOO_FAR * rows.total_size
            near_rows = int(max(_FEWEST_NEAR * len(centers), _LEAST_NEAR, 4 * wrong, 4 * near_rows * far))
            near_rows = min(near_rows, NEAR_ROWS)
            reach = next_reach(choice.margin, table.settled_margin, near_rows)
            if not far:
                break
            n_listed = min(4 * n_listed, len(centers))
            if off > rows.sample.noise(len(centers)) * rows.total_size and turn < _MOST_SWEEPS - 1:
                duals, reach = rows.bring_near(centers, bounds)(duals, near_rows)
        if not free:
            column = choice.column
            if 0 < off <= _FEW_WRONG and rows.n_total <= _FEW_ROWS and rows.size_weight is None:
                column, _ = round_to_bounds(table, bounds, duals)
            _correct(rows, sums, labels, table, column)
        moved, weights, gain = sums.centers(centers)
        if not free:
            duals = follow(duals, table.sizes(column), (gain * weights).cpu().numpy())
        moved = rows.sample.revive(moved, weights <= 0).to(dtype).double()
        shift = float((moved - centers).square().sum())
        centers = moved
        if progress is not None:
            progress(f"iteration {n_done}: {n_changed:,} labels changed, centers moved by {shift:.3g}")
        if shift <= tolerance or (free and n_changed == 0):  # bounds may move rows that the sweep left
            converged = True
            break
    assignment = assign_within(
        rows.costs(centers),
        bounds,
        rows.total_size,
        duals=duals,
        labels=labels,
        reach=reach,
        bring_near=rows.bring_near(centers, bounds),
        near_rows=max(near_rows, 2 * _NEAR_PER_CLUSTER * len(centers)),
        gap=gap,
        block_rows=block_rows,
    )
    return Fit(centers, assignment, n_done, converged)


def assign_rows(
    rows: Rows,
    centers: Tensor,
    bounds: SizeBounds,
    duals: Array,
    *,
    gap: float = GAP,
    block_rows: int | None = None,
) -> Assignment:
    """Assign rows within the bounds under given centers [K, D], from duals [K] that may be far from fitting."""
    reach, bring_near = np.inf, rows.bring_near(centers, bounds)
    if not is_free(bounds, rows.total_size):
        duals, reach = bring_near(duals, _NEAR_PER_CLUSTER * len(centers))
    return assign_within(
        rows.costs(centers),
        bounds,
        rows.total_size,
        duals=duals,
        reach=reach,
        bring_near=bring_near,
        gap=gap,
        block_rows=block_rows,
    )


def nearest_centers(rows: Rows, centers: Tensor, *, block_rows: int | None = None) -> tuple[Tensor, float]:
    """The nearest of the centers [K, D] for each row, int32 [N], and what that costs in all; without bounds."""
    labels = torch.full((rows.vectors.n_rows,), -1, dtype=torch.int32, device=rows.vectors.device)
    focus = Focus(0.0, 0, certify=True)
    swept = sweep(rows.costs(centers), np.zeros(len(centers)), labels, focus, block_rows=block_rows)
    return labels, swept.cost


def distances(vectors: Vectors, centers: Tensor, metric: str) -> Tensor:
    """Distance of every row to each center [K, D]: [N, K], Euclidean or 1 - cosine."""
    parts = []
    for _, block in vectors.blocks(max(1, 2**20 // len(centers))):
        cosine = metric == COSINE
        found = 1 - unit_rows(block) @ centers.t() if cosine else torch.cdist(block.double(), centers)
        parts.append(found.to(returned_dtype(vectors.dtype)))
    return torch.cat(parts)


def follow(duals: Array, sizes: Array, gains: Array) -> Array:
    """Duals [K] after the centers have moved: lowered by what their cluster has gained beyond the others.

    A center that moved amid its rows costs them less, and would draw in more under its old dual. The yardstick
    is what a row of the clusters without a dual gained, or of all clusters if each has one; those without one
    stay without, and no dual changes its sign. gains: [K] summed over a cluster's rows.

    >>> follow(np.array([0.0, 3.0, -1.0]), np.array([10.0, 10.0, 10.0]), np.array([10.0, 30.0, 30.0])).tolist()
    [0.0, 1.0, -3.0]
    """
    held = sizes > 0
    rest = held & (duals == 0) if (held & (duals == 0)).any() else held
    usual = gains[rest].sum() / sizes[rest].sum()
    own = np.divide(gains, sizes, out=np.full(len(sizes), usual), where=held)
    moved = np.where(duals != 0, duals - (own - usual), 0.0)
    return np.where(moved * duals < 0, 0.0, moved)


def returned_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of centers for rows of a type: float64 for float64 and integers, else float32.

    >>> returned_dtype(torch.float16), returned_dtype(torch.int64)
    (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 or not dtype.is_floating_point else torch.float32


def _correct(rows: Rows, sums: CenterSums, labels: Tensor, table: Candidates, column: Array) -> None:
    """Bring labels and sums to what the search chose for the near rows of this process."""
    where, now = kept_labels(table, column, rows.first_row, labels)
    former = labels[where]
    changed = former != now
    where, now, former = where[changed], now[changed], former[changed]
    labels[where] = now
    weights = None if rows.sample_weight is None else rows.sample_weight[where]
    sums.add(rows.vectors.take(where), weights, now.long(), former.long())
