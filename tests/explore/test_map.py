"""The map: PCA as scikit-learn's, UMAP where neighbours stay neighbours."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from coke.errors import ConfigError
from coke.explore import Neighbours, find_neighbours, map_of


def rows(n_rows: int = 400) -> np.ndarray:
    draw = np.random.default_rng(0)
    centers = draw.normal(size=(5, 12)) * 3
    return centers[np.arange(n_rows) % 5] + draw.normal(size=(n_rows, 12))


def test_main_directions_are_those_of_scikit_learn() -> None:
    vectors = rows()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    wanted = PCA(2).fit(unit)
    found = map_of(vectors, method="pca")
    np.testing.assert_allclose(np.abs(found.places), np.abs(wanted.transform(unit)), atol=1e-5)
    assert f"{wanted.explained_variance_ratio_.sum():.0%}".replace("%", " %") in found.words


def test_one_feature_and_equal_rows_have_a_map_too() -> None:
    assert map_of(np.ones((5, 3))).places.tolist() == [[0, 0]] * 5
    assert map_of(np.array([[1.0], [-1.0]])).places[:, 1].tolist() == [0, 0]


def test_umap_keeps_neighbours_and_a_seed_repeats_it() -> None:
    pytest.importorskip("umap")
    vectors = rows()
    near = find_neighbours(vectors, 15)
    found = map_of(vectors, near)
    assert found.words.startswith("UMAP")
    assert trustworthiness(vectors, found.places, metric="cosine") > 0.9
    np.testing.assert_array_equal(found.places, map_of(vectors, near).places)


def test_without_enough_neighbours_it_is_pca_unless_umap_was_asked_for() -> None:
    vectors = rows(40)
    few = find_neighbours(vectors, 4)
    assert "PCA" in map_of(vectors, few).words
    missing = Neighbours(np.full((40, 6), -1), np.full((40, 6), -np.inf, np.float32))
    assert "PCA" in map_of(vectors, missing).words
    with pytest.raises(ConfigError, match=r"not installed|at least 5 neighbours"):
        map_of(vectors, few, method="umap")
