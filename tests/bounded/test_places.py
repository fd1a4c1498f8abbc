"""Distances, margins and second clusters against numpy's float64, for any block size and type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coke.bounded import places as module
from coke.bounded.places import places
from coke.vectors import open_vectors


def placed(rows: Any, labels: Any, centers: Any, metric: str, block_rows: int | None = None) -> np.ndarray:
    centers = torch.as_tensor(centers)
    with pytest.MonkeyPatch.context() as patch:
        if block_rows is not None:
            patch.setattr(module, "_VALUES", block_rows * max(centers.shape))
        return places(open_vectors(rows), labels, centers, metric)


def distances(rows: np.ndarray, centers: np.ndarray, metric: str) -> np.ndarray:
    """[N, K] in float64, from the definition."""
    rows, centers = rows.astype(np.float64), centers.astype(np.float64)
    if metric == "euclidean":
        return np.sqrt(((rows[:, None] - centers[None]) ** 2).sum(-1))
    lengths = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(centers, axis=1)[None]
    return 1 - rows @ centers.T / lengths


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32"])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_against_the_definition(metric: str, dtype: str, offset: float) -> None:
    random = np.random.default_rng(0)
    rows = (random.normal(size=(301, 7)) * 20 + offset).astype(dtype)
    centers = random.normal(size=(9, 7)) * 20 + offset
    labels = random.integers(0, 9, 301)
    found = placed(rows, labels, centers, metric, block_rows=64)
    wanted = distances(rows, centers, metric)
    own = wanted[np.arange(301), labels]
    assert np.array_equal(found["cluster"], labels)
    np.testing.assert_allclose(found["distance"], own, rtol=1e-6, atol=1e-12)
    wanted[np.arange(301), labels] = np.inf
    assert np.array_equal(found["second"], wanted.argmin(1))
    np.testing.assert_allclose(found["margin"], wanted.min(1) - own, rtol=1e-5, atol=1e-7)
    assert (found["margin"] < 0).any()  # labels are arbitrary: most rows lie elsewhere
    assert (found["second"] != labels).all()


@given(st.integers(0, 1000), st.sampled_from([1, 3, 8, 100]), st.sampled_from(["euclidean", "cosine"]))
def test_blocks_do_not_show(seed: int, block_rows: int, metric: str) -> None:
    """Bit for bit, with ties: rows and centers on a grid, some centers twice."""
    random = np.random.default_rng(seed)
    rows = random.integers(1, 4, (23, 2)).astype(np.float32)
    centers = random.integers(1, 4, (6, 2)).astype(np.float32)
    labels = random.integers(0, 6, 23)
    whole = placed(rows, labels, centers, metric)
    assert np.array_equal(placed(rows, labels, centers, metric, block_rows), whole)
    others = distances(rows, centers, metric)
    others[np.arange(23), labels] = np.inf
    nearest = others.min(1, keepdims=True)
    chosen = others[np.arange(23), whole["second"]]
    np.testing.assert_allclose(chosen, nearest[:, 0], atol=1e-12)
    if metric == "euclidean":  # exact on a grid, so that equals are equal
        assert np.array_equal(whole["second"], others.argmin(1))


def test_one_cluster_has_no_other() -> None:
    found = placed([[0.0, 3.0], [4.0, 0.0]], [0, 0], [[0.0, 0.0]], "euclidean")
    assert found["distance"].tolist() == [3.0, 4.0]
    assert found["second"].tolist() == [-1, -1]


def test_all_centers_alike_stay_within_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cluster can be the second one then: pairs are taken a few at a time."""
    monkeypatch.setattr("coke.bounded.places._VALUES", 50)
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    found = placed(rows, np.zeros(40, int), np.ones((30, 3)), "euclidean")
    assert (found["second"] == 1).all()
    assert (found["margin"] == 0).all()
