"""Right answers, asked through public names: bounds hold, and no reassignment and no move of centers is better.

Every iteration is an exact assignment within the bounds, after which each center is the mean of its rows. So the
objective never rises, and a fit without a tolerance ends where both steps change nothing. That is checked beside
`exact_lloyd`, which shares no code with coke, on the rows where it is hard: outliers, ties, duplicates, long tails.

Figures of k-means-constrained 0.9.1 were measured once from the starting centers that stand here (`spread_start`,
``n_init=1, tol=0, max_iter=300``), as the squared distances of its rows to the means of its clusters: it chooses by
distances that are not squared.

Legend: N rows, D features, K clusters.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from exact_lloyd import (
    Array,
    cheapest,
    cheapest_by_programme,
    cost_of,
    exact_lloyd,
    least_cost,
    means,
    proved_bound,
    rounding,
    sizes_asked,
    spread_start,
    squared_distances,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler

from coke import CokeError, ConstrainedKMeans, assign_balanced

Sizes = dict[str, Any]


def bounds_of(km: ConstrainedKMeans, n_rows: int) -> tuple[Array, Array]:
    names = ("min_size", "max_size", "min_size_ratio", "max_size_ratio")
    return sizes_asked(n_rows, km.n_clusters, **{name: getattr(km, name) for name in names})


def check_assignment(km: ConstrainedKMeans, rows: Array) -> Array:
    """Labels are within bounds and cost the least under the centers, as is said of them; the costs [N, K]."""
    labels, centers = np.asarray(km.labels_), np.asarray(km.cluster_centers_)
    lower, upper = bounds_of(km, len(rows))
    counts = np.bincount(labels, minlength=km.n_clusters)
    assert labels.shape == (len(rows),)
    assert counts.tolist() == np.asarray(km.counts_).tolist()
    assert (counts >= lower).all()
    assert (counts <= upper).all()
    assert np.isfinite(centers).all()
    costs = squared_distances(rows, centers)
    cost = cost_of(costs, labels)
    slack = rounding(costs, cost) + len(rows) * (1e-15 * float(np.abs(rows).max())) ** 2
    assert km.inertia_ == pytest.approx(cost, rel=1e-9, abs=slack)
    least = least_cost(costs, lower, upper, labels)
    assert least >= cost * (1 - 1e-9) - slack
    assert km.lower_bound_ <= least * (1 + 1e-12) + slack
    assert 0 <= km.gap_ <= 1e-8
    return costs


def check_rest(km: ConstrainedKMeans, rows: Array) -> None:
    """A fixed point: labels cost the least under the centers, and each center is the mean of its rows."""
    check_assignment(km, rows)
    labels, centers = np.asarray(km.labels_), np.asarray(km.cluster_centers_, np.float64)
    step = 1e-6 if np.asarray(km.cluster_centers_).dtype == np.float32 else 1e-10
    for cluster in np.unique(labels):
        own = np.asarray(rows[labels == cluster], np.float64)
        np.testing.assert_allclose(centers[cluster], own.mean(0), rtol=step, atol=step * np.abs(rows).max())


def check_at_rest(rows: Array, n_clusters: int, **asked: Any) -> ConstrainedKMeans:
    """A fit to its rest, checked. Whether it leaves clusters empty, and says so, is not asked here."""
    km = ConstrainedKMeans(n_clusters, **{"tol": 0, "random_state": 0, **asked})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        km.fit(rows)
    assert km.n_iter_ < km.max_iter
    check_rest(km, rows)
    return km


def check_near_rest(rows: Array, n_clusters: int, **asked: Any) -> ConstrainedKMeans:
    """A fit with the tolerance that stands: labels are optimal, and the centers have nowhere to go.

    Had it gone on, its centers would have moved about as little as the tolerance allows for; ten times that is far
    below what rows do that changed their cluster and that the centers have not followed.
    """
    km = ConstrainedKMeans(n_clusters, **{"random_state": 0, **asked}).fit(rows)
    check_assignment(km, rows)
    centers = np.asarray(km.cluster_centers_, np.float64)
    move = ((means(rows, km.labels_, centers) - centers) ** 2).sum()
    assert km.n_iter_ == km.max_iter or move <= (10 * km.tol + 1e-12) * rows.var(0).mean()
    return km


# The oracle.


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_the_oracle_agrees_with_another_and_with_its_proof(seed: int) -> None:
    random = np.random.default_rng(seed)
    n_rows, n_clusters = int(random.integers(2, 30)), int(random.integers(1, 6))
    costs = random.normal(size=(n_rows, n_clusters))
    if seed % 2:
        costs = random.integers(0, 4, costs.shape).astype(float)
    sizes = np.bincount(random.integers(0, n_clusters, n_rows), minlength=n_clusters)
    lower = np.maximum(sizes - random.integers(0, 4, n_clusters), 0)
    upper = sizes + random.integers(0, 4, n_clusters)
    labels = cheapest(costs, lower, upper)
    optimum = cost_of(costs, labels)
    assert cost_of(costs, cheapest_by_programme(costs, lower, upper)) == pytest.approx(optimum, abs=1e-9)
    assert proved_bound(costs, lower, upper, labels) == pytest.approx(optimum, abs=1e-9)
    others = random.permutation(np.repeat(np.arange(n_clusters), sizes))
    assert proved_bound(costs, lower, upper, others) <= optimum + 1e-9
    assert least_cost(costs, lower, upper, others) == pytest.approx(optimum, abs=1e-9)


# 1. Fixed points, also with outliers and long tails.


def outliers(n_rows: int = 2000, seed: int = 0) -> Array:
    """Normal rows of 5 features, 2 % of them 30 away in each."""
    rows = np.random.default_rng(seed).normal(size=(n_rows, 5))
    rows[: n_rows // 50] += 30
    return rows


def scattered(n_rows: int = 2000, seed: int = 0) -> Array:
    """Normal rows of 8 features, 2 % of them 20 times as long: each alone where it is."""
    rows = np.random.default_rng(seed).normal(size=(n_rows, 8))
    rows[:: n_rows // (n_rows // 50)] *= 20
    return rows


def groups(n_rows: int, seed: int = 0, *, tail: bool = False) -> Array:
    """Rows around 12 centers: of equal sizes, or sizes 1/rank."""
    random = np.random.default_rng(seed)
    share = 1 / np.arange(1, 13) if tail else np.ones(12)
    centers = 4 * random.normal(size=(12, 4))
    return centers[random.choice(12, n_rows, p=share / share.sum())] + random.normal(size=(n_rows, 4))


def lognormal(n_rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).lognormal(sigma=1.5, size=(n_rows, 4))


ROWS: dict[str, Callable[[int, int], Array]] = {
    "outliers": outliers,
    "scattered": scattered,
    "blobs": groups,
    "long tail": lambda n_rows, seed: groups(n_rows, seed, tail=True),
    "lognormal": lognormal,
}
BOUNDS: dict[str, Sizes] = {
    "min": {"min_size": 50},
    "max": {"max_size": 80},
    "both": {"min_size": 40, "max_size": 120},
    "exact": {"min_size": 60, "max_size": 60},
    "lists": {
        "min_size": [10, 20, 30, 40, 50, 60, 70, 80, 0, 0],
        "max_size": [20, 20, 60, 60, 90, 90, 600, 600, 60, 5],
    },
    "ratios": {"min_size_ratio": 0.71, "max_size_ratio": 1.37},
    "balanced": {"min_size_ratio": 1, "max_size_ratio": 1},
}


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("kind", ROWS)
def test_a_fit_ends_at_a_fixed_point(kind: str, bounds: str) -> None:
    """From given centers, from k-means++ and from random rows."""
    for seed in range(2):
        rows = ROWS[kind](600, seed)
        check_at_rest(rows, 10, init=spread_start(rows, 10, seed), **BOUNDS[bounds])
        check_at_rest(
            rows, 10, init=("k-means++", "random")[seed], n_init=1, random_state=seed, **BOUNDS[bounds]
        )


@pytest.mark.parametrize("asked", [{"tol": 0}, {}], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_outliers_share_a_cluster_with_as_few_others_as_allowed(seed: int, asked: dict[str, Any]) -> None:
    """40 rows far away and 63 to a cluster: 23 others must join them, and the center goes between the two.

    That costs 40 * 23 / 63 * 4118 and some 5,200 for the rest. A fit that leaves rows under centers which have not
    followed them costs half as much again.
    """
    rows = outliers()
    fit = check_at_rest if asked else check_near_rest
    km = fit(rows, 16, **{"min_size": 63, "max_size": 250, "random_state": seed, **asked})
    assert km.inertia_ == pytest.approx(65_324, rel=0.02)
    assert len(np.unique(km.labels_[:40])) == 1


@pytest.mark.parametrize(
    ("kind", "bounds"),
    [("outliers", "ratios"), ("scattered", "ratios"), ("long tail", "ratios"), ("lognormal", "balanced")],
)
def test_many_rows_end_near_a_fixed_point(kind: str, bounds: str) -> None:
    check_near_rest(ROWS[kind](17_000, 0), 10, **BOUNDS[bounds])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "sizes", [{"min_size": 63, "max_size": 250}, {"min_size": 100}, {"max_size": 150}], ids=str
)
def test_scattered_outliers(sizes: Sizes, seed: int) -> None:
    check_at_rest(scattered(seed=seed), 16, random_state=seed, **sizes)


@pytest.mark.parametrize("kind", ROWS)
def test_float32_rows_end_at_a_fixed_point(kind: str) -> None:
    rows = ROWS[kind](600, 3).astype(np.float32)
    km = check_at_rest(rows, 10, min_size=40, max_size=90)
    assert km.cluster_centers_.dtype == np.float32


@pytest.mark.parametrize("max_iter", [1, 3])
@pytest.mark.parametrize("kind", ROWS)
def test_labels_are_those_of_the_centers_after_few_iterations(kind: str, max_iter: int) -> None:
    """Not at rest, and yet optimal under the last centers."""
    rows = ROWS[kind](600, 5)
    check_near_rest(rows, 10, min_size=40, max_size=90, max_iter=max_iter)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("kind", ROWS)
def test_the_tolerance_that_stands_ends_near_a_fixed_point(kind: str, bounds: str) -> None:
    check_near_rest(ROWS[kind](600, 5), 10, **BOUNDS[bounds])


@pytest.mark.parametrize("kind", ROWS)
def test_a_fit_from_its_own_end_changes_nothing(kind: str) -> None:
    rows, sizes = ROWS[kind](600, 7), {"min_size": 45, "max_size": 75}
    first = check_at_rest(rows, 10, **sizes)
    again = check_at_rest(rows, 10, init=first.cluster_centers_, **sizes)
    assert again.labels_.tolist() == first.labels_.tolist()
    assert again.inertia_ == pytest.approx(first.inertia_, rel=1e-12)
    assert first.assign(rows).tolist() == first.labels_.tolist()


# 2. The objective over iterations.


@st.composite
def small_fits(draw: st.DrawFn) -> tuple[Array, Array, Sizes]:
    """Rows with and without ties, centers to start from, sizes that can hold."""
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    n_rows, n_clusters = draw(st.integers(12, 80)), draw(st.integers(2, 6))
    shape = (n_rows, draw(st.integers(1, 3)))
    kind = draw(st.sampled_from(["normal", "whole", "pairs", "tail", "outliers"]))
    rows = random.normal(size=shape)
    if kind == "whole":
        rows = random.integers(0, 4, shape).astype(float)
    elif kind == "pairs":
        rows = rows[np.arange(n_rows) // 2]
    elif kind == "tail":
        rows = np.exp(2 * rows)
    elif kind == "outliers":
        rows[: n_rows // 10] += 50
    start = rows[random.choice(n_rows, n_clusters, replace=False)]
    if draw(st.booleans()):
        start = start + random.normal(size=start.shape)
    share = n_rows / n_clusters
    sizes: Sizes = draw(
        st.sampled_from(
            [
                {"min_size_ratio": 1, "max_size_ratio": 1},
                {"min_size": int(share)},
                {"max_size": int(np.ceil(share))},
                {"min_size": int(0.7 * share), "max_size": int(np.ceil(1.5 * share))},
            ]
        )
    )
    return rows, start, sizes


def check_iterations(rows: Array, start: Array, sizes: Sizes, iterations: tuple[int, ...]) -> None:
    """After m moves of the centers from the same start, for growing m: never dearer, and each time optimal."""
    last = np.inf
    for max_iter in iterations:
        km = ConstrainedKMeans(len(start), init=start, tol=0, max_iter=max_iter, **sizes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            km.fit(rows)
        costs = check_assignment(km, rows)
        assert km.inertia_ <= last * (1 + 1e-10) + rounding(costs, 0.0)
        last = km.inertia_
    if km.n_iter_ < km.max_iter:
        check_rest(km, rows)


@settings(max_examples=40)
@given(small_fits())
def test_the_objective_never_rises(fit: tuple[Array, Array, Sizes]) -> None:
    check_iterations(*fit, (1, 2, 3, 4, 5, 6, 8, 11, 50))


@pytest.mark.parametrize(
    "sizes", [{"min_size": 63, "max_size": 250}, {"min_size_ratio": 1, "max_size_ratio": 1}], ids=str
)
@pytest.mark.parametrize("kind", ROWS)
def test_the_objective_never_rises_with_outliers_and_long_tails(kind: str, sizes: Sizes) -> None:
    rows = ROWS[kind](2000, 0)
    check_iterations(rows, spread_start(rows, 16, 0), sizes, (1, 2, 3, 5, 8, 13, 21, 34))


# 3. Ties and duplicates.


WHOLE = np.random.default_rng(0).integers(1, 6, (1000, 1)).astype(float)  # 195, 180, 205, 209 and 211 of each


@pytest.mark.parametrize(
    ("sizes", "theirs"),
    [
        ({"min_size": 20, "max_size": 100}, 1.740),  # k-means-constrained: 3.75, 0, 0, 4.95, 0
        ({"max_size": 60}, 2.997),  # 0, 14.983, 0, 0, 0
        ({"min_size": 50, "max_size": 50}, 37.58),  # five times, and nothing less is possible
    ],
    ids=str,
)
def test_whole_numbers(sizes: Sizes, theirs: float) -> None:
    found = [
        check_at_rest(WHOLE, 20, init=spread_start(WHOLE, 20, seed), **sizes).inertia_ for seed in range(5)
    ]
    assert np.mean(found) <= 1.01 * theirs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "sizes", [{"min_size": 20, "max_size": 100}, {"max_size": 60}, {"min_size": 50, "max_size": 50}], ids=str
)
def test_whole_numbers_from_a_start_of_its_own(sizes: Sizes, seed: int) -> None:
    check_at_rest(WHOLE, 20, random_state=seed, **sizes)


def test_whole_numbers_of_equal_sizes_reach_the_optimum() -> None:
    """Sorted rows cut into parts of 50: in one dimension no other cut into equal sizes is better."""
    parts = np.sort(WHOLE, axis=0).reshape(20, 50)
    optimum = ((parts - parts.mean(1, keepdims=True)) ** 2).sum()
    km = check_at_rest(WHOLE, 20, min_size=50, max_size=50)
    assert km.inertia_ == pytest.approx(optimum, rel=1e-9)


def whole(n_rows: int, n_features: int, n_values: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, n_values, (n_rows, n_features)).astype(float)


def normal(n_rows: int, n_features: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(n_rows, n_features))


TIES: dict[str, tuple[Array, int, list[Sizes]]] = {
    "two values": (
        whole(400, 1, 2),
        4,
        [{"min_size": 50, "max_size": 150}, {"min_size": 100, "max_size": 100}, {"max_size": 120}],
    ),
    "constant whole numbers": (
        np.full((300, 3), 7.0),
        6,
        [{"min_size": 50, "max_size": 50}, {"max_size": 70}],
    ),
    "constant": (np.full((300, 3), 0.3), 6, [{"min_size": 50, "max_size": 50}, {"min_size": 20}]),
    "nine of ten alike": (
        np.concatenate([np.ones((900, 4)), normal(100, 4)]),
        10,
        [{"min_size": 50, "max_size": 200}, {"min_size": 100, "max_size": 100}, {"max_size": 150}],
    ),
    "every row twice": (
        np.repeat(normal(200, 8), 2, axis=0),
        20,
        [
            {"min_size": 10, "max_size": 40},
            {"min_size": 20, "max_size": 20},
            {"min_size": 15},
            {"max_size": 25},
        ],
    ),
    "as many clusters as values": (
        whole(400, 1, 8),
        8,
        [{"min_size": 50, "max_size": 50}, {"min_size": 30}, {"max_size": 55}],
    ),
    "sorted": (
        np.sort(normal(600, 1), axis=0),
        20,
        [{"min_size": 30, "max_size": 30}, {"min_size": 20}, {"max_size": 40}],
    ),
    "pairs of rows": (
        normal(200, 3),
        100,
        [{"min_size": 2, "max_size": 2}, {"min_size": 1, "max_size": 3}, {"max_size": 2}],
    ),
    "grid": (
        np.stack(np.meshgrid(np.arange(24.0), np.arange(24.0)), axis=-1).reshape(-1, 2),
        16,
        [{"min_size": 36, "max_size": 36}, {"min_size": 30}, {"max_size": 40}],
    ),
    "fifty values": (
        normal(50, 2)[np.random.default_rng(1).integers(0, 50, 1000)],
        100,
        [{"min_size": 10, "max_size": 10}, {"min_size": 5, "max_size": 20}, {"max_size": 15}],
    ),
}


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [(kind, sizes) for kind, (_, _, every) in TIES.items() for sizes in every],
    ids=lambda value: (
        value if isinstance(value, str) else "-".join(f"{name}{size}" for name, size in value.items())
    ),
)
def test_ties_end_at_a_fixed_point(kind: str, sizes: Sizes) -> None:
    rows, n_clusters, _ = TIES[kind]
    check_at_rest(rows, n_clusters, **sizes)
    check_at_rest(rows, n_clusters, init=spread_start(rows, n_clusters, 1), **sizes)


@pytest.mark.parametrize(
    "sizes", [{"min_size": 100, "max_size": 100}, {"max_size": 130}, {"min_size": 60}], ids=str
)
def test_values_that_fill_clusters_evenly_cost_nothing(sizes: Sizes) -> None:
    """From centers on each value. Every row sits on its center, to the last bit, whatever the numbers are."""
    for values in (
        [0.0, 1, 2, 3, 4],
        [1e6, 1e6 + 1, 1e6 + 2, 1e6 + 3, 1e6 + 4],
        [0.1, 0.7, 1 / 3, 9.9, -123.4],
    ):
        rows = np.random.default_rng(0).permutation(np.repeat(values, 100))[:, None]
        km = check_at_rest(rows, 5, init=np.array(values)[:, None], **sizes)
        assert km.inertia_ == 0.0 if rows[0] == np.round(rows[0]) else km.inertia_ <= 1e-24
        assert km.gap_ == 0.0


@pytest.mark.parametrize("kind", ["nine of ten alike", "every row twice", "grid", "two values"])
def test_the_objective_never_rises_where_rows_tie(kind: str) -> None:
    rows, n_clusters, every = TIES[kind]
    for sizes in every[:2]:
        check_iterations(rows, spread_start(rows, n_clusters, 2), sizes, (1, 2, 3, 5, 8, 13))


# 4. Real rows.


@dataclass(frozen=True)
class Real:
    """Rows that come with scikit-learn, bounds, and what k-means-constrained reaches (see above)."""

    name: str
    n_rows: int
    standard: bool
    classes: tuple[int, ...] | None
    n_clusters: int
    least: int
    largest: int
    theirs: float

    def rows(self) -> Array:
        found = getattr(datasets, f"load_{self.name}")()
        rows = np.asarray(found.data, np.float64)
        if self.classes is not None:
            rows = rows[np.isin(found.target, self.classes)]
        rows = rows[: self.n_rows]
        return StandardScaler().fit_transform(rows) if self.standard else rows

    def start(self, rows: Array) -> Array:
        """Rows drawn by k-means++, moved off them so that none lies as far from two of these as another."""
        seed = REAL.index(self)
        off = np.random.default_rng(seed).normal(size=(self.n_clusters, rows.shape[1]))
        return spread_start(rows, self.n_clusters, seed) + 0.1 * rows.std(0) * off

    def fit(self, rows: Array) -> ConstrainedKMeans:
        sizes = {"min_size": self.least, "max_size": self.largest}
        return check_at_rest(rows, self.n_clusters, init=self.start(rows), **sizes)


REAL = [
    Real("iris", 150, False, None, 3, 50, 50, 81.2778),
    Real("iris", 150, True, None, 5, 20, 40, 92.1306336),
    Real("iris", 150, True, (1, 2), 4, 25, 25, 125.593721),
    Real("wine", 178, False, None, 3, 40, 80, 2370689.69),
    Real("wine", 178, True, None, 3, 50, 70, 1279.96615),
    Real("wine", 178, True, None, 8, 10, 30, 977.108502),
    Real("digits", 200, False, None, 10, 20, 20, 109733.2),
    Real("digits", 300, False, None, 10, 20, 45, 169282.43),
    Real("digits", 300, False, None, 25, 6, 24, 110896.425),
    Real("digits", 250, True, (1, 4, 7), 12, 15, 30, 6766.37297),
    Real("digits", 250, False, (0, 6, 8), 6, 1, 60, 115228.691),
    Real("breast_cancer", 200, True, None, 4, 25, 100, 3204.74179),
    Real("breast_cancer", 300, True, None, 10, 30, 30, 4005.81415),
    Real("breast_cancer", 200, True, (0,), 5, 1, 50, 3423.87017),
    Real("breast_cancer", 300, True, (1,), 6, 40, 300, 5152.48527),
    Real("diabetes", 300, False, None, 10, 20, 40, 2.97493382),
    Real("diabetes", 250, True, None, 5, 50, 50, 1356.22674),
    Real("diabetes", 200, True, None, 20, 1, 12, 640.028252),
    Real("linnerud", 20, False, None, 4, 4, 6, 30769.0833),
    Real("linnerud", 20, True, None, 5, 4, 4, 14.0930286),
]
"""Without ties on the way: six orders of rows and clusters, and two solvers, led to the same objective."""


@pytest.mark.parametrize("real", REAL, ids=lambda real: f"{real.name}-{REAL.index(real)}")
def test_real_rows_end_where_exact_lloyd_ends(real: Real) -> None:
    rows = real.rows()
    lower, upper = sizes_asked(len(rows), real.n_clusters, min_size=real.least, max_size=real.largest)
    objective, labels = exact_lloyd(rows, real.start(rows), lower, upper)
    km = real.fit(rows)
    assert km.inertia_ == pytest.approx(objective, rel=1e-6)
    assert km.counts_.tolist() == np.bincount(labels, minlength=real.n_clusters).tolist()


def test_real_rows_cost_no_more_than_with_k_means_constrained() -> None:
    """On average: another way to choose leads to another local optimum, here better and there worse."""
    ratios = [real.fit(real.rows()).inertia_ / real.theirs for real in REAL]
    assert np.mean(ratios) <= 1
    assert np.max(ratios) <= 1.05


# 5. Costs that are given.


def _random(random: np.random.Generator, n_rows: int, n_clusters: int) -> Array:
    return random.random((n_rows, n_clusters))


def _distances(random: np.random.Generator, n_rows: int, n_clusters: int) -> Array:
    return squared_distances(random.normal(size=(n_rows, 3)), random.normal(size=(n_clusters, 3)))


def _products(random: np.random.Generator, n_rows: int, n_clusters: int) -> Array:
    return np.outer(np.arange(1.0, n_rows + 1), np.arange(1.0, n_clusters + 1))


def _far_groups(random: np.random.Generator, n_rows: int, n_clusters: int) -> Array:
    """Half of the rows and of the clusters lie 1e3 from the others, with costs of 1e6 between them."""
    rows, centers = random.normal(size=(n_rows, 2)), random.normal(size=(n_clusters, 2))
    rows[: n_rows // 3] += 1e3
    centers[: n_clusters // 2] += 1e3
    return squared_distances(rows, centers)


def _popular(random: np.random.Generator, n_rows: int, n_clusters: int) -> Array:
    costs = random.random((n_rows, n_clusters))
    costs[:, :3] -= 5
    return costs


COSTS: dict[str, Callable[[np.random.Generator, int, int], Array]] = {
    "random": _random,
    "geometric": _distances,
    "i x j": _products,
    "whole 1..10": lambda random, n_rows, n_clusters: random.integers(1, 11, (n_rows, n_clusters)).astype(
        float
    ),
    "all ties": lambda random, n_rows, n_clusters: np.full((n_rows, n_clusters), 3.0),
    "two costs": lambda random, n_rows, n_clusters: random.choice([0.25, 1.75], (n_rows, n_clusters)),
    "far groups": _far_groups,
    "popular columns": _popular,
    "twelve orders": lambda random, n_rows, n_clusters: 10 ** random.uniform(-6, 6, (n_rows, n_clusters)),
    "negative": lambda random, n_rows, n_clusters: -np.exp(random.normal(size=(n_rows, n_clusters))),
    "near 1e300": lambda random, n_rows, n_clusters: 1e300 * random.uniform(-1, 1, (n_rows, n_clusters)),
}
COST_SIZES: dict[str, tuple[int, int, int, int]] = {  # N, K, least and largest size
    "equal": (600, 20, 30, 30),
    "at least": (240, 12, 15, 240),
    "at most": (300, 15, 0, 22),
    "both": (200, 9, 12, 40),
    "one each": (80, 80, 1, 1),
    "more clusters than rows": (60, 100, 0, 2),
    "at most one": (60, 90, 0, 1),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sizes", COST_SIZES)
@pytest.mark.parametrize("kind", COSTS)
def test_given_costs_reach_scipys_optimum(kind: str, sizes: str) -> None:
    n_rows, n_clusters, least, largest = COST_SIZES[sizes]
    costs = COSTS[kind](np.random.default_rng(len(kind)), n_rows, n_clusters)
    asked = {"min_size": least or None, "max_size": None if largest == n_rows else largest}
    labels = assign_balanced(costs, **asked)
    lower, upper = sizes_asked(n_rows, n_clusters, **asked)
    counts = np.bincount(labels, minlength=n_clusters)
    assert (counts >= lower).all()
    assert (counts <= upper).all()
    optimum = cost_of(costs, cheapest(costs, lower, upper))
    assert cost_of(costs, labels) == pytest.approx(optimum, rel=1e-9)


def test_one_free_column_amid_a_million_millions() -> None:
    """Whole numbers: who gets the free places is decided in the last digits, and exactly."""
    random = np.random.default_rng(0)
    beyond = random.integers(0, 1000, (120, 6))
    costs = 10**12 + beyond
    costs[:, 2] = 0
    for sizes in ({"min_size": 20, "max_size": 20}, {"max_size": 25}, {"min_size": 10}):
        lower, upper = sizes_asked(120, 6, **sizes)
        labels = assign_balanced(costs.astype(float), **sizes)
        best = cheapest(costs.astype(float), lower, upper)
        free = np.bincount(best, minlength=6)[2]  # all optimal labels use as many free places
        assert (labels == 2).sum() == free
        small = np.where(np.arange(6) == 2, 0, beyond).astype(float)
        lower[2], upper[2] = free, free
        assert cost_of(small, labels) == cost_of(small, cheapest(small, lower, upper))


def test_small_costs_survive_beside_forbidden_pairs() -> None:
    random = np.random.default_rng(1)
    costs = random.random((150, 10))
    forbidden = random.random((150, 10)) < 0.6
    forbidden[np.arange(150), np.arange(150) % 10] = False  # so that equal sizes are possible without
    lower, upper = sizes_asked(150, 10, min_size=15, max_size=15)
    labels = assign_balanced(np.where(forbidden, 1e12, costs), 15, 15)
    optimum = cost_of(costs, cheapest(np.where(forbidden, 1e3, costs), lower, upper))
    assert not forbidden[np.arange(150), labels].any()
    assert cost_of(costs, labels) == pytest.approx(optimum, rel=1e-9)


def exact_labels(costs: Array, min_size: int | None, max_size: int | None) -> Array | None:
    """Labels for whole numbers, or None where these are refused, which is an answer too. Rounding them is none."""
    try:
        return assign_balanced(costs, min_size, max_size)
    except CokeError:
        return None


@pytest.mark.parametrize("offset", [2**53, 2**60, -(2**61), 2**63 - 2000])
def test_whole_numbers_beyond_float64_are_exact_or_refused(offset: int) -> None:
    """A number taken off all costs changes no labels; what is left is small."""
    small = np.random.default_rng(2).integers(0, 1000, (90, 6))
    for least, largest in ((15, 15), (None, 18), (10, None)):
        labels = exact_labels(small.astype(np.int64) + offset, least, largest)
        if labels is not None:
            lower, upper = sizes_asked(90, 6, min_size=least, max_size=largest)
            best = cheapest(small.astype(float), lower, upper)
            assert small[np.arange(90), labels].sum() == small[np.arange(90), best].sum()


@pytest.mark.parametrize("seed", range(5))
def test_whole_numbers_that_differ_in_their_last_digit_only(seed: int) -> None:
    """Large and apart, and sums leave int64: every choice is tried, in Python's whole numbers."""
    random = np.random.default_rng(seed)
    costs = random.integers(2**61, 2**62, (8, 1)) + random.integers(0, 3, (8, 2))
    costs[random.random((8, 2)) < 0.3] -= 2**54 - 1
    labels = exact_labels(costs, 4, 4)
    if labels is not None:
        values = costs.tolist()
        totals = [
            sum(values[row][cluster] for row, cluster in enumerate(choice))
            for choice in itertools.product((0, 1), repeat=8)
            if sum(choice) == 4
        ]
        assert sum(values[row][cluster] for row, cluster in enumerate(labels.tolist())) == min(totals)


# 6. Without bounds.


def test_centers_that_no_row_is_nearest_to() -> None:
    rows = np.array([[0.0], [0.5], [2.0], [3.0], [9.0], [10.0]])
    km = check_at_rest(rows, 5, init=np.array([[1.0], [3.0], [5.0], [7.0], [9.0]]))
    assert km.inertia_ == 0.125
    assert km.counts_.min() == 1


@pytest.mark.parametrize(
    "start", [[0.0, 1, 2, 100, 200], [0.0, 0, 0, 0, 0], [50.0, 60, 70, 80, 90], [0.0, 1, 2, 0.5, 7]]
)
def test_fewer_distinct_rows_than_clusters(start: list[float]) -> None:
    rows = np.repeat([[0.0], [1.0], [2.0]], [5, 7, 9], axis=0)
    centers = np.array(start)[:, None]
    km = ConstrainedKMeans(5, init=centers, tol=0)
    with pytest.warns(ConvergenceWarning, match=r"distinct clusters \(3\)"):
        km.fit(rows)
    with pytest.warns(ConvergenceWarning, match=r"distinct clusters \(3\)"):
        theirs = KMeans(5, init=centers, n_init=1, tol=0).fit(rows)
    assert km.inertia_ == 0.0
    assert np.isin(km.cluster_centers_, rows).all()
    assert theirs.inertia_ == pytest.approx(0, abs=1e-20)  # which moves rows by their mean, and back
    assert squared_distances(theirs.cluster_centers_, rows).min(1) == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_fewer_distinct_rows_than_clusters_from_any_start(init: str) -> None:
    rows = np.repeat(whole(4, 3, 9), 30, axis=0)
    km = ConstrainedKMeans(9, init=init, n_init=1, random_state=0)
    with pytest.warns(ConvergenceWarning, match=r"distinct clusters \(4\)"):
        km.fit(rows)
    assert km.inertia_ == 0.0
    assert (squared_distances(km.cluster_centers_, rows).min(1) == 0).all()


@pytest.mark.parametrize("base", [0.0, 1e3, 1e6])
def test_duplicates_of_whole_numbers_cost_exactly_nothing(base: float) -> None:
    values = base + np.unique(whole(30, 3, 20), axis=0)
    rows = np.random.default_rng(0).permutation(np.repeat(values, 17, axis=0))
    km = check_at_rest(rows, len(values), init=values)
    assert km.inertia_ == 0.0
    assert km.gap_ == 0.0


@pytest.mark.parametrize("kind", ROWS)
def test_without_bounds_it_ends_where_scikit_learn_ends(kind: str) -> None:
    rows = ROWS[kind](600, 11)
    start = rows[::60]
    km = check_at_rest(rows, 10, init=start)
    theirs = KMeans(10, init=start, n_init=1, tol=0, algorithm="lloyd").fit(rows)
    assert km.inertia_ == pytest.approx(theirs.inertia_, rel=1e-9)


def test_several_starts_from_given_centers_are_one_and_it_says_so() -> None:
    rows = normal(40, 2)
    with pytest.warns(RuntimeWarning, match="n_init"):
        KMeans(3, init=rows[:3], n_init=4).fit(rows)
    with pytest.warns(RuntimeWarning, match="n_init"):
        ConstrainedKMeans(3, init=rows[:3], n_init=4).fit(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ConstrainedKMeans(3, init=rows[:3], n_init=1).fit(rows)
        ConstrainedKMeans(3, init=rows[:3]).fit(rows)


# 7. How rows come does not matter.


@pytest.mark.parametrize(
    "sizes", [{"min_size": 10, "max_size": 50}, {"min_size": 25, "max_size": 25}, {"max_size": 30}], ids=str
)
def test_blocks_change_no_label_where_rows_tie(sizes: Sizes) -> None:
    rows = whole(300, 2, 4)
    whole_fit = check_at_rest(rows, 12, **sizes)
    for block_rows in (7, 64, 299):
        cut = check_at_rest(rows, 12, block_rows=block_rows, **sizes)
        assert cut.labels_.tolist() == whole_fit.labels_.tolist()
        assert cut.inertia_ == pytest.approx(whole_fit.inertia_, rel=1e-12)


@pytest.mark.parametrize("bounds", ["min", "max", "both", "exact"])
def test_the_order_of_rows_does_not_matter(bounds: str) -> None:
    rows = groups(600, 13, tail=True)
    start = spread_start(rows, 10, 0)
    order = np.random.default_rng(0).permutation(600)
    first = check_at_rest(rows, 10, init=start, **BOUNDS[bounds])
    again = check_at_rest(rows[order], 10, init=start, **BOUNDS[bounds])
    assert again.inertia_ == pytest.approx(first.inertia_, rel=1e-9)
    assert again.labels_.tolist() == first.labels_[order].tolist()
