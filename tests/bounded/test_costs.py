"""Exact costs against numpy, and rough scores that are never further off than they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import seeds

from coke.bounded.costs import CostBlock, Costs, DistanceCosts, MatrixCosts, exact_costs, unit_rows
from coke.vectors import open_vectors

METRICS = ["euclidean", "cosine"]


def matrix_of(rows: Any, centers: np.ndarray, metric: str, weight: np.ndarray | None = None) -> np.ndarray:
    """Costs [N, K] by their definition, float64."""
    rows = np.asarray(rows, dtype=np.float64)
    if metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        costs = 1 - rows @ centers.T
    else:
        costs = ((rows[:, None] - centers[None]) ** 2).sum(-1)
    return costs if weight is None else costs * weight[:, None]


@st.composite
def drawn_costs(draw: Any) -> tuple[Costs, np.ndarray, np.ndarray | None]:
    """Costs, the same as a matrix, and size weights: of all types, scales and offsets, or given."""
    random = np.random.default_rng(draw(seeds))
    n_rows, n_clusters, n_features = random.integers(1, 40), random.integers(1, 12), random.integers(1, 40)
    size = random.pareto(2, n_rows) if draw(st.booleans()) else None
    size_tensor = None if size is None else torch.from_numpy(size)
    scale = 10.0 ** draw(st.integers(-3, 3))
    if draw(st.integers(0, 3)) == 0:
        costs = scale * random.normal(size=(n_rows, n_clusters)) + draw(st.sampled_from([0.0, 1e5]))
        costs = costs.astype(draw(st.sampled_from([np.float32, np.float64])))
        return MatrixCosts(torch.from_numpy(costs), size_tensor), costs.astype(np.float64), size
    metric, dtype = (
        draw(st.sampled_from(METRICS)),
        draw(st.sampled_from([np.float16, np.float32, np.float64])),
    )
    offset = draw(st.sampled_from([0.0, 10.0])) * scale
    rows = (scale * random.normal(size=(n_rows, n_features)) + offset).astype(dtype)
    rows[~rows.any(1)] = 1
    centers = scale * random.normal(size=(n_clusters, n_features)) + offset
    if metric == "cosine":
        centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    shift = torch.from_numpy(rows.mean(0, dtype=np.float64)) if metric == "euclidean" and offset else None
    weight = random.exponential(size=n_rows) if draw(st.booleans()) else None
    costs = DistanceCosts(
        open_vectors(rows),
        torch.from_numpy(centers),
        metric,
        shift,
        None if weight is None else torch.from_numpy(weight),
        size_tensor,
    )
    return costs, matrix_of(rows, centers, metric, weight), size


def scores_of(costs: Costs, block: CostBlock, duals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    out = torch.empty(len(block), len(duals))
    lift = costs.lift(torch.from_numpy(duals))
    block.scores(lift, out)
    tolerance = block.tolerance(lift)
    return out.double().numpy(), tolerance.double().numpy()


@settings(max_examples=120)
@given(drawn_costs(), seeds, st.integers(1, 40))
def test_scores_are_within_their_tolerance(
    drawn: tuple[Costs, np.ndarray, np.ndarray | None], seed: int, block_rows: int
) -> None:
    """Minus the reduced costs but for a constant of the row, which differences between clusters leave out."""
    costs, matrix, size = drawn
    random = np.random.default_rng(seed)
    duals = random.normal(size=costs.n_clusters) * np.ptp(matrix) * random.choice([0.0, 0.1, 10.0])
    reduced = matrix - duals * (1.0 if size is None else size[:, None])
    n_seen = 0
    for block in costs.blocks(block_rows):
        assert block.start == n_seen
        part = reduced[n_seen : n_seen + len(block)]
        scores, tolerance = scores_of(costs, block, duals)
        off = (scores[:, :, None] - scores[:, None]) + (part[:, :, None] - part[:, None])
        rounding = 1e-14 * np.abs(matrix).max()  # of the oracle, in float64
        assert (np.abs(off).max((1, 2)) <= 2 * tolerance + rounding).all()
        n_seen += len(block)
    assert n_seen == costs.n_rows


@settings(max_examples=80)
@given(drawn_costs(), st.integers(1, 40))
def test_exact_costs_are_numpys_and_the_same_for_every_block(
    drawn: tuple[Costs, np.ndarray, np.ndarray | None], block_rows: int
) -> None:
    costs, matrix, size = drawn
    found, sizes = [], []
    for block in costs.blocks(block_rows):
        rows = torch.arange(len(block)).repeat_interleave(costs.n_clusters)
        clusters = torch.arange(costs.n_clusters).repeat(len(block))
        found.append(block.exact(rows, clusters).view(len(block), -1))
        weights = block.size_weights(torch.arange(len(block)))
        sizes.append(weights if isinstance(weights, torch.Tensor) else torch.ones(len(block)).double())
    values = torch.cat(found).numpy()
    assert values.dtype == np.float64
    assert np.allclose(values, matrix, rtol=1e-12, atol=1e-13 * np.abs(matrix).max())
    assert np.array_equal(torch.cat(sizes).numpy(), np.ones(len(matrix)) if size is None else size)
    whole = next(costs.blocks(len(matrix)))
    some = torch.randperm(values.size)
    rows, clusters = some // costs.n_clusters, some % costs.n_clusters
    assert np.array_equal(whole.exact(rows, clusters).numpy(), values.reshape(-1)[some.numpy()])
    one = whole.exact(rows[:1], clusters[:1])
    assert one.item() == values.reshape(-1)[some[0]]


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e-22, 1e-20, 1e-18, 1e-10, 1e10])
def test_the_tolerance_knows_what_float32_cannot_hold(scale: float) -> None:
    random = np.random.default_rng(0)
    rows, centers = random.normal(size=(300, 6)) * scale, random.normal(size=(30, 6)) * scale
    costs = DistanceCosts(open_vectors(rows), torch.from_numpy(centers))
    scores, tolerance = scores_of(costs, next(costs.blocks(300)), np.zeros(30))
    distances = ((rows[:, None] - centers[None]) ** 2).sum(-1)
    clear = np.abs(scores[:, :, None] - scores[:, None]) > 2 * tolerance[:, None, None]
    order = (scores[:, :, None] > scores[:, None])[clear]
    assert (order == (distances[:, :, None] < distances[:, None])[clear]).all()
    if scale in (1e-10, 1e10):
        assert clear.mean() > 0.9  # a tolerance that decides nothing would be worth nothing


@pytest.mark.parametrize("size", [1e30, 1e38, 1e39, 1e200])
def test_given_costs_beyond_float32(size: float) -> None:
    costs = size * np.random.default_rng(0).normal(size=(20, 5))
    block = next(MatrixCosts(torch.from_numpy(costs)).blocks(20))
    scores, tolerance = scores_of(block.costs, block, np.zeros(5))
    assert np.isfinite(scores).all()
    assert (tolerance > 2.0**-25 * np.abs(costs).max(1)).all()
    assert np.isfinite(tolerance).all() == (size < 1e38)
    assert np.array_equal(block.exact(torch.arange(20), torch.zeros(20).long()).numpy(), costs[:, 0])


@pytest.mark.parametrize("metric", METRICS)
def test_exact_costs_resolve_what_float32_cannot(metric: str) -> None:
    """Two centers that differ in the last of 1e4 + noise, or by an angle of 1e-6."""
    base = np.random.default_rng(0).normal(size=64)
    base = base / np.linalg.norm(base) if metric == "cosine" else 1e4 + base
    rows = torch.from_numpy(base).float()[None]
    centers = torch.from_numpy(np.stack([base, base + 1e-6]))
    if metric == "cosine":
        centers = unit_rows(centers)
    found = exact_costs(rows.expand(2, -1), centers, metric).numpy()
    expected = matrix_of(rows.numpy(), centers.numpy(), "euclidean")[0]
    if metric == "cosine":
        unit = rows.double().numpy() / np.linalg.norm(rows.double().numpy())
        expected = matrix_of(unit, centers.numpy(), "euclidean")[0] / 2
    assert np.allclose(found, expected, rtol=1e-12, atol=0)
    assert found[0] != found[1]


def test_unit_rows_have_length_one_in_float64() -> None:
    rows = torch.randn(50, 7).half()
    lengths = unit_rows(rows).square().sum(1)
    assert lengths.dtype == torch.float64
    assert (lengths - 1).abs().max() < 1e-15
    assert torch.equal(unit_rows(rows[:1]), unit_rows(rows)[:1])
