"""Newton's steps before the search: what they leave is consistent, within what is on offer, and nearly there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coke.bounded.ascent import ascend
from coke.bounded.search import Offers, Sizes


def _problem(seed: int, shape: tuple[int, int, int], shift: float) -> tuple[Offers, Sizes, np.ndarray]:
    """Rows at their cheapest of all clusters, (N, K, D); balanced sizes."""
    n_rows, n_clusters, n_features = shape
    random = np.random.default_rng(seed)
    rows, centers = (random.standard_normal((n, n_features)) for n in (n_rows, n_clusters))
    cost = ((rows[:, None] - centers - shift) ** 2).sum(2)
    at = cost.argmin(1)
    offers = Offers(
        np.arange(n_rows + 1) * n_clusters, np.tile(np.arange(n_clusters, dtype=np.int32), n_rows), cost.ravel(),
        np.arange(n_rows) * n_clusters + at, np.ones(n_rows),
    )  # fmt: skip
    held = np.bincount(at, minlength=n_clusters).astype(float)
    even = np.full(n_clusters, n_rows / n_clusters)
    return offers, Sizes(held, np.floor(even), np.ceil(even)), cost


@given(st.integers(0, 10**6), st.sampled_from([0.0, 3.0]), st.sampled_from([0.05, 1.0, np.inf]))
def test_rows_are_at_their_best_within_what_is_on_offer(seed, shift, width):
    offers, sizes, cost = _problem(seed, (200, 8, 1), shift)
    prices, wide = np.zeros(8), np.full(8, width)
    ascend(offers, sizes, prices, wide, wide)
    labels = offers.cluster[offers.at]
    reduced = cost - prices
    assert (np.abs(prices) <= width).all()
    assert (reduced[np.arange(200), labels] == reduced.min(1)).all()
    assert (np.bincount(labels, minlength=8) == sizes.held).all()


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_few_rows_are_left_for_the_search(shift):
    offers, sizes, _ = _problem(0, (20_000, 50, 8), shift)
    before = np.abs(sizes.held - 400).sum()
    every = np.full(50, np.inf)
    ascend(offers, sizes, np.zeros(50), every, every)
    assert np.abs(sizes.held - 400).sum() < before / 100


def test_it_leaves_alone_what_is_right():
    offers, sizes, _ = _problem(0, (200, 8, 1), 0.0)
    sizes = Sizes(sizes.held, np.zeros(8), np.full(8, 200.0))
    at, prices = offers.at.copy(), np.zeros(8)
    ascend(offers, sizes, prices, np.ones(8), np.ones(8))
    assert (offers.at == at).all()
    assert not prices.any()
