"""`assign_balanced` against HiGHS: the optimum for unit sizes, and what may be said of weighted ones."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import BOUNDS, KINDS, Problem, draw_bounds, draw_costs, problems, weighted_problems
from scipy.optimize import linear_sum_assignment

import coke
from coke.bounded.balanced import balanced_assignment
from coke.errors import BoundsError, DataError


def asked(problem: Problem) -> dict[str, Any]:
    """Bounds as a user would say them: one number where all are equal, none where they do not bind."""
    sizes: dict[str, Any] = {}
    if problem.lower.any():
        sizes["min_size"] = problem.lower if np.ptp(problem.lower) else int(problem.lower[0])
    if (problem.upper < len(problem.costs)).any():
        sizes["max_size"] = problem.upper if np.ptp(problem.upper) else int(problem.upper[0])
    return sizes


@settings(max_examples=600)
@given(problems())
def test_the_optimum_of_an_independent_solver(problem: Problem) -> None:
    found = balanced_assignment(problem.costs, **asked(problem))
    labels, optimum = found.labels, problem.optimum()
    assert problem.excess(labels) <= 0
    assert (found.sizes == problem.sizes(labels)).all()
    rounding = 1e-12 * problem.scale
    assert found.cost == pytest.approx(problem.cost(labels), abs=rounding)
    assert found.cost == pytest.approx(optimum, abs=rounding)
    assert found.lower_bound <= optimum + rounding
    assert found.gap == 0
    assert problem.dual_bound(found.prices.value) == pytest.approx(found.lower_bound, abs=rounding)
    if (problem.costs == np.round(problem.costs)).all():
        assert found.cost == optimum  # whole numbers leave nothing to rounding


def test_every_kind_of_cost_meets_every_kind_of_bound() -> None:
    """What the property draws at random, once each: no combination is left to chance."""
    for kind in KINDS:
        for bounds in BOUNDS:
            random = np.random.default_rng(len(kind) * 100 + len(bounds))
            n_rows, n_clusters = int(random.integers(5, 40)), int(random.integers(1, 6))
            lower, upper = draw_bounds(random, bounds, n_rows, n_clusters)
            problem = Problem(draw_costs(random, kind, n_rows, n_clusters), lower, upper)
            labels = coke.assign_balanced(problem.costs, **asked(problem))
            assert problem.excess(labels) <= 0, (kind, bounds)
            assert problem.cost(labels) == pytest.approx(problem.optimum(), abs=1e-12 * problem.scale)


@pytest.mark.parametrize("kind", ["random", "integers", "duplicates", "distances"])
def test_one_row_a_cluster_is_the_hungarian_method(kind: str) -> None:
    costs = draw_costs(np.random.default_rng(3), kind, 60, 60)
    found = balanced_assignment(costs, 1, 1)
    assert sorted(found.labels.tolist()) == list(range(60))
    assert found.cost == pytest.approx(costs[linear_sum_assignment(costs)].sum(), abs=1e-9)
    assert found.gap == 0


@settings(max_examples=30)
@given(problems(min_rows=2), st.floats(1e6, 1e12))
def test_a_large_cost_forbids_a_pair(problem: Problem, large: float) -> None:
    """As the error for an infinite cost advises; sums of small costs must survive beside it."""
    kept = draw_costs(np.random.default_rng(0), "random", *problem.costs.shape)
    allowed = kept < 0.5
    allowed[np.arange(len(kept)), np.arange(len(kept)) % kept.shape[1]] = True  # within these, equal sizes
    share = len(kept) / kept.shape[1]
    lower, upper = np.full(kept.shape[1], np.floor(share)), np.full(kept.shape[1], np.ceil(share))
    found = balanced_assignment(np.where(allowed, kept, large), lower, upper)
    assert allowed[np.arange(len(kept)), found.labels].all()
    # One more than all allowed pairs can sum to forbids as well, and HiGHS stays exact beside it.
    forbidden = Problem(np.where(allowed, kept, len(kept) + 1.0), lower, upper)
    assert forbidden.excess(found.labels) <= 0
    assert found.cost == pytest.approx(forbidden.optimum(), abs=1e-9)


@settings(max_examples=60)
@given(weighted_problems())
def test_weighted_sizes_hold_but_for_the_largest_weight(problem: Problem) -> None:
    found = balanced_assignment(problem.costs, problem.lower, problem.upper, size_weight=problem.weights)
    labels = found.labels
    assert problem.weights is not None
    slack = float(problem.weights.max()) * (1 + 1e-12) + 1e-9
    assert problem.excess(labels) <= slack
    assert np.allclose(found.sizes, problem.sizes(labels), atol=1e-9)
    assert found.cost == pytest.approx(problem.cost(labels), abs=1e-12 * problem.scale)
    relaxed, whole = problem.relaxed_optimum(), problem.optimum()
    rounding = 1e-6 * (
        problem.scale + np.abs(found.prices.value).sum()
    )  # of milp's constraints, at their prices
    assert found.lower_bound <= relaxed + rounding
    assert relaxed <= whole + rounding
    sizes = problem.sizes(labels)
    own = Problem(
        problem.costs,
        np.minimum(problem.lower, sizes),
        np.maximum(problem.upper, sizes),
        problem.weights,
    )
    assert found.cost >= own.relaxed_optimum() - rounding  # under bounds as wide as it took them
    if problem.excess(labels) <= 0:
        assert found.cost >= whole - rounding
        assert found.cost - whole <= found.cost - found.lower_bound + rounding


def test_weights_of_one_are_rows() -> None:
    random = np.random.default_rng(0)
    costs = random.normal(size=(200, 5))
    unit = balanced_assignment(costs, 35, 45)
    weighted = balanced_assignment(costs, 35, 45, size_weight=np.ones(200))
    assert weighted.lower_bound <= unit.cost + 1e-9
    assert ((weighted.sizes >= 34) & (weighted.sizes <= 46)).all()


WAYS = {
    "list": lambda costs: costs.tolist(),
    "reversed": lambda costs: costs[::-1].copy()[::-1],
    "fortran": np.asfortranarray,
    "big endian": lambda costs: costs.astype(">f8"),
    "float32": lambda costs: costs.astype(np.float32),
    "float16": lambda costs: costs.astype(np.float16),
    "int64": lambda costs: costs.astype(np.int64),
    "int8": lambda costs: costs.astype(np.int8),
    "long double": lambda costs: costs.astype(np.longdouble),
    "read only": lambda costs: np.broadcast_to(costs, costs.shape),
    "tensor": torch.from_numpy,
    "tensor with gradient": lambda costs: torch.from_numpy(costs).requires_grad_(),
    "bfloat16": lambda costs: torch.from_numpy(costs).bfloat16(),
}


@pytest.mark.parametrize("way", WAYS, ids=list(WAYS))
def test_costs_of_every_kind(way: str) -> None:
    costs = np.random.default_rng(1).integers(-9, 10, (40, 4)).astype(np.float64)
    given_ = WAYS[way](costs)
    before = given_.clone() if isinstance(given_, torch.Tensor) else np.array(given_)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = coke.assign_balanced(given_, min_size=8, max_size=12)
    assert isinstance(labels, torch.Tensor) == isinstance(given_, torch.Tensor)
    assert labels.dtype in (np.int32, torch.int32)
    problem = Problem(costs, np.full(4, 8.0), np.full(4, 12.0))
    assert problem.excess(labels) <= 0
    assert problem.cost(np.asarray(labels)) == problem.optimum()
    same = before == given_ if isinstance(given_, torch.Tensor) else np.array(given_) == before
    assert bool(same.all())


@pytest.mark.parametrize(
    ("costs", "sizes", "error", "message"),
    [
        ([[1.0, np.nan]], {}, DataError, "nan at row 0, cluster 1"),
        ([[1.0], [np.inf]], {}, DataError, "inf at row 1, cluster 0"),
        ([1.0, 2.0], {}, DataError, r"must be \[N, K\]"),
        (np.zeros((0, 3)), {}, DataError, r"must be \[N, K\]"),
        (np.zeros((3, 0)), {}, DataError, r"must be \[N, K\]"),
        (np.zeros((3, 2), complex), {}, DataError, "real numbers, got complex128"),
        (torch.zeros(3, 2, dtype=torch.complex64), {}, DataError, "real numbers, got torch.complex64"),
        (np.zeros((3, 2), bool), {}, DataError, "real numbers, got bool"),
        ([[1.0], [2.0, 3.0]], {}, DataError, "different lengths"),
        (np.zeros((10, 3)), {"min_size": 4}, BoundsError, "10 rows cannot fill 3 clusters of at least 4"),
        (np.zeros((10, 3)), {"max_size": 3}, BoundsError, "10 rows do not fit into 3 clusters of at most 3"),
        (np.zeros((10, 3)), {"size_weight": np.ones(9)}, DataError, "size_weight"),
    ],
)
def test_what_cannot_be_is_refused(costs: Any, sizes: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        coke.assign_balanced(costs, **sizes)
