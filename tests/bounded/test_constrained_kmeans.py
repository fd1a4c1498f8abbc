"""`ConstrainedKMeans`: bounds hold, labels are those of the returned centers, and how rows come does not matter."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.testing import assert_array_equal
from oracles import Problem
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import coke
from coke import ConstrainedKMeans
from coke.errors import BoundsError, ConfigError, DataError

NOT_EQUIVALENT = (
    "the sample and the start are drawn from the rows as they stand, so that repeated rows draw others than weighted "
    "ones; scikit-learn's own KMeans is exempt for the same reason"
)
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": NOT_EQUIVALENT,
    "check_sample_weight_equivalence_on_sparse_data": NOT_EQUIVALENT,
}


@parametrize_with_checks(
    [ConstrainedKMeans(), ConstrainedKMeans(3, min_size_ratio=0.5)],
    expected_failed_checks=lambda _: EXPECTED_FAILURES,
)
def test_scikit_learn_contract(estimator: Any, check: Any) -> None:
    check(estimator)
    assert hasattr(estimator, "fit")


def blobs(n_rows: int = 600, n_features: int = 5, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """A mixture with sizes 1/rank."""
    random = np.random.default_rng(seed)
    share = 1 / np.arange(1, 9)
    centers = random.normal(size=(8, n_features)) * 3
    rows = centers[random.choice(8, n_rows, p=share / share.sum())] + random.normal(size=(n_rows, n_features))
    return rows.astype(dtype)


def distances(rows: np.ndarray, centers: np.ndarray, metric: str = "euclidean") -> np.ndarray:
    rows, centers = np.asarray(rows, np.float64), np.asarray(centers, np.float64)
    if metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        centers = centers / np.linalg.norm(centers, axis=1, keepdims=True)
        return 1 - rows @ centers.T
    return ((rows[:, None] - centers[None]) ** 2).sum(-1)


SIZES: list[dict[str, Any]] = [
    {"min_size": 60},
    {"max_size": 90},
    {"min_size": 75, "max_size": 75},
    {"min_size_ratio": 0.8, "max_size_ratio": 1.3},
    {"min_size": [10, 20, 30, 40, 50, 60, 70, 80], "max_size": [600] * 7 + [80]},
]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_bounds_hold_and_the_proof_is_true(sizes: dict[str, Any], metric: str) -> None:
    rows = blobs()
    km = ConstrainedKMeans(8, metric=metric, random_state=0, **sizes).fit(rows)
    bounds = coke.bounded.sizes.resolve_bounds(600, 8, **sizes)
    counts = np.bincount(km.labels_, minlength=8)
    assert_array_equal(counts, km.counts_)
    assert (counts >= bounds.lower.numpy()).all()
    assert (counts <= bounds.upper.numpy()).all()
    costs = distances(rows, km.cluster_centers_, metric)
    assert km.inertia_ == pytest.approx(costs[np.arange(600), km.labels_].sum(), rel=1e-6)
    optimum = Problem(costs, bounds.lower.numpy(), bounds.upper.numpy()).optimum()
    assert km.lower_bound_ <= optimum * (1 + 1e-6)
    assert optimum * (1 - 1e-6) <= km.inertia_ <= optimum * (1 + km.gap_ + 1e-6)
    assert 0 <= km.gap_ <= 1e-5


def test_without_bounds_it_is_kmeans() -> None:
    """The same starting centers lead to the same optimum as scikit-learn's Lloyd."""
    rows = blobs(dtype=np.float64)
    start = rows[::75][:8]
    ours = ConstrainedKMeans(8, init=start, tol=0).fit(rows)
    theirs = KMeans(8, init=start, n_init=1, tol=0, algorithm="lloyd").fit(rows)
    assert_array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-9, atol=1e-9)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-9)
    assert ours.gap_ == 0
    np.testing.assert_allclose(ours.transform(rows), theirs.transform(rows), rtol=1e-9, atol=1e-9)
    assert ours.score(rows) == pytest.approx(theirs.score(rows), rel=1e-9)
    assert_array_equal(ours.predict(rows), theirs.predict(rows))


def as_parquet(rows: np.ndarray, folder: Path) -> Path:
    path = folder / "rows.parquet"
    flat = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    pq.write_table(pa.table({"vector": flat}), path, row_group_size=100)
    return path


def as_npy(rows: np.ndarray, folder: Path) -> Path:
    np.save(folder / "rows.npy", rows)
    return folder / "rows.npy"


KINDS: dict[str, Any] = {
    "Fortran order": lambda rows, _: np.asfortranarray(rows),
    "strided": lambda rows, _: np.repeat(rows, 2, axis=0)[::2],
    "memory map": lambda rows, folder: np.load(as_npy(rows, folder), mmap_mode="r"),
    ".npy": as_npy,
    "parquet": as_parquet,
    "folder": lambda rows, folder: as_npy(rows, folder).parent,
    "tensor": lambda rows, _: torch.from_numpy(rows),
    "batches": lambda rows, _: [rows[:7], rows[7:400], rows[400:]],
    "function": lambda rows, _: lambda: iter(np.array_split(rows, 9)),
    "read-only": lambda rows, _: np.frombuffer(rows.tobytes(), rows.dtype).reshape(rows.shape),
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_rows_gives_the_same_labels(kind: str, dtype: Any, tmp_path: Path) -> None:
    rows = blobs(dtype=dtype)
    expected = ConstrainedKMeans(6, min_size=50, random_state=0, max_iter=5).fit(rows)
    found = ConstrainedKMeans(6, min_size=50, random_state=0, max_iter=5).fit(KINDS[kind](rows, tmp_path))
    assert isinstance(found.labels_, torch.Tensor) == (kind == "tensor")
    assert_array_equal(np.asarray(found.labels_), expected.labels_)
    assert_array_equal(np.asarray(found.cluster_centers_), expected.cluster_centers_)
    assert found.cluster_centers_.dtype == (
        expected.cluster_centers_.dtype
        if kind != "tensor"
        else torch.from_numpy(expected.cluster_centers_).dtype
    )


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_block_size_changes_no_label(metric: str) -> None:
    rows = blobs(3000) + np.float32(100)  # float32 products lose digits there
    fits = [
        ConstrainedKMeans(
            12, min_size=150, max_size=400, metric=metric, random_state=1, max_iter=8, block_rows=block
        ).fit(rows)
        for block in (None, 1, 17, 999)
    ]
    for other in fits[1:]:
        assert_array_equal(fits[0].labels_, other.labels_)
        assert_array_equal(fits[0].cluster_centers_, other.cluster_centers_)
        assert_array_equal(fits[0].duals_, other.duals_)


def test_same_seed_same_labels_and_labels_belong_to_the_centers() -> None:
    rows = blobs(1000)
    fits = [ConstrainedKMeans(10, min_size=60, max_size=150, random_state=3).fit(rows) for _ in range(2)]
    assert_array_equal(fits[0].labels_, fits[1].labels_)
    again = fits[0].assignment(rows)
    assert again.cost == pytest.approx(fits[0].inertia_, rel=1e-5)
    assert_array_equal(pickle.loads(pickle.dumps(fits[0])).predict(rows), fits[0].predict(rows))
    assert clone(fits[0]).get_params() == fits[0].get_params()


def test_assign_holds_bounds_on_other_rows_and_predict_takes_one() -> None:
    km = ConstrainedKMeans(5, min_size_ratio=0.9, random_state=0).fit(blobs())
    other = blobs(103, seed=1)
    assert np.bincount(km.assign(other), minlength=5).min() >= int(np.ceil(0.9 * 103 / 5))
    assert np.bincount(km.assign(other, max_size=21)).max() <= 21
    assert_array_equal(km.predict(other[:1]), distances(other[:1], km.cluster_centers_).argmin(1))
    assert isinstance(km.assign(torch.from_numpy(other)), torch.Tensor)
    with pytest.raises(BoundsError, match="103 rows"):
        km.assign(other, min_size=21)


def test_warm_start_keeps_ids_when_rows_are_added() -> None:
    rows = blobs(800)
    km = ConstrainedKMeans(8, min_size_ratio=0.6, warm_start=True, random_state=0).fit(rows[:600])
    before, centers = km.labels_, km.cluster_centers_
    km.fit(rows)
    assert (km.labels_[:600] == before).mean() > 0.85
    assert (distances(km.cluster_centers_, centers).argmin(1) == np.arange(8)).all()


def test_sample_weights_enter_the_objective_but_not_the_sizes() -> None:
    rows, random = blobs(300), np.random.default_rng(0)
    weights = random.integers(0, 4, 300)
    km = ConstrainedKMeans(5, min_size=50, random_state=0).fit(rows, sample_weight=weights)
    assert np.bincount(km.labels_).min() >= 50
    costs = distances(rows, km.cluster_centers_) * weights[:, None]
    assert km.inertia_ == pytest.approx(costs[np.arange(300), km.labels_].sum(), rel=1e-6)
    optimum = Problem(costs, np.full(5, 50.0), np.full(5, 300.0)).optimum()
    assert km.inertia_ <= optimum * (1 + 2e-5)
    repeated = ConstrainedKMeans(5, init=km.cluster_centers_, max_iter=1).fit(
        np.repeat(rows, weights, axis=0)
    )
    weighted = ConstrainedKMeans(5, init=km.cluster_centers_, max_iter=1).fit(rows, sample_weight=weights)
    np.testing.assert_allclose(repeated.cluster_centers_, weighted.cluster_centers_, rtol=1e-5, atol=1e-6)
    assert repeated.inertia_ == pytest.approx(weighted.inertia_, rel=1e-5)


def test_size_weights_hold_within_the_heaviest() -> None:
    rows, size = blobs(400), np.random.default_rng(0).pareto(3, 400) + 0.1
    capacity = size.sum() / 8 * 1.1
    km = ConstrainedKMeans(8, max_size=capacity, min_size=capacity / 2, random_state=0).fit(
        rows, size_weight=size
    )
    loads = np.bincount(km.labels_, size, 8)
    assert loads.max() <= capacity + size.max()
    assert loads.min() >= capacity / 2 - size.max()


def test_scikit_learn_tools(tmp_path: Path) -> None:
    rows = blobs(200)
    pipeline = make_pipeline(StandardScaler(), ConstrainedKMeans(4, min_size=20, random_state=0))
    assert np.bincount(pipeline.fit_predict(rows)).min() >= 20
    search = GridSearchCV(ConstrainedKMeans(random_state=0), {"n_clusters": [2, 6]}, cv=2).fit(rows)
    assert search.best_params_ == {"n_clusters": 6}
    named = ConstrainedKMeans(3, random_state=0).set_output(transform="default").fit(rows)
    assert list(named.get_feature_names_out()) == [f"constrainedkmeans{k}" for k in range(3)]
    same_call = {"init": "random", "n_init": 2, "max_iter": 5, "tol": 1e-3, "verbose": 0, "random_state": 0}
    for estimator in (KMeans, ConstrainedKMeans):
        fitted = estimator(3, copy_x=True, algorithm="elkan", **same_call).fit(rows)
        assert fitted.cluster_centers_.shape == (3, 5)


def test_verbose_prints_iterations(capsys: pytest.CaptureFixture[str]) -> None:
    ConstrainedKMeans(3, min_size=5, random_state=0, verbose=1, max_iter=2).fit(blobs(100))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("iteration 1: objective ")
    assert "100 labels changed" in lines[0]


HARD: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "one cluster": (blobs(20), {"n_clusters": 1}),
    "as many clusters as rows": (blobs(20), {"n_clusters": 20, "min_size": 1}),
    "minimum takes all": (blobs(20), {"n_clusters": 5, "min_size": 4}),
    "constant": (np.ones((30, 3)), {"n_clusters": 4, "min_size": 5, "max_size": 10}),
    "duplicates": (np.repeat(blobs(3), 20, axis=0), {"n_clusters": 6, "min_size": 7}),
    "mixed signs": (blobs(50) * np.array([-1, 1, -1, 1, 1]), {"n_clusters": 3, "max_size": 20}),
    "outlier 1e6": (np.concatenate([blobs(50), np.full((1, 5), 1e6)]), {"n_clusters": 3, "min_size": 10}),
    "outlier 1e12": (np.concatenate([blobs(50), np.full((1, 5), 1e12)]), {"n_clusters": 3, "min_size": 10}),
    "tiny": (blobs(50, dtype=np.float64) * 1e-30, {"n_clusters": 3, "max_size": 20}),
    "huge offset": (blobs(50, dtype=np.float64) + 1e8, {"n_clusters": 3, "max_size": 20}),
    "whole numbers": (blobs(50).astype(int), {"n_clusters": 3, "max_size": 20}),
}


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("name", HARD)
def test_hard_rows_give_a_correct_result(name: str) -> None:
    rows, asked = HARD[name]
    km = ConstrainedKMeans(random_state=0, max_iter=20, **asked).fit(rows)
    counts = np.bincount(km.labels_, minlength=asked["n_clusters"])
    assert counts.min() >= asked.get("min_size", 0)
    assert counts.max() <= asked.get("max_size", len(rows))
    assert np.isfinite(km.cluster_centers_).all()
    costs = distances(rows, km.cluster_centers_)
    scale = max(costs[np.arange(len(rows)), km.labels_].sum(), 1e-300)
    assert abs(km.inertia_ - scale) <= 1e-6 * scale + 1e-12 * float(np.abs(rows).max()) ** 2
    assert np.isfinite(km.inertia_)
    assert km.gap_ >= 0


def generator() -> Any:
    yield blobs()


@pytest.mark.parametrize(
    ("rows", "asked", "error", "words"),
    [
        (np.array([[1.0, np.nan]] * 9), {}, DataError, "NaN: row 0, column 1"),
        (np.array([[1.0, 2.0]] * 8 + [[np.inf, 0]]), {}, DataError, r"infinity \(inf\): row 8, column 0"),
        (blobs(5), {"n_clusters": 6}, BoundsError, "n_samples=5 should be >= n_clusters=6"),
        (np.zeros((0, 3)), {}, DataError, "0 sample"),
        (np.array([["a"] * 3] * 9), {}, (DataError, TypeError), "dtype is <U1"),
        (blobs(9), {"min_size": 5}, BoundsError, "9 rows cannot fill"),
        (blobs(9), {"max_size": 1}, BoundsError, "do not fit"),
        (blobs(9), {"min_size": 1, "min_size_ratio": 0.1}, BoundsError, "min_size"),
        (blobs(9), {"metric": "cosin"}, ConfigError, "'metric' parameter .* must be a str among .*'cosine'"),
        (blobs(9), {"init": "k-means+"}, ConfigError, "did you mean 'k-means"),
        (blobs(9), {"init": np.zeros((3, 9))}, DataError, r"\(3, 9\)"),
        (blobs(9), {"n_clusters": 0}, ConfigError, "'n_clusters' parameter .* Got 0 instead"),
        (blobs(9), {"max_iter": 0}, ConfigError, "'max_iter' parameter"),
        (blobs(9), {"tol": -1.0}, ConfigError, "'tol' parameter"),
        (blobs(9), {"n_init": 0}, ConfigError, "'n_init' parameter"),
        (blobs(9), {"block_rows": 0}, ConfigError, "'block_rows' parameter"),
        (blobs(9), {"algorithm": "full"}, ConfigError, "'algorithm' parameter"),
        (blobs(9), {"warm_start": "yes"}, ConfigError, "'warm_start' parameter"),
        (blobs(9), {"device": "cuda:99"}, ConfigError, "cannot be used here"),
        (np.zeros((9, 2)), {"metric": "cosine"}, DataError, "row 0 of X is all zeros"),
        (np.concatenate([blobs(9), np.full((1, 5), 1e38)]), {}, DataError, "divide the data"),
        (generator(), {}, DataError, "only once"),
    ],
)
def test_bad_input_is_refused(rows: Any, asked: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        ConstrainedKMeans(**{"n_clusters": 3, "random_state": 0, **asked}).fit(rows)


def test_infeasible_sizes_are_refused_in_the_words_of_check_sizes() -> None:
    check = coke.check_sizes(600, 8, min_size=80)
    with pytest.raises(BoundsError) as caught:
        ConstrainedKMeans(8, min_size=80).fit(blobs())
    assert str(caught.value) == check.text
    assert check.nearest == {"min_size": 75}
    assert ConstrainedKMeans(8, **check.nearest, random_state=0).fit(blobs()).counts_.min() == 75


@pytest.mark.parametrize("weights", [[1.0] * 8, [-1.0] * 9, [np.nan] * 9, [0.0] * 9])
@pytest.mark.parametrize("name", ["sample_weight", "size_weight"])
def test_bad_weights_are_refused(name: str, weights: list[float]) -> None:
    with pytest.raises(DataError, match=name):
        ConstrainedKMeans(2).fit(blobs(9), **{name: weights})


def test_a_stream_keeps_soft_bounds_and_says_by_how_much_it_misses_them() -> None:
    rows = blobs(40_000)
    free, bound = (ConstrainedKMeans(8, random_state=0, **s) for s in ({}, {"min_size_ratio": 0.8}))
    for batch in np.array_split(rows, 200):
        free.partial_fit(batch)
        bound.partial_fit(batch)
    assert bound.counts_.sum() == 40_000
    assert bound.labels_.shape == (200,)
    missing = np.maximum(0.8 * 40_000 / 8 - bound.counts_, 0).sum() / 40_000
    assert bound.violation_ == pytest.approx(missing)
    assert bound.violation_ < 0.05
    assert np.maximum(0.8 * 40_000 / 8 - free.counts_, 0).sum() / 40_000 > 2 * bound.violation_
    assert bound.predict(rows[:3]).shape == (3,)
    with pytest.raises(BoundsError, match="min_size_ratio"):
        ConstrainedKMeans(8, min_size=3).partial_fit(rows[:100])
    with pytest.raises(BoundsError, match="first batch"):
        ConstrainedKMeans(8).partial_fit(rows[:5])


@pytest.mark.filterwarnings("error::RuntimeWarning", "ignore:.*distinct:UserWarning")
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_few_distinct_rows(metric: str) -> None:
    """Centers move onto the only values there are, and duals that follow them stay numbers."""
    for seed in range(12):
        random = np.random.default_rng(seed)
        values = random.standard_normal((int(random.integers(1, 5)), 2))
        rows = values[random.integers(0, len(values), int(random.integers(12, 60)))]
        for n_clusters in (1, 5, 10):
            km = ConstrainedKMeans(
                n_clusters, metric=metric, min_size_ratio=0.9, max_size_ratio=1.2, random_state=seed
            )
            counts = np.bincount(km.fit_predict(rows), minlength=n_clusters)
            share = len(rows) / n_clusters
            assert counts.min() >= np.floor(0.9 * share)
            assert counts.max() <= np.ceil(1.2 * share)


@pytest.mark.parametrize(
    ("scale", "message"), [(1e300, "leave the range of float64"), (1e-300, "below 1e-150")]
)
def test_scales_without_a_direction(scale: float, message: str) -> None:
    rows = blobs(300).astype(np.float64)
    with pytest.raises(DataError, match=message):
        ConstrainedKMeans(3, metric="cosine").fit(rows * scale)
    with pytest.raises(
        DataError, match=r"sample_weight must be at most 1e\+15, row 0 has 1e\+200: take a larger unit"
    ):
        ConstrainedKMeans(3).fit(rows, sample_weight=np.full(300, 1e200))


def test_the_lowest_whole_number_has_a_direction() -> None:
    """Its absolute value is no int8."""
    rows = np.array([[-128, 0], [0, -128], [-128, -128]] * 4, dtype=np.int8)
    labels = ConstrainedKMeans(3, metric="cosine", random_state=0).fit_predict(rows)
    assert len(set(labels[:3])) == 3
