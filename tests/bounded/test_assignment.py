"""Assignments over several sweeps: the optimum and its proof, however far off prices are and however narrow offers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import (
    BOUNDS,
    KINDS,
    Problem,
    draw_bounds,
    draw_costs,
    duals_of,
    problems,
    seeds,
    weighted_problems,
)

from coke.bounded.assignment import Assignment, assign_within, is_free, needed, relative_gap
from coke.bounded.costs import Costs, DistanceCosts, MatrixCosts, Prices
from coke.vectors import open_vectors


def prices_of(problem: Problem, seed: int) -> Prices:
    """Prices near and far, under which offers are none but the best, a few, some clusters' alone, or all."""
    random, n_clusters = np.random.default_rng(seed + 1), len(problem.lower)
    spread = np.ptp(problem.costs) + 1e-3
    wide = [
        spread * random.choice([0.0, 0.0, 0.01, 0.3, 3.0]) * random.random(n_clusters).round(1)
        for _ in range(2)
    ]
    if random.random() < 0.1:
        wide[0][:] = np.inf
    return Prices(duals_of(problem, seed), *wide)


def assigned(costs: Costs, problem: Problem, prices: Prices, **options: Any) -> Assignment:
    labels = options.pop("labels", None)
    labels = np.full(len(problem.costs), -1, dtype=np.int32) if labels is None else labels
    heaviest = 0.0 if problem.weights is None else float(problem.weights.max())
    found = assign_within(costs, problem.bounds, problem.total, prices, labels, heaviest=heaviest, **options)
    assert found.labels is labels
    return found


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


def rounding_of(problem: Problem, *prices: Prices) -> float:
    """What float64 loses beside prices that large."""
    largest = max(float(np.abs(each.value).max()) for each in prices)
    return 1e-12 * (problem.scale + 4 * problem.total * largest) + LOST


LOST = 1e-27
"""What a distance of 0 may come to: rounding of values near 1, squared, for many rows."""


def check(found: Assignment, problem: Problem, rounding: float) -> None:
    """Bounds hold, figures are those of the labels, the cost is the optimum, and the prices prove it."""
    labels, optimum = found.labels, problem.optimum()
    assert labels.dtype == np.int32
    assert problem.excess(labels) <= 0
    assert (found.sizes == problem.sizes(labels)).all()
    assert found.cost == pytest.approx(problem.cost(labels), abs=1e-12 * problem.scale + LOST)
    assert found.cost == pytest.approx(optimum, abs=rounding + 1e-9 * problem.scale)
    assert found.lower_bound <= optimum + 1e-12 * problem.scale + LOST
    assert found.lower_bound == pytest.approx(optimum, abs=rounding + 1e-9 * problem.scale)
    assert found.gap == relative_gap(found.cost, found.lower_bound, found.rounding) >= 0
    assert (
        0 <= found.rounding <= 1e-12 * max(1.0, abs(found.cost), abs(found.lower_bound)) * len(found.labels)
    )
    if not is_free(problem.bounds, problem.total):
        assert problem.dual_bound(found.prices.value) == pytest.approx(found.cost, abs=rounding)


TIED = Problem(np.array([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]]), np.zeros(4), np.ones(4), None)
"""Its least prices are 0, and many others prove as much."""


@settings(max_examples=400)
@given(problems(), seeds, st.integers(1, 30))
@example(TIED, 0, 1)
def test_the_optimum_of_given_costs_from_any_prices_and_widths(
    problem: Problem, seed: int, block_rows: int
) -> None:
    single = bool(seed % 2)
    if single:  # float32 costs, which are the problem then
        rounded = problem.costs.astype(np.float32).astype(np.float64)
        problem = Problem(rounded, problem.lower, problem.upper)
    matrix, prices = torch.from_numpy(problem.costs), prices_of(problem, seed)
    costs = MatrixCosts(matrix.float() if single else matrix)
    found = assigned(costs, problem, prices, block_rows=block_rows)
    check(found, problem, rounding_of(problem, prices, found.prices))
    assert found.moved == pytest.approx(
        found.prices.value - (0 if is_free(problem.bounds, problem.total) else prices.value)
    )


@settings(max_examples=150)
@given(distance_problems(), seeds)
def test_the_optimum_of_distances_for_every_block_size(
    pair: tuple[DistanceCosts, Problem], seed: int
) -> None:
    costs, problem = pair
    prices = prices_of(problem, seed)
    found = [assigned(costs, problem, prices, block_rows=block_rows) for block_rows in (3, None)]
    rounding = rounding_of(problem, prices, found[0].prices) + costs.rounding * problem.scale
    check(found[0], problem, 10 * rounding)
    for other in found[1:]:
        assert np.array_equal(other.labels, found[0].labels)
        assert np.array_equal(other.prices.value, found[0].prices.value)
        assert (other.cost, other.lower_bound) == (found[0].cost, found[0].lower_bound)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bounds", BOUNDS)
def test_every_kind_of_cost_and_bound(kind: str, bounds: str) -> None:
    random = np.random.default_rng((KINDS.index(kind), BOUNDS.index(bounds)))
    costs = draw_costs(random, kind, 150, 6)
    problem = Problem(costs, *draw_bounds(random, bounds, 150, 6))
    for seed in range(2):
        prices = prices_of(problem, seed)
        found = assigned(MatrixCosts(torch.from_numpy(costs)), problem, prices)
        check(found, problem, rounding_of(problem, prices, found.prices))


def test_every_pair_on_offer_takes_one_sweep() -> None:
    random = np.random.default_rng(0)
    costs = random.random((300, 7))
    problem = Problem(costs, np.full(7, 40.0), np.full(7, 45.0))
    found = assigned(
        MatrixCosts(torch.from_numpy(costs)), problem, Prices(np.zeros(7), np.full(7, np.inf), np.zeros(7))
    )
    assert found.n_sweeps == 1
    assert found.n_off == sum(
        max(40 - held, 0) + max(held - 45, 0) for held in np.bincount(costs.argmin(1), minlength=7)
    )
    again = assigned(MatrixCosts(torch.from_numpy(costs)), problem, found.prices, labels=found.labels.copy())
    assert (again.n_sweeps, again.cost) == (1, pytest.approx(found.cost, abs=1e-12))


@settings(max_examples=150)
@given(weighted_problems(), seeds, st.integers(1, 15))
def test_weighted_sizes_stay_within_the_largest_weight(problem: Problem, seed: int, block_rows: int) -> None:
    assert problem.weights is not None
    costs = MatrixCosts(torch.from_numpy(problem.costs), torch.from_numpy(problem.weights))
    prices = prices_of(problem, seed)
    found = assigned(costs, problem, prices, block_rows=block_rows)
    assert problem.excess(found.labels) <= problem.weights.max() * (1 + 1e-12) + 1e-9
    assert found.sizes == pytest.approx(problem.sizes(found.labels), abs=1e-9)
    assert found.cost == pytest.approx(problem.cost(found.labels), abs=1e-12 * problem.scale + LOST)
    assert found.lower_bound <= problem.relaxed_optimum() + 1e-7 * problem.scale


def test_duplicate_centers_and_rows_give_the_same_labels_for_every_block_size() -> None:
    """Ties among many clusters, in products whose last digits do depend on the block."""
    for seed in range(3):
        random = np.random.default_rng(seed)
        rows = random.normal(size=(260, 64)).astype(np.float32)[random.integers(0, 90, 260)]
        centers = rows[random.integers(0, 260, 12)].astype(np.float64)[random.integers(0, 12, 40)]
        costs = DistanceCosts(open_vectors(rows), torch.from_numpy(centers))
        problem = Problem(np.empty((260, 40)), np.full(40, 5.0), np.full(40, 9.0))
        prices = Prices(*np.zeros((3, 40)))
        found = [assigned(costs, problem, prices, block_rows=block_rows) for block_rows in (260, 1, 33)]
        for other in found[1:]:
            assert np.array_equal(other.labels, found[0].labels)
            assert np.array_equal(other.prices.value, found[0].prices.value)


def test_without_bounds_it_is_the_nearest_cluster_whatever_the_prices() -> None:
    costs = np.random.default_rng(0).normal(size=(50, 4))
    problem = Problem(costs, np.zeros(4), np.full(4, 50.0))
    assert is_free(problem.bounds, 50.0)
    labels = np.full(50, 3, dtype=np.int32)
    prices = Prices(np.array([9.0, 0.0, 0.0, 0.0]), np.zeros(4), np.zeros(4))
    found = assigned(MatrixCosts(torch.from_numpy(costs)), problem, prices, labels=labels)
    assert (labels == costs.argmin(1)).all()
    assert (found.gap, found.n_sweeps) == (0, 1)
    assert not found.prices.value.any()
    assert found.n_changed == (costs.argmin(1) != 3).sum()
    assert found.former_cost == pytest.approx(costs[:, 3].sum(), rel=1e-12)
    assert not is_free(Problem(costs, np.eye(4)[0], np.full(4, 50.0)).bounds, 50.0)
    assert not is_free(Problem(costs, np.zeros(4), np.full(4, 49.0)).bounds, 50.0)


def test_a_row_stays_where_that_costs_no_more() -> None:
    """So that iterations end."""
    costs = MatrixCosts(torch.zeros(6, 3).double())
    problem = Problem(np.zeros((6, 3)), np.full(3, 2.0), np.full(3, 2.0))
    labels = np.array([2, 0, 1, 1, 2, 0], dtype=np.int32)
    found = assigned(costs, problem, Prices(*np.zeros((3, 3))), labels=labels.copy())
    assert (found.labels == labels).all()
    assert (found.n_changed, found.n_off, found.cost) == (0, 0, 0)


def test_figures_by_hand() -> None:
    assert relative_gap(3.0, 2.0) == 0.5
    assert relative_gap(1.0, 0.0) == np.inf
    assert relative_gap(0.0, 0.0) == relative_gap(-5.0, -5.0) == relative_gap(1.0, 2.0) == 0
    width, reach = needed(np.array([1.0, 4.0, -2.0, 1.0]))
    assert width.tolist() == [0.0, 3.0, 0.0, 0.0]
    assert reach.tolist() == [0.0, 0.0, 3.0, 0.0]
    moved = np.random.default_rng(0).normal(size=9)
    width, reach = needed(moved)
    assert (moved[:, None] - moved <= width[:, None] + reach + 1e-15).all()
