"""Sweeps that look again only where something may have changed: bit for bit what a sweep from nothing finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coke.bounded import kernels
from coke.bounded.costs import DistanceCosts, Prices
from coke.bounded.kernels import GROUP
from coke.bounded.search import Offers
from coke.bounded.seen import grouped
from coke.bounded.sweep import sweep
from coke.vectors import open_vectors


def drawn_rows(random: np.random.Generator, kind: str, n_rows: int, n_features: int) -> np.ndarray:
    if kind == "whole":  # ties in plenty
        return random.integers(0, 4, (n_rows, n_features)).astype(np.float32)
    rows = random.normal(size=(n_rows, n_features)) * random.lognormal(0, 1, (n_rows, 1))
    return (rows + (1000.0 if kind == "far" else 0.0)).astype(np.float64 if kind == "far" else np.float32)


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from(["normal", "whole", "far"]), st.sampled_from(["euclidean", "cosine"]),
    st.integers(64, 130), st.integers(1, 20), st.floats(0, 1), st.booleans(),
)  # fmt: skip
def test_what_was_seen_changes_nothing(
    seed: int, kind: str, metric: str, n_clusters: int, n_features: int, wide: float, outlying: bool
) -> None:
    random = np.random.default_rng(seed)
    rows = drawn_rows(random, kind, 8 * n_clusters + 50, n_features) + (1 if metric == "cosine" else 0)
    centers = rows[random.choice(len(rows), n_clusters, replace=False)].astype(np.float64)
    shift = (
        torch.from_numpy(rows.mean(0).astype(np.float64)) if kind == "far" and metric == "euclidean" else None
    )
    scale = 1.0 if metric == "cosine" else float(np.var(rows))
    if outlying and metric == "euclidean":  # what float32 loses beside such a center is known no better later
        centers[0] += 3e3 * np.sqrt(scale)
    labels, seen = np.full(len(rows), -1, np.int32), None
    value = np.zeros(n_clusters)
    for turn in range(6):
        unit = centers / np.linalg.norm(centers, axis=1, keepdims=True) if metric == "cosine" else centers
        width, reach = random.random((2, n_clusters)) * wide * scale * random.choice([0.0, 0.01, 0.3])
        prices = Prices(value.copy(), width, reach)
        costs = DistanceCosts(open_vectors(rows), torch.from_numpy(unit), metric, shift, seen=seen)
        fresh = DistanceCosts(open_vectors(rows), torch.from_numpy(unit), metric, shift)
        expected = labels.copy()
        from_nothing = sweep(fresh, prices, expected)
        found, seen = sweep(costs, prices, labels), costs.seen
        assert seen is not None
        assert np.array_equal(labels, expected), turn
        assert np.array_equal(found.own, from_nothing.own)
        assert found.cost == from_nothing.cost
        assert found.former_cost == from_nothing.former_cost
        for name in Offers._fields:
            assert np.array_equal(getattr(found.offers, name), getattr(from_nothing.offers, name)), name
        if turn % 2 and outlying:  # the means of what lies there
            centers[0] = rows[0]
        if turn % 2:  # the same centers under other prices, then others
            centers = centers + random.normal(size=centers.shape) * np.sqrt(scale) * random.choice(
                [0.0, 1e-3, 0.3]
            )
        value = value + random.normal(size=n_clusters) * scale * random.choice([0.0, 1e-3, 0.1])


@pytest.mark.parametrize("n_clusters", [1, 7, 8, 9, 64, 100, 257])
def test_groups_hold_every_cluster_once(n_clusters: int) -> None:
    centers = np.random.default_rng(0).normal(size=(n_clusters, 3))
    for values in (centers, np.zeros_like(centers)):  # equal ones too
        order = grouped(values)
        assert len(order) % GROUP == 0
        assert sorted(order[order >= 0]) == list(range(n_clusters))
        assert len(order) < n_clusters + GROUP * (1 + n_clusters // GROUP)


def test_little_is_looked_at_again_where_little_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    centers = random.normal(size=(128, 16)) * 3
    rows = (centers[random.integers(0, 128, 4000)] + random.normal(size=(4000, 16))).astype(np.float32)
    looked = []
    inner = kernels.offers_by_distance

    def counting(*args: Any) -> tuple[int, int, int]:
        found = inner(*args)
        looked.append(found[2] / max(found[1], 1) if args[-2] else np.inf)
        return found

    monkeypatch.setattr(kernels, "offers_by_distance", counting)
    nothing, seen = Prices(*np.zeros((3, 128))), None
    labels = np.full(len(rows), -1, np.int32)
    for moved in (0.0, 1e-3):
        looked.clear()
        costs = DistanceCosts(open_vectors(rows), torch.from_numpy(centers + moved), seen=seen)
        sweep(costs, nothing, labels)
        seen = costs.seen
    assert max(looked) < 2  # of 16 groups


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e30])
def test_what_is_kept_in_two_bytes_is_never_above_and_hardly_below(scale: float) -> None:
    random = np.random.default_rng(0)
    least = (scale * random.lognormal(0, 4, 96) * random.choice([-1, 1], 96)).astype(np.float32)
    none = np.zeros((1, 96), np.float32)
    known = kernels.Known(
        np.zeros(1, np.float32), np.zeros((1, 96), np.uint16), none, none[0], np.zeros(1, np.float32)
    )
    kernels._keep_known(least, known, 0)
    again = np.empty(96, np.float32)
    kernels._recall(known, 0, 0, np.float32(0), again)
    lowest = least.min()
    rounding = 2.0**-22 * np.abs(least).max()
    assert known.base[0] == lowest
    assert (again <= least + rounding).all()
    assert (again - lowest >= (least - lowest) * (1 - 2.0**-8) - rounding).all()
