"""Neighbours beside scikit-learn's, and what clusters let out."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from coke.explore import find_neighbours, neighbours


def blobs(n_rows: int, n_clusters: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    centers = draw.normal(size=(n_clusters, 16)) * 4
    labels = draw.integers(0, n_clusters, n_rows)
    return (centers[labels] + draw.normal(size=(n_rows, 16))).astype(np.float32), labels, centers


def oracle(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    found = NearestNeighbors(n_neighbors=k, metric="cosine").fit(rows).kneighbors()
    return found[1], 1 - found[0]


@pytest.mark.parametrize("block", [1 << 14, 100, 7])
def test_all_pairs_are_those_of_scikit_learn(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _, _ = blobs(300, 4)
    monkeypatch.setattr(neighbours, "_CANDIDATES", block)
    monkeypatch.setattr(neighbours, "_PRODUCTS", 50 * block)
    found = find_neighbours(rows, 6)
    ids, similarity = oracle(rows, 6)
    np.testing.assert_array_equal(found.rows, ids)
    np.testing.assert_allclose(found.similarity, similarity, atol=2e-6)


def test_clusters_that_are_all_near_miss_nothing() -> None:
    rows, labels, centers = blobs(300, 4)
    found = find_neighbours(rows, 6, labels=labels, centers=centers)
    np.testing.assert_array_equal(found.rows, oracle(rows, 6)[0])


def test_neighbours_come_from_the_own_cluster_and_the_nearest() -> None:
    rows, labels, centers = blobs(600, 12)
    found = find_neighbours(rows, 8, labels=labels, centers=centers, n_near=2)
    unit = centers / np.linalg.norm(centers, axis=1, keepdims=True)
    near = np.argsort(-(unit @ unit.T), axis=1)[:, :3]
    assert all(set(labels[found.rows[row]]) <= set(near[labels[row]]) for row in range(len(rows)))


def test_too_few_are_told_apart_and_equal_rows_are_found() -> None:
    rows = np.array([[1.0, 0], [1, 0], [0, 1], [0, 0]])
    found = find_neighbours(rows, 4)
    assert found.rows[0, 0] == 1
    assert found.similarity[0, 0] == pytest.approx(1)
    assert (found.rows[:, 3] == -1).all()
    assert (found.similarity[:, 3] == -np.inf).all()
    assert (found.similarity[3, :3] == 0).all()  # no direction is like no other
    alone = find_neighbours(rows, 1, labels=[0, 0, 1, 1], centers=[[1, 0], [0, 1]], n_near=0)
    assert alone.rows.ravel().tolist() == [1, 0, 3, 2]


def test_a_memory_map_of_halves_is_read_in_place(tmp_path) -> None:
    rows, labels, centers = blobs(300, 4)
    np.save(tmp_path / "rows.npy", rows.astype(np.float16))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    found = find_neighbours(mapped, 3, labels=labels, centers=centers)
    np.testing.assert_array_equal(found.rows, oracle(rows.astype(np.float16).astype(np.float32), 3)[0])
