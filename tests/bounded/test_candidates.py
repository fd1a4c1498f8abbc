"""Tables of near rows: choices against brute force, and a bound that stays below LB whatever the duals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Problem, any_problems, duals_of, seeds, truncated

from coke.bounded.candidates import Candidates
from coke.bounded.dual import slack_term
from coke.bounded.sweep import Focus


@settings(max_examples=60)
@given(any_problems, seeds)
def test_a_choice_is_the_two_best_of_each_row(problem: Problem, seed: int) -> None:
    duals = duals_of(problem, seed)
    choice = problem.table.choose(duals)
    size = np.ones(len(problem.costs)) if problem.weights is None else problem.weights
    reduced = problem.costs - duals * size[:, None]
    assert (choice.column == reduced.argmin(1)).all()  # numpy, too, gives the lowest index of equals
    assert (choice.best == reduced.min(1)).all()
    assert (choice.sizes == problem.sizes(reduced.argmin(1))).all()
    if len(duals) == 1:
        assert np.isinf(choice.margin).all()
        return
    two = np.sort(reduced, axis=1)
    assert (choice.margin == two[:, 1] - two[:, 0]).all()
    each = np.arange(len(reduced))
    assert (reduced[each, choice.second] == two[:, 1]).all()
    assert (choice.second != choice.column).all()


@settings(max_examples=60)
@given(any_problems, seeds)
def test_a_whole_table_gives_the_dual_bound_itself(problem: Problem, seed: int) -> None:
    duals, table = duals_of(problem, seed), problem.table
    bound = table.reduced_cost(table.choose(duals), duals) + slack_term(duals, problem.bounds)
    assert bound == pytest.approx(
        problem.dual_bound(duals), abs=1e-12 * (problem.scale + np.abs(duals).sum())
    )


@settings(max_examples=150)
@given(
    any_problems,
    seeds,
    seeds,
    st.integers(1, 6),
    st.integers(0, 12),
    st.sampled_from([0.0, 0.1, 1.0, 30.0, np.inf]),
)
def test_a_truncated_table_never_promises_more_than_the_dual_bound(
    problem: Problem, seed: int, other: int, n_listed: int, max_rows: int, reach: float
) -> None:
    start = duals_of(problem, seed)
    table = truncated(problem, start, Focus(reach, n_listed, max_rows, certify=True))
    rounding = 1e-12 * (problem.scale + problem.total * np.abs(start).max())
    at_start = table.settled_cost + table.reduced_cost(table.choose(start), start)
    expected = problem.dual_bound(start) - slack_term(start, problem.bounds)
    assert at_start == pytest.approx(expected, abs=rounding)  # where it was made, nothing is lost
    for step in range(4):
        duals = duals_of(problem, other + step)
        if step % 2:  # a small move, which unsettles few rows
            duals = start + 0.01 * (duals - start)
        found = table.settled_cost + table.reduced_cost(table.choose(duals), duals)
        truth = problem.dual_bound(duals) - slack_term(duals, problem.bounds)
        assert found <= truth + rounding + 1e-12 * problem.total * np.abs(duals).max()


@settings(max_examples=60)
@given(any_problems, seeds, st.integers(2, 6), st.integers(1, 12))
def test_what_a_table_says_of_rows_and_clusters_left_out_is_true(
    problem: Problem, seed: int, n_listed: int, max_rows: int
) -> None:
    duals = duals_of(problem, seed)
    table = truncated(problem, duals, Focus(np.inf, n_listed, max_rows, certify=True))
    size = np.ones(len(problem.costs)) if problem.weights is None else problem.weights
    reduced = problem.costs - duals * size[:, None]
    best = reduced.argmin(1)
    settled = np.setdiff1d(np.arange(len(reduced)), table.rows)
    assert (np.diff(table.rows) > 0).all()
    assert np.allclose(
        table.settled_sizes, np.bincount(best[settled], size[settled], len(duals)), atol=1e-12 * size.sum()
    )
    assert table.settled_cost == pytest.approx(
        problem.costs[settled, best[settled]].sum(), abs=1e-12 * problem.scale
    )
    assert (np.diff(table.labels, axis=0) > 0).all()  # so that the first of equals is the lowest
    assert (table.costs == problem.costs[table.rows, table.labels]).all()
    if len(duals) > 1:
        two = np.sort(reduced, axis=1)
        margin = np.divide(two[:, 1] - two[:, 0], size, out=np.full(len(size), np.inf), where=size > 0)
        assert (margin[settled] >= table.settled_margin - 1e-12 * problem.scale).all() or not len(settled)
    unlisted = np.ones_like(reduced, dtype=bool)
    unlisted[table.rows, table.labels] = False
    others = np.where(unlisted, reduced, np.inf).min(1)[table.rows]
    assert (table.beyond <= others).all()
    assert (table.beyond == others).all()  # exact, so that no block size can matter


def test_beyond_and_settled_margin_are_used() -> None:
    """One row with two of three clusters listed, and 5 settled ones in cluster 0 that lead by 2."""
    table = Candidates(
        rows=np.array([0]),
        labels=np.array([[0], [1]], dtype=np.int32),
        costs=np.array([[1.0], [1.5]]),
        beyond=np.array([4.0]),
        weights=None,
        settled_sizes=np.array([5.0, 0.0, 0.0]),
        settled_cost=10.0,
        settled_margin=2.0,
        duals=np.zeros(3),
    )

    def rows_part(duals: list[float]) -> float:
        at = np.array(duals)
        return table.settled_cost + table.reduced_cost(table.choose(at), at)

    assert rows_part([0, 0, 0]) == 11.0
    assert rows_part([1, 1, 1]) == 5.0  # every row pays one less
    assert (
        rows_part([0, 0, 2]) == 11.0
    )  # cluster 2 costs the near row 4 - 2 at least, the settled ones 2 more than 0
    assert rows_part([0, 0, 3.5]) == 10.0 + 0.5 - 5 * 1.5
    assert rows_part([-1, 0, 0]) == 10.0 + 1.5 + 5.0
    heavy = replace(table, weights=np.array([3.0]), settled_sizes=np.array([15.0, 0.0, 0.0]))
    at = np.array([0.0, 0.5, 0.0])
    assert heavy.reduced_cost(heavy.choose(at), at) == 0.0  # 1.5 - 3 * 0.5
    assert heavy.choose(at).sizes.tolist() == [15.0, 3.0, 0.0]
