"""Size-constrained assignment against independent solvers: exact where it says so, and never wrong in its proof."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from oracles import Problem, problems, weighted_problems

import coke
from coke.bounded.assignment import assign_within
from coke.bounded.balanced import balanced_assignment
from coke.bounded.costs import DistanceCosts, Prices
from coke.errors import BoundsError, DataError
from coke.vectors import open_vectors


def check_within(problem: Problem, labels: np.ndarray, slack: float = 0.0) -> None:
    assert len(labels) == len(problem.costs)
    assert problem.excess(labels) <= slack


@given(problems())
@settings(max_examples=600)
def test_exact_assignment_equals_highs(problem: Problem) -> None:
    """Ties, duplicates, negative costs, one-sided, per-cluster and equal bounds, weighted rows: see `problems`."""
    found = balanced_assignment(problem.costs, problem.lower, problem.upper)
    check_within(problem, found.labels)
    tiny = 1e-9 * problem.scale
    assert abs(found.cost - problem.cost(found.labels)) <= tiny
    assert abs(found.cost - problem.optimum()) <= tiny
    assert abs(found.cost - found.lower_bound) <= tiny
    assert abs(problem.dual_bound(found.prices.value) - found.lower_bound) <= tiny


@given(weighted_problems())
@settings(max_examples=150)
def test_size_weights_hold_within_the_heaviest_row(problem: Problem) -> None:
    assert problem.weights is not None
    try:
        found = balanced_assignment(
            problem.costs, problem.lower, np.maximum(problem.upper, 0), size_weight=problem.weights
        )
    except BoundsError:  # a row that fits nowhere, or too few rows with a weight
        heavy = problem.weights.max() > problem.upper.max() * (1 - 1e-9)
        assert heavy or ((problem.lower > 0).sum() > (problem.weights > 0).sum())
        return
    check_within(problem, found.labels, slack=problem.weights.max() * (1 + 1e-9))
    tiny = 1e-7 * problem.scale
    assert found.lower_bound <= problem.relaxed_optimum() + tiny
    if problem.excess(found.labels) <= 1e-9:
        assert found.cost >= problem.optimum() - tiny


@pytest.mark.parametrize("ratio", [(0.5, 2.0), (1.0, 1.0), (0.9, 1.1)])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_distances_to_rounded_centers_cost_the_optimum(ratio: tuple[float, float], metric: str) -> None:
    """Distances, from prices that know nothing and offers of none but the best: what a matrix of all of them costs."""
    random = np.random.default_rng(0)
    sizes = 1 / np.arange(1, 16)
    rows = random.normal(size=(15, 8))[random.choice(15, 3000, p=sizes / sizes.sum())]
    rows = (rows + random.normal(size=rows.shape)).astype(np.float32)
    fit = coke.ConstrainedKMeans(20, metric=metric, max_iter=2, random_state=0).fit(rows)
    centers = torch.from_numpy(fit.cluster_centers_).double()
    if metric == "cosine":
        centers = torch.nn.functional.normalize(centers, dim=1)
    bounds = coke.bounded.sizes.resolve_bounds(3000, 20, min_size_ratio=ratio[0], max_size_ratio=ratio[1])
    costs = DistanceCosts(open_vectors(rows), centers, metric)
    labels = np.full(3000, -1, dtype=np.int32)
    found = assign_within(costs, bounds, 3000.0, Prices(*np.zeros((3, 20))), labels)
    unit = rows.astype(np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True) if metric == "cosine" else unit
    distances = ((unit[:, None] - centers.numpy()) ** 2).sum(-1)
    distances = distances / 2 if metric == "cosine" else distances
    optimum = Problem(distances, bounds.lower.numpy(), bounds.upper.numpy()).optimum()
    counts = np.bincount(found.labels, minlength=20)
    assert (counts >= bounds.lower.numpy()).all()
    assert (counts <= bounds.upper.numpy()).all()
    assert found.gap == 0
    assert found.lower_bound <= optimum * (1 + 1e-12)
    assert found.cost == pytest.approx(optimum, rel=1e-11)


def test_assign_balanced_takes_and_gives_the_same_kind() -> None:
    cost = np.array([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]])
    assert isinstance(coke.assign_balanced(cost, 1), np.ndarray)
    assert coke.assign_balanced(torch.from_numpy(cost).half(), 1).dtype == torch.int32
    assert coke.assign_balanced(cost.astype(int), max_size=[2, 1]).tolist() == [1, 0, 0]
    assert coke.assign_balanced(-cost, max_size=2).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("cost", "words"),
    [
        (np.array([[np.nan, 1.0]]), "nan at row 0, cluster 0"),
        (np.array([[1.0, np.inf]]), "inf at row 0, cluster 1"),
        (np.zeros((0, 3)), "shape"),
        (np.zeros(3), "shape"),
        (np.array([["a", "b"]]), "real numbers"),
        (np.zeros((2, 2), complex), "real numbers"),
    ],
)
def test_assign_balanced_refuses(cost: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        coke.assign_balanced(cost)


def test_assign_balanced_says_why_sizes_cannot_hold() -> None:
    with pytest.raises(BoundsError) as caught:
        coke.assign_balanced(np.zeros((10, 3)), min_size=4)
    assert str(caught.value) == str(coke.check_sizes(10, 3, min_size=4))
