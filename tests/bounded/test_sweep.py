"""Sweeps against brute force in float64: labels, ties, offers and sums, for every cut into blocks and threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import seeds

from coke.bounded.costs import Costs, DistanceCosts, MatrixCosts, Prices, _DistancesElsewhere
from coke.bounded.kernels import Found
from coke.bounded.search import Offers
from coke.bounded.sweep import Swept, sweep
from coke.vectors import open_vectors


def at_prices(value: Any, width: Any = 0.0, reach: Any = 0.0) -> Prices:
    value = np.asarray(value, dtype=np.float64)
    return Prices(value, *(np.broadcast_to(np.float64(each), value.shape).copy() for each in (width, reach)))


def swept(
    costs: Costs, prices: Prices, former: np.ndarray | None = None, **options: Any
) -> tuple[np.ndarray, Swept]:
    labels = np.full(costs.n_rows, -1, dtype=np.int32) if former is None else former.copy()
    found = sweep(costs, prices, labels, **options)
    return labels, found


def by_numpy(costs: DistanceCosts) -> np.ndarray:
    """Costs [N, K] from the definition."""
    rows = next(costs.vectors.blocks(costs.n_rows))[1].double().numpy()
    if costs.metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    matrix = ((rows[:, None] - costs.centers.numpy()) ** 2).sum(-1) / (2 if costs.metric == "cosine" else 1)
    return matrix if costs.sample_weight is None else matrix * costs.sample_weight.numpy()[:, None]


def exact_costs_of(costs: Costs) -> np.ndarray:
    """The same, [N, K], with the sums that decide ties: all of what a sweep without limits lists."""
    if isinstance(costs, MatrixCosts):
        return costs.cost.double().numpy()
    if costs.n_clusters == 1:
        return by_numpy(costs)
    same = DistanceCosts(costs.vectors, costs.centers, costs.metric, costs.shift, costs.sample_weight)
    found = swept(same, at_prices(np.zeros(costs.n_clusters), np.inf))[1]
    return found.offers.cost.reshape(costs.n_rows, costs.n_clusters)


def sizes_of(costs: Costs) -> np.ndarray:
    return np.ones(costs.n_rows) if costs.size_weight is None else costs.size_weight.numpy()


def best_of(reduced: np.ndarray, former: np.ndarray) -> np.ndarray:
    """Of equals the cluster a row is in, else the lowest."""
    best, least = reduced.argmin(1), reduced.min(1)
    stays = (former >= 0) & (reduced[np.arange(len(reduced)), former] == least)
    return np.where(stays, former, best)


def offered(
    matrix: np.ndarray, size: np.ndarray, prices: Prices, label: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs [N, K] are on offer by the criterion, and of which rows they are listed."""
    every = np.arange(len(matrix))
    reduced = matrix - size[:, None] * prices.value
    bar = reduced[every, label] + size * prices.reach[label]
    with np.errstate(invalid="ignore"):
        near = reduced <= bar[:, None] + size[:, None] * prices.width
    listed = (near.sum(1) > 1) & (size > 0)
    return near & listed[:, None], listed


@st.composite
def tied(draw: Any) -> tuple[DistanceCosts, np.ndarray]:
    """Distances and duals with ties: duplicate rows and centers, grids, noise that float32 cannot resolve."""
    random = np.random.default_rng(draw(seeds))
    kind = draw(st.sampled_from(["grid", "copies", "offset", "permuted", "constant"]))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64, np.int32]))
    metric = draw(st.sampled_from(["euclidean", "cosine"]))
    n_rows, n_clusters = int(random.integers(1, 60)), int(random.integers(1, 140))
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


@st.composite
def limits(draw: Any) -> tuple[int, float, float]:
    """A seed, and how wide and how far offers are, relative to costs."""
    several = st.sampled_from([0.0, 0.01, 0.25, 1.0, 5.0, np.inf])
    return draw(seeds), draw(several), draw(st.sampled_from([0.0, 0.0, 0.25, 1.0, 3.0]))


def priced(duals: np.ndarray, limit: tuple[int, float, float]) -> tuple[Prices, np.random.Generator]:
    """Widths and reaches of every cluster by themselves, some 0, most on a grid where costs tie with them."""
    random = np.random.default_rng(limit[0])
    each = [random.integers(0, 3, len(duals)).astype(np.float64) for _ in range(2)]
    width = np.full(len(duals), 1e30) if limit[1] == np.inf else limit[1] * each[0]
    return Prices(duals, width, limit[2] * each[1]), random


@settings(max_examples=200)
@given(tied(), st.integers(1, 60), seeds)
def test_labels_are_the_best_for_every_block_size(
    drawn: tuple[DistanceCosts, np.ndarray], block_rows: int, seed: int
) -> None:
    costs, duals = drawn
    size, matrix = sizes_of(costs), exact_costs_of(costs)
    truth = by_numpy(costs) - size[:, None] * duals
    former = np.random.default_rng(seed).integers(-1, costs.n_clusters, costs.n_rows).astype(np.int32)
    for start in (np.full_like(former, -1), former):
        best = best_of(matrix - size[:, None] * duals, start)
        chosen = truth[np.arange(len(best)), best]
        assert (chosen <= truth.min(1) + 1e-13 * np.abs(truth).max()).all()
        if (np.abs(truth) < 1e6).all() and (truth == np.round(truth)).all():  # no rounding anywhere
            assert (best == best_of(truth, start)).all()
        for rows in (block_rows, None):
            labels, found = swept(costs, at_prices(duals), start, block_rows=rows)
            assert (labels == best).all()
            assert (found.held == np.bincount(best, size, costs.n_clusters)).all()
            assert (found.n_rows == np.bincount(best, minlength=costs.n_clusters)).all()
            assert found.n_changed == (best != start).sum()


@settings(max_examples=200)
@given(tied(), st.integers(1, 60), limits())
def test_offers_are_the_pairs_of_the_criterion_and_no_others(
    drawn: tuple[DistanceCosts, np.ndarray], block_rows: int, limit: tuple[int, float, float]
) -> None:
    costs, duals = drawn
    prices, random = priced(duals, limit)
    former = random.integers(-1, costs.n_clusters, costs.n_rows).astype(np.int32)
    found = [swept(costs, prices, former, block_rows=rows)[1] for rows in (block_rows, None)]
    for name in Offers._fields:
        first, second = (getattr(each.offers, name) for each in found)
        assert np.array_equal(first, second), name  # bit for bit, whatever the block
    assert np.array_equal(found[0].rows, found[1].rows)
    matrix, size = exact_costs_of(costs), sizes_of(costs)
    label = best_of(matrix - size[:, None] * duals, former)
    near, listed = offered(matrix, size, prices, label)
    check_offers(found[0], near, listed, matrix, size, label)


def check_offers(
    found: Swept,
    near: np.ndarray,
    listed: np.ndarray,
    matrix: np.ndarray,
    size: np.ndarray,
    label: np.ndarray,
) -> None:
    offers = found.offers
    assert (found.rows == np.flatnonzero(listed)).all()
    row, cluster = near.nonzero()
    assert np.array_equal(np.diff(offers.start), near.sum(1)[listed])
    assert np.array_equal(offers.cluster, cluster)
    assert np.array_equal(offers.cost, matrix[row, cluster])
    assert np.array_equal(offers.cluster[offers.at], label[listed])
    assert np.array_equal(offers.weight, size[listed])


@settings(max_examples=150)
@given(seeds, st.integers(1, 40), limits())
def test_given_costs_are_offered_likewise(
    seed: int, block_rows: int, limit: tuple[int, float, float]
) -> None:
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, (50, 80)))
    matrix = random.integers(-3, 4, shape).astype(float) if seed % 2 else random.normal(size=shape)
    size = None if seed % 3 else random.integers(0, 3, shape[0]).astype(float)
    costs = MatrixCosts(torch.from_numpy(matrix), None if size is None else torch.from_numpy(size))
    prices, _ = priced(random.integers(-1, 2, shape[1]).astype(float), limit)
    prices = prices._replace(width=np.where(prices.width == 1e30, np.inf, prices.width))
    former = random.integers(-1, shape[1], shape[0]).astype(np.int32)
    labels, found = swept(costs, prices, former, block_rows=block_rows)
    label = best_of(matrix - sizes_of(costs)[:, None] * prices.value, former)
    assert (labels == label).all()
    near, listed = offered(matrix, sizes_of(costs), prices, label)
    check_offers(found, near, listed, matrix, sizes_of(costs), label)


def test_more_offers_than_there_is_room_for_come_in_parts() -> None:
    """Rows that are all offered everywhere fill the buffers of a block more than once."""
    random = np.random.default_rng(0)
    rows, centers = random.normal(size=(9000, 2)), random.normal(size=(600, 2))
    costs = DistanceCosts(open_vectors(rows), torch.from_numpy(centers))
    labels, found = swept(costs, at_prices(np.zeros(600), np.inf), block_rows=9000)
    assert len(found.offers.cluster) == 9000 * 600 > 2**22
    matrix = found.offers.cost.reshape(9000, 600)
    assert np.array_equal(
        matrix[::1000], exact_costs_of(DistanceCosts(open_vectors(rows[::1000]), costs.centers))
    )
    assert (labels == matrix.argmin(1)).all()
    assert found.cost == pytest.approx(matrix.min(1).sum(), rel=1e-13)


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
    labels, found = swept(costs, at_prices(np.zeros(5)), former, block_rows=block_rows)
    matrix = ((rows[:, None] - centers[None]) ** 2).sum(-1) * weight[:, None]
    best = matrix.argmin(1)
    assert found.cost == pytest.approx(matrix.min(1).sum(), rel=1e-14)
    before = np.where(former >= 0, former, best)
    assert found.former_cost == pytest.approx(matrix[np.arange(40), before].sum(), rel=1e-14)
    assert found.n_changed == (best != former).sum()
    again = swept(costs, at_prices(np.zeros(5)), labels, block_rows=7)[1]
    assert again.n_changed == 0
    assert again.cost == again.former_cost == found.cost  # whatever the block, to the last bit


@pytest.mark.parametrize("n_clusters", [2, 63, 64, 65, 200, 513, 700])
def test_the_best_is_found_in_every_column(n_clusters: int) -> None:
    """K that whole chunks of columns do and do not divide."""
    random = np.random.default_rng(n_clusters)
    centers = random.normal(size=(n_clusters, 8))
    rows = np.concatenate([centers, centers + 0.01 * random.normal(size=centers.shape)])
    costs = DistanceCosts(open_vectors(rows), torch.from_numpy(centers))
    labels, found = swept(costs, at_prices(np.zeros(n_clusters), 0.5, 0.1))
    assert (labels == np.tile(np.arange(n_clusters), 2)).all()
    matrix = exact_costs_of(costs)
    near, listed = offered(matrix, np.ones(len(rows)), at_prices(np.zeros(n_clusters), 0.5, 0.1), labels)
    check_offers(found, near, listed, matrix, np.ones(len(rows)), labels)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_neither_threads_nor_types_change_a_bit(metric: str) -> None:
    """Values that float16 holds, so that all types hold the same rows."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(3000, 6)).astype(np.float16)
    centers = random.normal(size=(70, 6))
    if metric == "cosine":
        centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    prices = at_prices(0.3 * random.normal(size=70), random.random(70), 0.2 * random.random(70))
    found = []
    n_threads = torch.get_num_threads()
    for dtype, threads in ((np.float16, 1), (np.float32, 1), (np.float64, 1), (np.float32, 3)):
        torch.set_num_threads(threads)
        try:
            costs = DistanceCosts(open_vectors(rows.astype(dtype)), torch.from_numpy(centers), metric)
            found.append(swept(costs, prices, block_rows=128))
        finally:
            torch.set_num_threads(n_threads)
    for labels, other in found[1:]:
        assert np.array_equal(labels, found[0][0])
        assert other.cost == found[0][1].cost
        assert np.array_equal(other.rows, found[0][1].rows)
        for name in Offers._fields:
            assert np.array_equal(getattr(other.offers, name), getattr(found[0][1].offers, name)), name


def on_both_paths(costs: DistanceCosts, prices: Prices, former: np.ndarray) -> list[Found]:
    """What the kernels find, and what torch finds as it would on a device."""
    rows = next(costs.vectors.blocks(costs.n_rows))[1]
    both = []
    for look in (costs.under(prices, costs.n_rows)(), _DistancesElsewhere(costs, prices)):
        parts = list(look.offers(0, rows, former))
        both.append(Found(*(np.concatenate(values) for values in zip(*parts, strict=True))))
    return both


@settings(max_examples=150)
@given(tied(), limits())
def test_torch_finds_on_a_device_what_the_kernels_find(
    drawn: tuple[DistanceCosts, np.ndarray], limit: tuple[int, float, float]
) -> None:
    costs, duals = drawn
    prices, random = priced(duals, limit)
    former = random.integers(-1, costs.n_clusters, costs.n_rows).astype(np.int32)
    here, elsewhere = on_both_paths(costs, prices, former)
    for name in Found._fields:
        assert getattr(elsewhere, name).dtype == getattr(here, name).dtype, name
    matrix, size = by_numpy(costs), sizes_of(costs)
    values = [costs.centers.numpy(), next(costs.vectors.blocks(costs.n_rows))[1].double().numpy(), matrix]
    whole = all((np.abs(each) < 1e6).all() and (each == np.round(each)).all() for each in values)
    if (
        costs.metric == "euclidean"
        and whole
        and (duals == np.round(duals)).all()
        and np.isin(limit[1:], (0, 0.25, 1, 3, 5, np.inf)).all()
    ):
        for name in Found._fields:  # no rounding anywhere: the same, ties and all
            assert np.array_equal(getattr(elsewhere, name), getattr(here, name)), name
        return
    off = 1e-12 * (np.abs(matrix).max() + np.abs(duals).max() + 1)
    reduced, every = matrix - size[:, None] * duals, np.arange(costs.n_rows)
    for found in (here, elsewhere):
        assert (reduced[every, found.label] <= reduced.min(1) + off).all()
        assert np.allclose(found.cost, matrix[every, found.label], rtol=1e-12, atol=off)
        before = np.where(former >= 0, former, found.label)
        assert np.allclose(found.former_cost, matrix[every, before], rtol=1e-12, atol=off)
        row = np.repeat(every, found.n_offers)
        assert np.allclose(found.offer, matrix[row, found.cluster], rtol=1e-12, atol=off)
        lead = reduced[row, found.cluster] - reduced.min(1)[row]
        wide = size[row] * (prices.width[found.cluster] + prices.reach[found.label[row]])
        assert (lead <= wide + off).all()
        clear = (np.sort(reduced, axis=1)[:, :2] @ [-1, 1] > off) if costs.n_clusters > 1 else every >= 0
        surely = reduced - reduced.min(1)[:, None] < (
            size[:, None] * (prices.width + prices.reach[found.label][:, None]) - off
        )
        has = np.zeros_like(surely)
        has[row, found.cluster] = True
        assert (has | ~surely)[clear & (size > 0) & (surely.sum(1) > 1)].all()
