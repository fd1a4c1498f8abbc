"""Sums of rows against fractions: exact on their grid, in any order and any cut, and gone when taken away."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import seeds

from coke.bounded.centers import CenterSums
from coke.bounded.costs import DistanceCosts
from coke.bounded.sweep import Focus, sweep
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
        heaviest=1.0 if weights is None else float(weights.max()),
        metric=metric,
        shift=None if metric == "cosine" else shift,
    )


def added(sums: CenterSums, case: dict[str, Any], order: torch.Tensor, n_calls: int = 1) -> CenterSums:
    for part in order.tensor_split(n_calls):
        weights = None if case["weights"] is None else case["weights"][part]
        sums.add(case["rows"][part], weights, case["clusters"][part])
    return sums


@settings(max_examples=80)
@given(labelled_rows())
def test_sums_equal_fractions_to_half_a_grid_step_a_row(case: dict[str, Any]) -> None:
    rows, weights, clusters = case["rows"].double(), case["weights"], case["clusters"]
    sums = added(empty_sums(case), case, torch.arange(len(rows)))
    values = rows if case["shift"] is None else rows - case["shift"]
    largest_sum = float(values.abs().max()) * len(rows) * (1 if weights is None else float(weights.max()))
    assert sums.grid <= 2 * UNIT * largest_sum or not largest_sum  # no loss that float64 sums would not have
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
            off = abs(Fraction(float(sums.sums[cluster, feature])) - exact)
            assert off <= len(own) * Fraction(sums.grid) * Fraction(
                3, 4
            )  # and the rounding of weight times value


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
    assert torch.equal(one.sums, other.sums)
    assert torch.equal(one.weights, other.weights)


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
        weights = None if case["weights"] is None else case["weights"][changed]
        sums.add(case["rows"][changed], weights, now, labels[changed])
        labels[changed] = now
    present = (labels >= 0).nonzero()[:, 0]
    fresh = added(empty_sums(case, metric), {**case, "clusters": labels}, present)
    assert torch.equal(sums.sums, fresh.sums)
    assert torch.equal(sums.weights, fresh.weights)
    for row in present.tolist():  # take the rest away through a cluster that is emptied likewise
        weights = None if case["weights"] is None else case["weights"][row : row + 1]
        goal = torch.zeros(1, dtype=torch.long)
        sums.add(case["rows"][row : row + 1], weights, goal, labels[row : row + 1])
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
    centers, masses, gain = (each.numpy() for each in sums.centers(torch.from_numpy(former)))
    assert np.array_equal(centers[3], former[3])  # an empty cluster stays where it is
    assert masses[3] == gain[3] == 0
    for cluster in range(3):
        own = clusters == cluster
        mean = np.average(values[own], axis=0, weights=weights[own])
        expected = mean / np.linalg.norm(mean) if metric == "cosine" else mean
        assert np.allclose(centers[cluster], expected, rtol=1e-13)
        assert masses[cluster] == pytest.approx(weights[own].sum(), rel=1e-14)
        half = 2 if metric == "cosine" else 1
        before, after = (
            (weights[own] * ((values[own] - at) ** 2).sum(1)).sum() / half
            for at in (former[cluster], centers[cluster])
        )
        assert gain[cluster] * masses[cluster] == pytest.approx(before - after, rel=1e-10)


def test_directions_that_cancel_keep_the_former_center() -> None:
    sums = CenterSums(1, 2, total=2, largest=1.0, metric="cosine")
    sums.add(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]), None, torch.zeros(2, dtype=torch.long))
    centers, _, gain = sums.centers(torch.tensor([[0.0, 1.0]]).double())
    assert centers.tolist() == [[0.0, 1.0]]
    assert gain.tolist() == [0.0]


@pytest.mark.parametrize("value", [0.0, 1e-320, 1e-300, 1e-30, 1e30])
def test_no_size_of_values_ends_in_nan(value: float) -> None:
    rows = torch.tensor([[value], [value], [value]], dtype=torch.float64)
    sums = CenterSums(2, 1, total=3, largest=value)
    sums.add(rows, None, torch.tensor([0, 0, 1]))
    centers = sums.centers(torch.zeros(2, 1, dtype=torch.float64))[0]
    assert torch.isfinite(centers).all()
    assert centers.flatten().tolist() == pytest.approx([value, value], rel=1e-7, abs=1e-307)


def test_a_sweep_moves_rows_from_one_sum_to_the_other() -> None:
    rows = torch.randn(80, 3)
    weight = torch.rand(80).double()
    sums = CenterSums(4, 3, total=80, largest=float(rows.abs().max()), heaviest=float(weight.max()))
    labels = torch.full((80,), -1, dtype=torch.int32)
    for _ in range(3):
        centers = torch.randn(4, 3).double()
        costs = DistanceCosts(open_vectors(rows), centers, sample_weight=weight)
        sweep(costs, np.zeros(4), labels, Focus(0.0, 0), block_rows=7, moved=sums.moved)
        fresh = CenterSums(4, 3, total=80, largest=float(rows.abs().max()), heaviest=float(weight.max()))
        fresh.add(rows, weight, labels.long())
        assert torch.equal(sums.sums, fresh.sums)
        assert torch.equal(sums.weights, fresh.weights)
