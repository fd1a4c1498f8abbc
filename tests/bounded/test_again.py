"""Looking again at some pairs: with what was on offer they are all that a whole sweep would have listed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Problem, seeds
from test_assignment import assigned, check, distance_problems, prices_of, rounding_of

from coke.bounded import again
from coke.bounded.costs import DistanceCosts, Prices
from coke.bounded.sweep import sweep


def test_nothing_is_looked_at_where_nothing_came_near() -> None:
    """Prices that moved by less than widths leave nothing to do; one that moved far asks for its column alone."""
    former = Prices(np.zeros(8), np.full(8, 1.0), np.zeros(8))
    value = np.zeros(8)
    value[3] = 5.0
    what = again.asked(value, np.zeros((2, 8)), former, former._replace(value=value), np.full(8, 10))
    assert what is not None
    assert what.columns.tolist() == [False] * 3 + [True] + [False] * 4
    assert not what.origins.any()
    value = np.arange(8.0) * 3
    assert again.asked(value, np.zeros((2, 8)), former, former._replace(value=value), np.full(8, 10)) is None


@pytest.fixture(scope="module")
def any_share() -> Any:
    """Parts are looked at however large they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(again, "_MOST", 2.0)
        yield


@given(distance_problems(), seeds, st.integers(1, 40))
@settings(max_examples=200)
def test_every_pair_within_the_new_widths_is_on_offer(
    any_share: None, case: tuple[DistanceCosts, Problem], seed: int, block_rows: int
) -> None:
    costs, problem = case
    random, n_clusters = np.random.default_rng(seed), costs.n_clusters
    matrix, weight = (
        problem.costs,
        np.ones(len(problem.costs)) if problem.weights is None else problem.weights,
    )
    former = prices_of(problem, seed)._replace(width=np.abs(prices_of(problem, seed + 1).value))
    labels = np.full(costs.n_rows, -1, np.int32)
    swept = sweep(costs, former, labels)
    anchor = again.Anchor(labels.copy(), swept.own.copy())
    value = former.value + np.ptp(matrix) * random.choice([0.0, 0.01, 0.3]) * random.normal(size=n_clusters)
    wide = Prices(value, *np.abs(random.normal(size=(2, n_clusters))) * np.ptp(matrix) * 0.1)
    short = (random.random((2, n_clusters)) < 0.1).astype(float)
    what = again.asked(value, short, former, wide, swept.n_rows)
    assert what is not None
    found = again.sweep_again(costs, swept, anchor, what, labels, swept.held, swept.cost, block_rows)
    slack = 1e-9 * (1 + np.abs(matrix).max() + np.abs(value).max())
    reduced = matrix - weight[:, None] * value
    home = reduced[np.arange(len(labels)), labels][:, None]
    width = weight[:, None] * (what.prices.width + what.prices.reach[labels][:, None])
    needed = (reduced <= home + width - slack) & (weight[:, None] > 0)
    listed = np.zeros_like(needed)
    number = np.repeat(found.rows, np.diff(found.offers.start))
    listed[number, found.offers.cluster] = True
    listed[np.arange(len(labels)), labels] = True
    assert not (needed & ~listed).any()
    assert (np.diff(number * n_clusters + found.offers.cluster) > 0).all()  # each once, in order
    assert found.offers.cost == pytest.approx(matrix[number, found.offers.cluster], rel=1e-6, abs=slack)
    at = labels.copy()
    at[found.rows] = found.offers.cluster[found.offers.at]
    assert (reduced[np.arange(len(at)), at] <= np.where(listed, reduced, np.inf).min(1) + slack).all()
    assert found.held == pytest.approx(np.bincount(at, weight, n_clusters))
    assert found.cost == pytest.approx(matrix[np.arange(len(at)), at].sum(), rel=1e-9, abs=slack)


@given(distance_problems(), seeds)
@settings(max_examples=200)
def test_parts_end_at_the_optimum_for_every_block_size(
    any_share: None, case: tuple[DistanceCosts, Problem], seed: int
) -> None:
    costs, problem = case
    prices = prices_of(problem, seed)
    found, other = (assigned(costs, problem, prices, block_rows=block_rows) for block_rows in (None, 3))
    check(found, problem, 10 * (rounding_of(problem, prices, found.prices) + costs.rounding * problem.scale))
    assert np.array_equal(other.labels, found.labels)
    assert np.array_equal(other.prices.value, found.prices.value)
    assert (other.cost, other.lower_bound) == (found.cost, found.lower_bound)
