"""Filling up: any labels end within the bounds, no move makes it worse, and no block decides where a row goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Problem, draw_bounds, problems, seeds, weighted_problems

from coke.bounded.costs import Costs, DistanceCosts, MatrixCosts
from coke.bounded.fill import fill, total_cost, violation
from coke.vectors import open_vectors


def costs_of(problem: Problem) -> MatrixCosts:
    weight = None if problem.weights is None else torch.from_numpy(problem.weights)
    return MatrixCosts(torch.from_numpy(problem.costs), weight)


def starting(seed: int, problem: Problem) -> np.ndarray:
    """Any labels: at random, all in one cluster, or crowded into a few."""
    random = np.random.default_rng(seed)
    n_rows, n_clusters = problem.costs.shape
    few = random.integers(1, n_clusters + 1)
    return random.permutation(n_clusters)[random.integers(0, few, n_rows)].astype(np.int32)


def filled(costs: Costs, problem: Problem, start: np.ndarray, block_rows: int | None) -> np.ndarray:
    labels = torch.from_numpy(start.copy())
    sizes = fill(costs, problem.bounds, labels, problem.sizes(start), block_rows=block_rows)
    assert np.allclose(sizes, problem.sizes(labels.numpy()), atol=1e-9)
    return labels.numpy()


@settings(max_examples=150)
@given(problems(), seeds, st.integers(1, 30))
def test_any_labels_end_within_the_bounds(problem: Problem, seed: int, block_rows: int) -> None:
    start = starting(seed, problem)
    labels = filled(costs_of(problem), problem, start, block_rows)
    assert problem.excess(labels) <= 0
    if problem.excess(start) <= 0:
        assert (labels == start).all()
    moved = np.flatnonzero(labels != start)
    off = violation(problem.sizes(start), problem.bounds)
    assert len(moved) <= off.sum()  # each move lowers the sum by one at least


@settings(max_examples=150)
@given(weighted_problems(), seeds, st.integers(1, 30))
def test_weights_end_within_the_largest(problem: Problem, seed: int, block_rows: int) -> None:
    start = starting(seed, problem)
    labels = filled(costs_of(problem), problem, start, block_rows)
    assert problem.weights is not None
    assert problem.excess(labels) <= problem.weights.max() * (1 + 1e-12)
    before, after = (violation(problem.sizes(each), problem.bounds).sum() for each in (start, labels))
    assert after <= before + 1e-9


def test_an_empty_cluster_is_filled_though_few_offers_name_it() -> None:
    """Every row offers to go to four clusters that lack a little; the one that lacks most is none of them."""
    weights = np.array([3.0, 3.0, 3.0, 3.0, 3.0, 2.0, 2.0, 3.0])
    start = np.array([0, 1, 2, 3, 4, 5, 5, 5], dtype=np.int32)
    share = weights.sum() / 7
    costs = np.zeros((8, 7))
    costs[:, 6] = 9.0
    problem = Problem(costs, np.full(7, share), np.full(7, 2 * share), weights)
    labels = filled(costs_of(problem), problem, start, None)
    assert (labels == 6).any()
    assert problem.excess(labels) <= 3


@settings(max_examples=40)
@given(seeds, st.integers(1, 60))
def test_equal_clusters_are_told_apart_alike_in_every_block(seed: int, block_rows: int) -> None:
    random = np.random.default_rng(seed)
    n_rows, n_clusters = int(random.integers(20, 60)), int(random.integers(3, 12))
    rows = random.normal(size=(n_rows, 64)).astype(np.float32)
    centers = rows[random.integers(0, n_rows, 1 + n_clusters // 2)].astype(np.float64)
    centers = centers[random.integers(0, len(centers), n_clusters)]
    costs = DistanceCosts(open_vectors(rows), torch.from_numpy(centers))
    problem = Problem(np.zeros((n_rows, n_clusters)), *draw_bounds(random, "both", n_rows, n_clusters))
    start = starting(seed, problem)
    whole = filled(costs, problem, start, None)
    assert (filled(costs, problem, start, block_rows) == whole).all()
    assert problem.excess(whole) <= 0


def test_the_cheapest_rows_go_first_and_to_where_they_cost_least() -> None:
    costs = np.array([[0.0, 5.0, 4.0], [0.0, 1.0, 3.0], [0.0, 7.0, 2.0], [0.0, 9.0, 9.0]])
    problem = Problem(costs, np.zeros(3), np.array([2.0, 4.0, 4.0]))
    assert filled(costs_of(problem), problem, np.zeros(4, np.int32), None).tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("n_clusters", [2, 40])
def test_ties_everywhere_end_soon(n_clusters: int) -> None:
    n_rows = 4000
    share = float(n_rows // n_clusters)
    bounds = (np.full(n_clusters, share), np.full(n_clusters, share))
    problem = Problem(np.zeros((n_rows, n_clusters)), *bounds)
    labels = filled(costs_of(problem), problem, np.full(n_rows, n_clusters - 1, np.int32), None)
    assert (problem.sizes(labels) == share).all()


@settings(max_examples=30)
@given(problems(), seeds, st.integers(1, 30))
def test_total_cost_is_the_sum(problem: Problem, seed: int, block_rows: int) -> None:
    labels = starting(seed, problem)
    found = total_cost(costs_of(problem), torch.from_numpy(labels), block_rows=block_rows)
    assert found == pytest.approx(problem.cost(labels), abs=1e-12 * problem.scale)
