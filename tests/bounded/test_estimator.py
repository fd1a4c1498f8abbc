"""`ConstrainedKMeans`: what fit, predict, assign, warm starts and weights promise, asked of HiGHS and definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kmeans_cases import blobs, check_fit, costs_of, problem_of
from numpy.testing import assert_allclose, assert_array_equal
from oracles import Problem

from coke import ConstrainedKMeans
from coke.bounded.sizes import resolve_bounds
from coke.errors import BoundsError, DataError

SIZES: dict[str, dict[str, Any]] = {
    "minimum": {"min_size": 11},
    "maximum": {"max_size": 15},
    "both": {"min_size": 10, "max_size": 14},
    "balanced": {"min_size_ratio": 1, "max_size_ratio": 1},
    "ratios": {"min_size_ratio": 0.7, "max_size_ratio": 1.2},
    "per cluster": {"min_size": [0, 5, 10, 15, 20], "max_size": [60, 9, 12, 30, 20]},
    "count and ratio": {"min_size": 8, "max_size_ratio": 1.5},
    "all taken": {"min_size": 12},
    "none": {},
}


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_lower_bound_and_gap_are_true_of_the_returned_centers(sizes: dict[str, Any], metric: str) -> None:
    for seed in range(3):
        rows, random = blobs(60, seed=seed), np.random.default_rng(seed)
        weight = None if seed == 0 else random.exponential(size=60) * (random.random(60) < 0.9)
        km = ConstrainedKMeans(5, metric=metric, random_state=seed, **sizes).fit(rows, sample_weight=weight)
        problem = check_fit(km, rows, weight)
        optimum = problem.optimum()
        assert km.lower_bound_ <= optimum * (1 + 1e-9)
        assert optimum * (1 - 1e-9) <= km.inertia_ <= optimum * (1 + km.gap_ + 1e-9)
        assert km.gap_ == pytest.approx(max(km.inertia_ / km.lower_bound_ - 1, 0), abs=1e-9)
        assert km.gap_ <= 1e-5
        # The duals are the proof: whoever has the rows can check it with a formula.
        assert problem.dual_bound(km.duals_) == pytest.approx(km.lower_bound_, rel=2e-5)


def test_it_costs_the_optimum() -> None:
    rows = blobs(90, seed=4)
    km = ConstrainedKMeans(7, min_size=11, max_size=16, random_state=0).fit(rows)
    assert km.inertia_ == pytest.approx(check_fit(km, rows).optimum(), rel=1e-12)
    assert km.gap_ == 0


@pytest.mark.parametrize("size", [1.0, 2.0])
def test_iterations_come_near_those_with_exact_assignments(size: float) -> None:
    """Also where rows' lengths span orders of magnitude: outliers drew in no rows once, and cost 30 times as much."""
    random = np.random.default_rng(1)
    rows = random.normal(size=(300, 2)) * np.exp(size * random.normal(size=(300, 1)))
    centers = start = rows[random.choice(300, 5, replace=False)]
    bounds = (np.full(5, 30.0), np.full(5, 120.0))
    for _ in range(10):
        labels = Problem(costs_of(rows, centers), *bounds)._corner().argmax(1)
        centers = np.stack([rows[labels == k].mean(0) for k in range(5)])
    exact = Problem(costs_of(rows, centers), *bounds).optimum()
    km = ConstrainedKMeans(5, min_size=30, max_size=120, init=start, max_iter=10, tol=0).fit(rows)
    assert check_fit(km, rows).optimum() <= 1.02 * exact


def test_duals_fit_the_sizes() -> None:
    """Raised clusters are at their minimum, lowered ones at their maximum, others have none."""
    rows = blobs(200, seed=2)
    km = ConstrainedKMeans(6, min_size=25, max_size=45, random_state=0).fit(rows)
    assert (km.counts_[km.duals_ > 0] == 25).all()
    assert (km.counts_[km.duals_ < 0] == 45).all()
    assert {25, 45} <= set(km.counts_.tolist())
    assert_array_equal((problem_of(km, rows).costs - km.duals_).argmin(1), km.labels_)


def test_predict_is_the_nearest_center_without_bounds() -> None:
    rows = blobs(200)
    km = ConstrainedKMeans(6, min_size_ratio=1, max_size_ratio=1, random_state=0).fit(rows)
    costs = costs_of(rows, km.cluster_centers_)
    assert_array_equal(km.predict(rows), costs.argmin(1))
    assert (km.predict(rows) != km.labels_).any()
    for row in (0, 57):
        assert_array_equal(km.predict(rows[[row]]), costs[[row]].argmin(1))
    assert km.score(rows) == pytest.approx(-costs.min(1).sum(), rel=1e-9)
    assert km.score(rows, sample_weight=np.arange(200)) == pytest.approx(
        -(costs.min(1) * np.arange(200)).sum()
    )
    assert_allclose(km.transform(rows), np.sqrt(costs), atol=1e-9)


def test_a_tie_goes_to_the_first_cluster() -> None:
    km = ConstrainedKMeans(3, init=[[0.0], [2.0], [2.0]], max_iter=1).fit([[0.0], [2.0], [2.0], [0.0]])
    assert km.predict([[1.0], [2.0], [0.9]]).tolist() == [0, 1, 0]


def test_cosine_looks_at_directions_alone() -> None:
    rows, random = blobs(150), np.random.default_rng(0)
    first, second = (
        ConstrainedKMeans(4, metric="cosine", min_size=30, random_state=0).fit(some)
        for some in (rows, rows * random.choice([0.5, 1.0, 4.0], size=(150, 1)))
    )
    assert_array_equal(first.labels_, second.labels_)
    assert_allclose(np.linalg.norm(first.cluster_centers_, axis=1), 1, atol=1e-12)
    assert_allclose(first.transform(rows), costs_of(rows, first.cluster_centers_, "cosine"), atol=1e-12)


def test_assign_takes_the_bounds_given_or_else_the_estimators() -> None:
    rows, other = blobs(300), blobs(101, seed=9)
    km = ConstrainedKMeans(5, min_size_ratio=0.5, max_size_ratio=1.5, random_state=0).fit(rows)
    for given_ in ({}, {"min_size": 20}, {"max_size": 21}, {"min_size_ratio": 1, "max_size_ratio": 1}):
        problem = problem_of(km, other, **given_)
        found = km.assignment(other, **given_)
        assert problem.excess(found.labels) <= 0
        assert_array_equal(found.labels, km.assign(other, **given_))
        assert found.cost == pytest.approx(problem.cost(found.labels), rel=1e-9)
        assert found.lower_bound <= problem.optimum() * (1 + 1e-9)
        assert found.cost <= problem.optimum() * (1 + found.gap + 1e-9)
        assert found.gap <= 1e-5
    # A bound given takes the place of all of the estimator's, not only of that of its side.
    assert np.bincount(km.assign(other, min_size=0)).max() > 1.5 * 101 / 5
    with pytest.raises(BoundsError, match="101 rows cannot fill 5 clusters of at least 21"):
        km.assign(other, min_size=21)


def test_counts_of_the_estimator_may_not_fit_a_small_set() -> None:
    km = ConstrainedKMeans(5, min_size=50, random_state=0).fit(blobs(300))
    with pytest.raises(BoundsError, match="40 rows cannot fill"):
        km.assign(blobs(40))
    assert np.bincount(km.assign(blobs(40), min_size_ratio=0.8)).min() >= 7


def test_assign_weighs_rows() -> None:
    rows, random = blobs(80), np.random.default_rng(0)
    km = ConstrainedKMeans(4, random_state=0).fit(rows)
    weight = random.integers(0, 9, 80)
    problem = problem_of(km, rows, weight, max_size=20)
    found = km.assignment(rows, max_size=20, sample_weight=weight)
    assert found.cost == pytest.approx(problem.optimum(), rel=1e-5)
    assert problem.excess(found.labels) <= 0
    loads = np.bincount(km.assign(rows, max_size=110, size_weight=weight), weight, 4)
    assert loads.max() <= 110 + weight.max()


def test_warm_start_keeps_numbers_when_rows_are_added() -> None:
    rows = blobs(900, seed=3)
    km = ConstrainedKMeans(6, min_size_ratio=0.6, max_size_ratio=1.6, warm_start=True, random_state=0)
    labels, centers = km.fit_predict(rows[:700]), km.cluster_centers_
    first = km.n_iter_
    for n_rows in (700, 750, 900):
        km.fit(rows[:n_rows])
        check_fit(km, rows[:n_rows])
        assert (km.labels_[:700] == labels).mean() > 0.9
        assert_array_equal(costs_of(km.cluster_centers_, centers).argmin(1), np.arange(6))
        assert km.n_iter_ <= first
    # Without it the seed decides, and numbers change.
    cold = ConstrainedKMeans(6, min_size_ratio=0.6, max_size_ratio=1.6, random_state=5).fit(rows[:700])
    assert (cold.labels_ == labels).mean() < 0.5


def test_warm_start_needs_the_same_clusters() -> None:
    km = ConstrainedKMeans(4, warm_start=True, random_state=0).fit(blobs(100))
    with pytest.raises(DataError, match="n_clusters=5"):
        km.set_params(n_clusters=5).fit(blobs(100))


def test_starts() -> None:
    rows, seen = blobs(200).astype(np.float32), []

    def first_rows(sample: np.ndarray, n_clusters: int, random_state: Any) -> np.ndarray:
        seen.append((sample.shape, random_state.randint(100)))
        return sample[:n_clusters]

    start = rows[:5].copy()
    by_function = ConstrainedKMeans(5, init=first_rows, n_init=2, random_state=0).fit(rows)
    by_array = ConstrainedKMeans(5, init=start, n_init=7).fit(rows)
    assert_array_equal(by_function.labels_, by_array.labels_)
    assert [shape for shape, _ in seen] == [(200, 3)] * 2
    assert_array_equal(start, rows[:5])
    one, many = (ConstrainedKMeans(5, init="random", n_init=n, random_state=1).fit(rows) for n in (1, 10))
    assert many.inertia_ <= one.inertia_
    assert ConstrainedKMeans(5, init="random", random_state=1).fit(rows).inertia_ == many.inertia_
    assert ConstrainedKMeans(5, min_size=10, max_iter=1).fit(rows).n_iter_ == 1


@pytest.mark.parametrize("n_weighing", [1, 3, 50])
@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_starts_cope_with_rows_without_weight(init: str, n_weighing: int) -> None:
    rows, weight = blobs(60), np.zeros(60)
    weight[5 : 5 + n_weighing] = 1
    km = ConstrainedKMeans(5, init=init, min_size=4, random_state=0).fit(rows, sample_weight=weight)
    check_fit(km, rows, weight)


def test_without_bounds_whole_weights_are_repetition() -> None:
    rows, start = blobs(150), blobs(150)[::30]
    weight = np.random.default_rng(0).integers(0, 4, 150)
    for metric in ("euclidean", "cosine"):
        asked = {"init": start, "metric": metric, "tol": 0}
        weighted = ConstrainedKMeans(5, **asked).fit(rows, sample_weight=weight)
        repeated = ConstrainedKMeans(5, **asked).fit(np.repeat(rows, weight, axis=0))
        assert_allclose(weighted.cluster_centers_, repeated.cluster_centers_, atol=1e-9)
        assert_array_equal(np.repeat(weighted.labels_, weight), repeated.labels_)
        assert weighted.inertia_ == pytest.approx(repeated.inertia_, rel=1e-9)


def test_bounded_sums_of_whole_weights_bound_repeated_rows() -> None:
    """Weights in the objective and in the sizes are repetition, but for rows that repetition may tear apart.

    The bound is that of torn rows. The labels cost more, since whole rows go last, one by one.
    """
    rows, random = blobs(120), np.random.default_rng(1)
    weight = random.integers(1, 5, 120)
    repeated, share = np.repeat(rows, weight, axis=0), weight.sum() / 5
    km = ConstrainedKMeans(5, random_state=0).fit(rows)
    sizes = {"min_size": float(int(share * 0.8)), "max_size": float(int(share * 1.3))}
    found = km.assignment(rows, sample_weight=weight, size_weight=weight, **sizes)
    of_repeated = problem_of(km, repeated, **sizes).optimum()
    assert found.lower_bound <= of_repeated * (1 + 1e-9)
    assert found.lower_bound == pytest.approx(of_repeated, rel=1e-3)
    assert found.cost <= 1.1 * of_repeated


def test_one_weight_for_all_changes_nothing() -> None:
    rows, sizes = blobs(200), {"min_size": 20, "max_size": 60}
    fits = [
        ConstrainedKMeans(5, random_state=0, **sizes).fit(rows, sample_weight=weight)
        for weight in (None, np.ones(200), np.full(200, 0.25), np.full(200, 1024.0), 2.0)
    ]
    for other in fits[1:]:
        assert_array_equal(other.labels_, fits[0].labels_)
        assert_array_equal(other.cluster_centers_, fits[0].cluster_centers_)
    assert fits[3].inertia_ == pytest.approx(1024 * fits[0].inertia_, rel=1e-12)


def test_a_row_without_weight_takes_room_but_pulls_no_center() -> None:
    rows = np.concatenate([blobs(100), np.full((20, 3), 50.0)])
    weight = np.r_[np.ones(100), np.zeros(20)]
    km = ConstrainedKMeans(4, min_size=25, random_state=0).fit(rows, sample_weight=weight)
    check_fit(km, rows, weight)
    assert km.counts_.sum() == 120
    assert km.cluster_centers_.max() < 20
    for k in range(4):
        own = (km.labels_ == k) & (weight > 0)
        assert_allclose(km.cluster_centers_[k], rows[own].mean(0), atol=1e-2)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 0.95]), st.sampled_from([1.05, 1.5, 9.0]))
def test_weighted_sizes_miss_by_no_more_than_the_heaviest_row(seed: int, low: float, high: float) -> None:
    random = np.random.default_rng(seed)
    n_rows, n_clusters = int(random.integers(20, 80)), int(random.integers(2, 6))
    rows, size = blobs(n_rows, seed=seed), random.pareto(2, n_rows) + 0.05
    share = size.sum() / n_clusters
    sizes = {"min_size": low * share, "max_size": max(high * share, size.max())}
    km = ConstrainedKMeans(n_clusters, random_state=0, max_iter=20, **sizes).fit(rows, size_weight=size)
    loads = np.bincount(km.labels_, size, n_clusters)
    assert loads.max() <= sizes["max_size"] + size.max()
    assert loads.min() >= sizes["min_size"] - size.max()
    assert_array_equal(np.bincount(km.labels_, minlength=n_clusters), km.counts_)
    bounds = resolve_bounds(n_rows, n_clusters, size_weight=size, **sizes)
    problem = Problem(costs_of(rows, km.cluster_centers_), bounds.lower.numpy(), bounds.upper.numpy(), size)
    assert km.lower_bound_ <= problem.relaxed_optimum() * (1 + 1e-6) + 1e-9


def test_equal_size_weights_are_counts() -> None:
    rows = blobs(120)
    km = ConstrainedKMeans(4, min_size=50, max_size=70, random_state=0).fit(
        rows, size_weight=np.full(120, 2.0)
    )
    assert km.counts_.min() >= 25
    assert km.counts_.max() <= 35
