"""Sizes in files: every form means what it says, and what is not understood is refused with its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coke.bounded.command import read_sizes
from coke.errors import DataError


@pytest.mark.parametrize(
    "text",
    [
        "1,5\n2,6\n0,inf\n",
        "1 5\n2 6\n0 inf",
        "1;5\n\n2;6\n0;inf\n",
        "# stock\n1\t5\n2\t6  # small\n0\tinf\n",
        "min_size,max_size\r\n1, 5\r\n2, 6\r\n0, inf\r\n",
        '"max_size","min_size"\n5,1\n6,2\ninf,0\n',
        "\ufeffmin_size,max_size\n1,5\n2,6\n0,inf\n",
    ],
)
def test_two_columns(text: str, tmp_path: Path) -> None:
    path = tmp_path / "sizes.csv"
    path.write_text(text, encoding="utf-8")
    sizes = read_sizes(path)
    assert sizes["min_size"].tolist() == [1, 2, 0]
    assert sizes["max_size"].tolist() == [5, 6, np.inf]


def test_one_column_is_the_maximum(tmp_path: Path) -> None:
    (tmp_path / "sizes.txt").write_text("7\n8\n9\n")
    np.save(tmp_path / "sizes.npy", np.array([7, 8, 9]))
    np.save(tmp_path / "column.npy", np.array([[7.0], [8.0], [9.0]]))
    for name in ("sizes.txt", "sizes.npy", "column.npy"):
        assert {key: value.tolist() for key, value in read_sizes(tmp_path / name).items()} == {
            "max_size": [7, 8, 9]
        }


def test_array_of_two_columns(tmp_path: Path) -> None:
    np.save(tmp_path / "sizes.npy", np.array([[1, 5], [2, 6], [0, 7]], dtype=np.int32))
    sizes = read_sizes(tmp_path / "sizes.npy")
    assert (sizes["min_size"].tolist(), sizes["max_size"].tolist()) == ([1, 2, 0], [5, 6, 7])


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "sizes.csv",
            "1,5\n2,many\n",
            "line 2: '2, many', but a number is expected for min_size and max_size",
        ),
        ("sizes.csv", "1,5\n2\n", "line 2: '2', but a number is expected for min_size and max_size"),
        ("sizes.csv", "min_size,max_size\n1,5\n\n2,6,7\n", "line 4: '2, 6, 7', but"),
        ("sizes.csv", "1,2,3\n", "line 1: '1, 2, 3', but"),
        ("sizes.csv", "1,\n", "line 1: '1, ', but"),
        (
            "sizes.csv",
            "cluster,capacity\n0,5\n",
            "line 1: 'cluster, capacity', but a number is expected for min_size and max_size",
        ),
        ("sizes.csv", "min_size\n5\n", "line 1: 'min_size', but a number is expected for max_size"),
        ("sizes.csv", "0,5\n1,6\n2,7\n3,7\n", "leave the clusters' numbers out"),
        ("sizes.csv", "", "holds no sizes"),
        ("sizes.csv", "max_size\n", "holds no sizes"),
        ("sizes.json", "[1]", "line 1: '[1]', but"),
        ("sizes.npy", "no array", "cannot be read as sizes"),
    ],
)
def test_refusals(name: str, text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_sizes(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_sizes(tmp_path / "nothing.csv")
    (tmp_path / "sizes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_sizes(tmp_path / "sizes.txt")
    for array in (np.ones((3, 3)), np.ones((0, 2)), np.array(["a"]), np.ones((2, 2, 2)), np.ones(())):
        np.save(tmp_path / "sizes.npy", array)
        with pytest.raises(DataError, match=r"number is expected|holds no sizes|cannot be read as sizes"):
            read_sizes(tmp_path / "sizes.npy")
