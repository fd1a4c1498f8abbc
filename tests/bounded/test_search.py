"""The search alone, every pair on offer: the optimum of HiGHS from any prices, and prices that prove it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import BOUNDS, KINDS, Problem, draw_bounds, draw_costs, duals_of, problems, seeds
from scipy.optimize import linear_sum_assignment

from coke.bounded.search import Offers, Sizes, move_rows


def all_offers(costs: np.ndarray, prices: np.ndarray, weight: np.ndarray | None = None) -> Offers:
    """Every pair, and each row at its best cluster."""
    n_rows, n_clusters = costs.shape
    weight = np.ones(n_rows) if weight is None else weight
    best = (costs - weight[:, None] * prices).argmin(1)
    return Offers(
        np.arange(n_rows + 1, dtype=np.int64) * n_clusters,
        np.tile(np.arange(n_clusters, dtype=np.int32), n_rows),
        costs.ravel().astype(np.float64),
        np.arange(n_rows, dtype=np.int64) * n_clusters + best,
        weight.copy(),
    )


def without(offers: Offers, dropped: np.ndarray) -> Offers:
    """The same with fewer pairs, so that arcs are found by a table; no row loses the cluster it is in."""
    kept = ~dropped
    kept[offers.at] = True
    row = np.repeat(np.arange(len(offers.at)), np.diff(offers.start))
    start = np.concatenate([[0], np.cumsum(np.bincount(row[kept], minlength=len(offers.at)))])
    at = (np.cumsum(kept) - 1)[offers.at]
    return Offers(start, offers.cluster[kept], offers.cost[kept], at, offers.weight)


def solved(
    problem: Problem, offers: Offers, start: np.ndarray, **options: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Labels, prices, by how much offers fell short and how many paths were gone."""
    n_clusters, prices = len(start), start.copy()
    held = np.bincount(offers.cluster[offers.at], offers.weight, n_clusters).astype(np.float64)
    sizes = Sizes(held, problem.lower, problem.upper)
    wide = np.full(n_clusters, options.pop("width", np.inf))
    reach, margin, slack = np.zeros(n_clusters), options.pop("margin", 1.0), options.pop("slack", 0.0)
    short, n_paths = move_rows(offers, sizes, prices, wide, reach, margin, slack, problem.weights is None)
    labels = offers.cluster[offers.at]
    assert np.allclose(sizes.held, np.bincount(labels, offers.weight, n_clusters), rtol=1e-12)
    row = np.repeat(np.arange(len(offers.at)), np.diff(offers.start))
    assert (row[offers.at] == np.arange(len(offers.at))).all()  # every row at one of its own offers
    return labels, prices, short, n_paths


def check_optimal(problem: Problem, labels: np.ndarray, prices: np.ndarray, start: np.ndarray) -> None:
    """HiGHS's cost, and complementary slackness: the two together leave nothing unproven."""
    sizes = problem.sizes(labels)
    assert problem.excess(labels) <= 0
    off = 1e-12 * (np.abs(problem.costs).max() + np.abs(start).max() + np.abs(prices).max()) * len(prices)
    assert problem.cost(labels) == pytest.approx(
        problem.optimum(), abs=1e-9 * problem.scale + len(labels) * off
    )
    reduced = problem.costs - prices
    assert (reduced[np.arange(len(labels)), labels] <= reduced.min(1) + off).all()
    assert (sizes[prices > off] == problem.lower[prices > off]).all()
    assert (sizes[prices < -off] == problem.upper[prices < -off]).all()
    assert problem.dual_bound(prices) == pytest.approx(problem.cost(labels), abs=4 * len(labels) * off)


@settings(max_examples=300)
@given(problems(), seeds)
def test_the_optimum_from_any_prices(problem: Problem, seed: int) -> None:
    start = duals_of(problem, seed)
    labels, prices, short, _ = solved(problem, all_offers(problem.costs, start), start)
    assert not short.any()
    check_optimal(problem, labels, prices, start)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bounds", BOUNDS)
def test_every_kind_of_cost_and_bound(kind: str, bounds: str) -> None:
    for seed in range(3):
        random = np.random.default_rng((KINDS.index(kind), BOUNDS.index(bounds), seed))
        n_rows, n_clusters = int(random.integers(20, 80)), int(random.integers(2, 12))
        costs = draw_costs(random, kind, n_rows, n_clusters)
        problem = Problem(costs, *draw_bounds(random, bounds, n_rows, n_clusters))
        start = duals_of(problem, seed) if seed else np.zeros(n_clusters)
        labels, prices, short, _ = solved(problem, all_offers(costs, start), start)
        assert not short.any()
        check_optimal(problem, labels, prices, start)


@pytest.mark.parametrize("kind", ["random", "integers", "few values", "duplicates", "distances", "constant"])
def test_one_row_a_cluster_is_the_hungarian_method(kind: str) -> None:
    for seed in range(4):
        random = np.random.default_rng(seed)
        costs = draw_costs(random, kind, 40, 40)
        problem = Problem(costs, np.ones(40), np.ones(40))
        start = random.normal(size=40) * seed
        labels, prices, _, _ = solved(problem, all_offers(costs, start), start)
        assert sorted(labels) == list(range(40))
        assert problem.cost(labels) == pytest.approx(costs[linear_sum_assignment(costs)].sum(), abs=1e-10)
        assert problem.dual_bound(prices) == pytest.approx(problem.cost(labels), abs=1e-9)


def test_nothing_is_moved_where_all_is_well() -> None:
    costs = np.random.default_rng(0).random((30, 4))
    problem = Problem(costs, np.zeros(4), np.full(4, 30.0))
    labels, prices, _, n_paths = solved(problem, all_offers(costs, np.zeros(4)), np.zeros(4))
    assert n_paths == 0
    assert (labels == costs.argmin(1)).all()
    assert not prices.any()
    begun = problem.optimum()
    labels, prices, _, _ = solved(problem, all_offers(costs, prices), prices)
    assert problem.cost(labels) == pytest.approx(begun, abs=1e-12)


@settings(max_examples=200)
@given(problems(min_rows=3), seeds)
def test_prices_and_rows_fit_each_other_however_few_pairs_are_on_offer(problem: Problem, seed: int) -> None:
    """No row would rather be elsewhere among its offers; where nothing is short, the best of all that they allow."""
    random = np.random.default_rng(seed)
    start = duals_of(problem, seed)
    full = all_offers(problem.costs, start)
    offers = without(full, random.random(len(full.cluster)) < random.choice([0.2, 0.6, 0.9]))
    row = np.repeat(np.arange(len(offers.at)), np.diff(offers.start))
    labels, prices, short, _ = solved(problem, offers, start, width=1e9)
    off = 1e-12 * (np.abs(problem.costs).max() + np.abs(start).max() + np.abs(prices).max()) * len(prices)
    if short.any():
        return
    reduced = offers.cost - prices[offers.cluster]
    assert (reduced[offers.at][row] <= reduced + off).all()
    assert problem.excess(labels) <= 0
    forbidden = np.full_like(problem.costs, 1e4 * (np.abs(problem.costs).max() + 1))
    forbidden[row, offers.cluster] = offers.cost
    allowed = Problem(forbidden, problem.lower, problem.upper)
    sizes = problem.sizes(labels)
    assert (sizes[prices > off] == problem.lower[prices > off]).all()
    assert (sizes[prices < -off] == problem.upper[prices < -off]).all()
    assert problem.cost(labels) == pytest.approx(allowed.dual_bound(prices), abs=4 * len(labels) * off)


def test_what_no_offer_leads_to_is_said() -> None:
    """Two clusters, rows of the first on offer nowhere else: the second stays empty and asks for more."""
    costs = np.array([[0.0, 5.0], [0.0, 6.0], [0.0, 7.0]])
    problem = Problem(costs, np.array([0.0, 1.0]), np.array([3.0, 3.0]))
    full = all_offers(costs, np.zeros(2))
    labels, prices, short, _ = solved(problem, without(full, full.cluster == 1), np.zeros(2), width=2.0)
    assert labels.tolist() == [0, 0, 0]
    assert short.tolist() == [[0.0, 1.0], [0.0, 0.0]]  # the margin, to the cluster that no offer leads to
    assert 0 < prices[1] - prices[0] <= 5  # as far as it is known that no row is worth moving
    labels, prices, short, _ = solved(problem, full, np.zeros(2))
    assert labels.tolist() == [1, 0, 0]
    assert not short.any()
    assert prices.tolist() == [0.0, 5.0]


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1))
def test_equal_weights_are_rows(seed: int) -> None:
    """Rows that all weigh the same, in bounds that whole rows can hold, cost the optimum as well."""
    random = np.random.default_rng(seed)
    n_rows, n_clusters = int(random.integers(4, 40)), int(random.integers(2, 6))
    costs = draw_costs(random, str(random.choice(KINDS)), n_rows, n_clusters)
    lower, upper = draw_bounds(random, str(random.choice(BOUNDS)), n_rows, n_clusters)
    start = np.zeros(n_clusters)
    weight = np.full(n_rows, 2.0)
    problem = Problem(costs, 2 * lower, 2 * upper, weight)
    labels, _, _, _ = solved(problem, all_offers(costs, start, weight), start)
    assert problem.excess(labels) <= 0
    assert problem.cost(labels) == pytest.approx(
        Problem(costs, lower, upper).optimum(), abs=1e-9 * problem.scale
    )
