"""Rounding: from any duals to the optimum of the table at hand, with duals that prove it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Problem, duals_of, problems, seeds, truncated

from coke.bounded.candidates import Candidates
from coke.bounded.rounding import Exchange, round_to_bounds
from coke.bounded.sweep import Focus


@settings(max_examples=120)
@given(problems(), seeds)
def test_a_whole_table_gives_the_optimum_from_any_duals(problem: Problem, seed: int) -> None:
    """Not only from those that the search found, which leave little to do."""
    start = duals_of(problem, seed)
    column, duals = round_to_bounds(problem.table, problem.bounds, start)
    assert problem.excess(column) <= 0
    rounding = 1e-11 * (problem.scale + problem.total * np.abs(start).max())
    assert problem.cost(column) == pytest.approx(problem.optimum(), abs=rounding)
    assert problem.dual_bound(duals) == pytest.approx(problem.cost(column), abs=rounding)


@settings(max_examples=120)
@given(problems(min_rows=4), seeds, st.integers(2, 4), st.integers(1, 12))
def test_near_rows_give_the_best_that_they_allow(
    problem: Problem, seed: int, n_listed: int, max_rows: int
) -> None:
    """Against HiGHS, to which all other rows and clusters are forbidden; where it finds nothing, sizes stay off."""
    table = truncated(problem, duals_of(problem, seed), Focus(np.inf, n_listed, max_rows, certify=True))
    column, duals = round_to_bounds(table, problem.bounds, table.duals)
    each = np.arange(len(table.rows))
    labels = (problem.costs - table.duals).argmin(1)
    labels[table.rows] = table.labels[column, each]
    assert np.isfinite(duals).all()
    allowed = np.zeros(problem.costs.shape, dtype=bool)
    allowed[np.arange(len(labels)), labels] = True
    allowed[table.rows, table.labels] = True
    forbidden = problem.costs.max() + (len(labels) + 1) * (
        np.ptp(problem.costs) + 1
    )  # more than all can save
    rough = Problem(np.where(allowed, problem.costs, forbidden), problem.lower, problem.upper)
    optimum = rough.optimum()
    if optimum >= forbidden + (len(labels) - 1) * problem.costs.min():  # a forbidden pair is in it
        assert problem.excess(labels) > 0
        return
    assert problem.excess(labels) <= 0
    rounding = 1e-11 * (problem.scale + problem.total * np.abs(table.duals).max())
    assert problem.cost(labels) == pytest.approx(optimum, abs=rounding)


@settings(max_examples=60)
@given(problems(max_rows=12, max_clusters=4, min_rows=2), seeds, st.integers(1, 25))
def test_offers_stay_the_cheapest_as_rows_move(problem: Problem, seed: int, n_moves: int) -> None:
    random = np.random.default_rng(seed)
    table, n_clusters = problem.table, len(problem.lower)
    column = random.integers(0, n_clusters, len(problem.costs))
    exchange = Exchange(table, column.copy(), np.zeros(table.n_clusters))
    for _ in range(n_moves):
        open_ = [edge for edge, price in enumerate(exchange.best) if np.isfinite(price)]
        for edge in range(len(exchange.best)):
            inside = np.flatnonzero(column == exchange.tail[edge])
            costs = problem.costs[inside]
            prices = costs[:, exchange.head[edge]] - costs[:, exchange.tail[edge]]
            assert exchange.best[edge] == prices.min(initial=np.inf)
            if len(inside):
                mover = exchange.mover[edge]
                assert column[mover] == exchange.tail[edge]
                assert prices[inside == mover] == prices.min()
        pairs = {
            (column[row], goal)
            for row in range(len(column))
            for goal in range(n_clusters)
            if goal != column[row]
        }
        assert pairs == {(exchange.tail[edge], exchange.head[edge]) for edge in open_}
        if not open_:
            return
        edge = int(random.choice(open_))
        column[exchange.mover[edge]] = exchange.head[edge]
        exchange.move(edge)
        assert (exchange.column == column).all()


def test_a_surplus_travels_along_a_chain() -> None:
    """No row of cluster 0 likes cluster 2, but one likes 1, and one of 1 likes 2."""
    costs = np.array([[0.0, 1.0, 9.0], [0.0, 5.0, 9.0], [9.0, 0.0, 1.0], [9.0, 0.0, 5.0]])
    problem = Problem(costs, np.array([1.0, 2.0, 1.0]), np.array([1.0, 2.0, 1.0]))
    column, duals = round_to_bounds(problem.table, problem.bounds, np.zeros(3))
    assert column.tolist() == [1, 0, 2, 1]
    assert problem.dual_bound(duals) == problem.cost(column) == 2.0


def test_many_rows_of_one_price_move_at_once() -> None:
    """Ties everywhere: what took one search for a shortest path each would take minutes."""
    n_rows, n_clusters = 8000, 16
    costs = np.tile(np.arange(n_clusters) % 4.0, (n_rows, 1))
    share = n_rows / n_clusters
    problem = Problem(costs, np.full(n_clusters, share), np.full(n_clusters, share))
    column, _ = round_to_bounds(problem.table, problem.bounds, np.zeros(n_clusters))
    assert (problem.sizes(column) == share).all()


def test_where_near_rows_lead_nowhere_nothing_moves() -> None:
    """Two rows of cluster 0, of which the table only knows that they may go to 1; cluster 2 is to have one."""
    table = Candidates.of_costs(np.array([[0.0, 1.0], [0.0, 2.0]]))
    table = replace(table, settled_sizes=np.array([0.0, 0.0, 0.0]), duals=np.zeros(3))
    problem = Problem(np.zeros((2, 3)), np.array([0.0, 0.0, 1.0]), np.array([2.0, 2.0, 2.0]))
    column, duals = round_to_bounds(table, problem.bounds, np.zeros(3))
    assert column.tolist() == [0, 0]
    assert np.isfinite(duals).all()
