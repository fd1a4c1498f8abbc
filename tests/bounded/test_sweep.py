"""Sweeps against brute force in float64: labels, ties, near rows and sums, for every cut into blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import seeds

from coke.bounded.costs import Costs, DistanceCosts, MatrixCosts
from coke.bounded.sweep import Focus, Sweep, count_labels, default_block_rows, sweep
from coke.vectors import open_vectors

NOTHING = Focus(0.0, 0)


def swept(
    costs: Costs, duals: np.ndarray, focus: Focus = NOTHING, **options: Any
) -> tuple[np.ndarray, Sweep]:
    labels = torch.full((costs.n_rows,), -1, dtype=torch.int32)
    found = sweep(costs, duals, labels, focus, **options)
    return labels.numpy(), found


def reduced_by_numpy(costs: DistanceCosts, duals: np.ndarray) -> np.ndarray:
    """[N, K] from the definition."""
    rows = next(costs.vectors.blocks(costs.n_rows))[1].double().numpy()
    if costs.metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    matrix = ((rows[:, None] - costs.centers.numpy()) ** 2).sum(-1) / (2 if costs.metric == "cosine" else 1)
    weight = 1.0 if costs.sample_weight is None else costs.sample_weight.numpy()[:, None]
    size = 1.0 if costs.size_weight is None else costs.size_weight.numpy()[:, None]
    return matrix * weight - size * duals


def exact_reduced(costs: Costs, duals: np.ndarray) -> np.ndarray:
    """The same in the order of sums that decides ties: what it must equal is tested elsewhere."""
    block = next(costs.blocks(costs.n_rows))
    rows = torch.arange(costs.n_rows).repeat_interleave(costs.n_clusters)
    matrix = block.exact(rows, torch.arange(costs.n_clusters).repeat(costs.n_rows))
    size = 1.0 if costs.size_weight is None else costs.size_weight.numpy()[:, None]
    return matrix.view(costs.n_rows, -1).numpy() - size * duals


@st.composite
def tied(draw: Any) -> tuple[DistanceCosts, np.ndarray]:
    """Distances and duals with ties: duplicate rows and centers, grids, noise that float32 cannot resolve."""
    random = np.random.default_rng(draw(seeds))
    kind = draw(st.sampled_from(["grid", "copies", "offset", "permuted", "constant"]))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64, np.int32]))
    metric = draw(st.sampled_from(["euclidean", "cosine"]))
    n_rows, n_clusters = int(random.integers(1, 60)), int(random.integers(1, 90))
    n_features = int(random.choice([1, 2, 5, 33]))
    rows = random.normal(size=(n_rows, n_features)) * 3
    if kind == "grid":
        rows = random.integers(-1, 2, rows.shape).astype(float)
    if kind == "copies":
        rows = rows[random.integers(0, 1 + n_rows // 6, n_rows)]
    if kind == "offset" and dtype != np.float16:
        rows = rows * (1 if dtype == np.int32 else 0.01) + 1e4
    if kind in ("permuted", "constant"):
        rows[:] = rows[:, :1] if kind == "permuted" else 1.0
    rows = rows.astype(dtype)
    rows[~rows.any(1)] = 1
    values = rows.astype(np.float64)
    centers = values[random.integers(0, n_rows, n_clusters)]
    if kind == "permuted":  # equally far from rows whose features are all the same, but for rounding
        centers = random.permuted(np.tile(random.normal(size=n_features) + 0.1, (n_clusters, 1)), axis=1)
    if metric == "cosine":
        centers = centers / np.linalg.norm(centers, axis=1, keepdims=True)
    shift = values.mean(0) if metric == "euclidean" and draw(st.booleans()) else None
    weight = random.integers(0, 3, n_rows).astype(float) if draw(st.booleans()) else None
    size = random.integers(0, 3, n_rows).astype(float) if draw(st.booleans()) else None
    duals = random.integers(-1, 2, n_clusters) * draw(st.sampled_from([0.0, 1.0, 0.37]))
    tensors = [None if each is None else torch.from_numpy(each) for each in (shift, weight, size)]
    order = draw(st.sampled_from("CF"))
    costs = DistanceCosts(
        open_vectors(np.asarray(rows, order=order)), torch.from_numpy(centers), metric, *tensors
    )
    return costs, duals.astype(float)


@settings(max_examples=200)
@given(tied(), st.integers(1, 60))
def test_labels_are_the_lowest_of_the_best_for_every_block_size(
    drawn: tuple[DistanceCosts, np.ndarray], block_rows: int
) -> None:
    costs, duals = drawn
    best, truth = exact_reduced(costs, duals).argmin(1), reduced_by_numpy(costs, duals)
    chosen = truth[np.arange(len(best)), best]
    assert (chosen <= truth.min(1) + 1e-13 * np.abs(truth).max()).all()
    if (np.abs(truth) < 1e6).all() and (truth == np.round(truth)).all():  # no rounding anywhere
        assert (best == truth.argmin(1)).all()
    for rows in (block_rows, None):
        labels, found = swept(costs, duals, block_rows=rows)
        assert (labels == best).all()
        size = None if costs.size_weight is None else costs.size_weight.numpy()
        assert (found.sizes == np.bincount(best, size, costs.n_clusters)).all()
        assert found.n_changed == costs.n_rows


@settings(max_examples=150)
@given(
    tied(),
    st.integers(1, 60),
    st.integers(2, 9),
    st.integers(0, 70),
    st.sampled_from([0.0, 0.25, 1.0, 5.0, np.inf]),
)
def test_near_rows_are_those_within_reach_and_the_closest_of_them(
    drawn: tuple[DistanceCosts, np.ndarray], block_rows: int, n_listed: int, max_rows: int, reach: float
) -> None:
    costs, duals = drawn
    focus = Focus(reach, n_listed, max_rows, certify=True)
    tables = [swept(costs, duals, focus, block_rows=rows)[1].table for rows in (block_rows, 60)]
    for name in ("rows", "labels", "costs", "beyond", "settled_sizes", "weights"):
        first, second = (getattr(table, name) for table in tables)
        assert np.array_equal(first, second), name  # bit for bit, whatever the block
    table, reduced = tables[0], exact_reduced(costs, duals)
    assert tables[1].settled_margin == table.settled_margin
    if costs.n_clusters == 1:
        assert len(table.rows) == 0
        assert table.settled_margin == np.inf
        return
    size = np.ones(costs.n_rows) if costs.size_weight is None else costs.size_weight.numpy()
    two = np.sort(reduced, axis=1)[:, :2]
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = (two[:, 1] - two[:, 0]) / size
    near = np.flatnonzero((margin <= reach) & (size > 0))
    if len(near) > max_rows:  # the closest, and of equals the first
        near = np.sort(near[margin[near].argsort(kind="stable")[:max_rows]])
        assert table.settled_margin <= reach
    else:
        assert table.settled_margin == reach
    assert set(table.rows) - set(near) <= set(np.flatnonzero(size == 0))  # which no dual can move
    assert set(near) <= set(table.rows)
    settled = np.setdiff1d(np.flatnonzero(size > 0), table.rows)
    assert (margin[settled] >= table.settled_margin).all()
    m = min(n_listed, costs.n_clusters)
    order = reduced[table.rows].argsort(axis=1, kind="stable")[:, :m]
    assert np.array_equal(table.labels.T, np.sort(order, axis=1))
    assert (table.duals == duals).all()


@settings(max_examples=40)
@given(seeds, st.integers(1, 40))
def test_the_sum_of_costs_and_what_has_changed(seed: int, block_rows: int) -> None:
    random = np.random.default_rng(seed)
    rows, centers = random.normal(size=(40, 3)), random.normal(size=(5, 3))
    weight = random.exponential(size=40)
    costs = DistanceCosts(
        open_vectors(rows), torch.from_numpy(centers), sample_weight=torch.from_numpy(weight)
    )
    former = random.integers(-1, 5, 40).astype(np.int32)
    labels, calls = torch.from_numpy(former.copy()), []

    def moved(block: Any, changed: torch.Tensor, before: torch.Tensor, now: torch.Tensor) -> None:
        calls.append(((block.start + changed).numpy(), before.numpy(), now.numpy()))

    found = sweep(costs, np.zeros(5), labels, Focus(0.0, 2, certify=True), block_rows=block_rows, moved=moved)
    matrix = ((rows[:, None] - centers[None]) ** 2).sum(-1) * weight[:, None]
    best = matrix.argmin(1)
    changed = np.flatnonzero(best != former)
    assert found.cost == pytest.approx(matrix.min(1).sum(), rel=1e-12)
    assert found.n_changed == len(changed)
    parts = [np.concatenate(part) for part in zip(*calls, strict=True)] if calls else [np.array([])] * 3
    assert np.array_equal(parts[0], changed)
    assert np.array_equal(parts[1], former[changed])
    assert np.array_equal(parts[2], best[changed])
    again = sweep(costs, np.zeros(5), labels, NOTHING, block_rows=block_rows, moved=moved)
    assert again.n_changed == 0
    assert np.isnan(again.cost)


@pytest.mark.parametrize("n_clusters", [2, 63, 64, 65, 200, 513, 700])
def test_many_clusters_are_searched_by_columns_of_maxima(n_clusters: int) -> None:
    """Widths that do and do not divide K, and the best in every place."""
    random = np.random.default_rng(n_clusters)
    costs = random.normal(size=(3 * n_clusters, n_clusters))
    costs[np.arange(n_clusters), np.arange(n_clusters)] = -9.0
    costs[n_clusters + np.arange(n_clusters)] = costs[:n_clusters].round(1)
    costs[np.arange(n_clusters), (np.arange(n_clusters) * 7 + 1) % n_clusters] -= 5.0
    labels, found = swept(MatrixCosts(torch.from_numpy(costs)), np.zeros(n_clusters), Focus(np.inf, 3))
    assert (labels == costs.argmin(1)).all()
    two = np.argsort(costs, axis=1, kind="stable")[:, :2]
    if n_clusters > 3:
        second = found.table.choose(np.zeros(n_clusters)).second
        assert (second == two[:, 1]).all()


def test_one_listed_cluster_says_nothing_of_margins() -> None:
    """Rows that were not looked at may be on a boundary: whoever believed otherwise would certify too much."""
    table = swept(MatrixCosts(torch.zeros(6, 3)), np.zeros(3), Focus(np.inf, 1, certify=True))[1].table
    assert len(table.rows) == 0
    assert table.settled_margin == 0
    at = np.array([0.0, 1.0, 0.0])
    assert table.settled_cost + table.reduced_cost(table.choose(at), at) == -6


def test_small_parts() -> None:
    labels = torch.tensor([0, 2, 2], dtype=torch.int32)
    assert count_labels(labels, 4).tolist() == [1, 0, 2, 0]
    for n_clusters in (1, 10, 10**4, 10**8):
        assert 1 <= default_block_rows(n_clusters, torch.device("cpu")) <= 2**16
