"""Few rows go a shorter way, and only the time may tell: labels, centers, costs and turns are those of blocks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kmeans_cases import blobs, check_fit

from coke import ConstrainedKMeans
from coke.bounded import lloyd as loop
from coke.bounded.assignment import ALL_OFFERED
from coke.bounded.at_once import TILE, is_small
from coke.bounded.rows import look_at
from coke.vectors import open_vectors

_random = np.random.default_rng(0)
_ROWS = {
    "blobs": blobs(700, 3),
    "one feature": _random.normal(size=(300, 1)),
    "a tile": _random.normal(size=(TILE, 5)),
    "a tile and a row": _random.normal(size=(TILE + 1, 7)).astype(np.float32),
    "whole numbers": _random.integers(1, 6, (400, 2)),
    "far from 0": blobs(300, 4) + 1e6,
    "long rows": _random.normal(size=(260, 131)),
    "half": _random.normal(size=(150, 9)).astype(np.float16),
    "outliers": np.vstack([_random.normal(size=(200, 2)), 1e4 + _random.normal(size=(3, 2))]),
    "duplicates": np.repeat(_random.normal(size=(20, 3)), 12, axis=0),
}
_SIZES: dict[str, dict[str, Any]] = {
    "free": {},
    "loose": {"min_size_ratio": 0.5, "max_size_ratio": 1.5},
    "equal": {"min_size_ratio": 1, "max_size_ratio": 1},
    "at most": {"max_size_ratio": 1.2},
}


def both(rows: Any, n_clusters: int, weights: Any = None, **parameters: Any) -> list[ConstrainedKMeans]:
    """The same fit the shorter way, and in blocks of so many rows."""
    fits = [
        ConstrainedKMeans(n_clusters, block_rows=block, random_state=1, **parameters) for block in (None, 97)
    ]
    return [km.fit(rows, sample_weight=weights) for km in fits]


def check_same(one: ConstrainedKMeans, other: ConstrainedKMeans) -> None:
    assert one.n_iter_ == other.n_iter_
    for name in ("labels_", "cluster_centers_", "counts_", "duals_"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    assert one.inertia_ == pytest.approx(other.inertia_, rel=1e-15, abs=0)
    assert one.lower_bound_ == pytest.approx(other.lower_bound_, rel=1e-12)
    assert one.gap_ == other.gap_ == 0


@pytest.mark.parametrize(("kind", "sizes"), [*itertools.product(_ROWS, _SIZES)])
def test_a_fit_is_that_of_blocks_to_the_last_bit(kind: str, sizes: str) -> None:
    rows = _ROWS[kind]
    one, other = both(rows, 9, init="random", n_init=2, **_SIZES[sizes])
    check_same(one, other)
    check_fit(one, rows)
    new = np.ascontiguousarray(rows[::3]) + rows.dtype.type(1)
    np.testing.assert_array_equal(one.predict(new), other.predict(new))
    assert one.score(new) == pytest.approx(other.score(new), rel=1e-14)
    np.testing.assert_array_equal(one.assign(new), other.assign(new))


@pytest.mark.parametrize("sizes", _SIZES)
def test_directions_weights_and_tensors_likewise(sizes: str) -> None:
    rows = blobs(500, 6)
    weights = np.random.default_rng(2).integers(0, 3, 500) * 0.5
    check_same(*both(rows, 7, metric="cosine", **_SIZES[sizes]))
    check_same(*both(rows, 7, weights, **_SIZES[sizes]))
    check_same(*both(torch.from_numpy(rows).float(), 7, max_iter=4, **_SIZES[sizes]))
    check_same(*both(rows, 7, tol=0.01, **_SIZES[sizes]))


@given(
    st.integers(2, 60),
    st.integers(1, 4),
    st.integers(1, 8),
    st.sampled_from([*_SIZES]),
    st.integers(0, 2**16),
)
def test_few_values_and_empty_clusters_likewise(n: int, d: int, k: int, sizes: str, seed: int) -> None:
    """Rows of so few values that costs tie and centers are left without rows."""
    random = np.random.default_rng(seed)
    rows = random.integers(0, 3, (n, d)).astype(float)
    start = random.integers(0, 4, (min(k, n), d)) + 0.5 * random.integers(0, 2, (min(k, n), d))
    check_same(*both(rows, min(k, n), init=start, max_iter=20, **_SIZES[sizes]))


def test_from_former_duals_and_with_lines_of_progress(capsys: pytest.CaptureFixture[str]) -> None:
    rows, sizes = blobs(600, 3), _SIZES["loose"]
    one, other = both(rows, 6, warm_start=True, **sizes)
    moved = rows + 0.3
    check_same(one.fit(moved), other.fit(moved))
    told = ConstrainedKMeans(6, random_state=1, verbose=1, **sizes).fit(rows)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == told.n_iter_ + 1
    check_same(told, both(rows, 6, **sizes)[1])


def test_which_rows_are_few() -> None:
    few = look_at(open_vectors(np.zeros((100, 3))), 4)
    assert is_small(few, 4)
    assert not is_small(few, 2**25)
    assert not is_small(look_at(open_vectors(lambda: iter([np.zeros((100, 3))])), 4), 4)
    weighted = look_at(open_vectors(np.zeros((100, 3))), 4, size_weight=torch.ones(100).double())
    assert not is_small(weighted, 4)


def test_more_pairs_within_bounds_go_the_longer_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same labels where few pairs are on offer as where all are: optima of rows without ties are alone."""
    rows = blobs(900, 5)
    assert len(rows) * 10 <= ALL_OFFERED
    of_all = ConstrainedKMeans(10, random_state=1, **_SIZES["loose"]).fit(rows)
    monkeypatch.setattr(loop, "ALL_OFFERED", 0)
    of_few = ConstrainedKMeans(10, random_state=1, **_SIZES["loose"]).fit(rows)
    np.testing.assert_array_equal(of_all.labels_, of_few.labels_)
    np.testing.assert_array_equal(of_all.cluster_centers_, of_few.cluster_centers_)
