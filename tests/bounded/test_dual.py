"""Dual bounds below the optimum of an independent solver, and a search that only climbs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Problem, any_problems, duals_of, problems, seeds, truncated, weighted_problems

from coke.bounded.dual import close_ranks, off_target, recentre, search_duals, slack_term, target_sizes
from coke.bounded.sizes import SizeBounds
from coke.bounded.sweep import Focus


def sizes_between(lower: list[float], upper: list[float]) -> SizeBounds:
    return SizeBounds(torch.tensor(lower).double(), torch.tensor(upper).double())


@settings(max_examples=60)
@given(any_problems, seeds)
def test_any_duals_bound_the_optimum_from_below(problem: Problem, seed: int) -> None:
    optimum = problem.relaxed_optimum()
    for step in range(5):
        duals = duals_of(problem, seed + step)
        table = problem.table
        bound = table.reduced_cost(table.choose(duals), duals) + slack_term(duals, problem.bounds)
        assert bound <= optimum + 1e-9 * (problem.scale + problem.total * np.abs(duals).max())


@settings(max_examples=120)
@given(any_problems, seeds)
def test_recentre_is_the_best_uniform_shift(problem: Problem, seed: int) -> None:
    duals = duals_of(problem, seed)
    centred = recentre(duals, problem.bounds, problem.total)
    shift = centred - duals
    assert np.allclose(shift, shift[0], atol=1e-12 * np.abs(duals).max(initial=1.0))
    # LB is concave and piecewise linear in the shift with kinks where a dual crosses 0: try those, and around.
    kinks = np.concatenate([-duals, np.linspace(-3, 3, 31) * (np.abs(duals).max() + 1)])
    best = max(problem.dual_bound(duals + kink) for kink in kinks)
    reach = np.abs(kinks).max() * problem.total
    assert problem.dual_bound(centred) >= best - 1e-12 * (problem.scale + reach)
    preferred = problem.table.choose(duals)
    clear = preferred.margin > 1e-9 * (problem.scale + np.abs(duals).max())
    assert (problem.table.choose(centred).column[clear] == preferred.column[clear]).all()


@settings(max_examples=80)
@given(any_problems, seeds)
def test_the_search_never_lowers_the_bound_nor_passes_the_optimum(problem: Problem, seed: int) -> None:
    start = duals_of(problem, seed)
    found, choice = search_duals(problem.table, problem.bounds, start)
    rounding = 1e-11 * (problem.scale + problem.total * np.abs(start).max())
    assert np.isfinite(found).all()
    assert problem.dual_bound(found) >= problem.dual_bound(start) - rounding
    assert problem.dual_bound(found) <= problem.relaxed_optimum() + 1e-9 * problem.scale + rounding
    assert (choice.column == problem.table.choose(found).column).all()


@settings(max_examples=60)
@given(any_problems, seeds, st.integers(2, 4), st.integers(1, 10))
def test_on_a_truncated_table_too(problem: Problem, seed: int, n_listed: int, max_rows: int) -> None:
    start = duals_of(problem, seed)
    table = truncated(problem, start, Focus(np.inf, n_listed, max_rows, certify=True))
    found, choice = search_duals(table, problem.bounds, start)
    rounding = 1e-11 * (problem.scale + problem.total * np.abs(start).max())
    certified = table.settled_cost + table.reduced_cost(choice, found) + slack_term(found, problem.bounds)
    assert certified >= problem.dual_bound(start) - rounding
    assert certified <= problem.relaxed_optimum() + 1e-9 * problem.scale + rounding


@settings(max_examples=60)
@given(problems(), seeds)
def test_target_sizes_are_what_the_slope_of_the_bound_says(problem: Problem, seed: int) -> None:
    """Raising one dual lifts LB by what its cluster lacks, as long as no row and no sign changes."""
    duals = duals_of(problem, seed)
    choice = problem.table.choose(duals)
    wanted = target_sizes(choice.sizes, duals, problem.bounds)
    sign = np.sign(duals)
    low, high = problem.lower, problem.upper
    assert (wanted[sign > 0] == low[sign > 0]).all()
    assert (wanted[sign < 0] == high[sign < 0]).all()
    free = sign == 0
    assert (wanted[free] == np.clip(choice.sizes, low, high)[free]).all()
    assert off_target(choice.sizes, duals, problem.bounds) == np.abs(wanted - choice.sizes).sum()
    margin = min(choice.margin.min(), np.abs(duals[~free]).min(initial=np.inf))
    step = min(margin / 4, 1.0)
    if step < 1e-6 * (1 + np.abs(duals).max() + np.abs(problem.costs).max()):
        return
    before = problem.dual_bound(duals)
    for cluster in np.flatnonzero(~free):
        moved = duals.copy()
        moved[cluster] += step
        slope = (problem.dual_bound(moved) - before) / step
        rounding = 1e-12 * (problem.scale + problem.total * np.abs(duals).max()) / step
        assert slope == pytest.approx(wanted[cluster] - choice.sizes[cluster], abs=1e-6 + rounding)


@settings(max_examples=40)
@given(problems(min_rows=8))
def test_where_no_row_wavers_the_search_ends_at_the_optimum(problem: Problem) -> None:
    """No row on a boundary and every size on target is complementary slackness: the choice is the optimum."""
    found, choice = search_duals(problem.table, problem.bounds, np.zeros(len(problem.lower)))
    if off_target(choice.sizes, found, problem.bounds) > 0:
        return
    assert problem.excess(choice.column) <= 0
    assert problem.cost(choice.column) == pytest.approx(problem.optimum(), abs=1e-9 * problem.scale)


@settings(max_examples=80)
@given(any_problems, seeds)
def test_ranks_are_closed_without_loss(problem: Problem, seed: int) -> None:
    """Duals that are further apart than any row's costs: closer ones bound as much, and are preferred alike."""
    random = np.random.default_rng(seed)
    weights = np.ones(len(problem.costs)) if problem.weights is None else problem.weights
    span = np.ptp(problem.costs, axis=1)[weights > 0] / weights[weights > 0]
    widest = float(span.max())
    duals = random.normal(size=len(problem.lower)) * (widest + 1e-3) * 10.0 ** random.integers(-1, 4)
    closed = close_ranks(duals, widest)
    assert (np.argsort(closed, kind="stable") == np.argsort(duals, kind="stable")).all() or widest == 0
    assert np.ptp(closed) <= 2 * widest * (len(duals) - 1) * (1 + 1e-9) + 1e-12 * np.abs(duals).max()
    rounding = 1e-12 * (problem.scale + problem.total * np.abs(duals).max())
    assert problem.dual_bound(closed) >= problem.dual_bound(duals) - rounding
    if widest > 0:
        before, after = problem.table.choose(duals), problem.table.choose(closed)
        clear = before.margin > rounding
        assert (before.column[clear] == after.column[clear]).all()
    near = np.sort(random.random(len(duals)) * widest)
    assert close_ranks(near, widest) is near


def test_by_hand() -> None:
    bounds = sizes_between([2, 0, 1], [6, 3, 6])
    duals = np.array([1.0, -2.0, 0.0])
    assert slack_term(duals, bounds) == 2 * 1 - 3 * 2
    assert target_sizes(np.array([0.0, 0.0, 9.0]), duals, bounds).tolist() == [2, 3, 6]
    assert off_target(np.array([0.0, 0.0, 9.0]), duals, bounds) == 2 + 3 + 3
    # A minimum alone: no cluster is worth lowering, so that the lowest dual is 0.
    assert recentre(np.array([3.0, 5.0]), sizes_between([1, 1], [9, 9]), 9.0).tolist() == [0.0, 2.0]
    # A maximum alone: none is worth raising.
    assert recentre(np.array([3.0, 5.0]), sizes_between([0, 0], [5, 5]), 9.0).tolist() == [-2.0, 0.0]
    # Sums of weights are not exact: maxima that are too small by rounding are maxima alone still.
    thirds = np.array([0.1, 0.2, 0.3]).sum() - 1e-16
    assert recentre(np.array([3.0, 5.0]), sizes_between([0, 0], [thirds / 2] * 2), thirds + 1e-15).max() == 0
    # Minima that take everything: any shift upwards is as good, downwards it is not.
    assert recentre(np.array([3.0, 5.0]), sizes_between([4, 5], [9, 9]), 9.0).min() >= 0


@settings(max_examples=40)
@given(weighted_problems(), seeds)
def test_rows_that_weigh_nothing_do_not_stop_it(problem: Problem, seed: int) -> None:
    weights = problem.weights * (np.random.default_rng(seed).random(len(problem.weights)) < 0.5)
    weights[0] = 1.0
    share = weights.sum() / len(problem.lower)
    lower, upper = np.full_like(problem.lower, 0.5 * share), np.full_like(problem.upper, 2 * share)
    light = Problem(problem.costs, lower, upper, weights)
    found, _ = search_duals(light.table, light.bounds, np.zeros(len(light.lower)))
    assert np.isfinite(found).all()
    assert light.dual_bound(found) >= light.dual_bound(np.zeros(len(found))) - 1e-11 * light.scale
