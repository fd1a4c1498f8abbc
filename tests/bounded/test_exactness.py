"""Size-constrained assignment against independent solvers: exact where it says so, and never wrong in its proof."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Problem, problems, weighted_problems

import coke
from coke.bounded.assignment import assign_within, bound_at
from coke.bounded.balanced import balanced_assignment, exact_assignment
from coke.bounded.costs import DistanceCosts, MatrixCosts
from coke.bounded.dual import recentre, search_duals, slack_term
from coke.bounded.sweep import Focus, sweep
from coke.errors import BoundsError, DataError
from coke.vectors import open_vectors


def check_within(problem: Problem, labels: np.ndarray, slack: float = 0.0) -> None:
    assert len(labels) == len(problem.costs)
    assert problem.excess(labels) <= slack


@given(problems())
@settings(max_examples=600)
def test_exact_assignment_equals_highs(problem: Problem) -> None:
    """Ties, duplicates, negative costs, one-sided, per-cluster and equal bounds, weighted rows: see `problems`."""
    found = exact_assignment(torch.from_numpy(problem.costs), problem.bounds)
    check_within(problem, found.labels.numpy())
    tiny = 1e-9 * problem.scale
    assert abs(found.cost - problem.cost(found.labels.numpy())) <= tiny
    assert abs(found.cost - problem.optimum()) <= tiny
    assert abs(found.cost - found.lower_bound) <= tiny
    assert abs(problem.dual_bound(found.duals) - found.lower_bound) <= tiny


@given(problems(min_rows=4), st.integers(0, 2**32 - 1))
@settings(max_examples=500)
def test_certificate_is_true_however_little_is_listed(problem: Problem, seed: int) -> None:
    """Truncated tables: few rows, few clusters of each, any block size. Bounds hold, the proof is true."""
    random = np.random.default_rng(seed)
    found = assign_within(
        MatrixCosts(torch.from_numpy(problem.costs)),
        problem.bounds,
        problem.total,
        near_rows=int(random.integers(1, len(problem.costs) + 1)),
        n_listed=int(random.integers(2, 4)),
        max_sweeps=int(random.integers(1, 4)),
        block_rows=int(random.integers(1, 30)),
        gap=0.0 if seed % 2 else 1e-3,
    )
    check_within(problem, found.labels.numpy())
    tiny = 1e-9 * problem.scale
    optimum = problem.optimum()
    assert abs(found.cost - problem.cost(found.labels.numpy())) <= tiny
    assert found.lower_bound <= optimum + tiny
    assert found.cost - optimum <= found.cost - found.lower_bound + tiny


@given(problems(min_rows=4), st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_every_table_bounds_from_below_at_any_duals(problem: Problem, seed: int) -> None:
    random = np.random.default_rng(seed)
    size = float(np.abs(problem.costs).max()) + 1.0
    at = random.normal(size=len(problem.lower)) * size * random.random()
    labels = torch.full((len(problem.costs),), -1, dtype=torch.int32)
    focus = Focus(float(size * random.random()), 2, int(random.integers(1, len(labels) + 1)), certify=True)
    table = sweep(MatrixCosts(torch.from_numpy(problem.costs)), at, labels, focus).table
    tiny = 1e-9 * (problem.scale + len(labels) * size)
    assert abs(bound_at(table, problem.bounds, at) - problem.dual_bound(at)) <= tiny
    for _ in range(5):
        other = at + random.normal(size=len(at)) * size * random.random() ** 3
        assert bound_at(table, problem.bounds, other) <= problem.dual_bound(other) + tiny


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
    check_within(problem, found.labels.numpy(), slack=problem.weights.max() * (1 + 1e-9))
    tiny = 1e-7 * problem.scale
    assert found.lower_bound <= problem.relaxed_optimum() + tiny
    if problem.excess(found.labels.numpy()) <= 1e-9:
        assert found.cost >= problem.optimum() - tiny


@given(problems())
@settings(max_examples=100)
def test_recentre_is_the_best_common_shift(problem: Problem) -> None:
    random = np.random.default_rng(len(problem.costs))
    duals = random.normal(size=len(problem.lower)).round(1)
    moved = recentre(duals, problem.bounds, problem.total)
    assert np.ptp(moved - duals) <= 1e-12
    reached = slack_term(moved, problem.bounds) - problem.total * (moved - duals)[0]
    for shift in [*-duals, *np.linspace(-4, 4, 33)]:
        value = slack_term(duals + shift, problem.bounds) - problem.total * shift
        assert value <= reached + 1e-9 * problem.total


@given(problems())
@settings(max_examples=100)
def test_search_never_lowers_the_bound(problem: Problem) -> None:
    table = problem.table
    start = np.random.default_rng(0).normal(size=len(problem.lower))
    found, choice = search_duals(table, problem.bounds, start)
    tiny = 1e-9 * (problem.scale + len(problem.costs))
    assert problem.dual_bound(found) >= problem.dual_bound(start) - tiny
    assert np.array_equal(choice.sizes, table.choose(found).sizes)


@pytest.mark.parametrize("ratio", [(0.5, 2.0), (1.0, 1.0), (0.9, 1.1)])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_large_mode_meets_its_gap_and_the_exact_optimum(ratio: tuple[float, float], metric: str) -> None:
    """Distances, tables of a fraction of the rows: as good as shortest paths over everything."""
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
    found = assign_within(costs, bounds, 3000.0, near_rows=300, n_listed=4, gap=1e-6)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True) if metric == "cosine" else rows
    distances = ((unit[:, None].astype(np.float64) - centers.numpy()) ** 2).sum(-1)
    distances = distances / 2 if metric == "cosine" else distances
    optimum = exact_assignment(torch.from_numpy(distances), bounds).cost
    counts = np.bincount(found.labels.numpy(), minlength=20)
    assert (counts >= bounds.lower.numpy()).all()
    assert (counts <= bounds.upper.numpy()).all()
    assert found.gap <= 1e-6
    assert found.lower_bound <= optimum * (1 + 1e-7)
    assert found.cost <= optimum * (1 + 1.1e-6)


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
