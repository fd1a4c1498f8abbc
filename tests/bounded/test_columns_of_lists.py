"""Vectors as data frames hold them: a column whose entries are lists, or columns of nullable numbers."""

import numpy as np
import pytest

from coke import ConstrainedKMeans
from coke.errors import DataError

pandas = pytest.importorskip("pandas")
ROWS = np.random.default_rng(0).normal(size=(60, 3))


@pytest.mark.parametrize(
    "column",
    [
        lambda: pandas.Series(ROWS.tolist()),
        lambda: pandas.Series(list(ROWS), index=np.arange(60)[::-1]),
        lambda: pandas.DataFrame({"emb": list(ROWS), "id": range(60)})["emb"],
        lambda: pandas.Series(list(ROWS)).to_numpy(),
    ],
    ids=["lists", "arrays", "of a frame", "objects"],
)
def test_a_column_of_vectors_is_fitted_and_predicted(column):
    wanted = ConstrainedKMeans(4, min_size=10, random_state=0).fit(ROWS)
    found = ConstrainedKMeans(4, min_size=10, random_state=0).fit(column())
    assert found.n_features_in_ == 3
    assert found.labels_.tolist() == wanted.labels_.tolist()
    assert found.predict(column()).tolist() == wanted.predict(ROWS).tolist()
    with pytest.raises(ValueError, match="features"):
        found.predict(pandas.Series(ROWS[:, :2].tolist()))


def test_nullable_numbers():
    frame = pandas.DataFrame({"a": pandas.array([1, 2, 3, 4], "Int64"), "b": [0.5, 1.0, 1.5, 2.0]})
    assert ConstrainedKMeans(2, random_state=0).fit(frame).counts_.sum() == 4
    frame.loc[2, "a"] = pandas.NA
    with pytest.raises(DataError, match="row 2, column 0"):
        ConstrainedKMeans(2, random_state=0).fit(frame)
