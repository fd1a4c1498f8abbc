"""Assignments over several sweeps: bounds hold, and what is certified is true, however little a table shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import KINDS, Problem, draw_bounds, draw_costs, duals_of, problems, seeds, weighted_problems

from coke.bounded.assignment import (
    Assignment,
    assign_within,
    bound_at,
    is_free,
    kept_labels,
    next_reach,
    relative_gap,
)
from coke.bounded.candidates import Candidates
from coke.bounded.costs import Costs, DistanceCosts, MatrixCosts
from coke.bounded.sweep import Focus, sweep
from coke.vectors import open_vectors


@st.composite
def narrow(draw: Any) -> dict[str, Any]:
    """Settings under which tables are truncated and sweeps are few."""
    return {
        "near_rows": draw(st.integers(1, 20)),
        "n_listed": draw(st.integers(1, 4)),
        "max_sweeps": draw(st.integers(1, 4)),
        "reach": draw(st.sampled_from([np.inf, 0.0, 0.5])),
    }


@st.composite
def distance_problems(draw: Any) -> tuple[DistanceCosts, Problem]:
    """Vectors and centers: on a grid or not, far from the origin or not, weighted, euclidean or cosine."""
    random = np.random.default_rng(draw(seeds))
    n_rows, n_clusters, n_features = random.integers(2, 40), random.integers(2, 9), random.integers(1, 6)
    grid, dtype = draw(st.booleans()), draw(st.sampled_from([np.float32, np.float64, np.float16]))
    metric = draw(st.sampled_from(["euclidean", "cosine"]))
    shape = (n_rows, n_features)
    rows = random.integers(-2, 3, shape).astype(float) if grid else random.normal(size=shape)
    rows[~rows.any(1)] = 1.0  # rows of zeros have no direction
    rows = (rows + draw(st.sampled_from([0.0, 1000.0]))).astype(dtype)
    values = rows.astype(np.float64)
    centers = values[random.integers(0, n_rows, n_clusters)]
    centers = centers if grid else centers + 0.1 * random.normal(size=centers.shape)
    shift = values.mean(0) if metric == "euclidean" and draw(st.booleans()) else None
    weight = random.exponential(size=n_rows) * (random.random(n_rows) < 0.8) if draw(st.booleans()) else None
    if metric == "cosine":
        centers /= np.linalg.norm(centers, axis=1, keepdims=True)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
    half = 2.0 if metric == "cosine" else 1.0
    matrix = ((values[:, None] - centers[None]) ** 2).sum(-1) / half
    costs = DistanceCosts(
        open_vectors(rows),
        torch.from_numpy(centers),
        metric,
        shift=None if shift is None else torch.from_numpy(shift),
        sample_weight=None if weight is None else torch.from_numpy(weight),
    )
    bounds = draw(st.sampled_from(["minimum", "maximum", "both", "equal", "per cluster"]))
    if weight is not None:
        matrix = matrix * weight[:, None]
    return costs, Problem(matrix, *draw_bounds(random, bounds, n_rows, n_clusters))


def check(found: Assignment, problem: Problem, rounding: float) -> None:
    """Bounds hold, figures are those of the labels, and cost - optimum <= cost - lower_bound."""
    labels, optimum = found.labels.numpy(), problem.optimum()
    assert problem.excess(labels) <= 0
    assert (found.sizes == problem.sizes(labels)).all()
    assert found.cost == pytest.approx(problem.cost(labels), abs=1e-3 * rounding)
    assert optimum <= found.cost + 1e-6 * problem.scale  # as far as HiGHS tells costs apart
    assert found.lower_bound <= optimum + rounding
    assert problem.dual_bound(found.duals) >= found.lower_bound - rounding  # the duals given prove it
    assert found.gap == relative_gap(found.cost, found.lower_bound) >= 0
    if found.lower_bound > rounding:
        assert (found.cost - optimum) / optimum <= found.gap + 1e-9


TIED = Problem(np.array([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]]), np.zeros(4), np.ones(4), None)
"""Margins shrink without end on the way to its duals."""


@settings(max_examples=150)
@given(problems(min_rows=2), narrow(), seeds, st.integers(1, 30))
@example(TIED, {"near_rows": 1, "n_listed": 1, "max_sweeps": 3, "reach": np.inf}, 0, 1)
def test_the_certificate_is_true_for_given_costs(
    problem: Problem, limits: dict[str, Any], seed: int, block_rows: int
) -> None:
    duals = duals_of(problem, seed)
    single = bool(seed % 2)
    if single:  # float32 costs, which are the problem then
        rounded = problem.costs.astype(np.float32).astype(np.float64)
        problem = Problem(rounded, problem.lower, problem.upper)
    matrix = torch.from_numpy(problem.costs)
    costs = MatrixCosts(matrix.float() if single else matrix)
    found = assign_within(costs, problem.bounds, problem.total, duals=duals, block_rows=block_rows, **limits)
    check(found, problem, 1e-9 * (problem.scale + problem.total * np.abs(duals).max()))


@settings(max_examples=100)
@given(distance_problems(), narrow(), seeds)
def test_the_certificate_is_true_for_distances(
    pair: tuple[DistanceCosts, Problem], limits: dict[str, Any], seed: int
) -> None:
    costs, problem = pair
    duals = duals_of(problem, seed) if seed % 3 else None
    largest = 0.0 if duals is None else float(np.abs(duals).max())
    rounding = 1e-9 * (problem.scale + problem.total * largest)
    found = [
        assign_within(costs, problem.bounds, problem.total, duals=duals, block_rows=block_rows, **limits)
        for block_rows in (3, None)
    ]
    check(found[0], problem, rounding)
    for other in found[1:]:
        assert torch.equal(other.labels, found[0].labels)
        assert other.lower_bound == pytest.approx(found[0].lower_bound, abs=rounding)


@settings(max_examples=80)
@given(distance_problems(), seeds, st.integers(1, 5), st.integers(1, 20), st.sampled_from([np.inf, 0.0, 0.3]))
def test_bounds_on_the_way_are_true_at_any_duals(
    pair: tuple[DistanceCosts, Problem], seed: int, n_listed: int, max_rows: int, reach: float
) -> None:
    costs, problem = pair
    start = duals_of(problem, seed)
    labels = torch.full((costs.n_rows,), -1, dtype=torch.int32)
    table = sweep(costs, start, labels, Focus(reach, n_listed, max_rows, certify=True), block_rows=3).table
    optimum = problem.optimum()
    for step in range(6):
        duals = duals_of(problem, seed + step)
        rounding = 1e-9 * (problem.scale + problem.total * (np.abs(duals) + np.abs(start)).max())
        found = bound_at(table, problem.bounds, duals)
        assert found <= problem.dual_bound(duals) + rounding
        assert found <= optimum + rounding
        if step == 0:
            assert found == pytest.approx(problem.dual_bound(duals), abs=rounding)


@settings(max_examples=60)
@given(weighted_problems(), narrow(), seeds)
def test_weighted_sizes_stay_within_the_largest_weight(
    problem: Problem, limits: dict[str, Any], seed: int
) -> None:
    assert problem.weights is not None
    costs = MatrixCosts(torch.from_numpy(problem.costs), torch.from_numpy(problem.weights))
    duals = duals_of(problem, seed)
    found = assign_within(costs, problem.bounds, problem.total, duals=duals, **limits)
    assert problem.excess(found.labels.numpy()) <= problem.weights.max() * (1 + 1e-12) + 1e-9
    rounding = 1e-7 * (problem.scale + problem.total * np.abs(duals).max())
    assert found.lower_bound <= problem.relaxed_optimum() + rounding
    assert problem.dual_bound(found.duals) >= found.lower_bound - rounding


@pytest.mark.parametrize("kind", KINDS)
def test_a_gap_of_zero_is_exact_at_once(kind: str) -> None:
    random = np.random.default_rng(7)
    for bounds in ("minimum", "both", "exact per cluster"):
        costs = draw_costs(random, kind, 150, 6)
        problem = Problem(costs, *draw_bounds(random, bounds, 150, 6))
        found = assign_within(MatrixCosts(torch.from_numpy(costs)), problem.bounds, 150.0, gap=0)
        assert found.n_sweeps == 1
        check(found, problem, 1e-11 * problem.scale)
        assert found.cost == pytest.approx(problem.optimum(), abs=1e-11 * problem.scale)


def test_duplicate_centers_and_rows_give_the_same_labels_for_every_block_size() -> None:
    """Ties among more clusters than are listed, in products whose last digits do depend on the block."""
    for seed in range(3):
        random = np.random.default_rng(seed)
        rows = random.normal(size=(260, 64)).astype(np.float32)[random.integers(0, 90, 260)]
        centers = rows[random.integers(0, 260, 12)].astype(np.float64)[random.integers(0, 12, 40)]
        costs = DistanceCosts(open_vectors(rows), torch.from_numpy(centers))
        problem = Problem(np.empty((260, 40)), np.full(40, 5.0), np.full(40, 9.0))
        limits = {"near_rows": 60, "n_listed": 3, "max_sweeps": 3}
        found = [
            assign_within(costs, problem.bounds, 260.0, block_rows=block_rows, **limits)
            for block_rows in (260, 1, 33)
        ]
        for other in found[1:]:
            assert torch.equal(other.labels, found[0].labels)
            assert np.array_equal(other.duals, found[0].duals)


def test_without_bounds_it_is_the_nearest_cluster() -> None:
    costs = np.random.default_rng(0).normal(size=(50, 4))
    problem = Problem(costs, np.zeros(4), np.full(4, 50.0))
    assert is_free(problem.bounds, 50.0)
    labels = torch.full((50,), 3, dtype=torch.int32)
    found = assign_within(MatrixCosts(torch.from_numpy(costs)), problem.bounds, 50.0, labels=labels)
    assert found.labels is labels
    assert (labels.numpy() == costs.argmin(1)).all()
    assert found.gap == 0
    assert not found.duals.any()
    assert not is_free(Problem(costs, np.eye(4)[0], np.full(4, 50.0)).bounds, 50.0)
    assert not is_free(Problem(costs, np.zeros(4), np.full(4, 49.0)).bounds, 50.0)


def test_it_asks_for_nearer_duals_where_those_at_hand_are_far_off() -> None:
    random = np.random.default_rng(0)
    costs = random.normal(size=(400, 5))
    problem = Problem(costs, np.full(5, 75.0), np.full(5, 85.0))
    asked = []

    def bring_near(duals: np.ndarray, n_rows: int) -> tuple[np.ndarray, float]:
        asked.append(n_rows)
        return np.zeros(5), 0.1

    far = np.array([1e3, 0.0, 0.0, 0.0, 0.0])
    matrix: Costs = MatrixCosts(torch.from_numpy(costs))
    found = assign_within(
        matrix, problem.bounds, 400.0, duals=far, reach=0.1, near_rows=20, bring_near=bring_near
    )
    assert asked
    check(found, problem, 1e-6 * problem.scale)


def test_figures_by_hand() -> None:
    assert relative_gap(3.0, 2.0) == 0.5
    assert relative_gap(1.0, 0.0) == np.inf
    assert relative_gap(0.0, 0.0) == relative_gap(-5.0, -5.0) == relative_gap(1.0, 2.0) == 0
    margin = np.array([5.0, 1.0, 3.0])
    assert next_reach(margin, 9.0, 1) == 3.0  # rows 1 and 2 are within
    assert next_reach(margin, 9.0, 6) == 18.0
    table = Candidates.of_costs(np.zeros((4, 2)))
    where, now = kept_labels(table, np.array([1, 0, 1, 1]), 1, torch.zeros(2, dtype=torch.int32))
    assert (where.tolist(), now.tolist()) == ([0, 1], [0, 1])  # of rows 1 and 2, which are this process's
