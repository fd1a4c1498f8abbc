"""Sums of rows against fractions: exact on their grid, in any order and any cut, and gone when taken away."""

from __future__ import annotations

from fractions import Fraction
from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import seeds

from coke.bounded.assignment import assign_within
from coke.bounded.centers import CenterSums
from coke.bounded.costs import DistanceCosts, Prices
from coke.bounded.sizes import SizeBounds
from coke.bounded.sweep import sweep
from coke.vectors import open_vectors

UNIT = 2.0**-52


@st.composite
def labelled_rows(draw: Any) -> dict[str, Any]:
    random = np.random.default_rng(draw(seeds))
    n_rows, n_clusters, n_features = random.integers(1, 60), random.integers(1, 6), random.integers(1, 5)
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64, np.int32]))
    scale = (
        draw(st.sampled_from([1.0, 1e3]))
        if dtype in (np.float16, np.int32)
        else 10.0 ** random.integers(-9, 9)
    )
    rows = random.normal(size=(n_rows, n_features)) * scale + draw(st.sampled_from([0.0, 7.0])) * scale
    rows = torch.from_numpy(rows.astype(dtype))
    weights = torch.from_numpy(random.exponential(size=n_rows)) if draw(st.booleans()) else None
    shift = rows.double().mean(0) if draw(st.booleans()) else None
    clusters = torch.from_numpy(random.integers(0, n_clusters, n_rows))
    return {"rows": rows, "weights": weights, "shift": shift, "clusters": clusters, "n_clusters": n_clusters}


def empty_sums(case: dict[str, Any], metric: str = "euclidean") -> CenterSums:
    rows, weights, shift = case["rows"], case["weights"], case["shift"]
    values = rows.double() if shift is None else rows.double() - shift
    return CenterSums(
        int(case["n_clusters"]),
        rows.shape[1],
        total=len(rows),
        largest=1.0 if metric == "cosine" else float(values.abs().max()),
        weight=weights,
        heaviest=1.0 if weights is None else float(weights.max()),
        metric=metric,
        shift=None if metric == "cosine" else shift,
    )


def by_adder(sums: CenterSums, case: dict[str, Any], n_threads: int, block_rows: int) -> CenterSums:
    """The same sums by blocks in order, each told to the next thread's part."""
    adders = [sums.adder(Lock()) for _ in range(n_threads)]
    now = case["clusters"].numpy().astype(np.int32)
    for number, start in enumerate(range(0, len(now), block_rows)):
        own = now[start : start + block_rows]
        rows = case["rows"][start : start + block_rows]
        adders[number % n_threads](start, rows, np.full_like(own, -1), own)
    sums.centers(torch.zeros_like(sums.sums[:, ::2]))  # puts the parts together
    return sums


def added(sums: CenterSums, case: dict[str, Any], order: torch.Tensor, n_calls: int = 1) -> CenterSums:
    for part in order.tensor_split(n_calls):
        now = case["clusters"][part].numpy()
        sums.move(case["rows"][part], part.numpy(), np.full(len(part), -1), now)
    return sums


@settings(max_examples=80)
@given(labelled_rows())
def test_sums_equal_fractions_to_half_a_step_of_the_finer_grid_a_row(case: dict[str, Any]) -> None:
    rows, weights, clusters = case["rows"].double(), case["weights"], case["clusters"]
    sums = added(empty_sums(case), case, torch.arange(len(rows)))
    values = rows if case["shift"] is None else rows - case["shift"]
    largest_sum = float(values.abs().max()) * len(rows) * (1 if weights is None else float(weights.max()))
    coarse, fine = sums.grids
    assert coarse <= 2 * UNIT * largest_sum or not largest_sum
    assert fine <= 2 * UNIT * coarse * len(rows) or not largest_sum
    for cluster in range(case["n_clusters"]):
        own = (clusters == cluster).nonzero()[:, 0].tolist()
        mass = sum(
            (Fraction(1) if weights is None else Fraction(float(weights[row])) for row in own), Fraction(0)
        )
        step = Fraction(sums.weight_grid) / 2
        assert abs(Fraction(float(sums.weights[cluster])) - mass) <= len(own) * step * (weights is not None)
        for feature in range(rows.shape[1]):
            exact = Fraction(0)
            for row in own:
                weight = 1 if weights is None else Fraction(float(weights[row]))
                exact += weight * Fraction(float(values[row, feature]))
            parts = sums.sums[cluster, [feature, rows.shape[1] + feature]].tolist()
            off = abs(sum(map(Fraction, parts)) - exact)
            products = (
                0 if weights is None else len(own) * Fraction(coarse) / 4
            )  # weight times value, rounded
            assert off <= len(own) * Fraction(fine) / 2 + products


@settings(max_examples=60)
@given(labelled_rows(), seeds, st.integers(1, 7), st.sampled_from(["euclidean", "cosine"]))
def test_neither_order_nor_cut_changes_a_bit(
    case: dict[str, Any], seed: int, n_calls: int, metric: str
) -> None:
    case["rows"][(case["rows"] == 0).all(1)] = 1
    n_rows = len(case["rows"])
    shuffled = torch.from_numpy(np.random.default_rng(seed).permutation(n_rows))
    one = added(empty_sums(case, metric), case, torch.arange(n_rows))
    other = added(empty_sums(case, metric), case, shuffled, n_calls)
    apart = by_adder(empty_sums(case, metric), case, n_calls, block_rows=9)
    for each in (other, apart):
        assert torch.equal(one.sums, each.sums)
        assert torch.equal(one.weights, each.weights)


@settings(max_examples=60)
@given(labelled_rows(), seeds, st.sampled_from(["euclidean", "cosine"]))
def test_rows_that_come_and_go_leave_nothing(case: dict[str, Any], seed: int, metric: str) -> None:
    case["rows"][(case["rows"] == 0).all(1)] = 1
    random, n_rows, n_clusters = np.random.default_rng(seed), len(case["rows"]), int(case["n_clusters"])
    sums = empty_sums(case, metric)
    labels = torch.full((n_rows,), -1)
    for _ in range(6):  # as labels change from one iteration to the next
        changed = torch.from_numpy(np.flatnonzero(random.random(n_rows) < 0.5))
        now = torch.from_numpy(random.integers(0, n_clusters, len(changed)))
        sums.move(case["rows"][changed], changed.numpy(), labels[changed].numpy(), now.numpy())
        labels[changed] = now
    present = (labels >= 0).nonzero()[:, 0]
    fresh = added(empty_sums(case, metric), {**case, "clusters": labels}, present)
    assert torch.equal(sums.sums, fresh.sums)
    assert torch.equal(sums.weights, fresh.weights)
    for row in present.tolist():  # take the rest away through a cluster that is emptied likewise
        numbers = np.array([row])
        sums.move(case["rows"][numbers], numbers, labels[numbers].numpy(), np.zeros(1, dtype=np.int64))
    assert not sums.sums[1:].any()
    assert not sums.weights[1:].any()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("weighted", [False, True])
def test_centers_are_the_best_for_their_rows(metric: str, weighted: bool) -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(50, 4)) + 3
    clusters = random.integers(0, 3, 50)
    weights = random.exponential(size=50) if weighted else np.ones(50)
    case = {
        "rows": torch.from_numpy(rows),
        "weights": torch.from_numpy(weights) if weighted else None,
        "shift": torch.full((4,), 3.0).double(),
        "clusters": torch.from_numpy(clusters),
        "n_clusters": 4,
    }
    former = random.normal(size=(4, 4))
    values = rows
    if metric == "cosine":
        former /= np.linalg.norm(former, axis=1, keepdims=True)
        values = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    sums = added(empty_sums(case, metric), case, torch.arange(50))
    centers, masses = (each.numpy() for each in sums.centers(torch.from_numpy(former)))
    assert np.array_equal(centers[3], former[3])  # an empty cluster stays where it is
    assert masses[3] == 0
    for cluster in range(3):
        own = clusters == cluster
        mean = np.average(values[own], axis=0, weights=weights[own])
        expected = mean / np.linalg.norm(mean) if metric == "cosine" else mean
        assert np.allclose(centers[cluster], expected, rtol=1e-13)
        assert masses[cluster] == pytest.approx(weights[own].sum(), rel=1e-14)


def test_directions_that_cancel_keep_the_former_center() -> None:
    sums = CenterSums(1, 2, total=2, largest=1.0, metric="cosine")
    rows = torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    sums.move(rows, np.arange(2), np.full(2, -1), np.zeros(2, dtype=np.int64))
    centers, weights = sums.centers(torch.tensor([[0.0, 1.0]]).double())
    assert centers.tolist() == [[0.0, 1.0]]
    assert weights.tolist() == [2.0]


@pytest.mark.parametrize("value", [0.0, 1e-320, 1e-300, 1e-30, 1e30])
def test_no_size_of_values_ends_in_nan(value: float) -> None:
    rows = torch.tensor([[value], [value], [value]], dtype=torch.float64)
    sums = CenterSums(2, 1, total=3, largest=value)
    sums.move(rows, np.arange(3), np.full(3, -1), np.array([0, 0, 1]))
    centers = sums.centers(torch.zeros(2, 1, dtype=torch.float64))[0]
    assert torch.isfinite(centers).all()
    assert centers.flatten().tolist() == pytest.approx([value, value], rel=1e-7, abs=1e-307)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_sweep_moves_rows_from_one_sum_to_the_other(metric: str) -> None:
    rows, weight = torch.randn(300, 3), torch.rand(300).double()
    case = {"rows": rows, "weights": weight, "shift": rows.double().mean(0)}
    case |= {"n_clusters": 4}
    sums, n_threads = empty_sums(case, metric), torch.get_num_threads()
    labels = np.full(300, -1, dtype=np.int32)
    for threads in (1, 3, 1):
        centers = torch.randn(4, 3).double()
        centers = torch.nn.functional.normalize(centers, dim=1) if metric == "cosine" else centers
        costs = DistanceCosts(open_vectors(rows), centers, metric, sample_weight=weight)
        torch.set_num_threads(threads)
        try:
            sweep(costs, Prices(*np.zeros((3, 4))), labels, block_rows=7, sums=sums)
        finally:
            torch.set_num_threads(n_threads)
        fresh = empty_sums(case, metric)
        fresh.move(rows, np.arange(300), np.full(300, -1), labels)
        found, masses = sums.centers(torch.zeros(4, 3).double())
        expected, fresh_masses = fresh.centers(torch.zeros(4, 3).double())
        assert torch.equal(found, expected)
        assert torch.equal(masses, fresh_masses)
        assert torch.equal(sums.sums, fresh.sums)


@pytest.mark.parametrize("sized", [False, True])
def test_an_assignment_keeps_sums_in_step(sized: bool) -> None:
    """Also of rows that the search has moved."""
    rows = torch.randn(200, 3)
    size = torch.rand(200).double() + 0.5 if sized else None
    total = 200.0 if size is None else float(size.sum())
    case = {"rows": rows, "weights": torch.rand(200).double(), "shift": None, "n_clusters": 5}
    sums, labels = empty_sums(case), np.full(200, -1, dtype=np.int32)
    costs = DistanceCosts(open_vectors(rows), torch.randn(5, 3).double(), size_weight=size)
    bounds = SizeBounds(torch.full((5,), 0.18 * total).double(), torch.full((5,), 0.22 * total).double())
    heaviest = 0.0 if size is None else float(size.max())
    take = open_vectors(rows).take
    found = assign_within(
        costs, bounds, total, Prices(*np.zeros((3, 5))), labels, heaviest=heaviest, sums=sums, take=take
    )
    assert found.labels is labels
    fresh = empty_sums(case)
    fresh.move(rows, np.arange(200), np.full(200, -1), labels)
    assert torch.equal(
        sums.centers(torch.zeros(5, 3).double())[0], fresh.centers(torch.zeros(5, 3).double())[0]
    )
    assert torch.equal(sums.sums, fresh.sums)
    assert torch.equal(sums.weights, fresh.weights)
