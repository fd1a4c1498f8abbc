"""Prices from a sample: the optimum of all rows where it is all, near it where it is large, and new centers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Problem, seeds

from coke.bounded.costs import MatrixCosts
from coke.bounded.sample import Sample, first_prices, fitting_prices, stored
from coke.bounded.sizes import SizeBounds


def a_sample(rows: np.ndarray, metric: str = "euclidean", **options: Any) -> Sample:
    fields: dict[str, Any] = {"shift": None, "sample_weight": None, "size_weight": None}
    fields |= {"total": float(len(rows)), "n_total": len(rows)}
    return Sample(stored(torch.from_numpy(rows), metric), metric, **{**fields, **options})


def matrix_of(sample: Sample, centers: torch.Tensor) -> np.ndarray:
    half = 2 if sample.metric == "cosine" else 1
    costs = ((sample.rows.double()[:, None] - centers) ** 2).sum(-1) / half
    return (costs if sample.sample_weight is None else costs * sample.sample_weight[:, None]).numpy()


@st.composite
def samples(draw: Any) -> tuple[Sample, torch.Tensor, Problem]:
    """All rows as their own sample, so that its optimum is the problem's."""
    random = np.random.default_rng(draw(seeds))
    metric = draw(st.sampled_from(["euclidean", "cosine"]))
    n_rows, n_clusters = int(random.integers(40, 300)), int(random.integers(1, 30))
    rows = random.normal(size=(n_rows, 4)) + draw(st.sampled_from([0.0, 100.0]))
    weight = torch.from_numpy(random.random(n_rows) + 0.1) if draw(st.booleans()) else None
    size = torch.from_numpy(random.random(n_rows) + 0.5) if draw(st.booleans()) else None
    shift = torch.from_numpy(rows.mean(0)) if metric == "euclidean" else None
    total = float(n_rows if size is None else size.sum())
    sample = a_sample(rows, metric, shift=shift, sample_weight=weight, size_weight=size, total=total)
    centers = sample.rows[torch.from_numpy(random.integers(0, n_rows, n_clusters))].double()
    low, high = draw(st.sampled_from([(0.5, 2.0), (0.9, 1.1), (0.0, 1.2), (0.8, 99.0)]))
    lower = np.full(n_clusters, low * total / n_clusters)
    upper = np.full(n_clusters, min(high * total / n_clusters, total))
    if size is None:
        lower, upper = np.floor(lower), np.ceil(upper)
    weights = None if size is None else size.numpy()
    return sample, centers, Problem(matrix_of(sample, centers), lower, upper, weights)


@settings(max_examples=60)
@given(samples(), seeds)
def test_all_rows_as_their_own_sample_prove_the_optimum_at_once(
    drawn: tuple[Sample, torch.Tensor, Problem], seed: int
) -> None:
    """From wherever prices start, far off or not."""
    sample, centers, problem = drawn
    random = np.random.default_rng(seed)
    start = random.normal(size=len(centers)) * random.choice([0.0, 0.1, 3.0])
    prices = sample.prices(centers, problem.bounds, start)
    assert np.isfinite(prices.value).all()
    assert (prices.width >= 0).all()
    assert (prices.reach >= 0).all()
    if problem.weights is not None:
        return
    off = 1e-9 * problem.scale
    fitted = fitting_prices(lambda _: sample.costs(centers), problem.bounds, problem.total, start, False)
    assert problem.dual_bound(fitted.value) == pytest.approx(problem.optimum(), abs=off)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("n_clusters", [4, 40])
def test_sizes_of_a_large_sample_nearly_fit(metric: str, n_clusters: int) -> None:
    random = np.random.default_rng(0)
    sample = a_sample(random.normal(size=(6000, 8)) + 0.5, metric, n_total=60_000, total=60_000.0)
    centers = sample.rows[:n_clusters].double()
    centers = centers if metric == "cosine" else centers * 1.5
    share = 60_000 / n_clusters
    problem = Problem(np.empty((0, 0)), np.full(n_clusters, 0.8 * share), np.full(n_clusters, 1.2 * share))
    prices = sample.prices(centers, problem.bounds, None)
    sizes = 10 * np.bincount((matrix_of(sample, centers) - prices.value).argmin(1), minlength=n_clusters)
    off = np.maximum(problem.lower - sizes, 0) + np.maximum(sizes - problem.upper, 0)
    assert off.sum() <= 0.01 * 60_000


def test_bounds_are_scaled_to_the_share_of_the_sample() -> None:
    random = np.random.default_rng(1)
    rows = random.normal(size=(16_000, 5))
    centers = torch.from_numpy(rows[:10] * 1.3)
    part = a_sample(rows[::8], n_total=16_000, total=16_000.0)
    bounds = Problem(np.empty((0, 10)), np.full(10, 1400.0), np.full(10, 1800.0)).bounds
    prices = part.prices(centers, bounds, None)
    sizes = np.bincount((matrix_of(a_sample(rows), centers) - prices.value).argmin(1), minlength=10)
    assert sizes.min() > 1200
    assert sizes.max() < 2000


@settings(max_examples=30)
@given(seeds, st.integers(1, 40), st.booleans())
def test_first_widths_offer_a_cluster_a_share_of_rows_from_elsewhere(
    seed: int, n_clusters: int, sized: bool
) -> None:
    random = np.random.default_rng(seed)
    n_rows = max(16 * n_clusters, 32)  # as many as are looked at
    costs = random.random((n_rows, n_clusters))
    size = torch.from_numpy(random.random(n_rows) + 0.1) if sized else None
    value = random.normal(size=n_clusters)
    prices = first_prices(MatrixCosts(torch.from_numpy(costs), size).some(n_rows), value)
    assert (prices.value == value).all()
    weight = np.ones((n_rows, 1)) if size is None else size.numpy()[:, None]
    lead = costs / weight - value
    lead = lead - lead.min(1, keepdims=True)
    lead[lead == 0] = np.inf  # what is there already is no offer, however large the cluster
    share = n_rows // n_clusters
    for k in range(n_clusters):
        if np.isfinite(lead[:, k]).sum() > share:
            assert (
                (lead[:, k] < prices.width[k] - 1e-9).sum()
                <= share
                < (lead[:, k] <= prices.width[k] + 1e-9).sum()
            )
    assert np.isfinite(prices.width).all()
    assert (prices.reach == prices.width / 2).all()


def test_variance_and_what_is_stored() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 3)) * [1, 2, 3]
    assert a_sample(rows).variance == pytest.approx(rows.var(0).mean())
    unit = stored(torch.tensor([[3.0, 4.0]]).half(), "cosine")
    assert unit.dtype == torch.float32
    assert unit.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
    assert stored(torch.tensor([[3.0, 4.0]]).double(), "cosine").tolist() == [[0.6, 0.8]]
    assert stored(torch.tensor([[3, 4]]), "euclidean").dtype == torch.float64


def test_prices_of_other_centers_widen_no_offers() -> None:
    """Prices that fitted single rows are far too large for means: they are shortened, and not followed."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(6_000, 64))
    near_all = torch.from_numpy(0.1 * random.normal(size=(60, 64)))
    sample, bounds = a_sample(rows), SizeBounds(*(torch.full((60,), n).double() for n in (25.0, 400.0)))
    far = 50.0 * random.random(60)
    from_nothing = sample.prices(near_all, bounds, None)
    from_far = sample.prices(near_all, bounds, far)
    assert (from_far.width <= 2 * from_nothing.width).all()
    assert np.abs(from_far.value).max() < 1
