"""A fitted model whose arrays must not be written to, as joblib maps them, serves without a warning."""

import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch

from coke import ConstrainedKMeans
from coke.vectors.arrays import as_tensor

ROWS = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)


@pytest.fixture
def mapped(tmp_path: Path) -> ConstrainedKMeans:
    """A model whose centers lie in a file."""
    km = ConstrainedKMeans(5, min_size=20, random_state=0, warm_start=True).fit(ROWS)
    joblib.dump(km, tmp_path / "model.joblib")
    loaded = joblib.load(tmp_path / "model.joblib", mmap_mode="r")
    assert not loaded.cluster_centers_.flags.writeable
    return loaded


@pytest.mark.parametrize(
    "call",
    [
        lambda km: km.predict(ROWS),
        lambda km: km.transform(ROWS),
        lambda km: km.assign(ROWS),
        lambda km: km.score(ROWS),
        lambda km: km.fit(ROWS),
        lambda km: km.partial_fit(ROWS) if km.set_params(min_size=None) else None,
    ],
    ids=["predict", "transform", "assign", "score", "fit", "partial_fit"],
)
def test_no_call_warns_and_nothing_is_written(call, mapped):
    centers = np.array(mapped.cluster_centers_)
    before = mapped.cluster_centers_
    torch.set_warn_always(True)  # else it warns once, of the first
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            call(mapped)
        finally:
            torch.set_warn_always(False)
    np.testing.assert_array_equal(before, centers)


def test_read_only_arrays_are_looked_at_in_place(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    for array in (np.load(tmp_path / "rows.npy", mmap_mode="r"), np.broadcast_to(ROWS[:1], (3, 4))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tensor = as_tensor(array)
        assert torch.equal(tensor, torch.tensor(np.array(array)))
        assert tensor.data_ptr() == array.__array_interface__["data"][0]
