"""Duplicates beside brute force: every row that goes has one that stays, and no two that stay are alike."""

import numpy as np
import pytest

from coke.curation import duplicates
from coke.curation.duplicates import COPY, find_duplicates, keep_first, likeness_of_copies, near_clusters
from coke.explore import find_neighbours, neighbours


def cosines(rows: np.ndarray) -> np.ndarray:
    unit = rows.astype(np.float64) / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


def first_ones(rows: np.ndarray, similarity: float) -> list[int]:
    """Rows in order, each kept unless one that is kept is alike."""
    alike, kept = cosines(rows) >= similarity, []
    for row in range(len(rows)):
        if not alike[row, kept].any():
            kept.append(row)
    return kept


@pytest.mark.parametrize("block", [1024, 7])
def test_in_one_cluster_the_first_stays(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    monkeypatch.setattr(neighbours, "_CANDIDATES", 11)
    rows = np.random.default_rng(0).normal(size=(150, 4))
    instead, alike = keep_first(rows, np.arange(150), np.zeros(150, int), [np.array([0])], 0.9)
    stays = np.flatnonzero(instead < 0)
    assert stays.tolist() == first_ones(rows, 0.9)
    goes = np.flatnonzero(instead >= 0)
    assert (alike[goes] >= 0.9).all()
    assert set(instead[goes]) <= set(stays)
    np.testing.assert_allclose(alike[goes], cosines(rows)[goes, instead[goes]], atol=1e-6)
    assert np.isnan(alike[stays]).all()


def test_across_clusters_that_are_near() -> None:
    draw = np.random.default_rng(1)
    rows, labels = draw.normal(size=(200, 4)), draw.integers(0, 4, 200)
    centers = np.stack([rows[labels == k].mean(axis=0) for k in range(4)])
    neighbours = find_neighbours(rows, 10, labels=labels, centers=centers)
    found = find_duplicates(rows, labels, centers, neighbours, 0.9)
    stays = np.flatnonzero(found.instead < 0)
    among = cosines(rows)[np.ix_(stays, stays)]
    np.fill_diagonal(among, 0)
    assert among.max() < 0.9
    goes = np.flatnonzero(found.instead >= 0)
    assert set(found.instead[goes]) <= set(stays)
    assert (found.alike[goes] >= 0.9).all()
    assert found.counts[0.9] == len(goes)
    assert list(found.counts.values()) == sorted(found.counts.values())  # by falling similarity


def test_of_two_clusters_each_is_near_the_other() -> None:
    centers = np.array([[1.0, 0], [0.9, 0.1], [0.8, 0.3], [-1, 0]])
    near = [set(each.tolist()) for each in near_clusters(centers, 1)]
    assert all(other in near[one] for other in range(4) for one in near[other])
    assert near[3] == {2, 3}


def test_a_thousand_equal_rows_leave_one() -> None:
    rows = np.concatenate([np.ones((1500, 3)), np.random.default_rng(0).normal(size=(100, 3))])
    instead, _ = keep_first(rows, np.arange(1600), np.zeros(1600, int), [np.array([0])], 0.99999)
    assert (instead[1:1500] == 0).all()
    assert instead[0] == -1


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_the_threshold_lies_between_copies_and_neighbours(noise: float) -> None:
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(2000, 8))
    copies = rows[:200] + noise * draw.normal(size=(200, 8))
    neighbours = find_neighbours(np.concatenate([rows, copies]), 10)
    threshold = likeness_of_copies(neighbours)
    instead, _ = keep_first(
        np.concatenate([rows, copies]), np.arange(2200), np.zeros(2200, int), [np.array([0])], threshold
    )
    assert (instead[2000:] >= 0).mean() > 0.9
    assert (instead[:2000] >= 0).mean() < 0.01


def test_without_copies_only_exact_ones_count() -> None:
    rows = np.random.default_rng(0).normal(size=(2000, 8))
    threshold = likeness_of_copies(find_neighbours(rows, 10))
    instead, _ = keep_first(rows, np.arange(2000), np.zeros(2000, int), [np.array([0])], threshold)
    assert (instead >= 0).sum() <= 2
    few = likeness_of_copies(find_neighbours(rows[:3], 10))
    assert few == COPY
