"""Duals from a sample: near the optimum of the sample itself, of the whole where it is large, and new centers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Problem, seeds

from coke.bounded.dual import off_target
from coke.bounded.sample import Sample, stored


def a_sample(rows: np.ndarray, metric: str = "euclidean", **options: Any) -> Sample:
    fields: dict[str, Any] = {"shift": None, "sample_weight": None, "size_weight": None, "share": 1.0}
    return Sample(stored(torch.from_numpy(rows), metric), metric, **{**fields, **options})


def matrix_of(sample: Sample, centers: torch.Tensor) -> np.ndarray:
    half = 2 if sample.metric == "cosine" else 1
    costs = ((sample.rows[:, None] - centers) ** 2).sum(-1) / half
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
    sample = a_sample(rows, metric, shift=shift, sample_weight=weight, size_weight=size)
    centers = sample.rows[torch.from_numpy(random.integers(0, n_rows, n_clusters))]
    total = float(n_rows if size is None else size.sum())
    low, high = draw(st.sampled_from([(0.5, 2.0), (0.9, 1.1), (0.0, 1.2), (0.8, 99.0)]))
    lower = np.full(n_clusters, low * total / n_clusters)
    upper = np.full(n_clusters, min(high * total / n_clusters, total))
    weights = None if size is None else size.numpy()
    return sample, centers, Problem(matrix_of(sample, centers), lower, upper, weights)


@settings(max_examples=40)
@given(samples(), seeds)
def test_duals_climb_from_wherever_they_start(drawn: tuple[Sample, torch.Tensor, Problem], seed: int) -> None:
    sample, centers, problem = drawn
    random = np.random.default_rng(seed)
    start = random.normal(size=len(centers)) * random.choice([0.0, 0.1, 3.0])
    found, reach = sample.fit_duals(centers, problem.bounds, start, 1.0)
    assert reach == np.inf
    assert np.isfinite(found).all()
    single = 1e-6 * (problem.scale + problem.total * np.abs(start).max(initial=0))  # costs are float32 here
    assert problem.dual_bound(found) >= problem.dual_bound(start) - single


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("n_clusters", [4, 40])
def test_sizes_of_a_large_sample_nearly_fit(metric: str, n_clusters: int) -> None:
    random = np.random.default_rng(0)
    sample = a_sample(random.normal(size=(6000, 8)) + 0.5, metric)
    centers = sample.rows[:n_clusters] if metric == "cosine" else sample.rows[:n_clusters] * 1.5
    share = 6000 / n_clusters
    costs = matrix_of(sample, centers)
    problem = Problem(costs, np.full(n_clusters, 0.8 * share), np.full(n_clusters, 1.2 * share))
    duals, reach = sample.fit_duals(centers, problem.bounds, np.zeros(n_clusters), 0.1)
    choice = problem.table.choose(duals)
    assert off_target(choice.sizes, duals, problem.bounds) <= 0.02 * 6000
    margin = np.sort(choice.margin)
    assert np.searchsorted(margin, reach) == pytest.approx(600, abs=60)  # within it are a tenth of the rows


def test_bounds_are_scaled_to_the_share_of_the_sample() -> None:
    random = np.random.default_rng(1)
    rows = random.normal(size=(8000, 5))
    centers = torch.from_numpy(rows[:10] * 1.3)
    whole = a_sample(rows)
    part = a_sample(rows[::4], share=0.25)
    bounds = Problem(np.empty((0, 10)), np.full(10, 700.0), np.full(10, 900.0)).bounds
    duals, _ = part.fit_duals(centers, bounds, np.zeros(10), 1.0)
    sizes = Problem(matrix_of(whole, centers), np.zeros(10), np.zeros(10)).table.choose(duals).sizes
    assert sizes.min() > 600
    assert sizes.max() < 1000


@settings(max_examples=40)
@given(seeds, st.booleans())
def test_empty_clusters_move_to_the_farthest_rows(seed: int, weighted: bool) -> None:
    """Against the rule in words: one after the other, each on the row farthest from all centers so far."""
    random = np.random.default_rng(seed)
    rows = random.integers(-3, 4, (30, 2)).astype(float)
    weight = random.integers(0, 2, 30).astype(float) if weighted else np.ones(30)
    sample = a_sample(rows, sample_weight=torch.from_numpy(weight) if weighted else None)
    centers = rows[:6].copy()
    empty = random.random(6) < 0.5
    empty[int(random.integers(0, 6))] = False
    found = sample.revive(torch.from_numpy(centers), torch.from_numpy(empty)).numpy()
    assert np.array_equal(found[~empty], centers[~empty])
    standing = centers[~empty].tolist()
    for cluster in np.flatnonzero(empty):
        distance = ((rows[:, None] - np.array(standing)) ** 2).sum(-1).min(1) * (weight > 0)
        if distance.max() == 0:
            assert np.array_equal(found[cluster], centers[cluster])
            continue
        own = ((rows == found[cluster]).all(1) & (weight > 0)).nonzero()[0]
        assert len(own)
        assert distance[own].max() == distance.max()
        standing.append(found[cluster].tolist())


def test_variance_and_noise() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 3)) * [1, 2, 3]
    assert a_sample(rows).variance == pytest.approx(rows.var(0).mean())
    assert a_sample(rows, share=0.1).noise(50) >= a_sample(rows, share=0.9).noise(50) > 0
    unit = stored(torch.tensor([[3.0, 4.0]]).half(), "cosine")
    assert unit.dtype == torch.float64
    assert unit.tolist() == [[0.6, 0.8]]
