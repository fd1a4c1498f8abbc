"""Exact costs against numpy, and float32 scores that are never further off than they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import seeds

from coke.bounded.costs import (
    Costs,
    DistanceCosts,
    MatrixCosts,
    Prices,
    as_floats,
    distances,
    exact_costs,
    unit_rows,
)
from coke.bounded.sweep import sweep
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


@settings(max_examples=120)
@given(drawn_costs(), seeds)
def test_scores_are_within_their_error(drawn: tuple[Costs, np.ndarray, np.ndarray | None], seed: int) -> None:
    """Float32 reduced costs as both paths work them out, but for a constant of the row."""
    costs, matrix, size = drawn
    if isinstance(costs, MatrixCosts):
        return
    random = np.random.default_rng(seed)
    prices = random.normal(size=costs.n_clusters) * np.ptp(matrix) * random.choice([0.0, 0.1, 10.0])
    scores, errors = scores_of(costs, prices)
    part = matrix - prices * (1.0 if size is None else size[:, None])
    off = (scores[:, :, None] - scores[:, None]) - (part[:, :, None] - part[:, None])
    rounding = 1e-14 * (np.abs(part).max() + np.abs(prices).max())  # of the oracle, in float64
    assert (np.abs(off).max((1, 2)) <= 2 * errors + rounding).all()


def scores_of(costs: DistanceCosts, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduced costs in float32, less a constant of the row, and by how much each may be off."""
    rows = as_floats(next(costs.blocks(costs.n_rows))[1])
    rough = (rows if costs.shift is None else rows - costs.shift).float()
    factors = costs.factors(rows)
    weights, sizes = (torch.from_numpy(of(0, costs.n_rows)) for of in (costs.weights, costs.sizes))
    level = torch.from_numpy(prices - prices.mean())
    scaled = (costs.scale * weights).float()[:, None]
    product = factors.float()[:, None] * (rough @ costs.doubled.t())
    scores = scaled * costs.squares.float() - scaled * product - sizes.float()[:, None] * level.float()
    length, e = (
        torch.linalg.vector_norm(rough, dim=1).double() * factors,
        costs.errors(float(level.abs().max())),
    )
    errors = costs.scale * weights * (e[0] * length + e[1]) + e[2] * sizes + e[3] * (1 + length)
    return scores.double().numpy(), errors.double().numpy()


def listed(costs: Costs, block_rows: int | None) -> np.ndarray:
    """Costs [N, K] as a sweep without limits lists them, of more than one cluster."""
    nothing, every = np.zeros(costs.n_clusters), np.full(costs.n_clusters, np.inf)
    labels = np.full(costs.n_rows, -1, dtype=np.int32)
    found = sweep(costs, Prices(nothing, every, nothing), labels, block_rows=block_rows)
    return found.offers.cost.reshape(-1, costs.n_clusters)


@settings(max_examples=80)
@given(drawn_costs(), st.integers(1, 40))
def test_exact_costs_are_numpys_and_the_same_for_every_block(
    drawn: tuple[Costs, np.ndarray, np.ndarray | None], block_rows: int
) -> None:
    costs, matrix, size = drawn
    assert np.array_equal(costs.sizes(0, len(matrix)), np.ones(len(matrix)) if size is None else size)
    found, sizes = costs.some(len(matrix))
    assert np.allclose(
        found, matrix, rtol=1e-3, atol=1e-4 * np.abs(matrix).max()
    )  # float32 is enough for widths
    assert np.array_equal(sizes, costs.sizes(0, len(matrix)))
    if costs.n_clusters == 1:
        return
    values = listed(costs, None)
    assert values.dtype == np.float64
    assert np.allclose(values, matrix, rtol=1e-12, atol=1e-13 * np.abs(matrix).max())
    assert np.array_equal(listed(costs, block_rows), values)


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e-22, 1e-20, 1e-18, 1e-10, 1e10])
def test_errors_know_what_float32_cannot_hold(scale: float) -> None:
    random = np.random.default_rng(0)
    rows, centers = random.normal(size=(300, 6)) * scale, random.normal(size=(30, 6)) * scale
    costs = DistanceCosts(open_vectors(rows), torch.from_numpy(centers))
    scores, errors = scores_of(costs, np.zeros(30))
    apart = ((rows[:, None] - centers[None]) ** 2).sum(-1)
    clear = np.abs(scores[:, :, None] - scores[:, None]) > 2 * errors[:, None, None]
    order = (scores[:, :, None] < scores[:, None])[clear]
    assert (order == (apart[:, :, None] < apart[:, None])[clear]).all()
    if scale in (1e-10, 1e10):
        assert clear.mean() > 0.9  # errors that decide nothing would be worth nothing
    labels = np.full(300, -1, dtype=np.int32)
    sweep(costs, Prices(*np.zeros((3, 30))), labels)
    if scale > 1e-100:
        assert (labels == apart.argmin(1)).all()


@pytest.mark.parametrize("size", [1e30, 1e38, 1e39, 1e200])
def test_given_costs_beyond_float32(size: float) -> None:
    costs = size * np.random.default_rng(0).normal(size=(20, 5))
    given_ = MatrixCosts(torch.from_numpy(costs))
    assert np.array_equal(listed(given_, None), costs)
    labels = np.full(20, -1, dtype=np.int32)
    sweep(given_, Prices(*np.zeros((3, 5))), labels)
    assert (labels == costs.argmin(1)).all()


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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("metric", METRICS)
def test_distances_of_every_pair(metric: str, dtype: type) -> None:
    random = np.random.default_rng(0)
    rows = (random.normal(size=(50, 4)) * 3 + 9).astype(dtype)
    centers = random.normal(size=(6, 4))
    if metric == "cosine":
        centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    found = distances(open_vectors(rows), torch.from_numpy(centers), metric).numpy()
    matrix = matrix_of(rows, centers, metric)
    assert found.dtype == (np.float64 if dtype in (np.float64, np.int64) else np.float32)
    assert np.allclose(found, matrix if metric == "cosine" else np.sqrt(matrix), rtol=1e-6, atol=1e-7)


def test_floats_hold_all_values() -> None:
    for dtype in (
        torch.float16,
        torch.bfloat16,
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.int32,
        torch.int64,
    ):
        info = torch.iinfo(dtype) if not dtype.is_floating_point else torch.finfo(dtype)
        ends = torch.tensor([info.min, info.max if dtype != torch.int64 else 2**53], dtype=dtype)
        assert as_floats(ends).to(dtype).equal(ends)
    assert as_floats(torch.zeros(1, dtype=torch.float32)).dtype == torch.float32
