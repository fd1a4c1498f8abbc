"""What a clustering is on disk, read by other readers than ours; whole or not there at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import coke
from coke.bounded.command.files import (
    PLACE,
    Clustering,
    assignments_file,
    check_out,
    read_clustering,
    write_clustering,
)
from coke.errors import ConfigError, DataError

FACTS = {"min_size": 2, "max_size": [3, 4, 9], "gap": 0.25, "inertia": float("inf"), "seed": None}


def clustering() -> Clustering:
    return Clustering(
        torch.randn(3, 2), torch.tensor([0.5, 0.0, -1.0]), torch.tensor([1, 2, 3]), "cosine", FACTS
    )


def some_places(n_rows: int) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(0)
    found = np.empty(n_rows, PLACE)
    found["cluster"], found["second"] = random.integers(0, 5, n_rows), random.integers(0, 5, n_rows)
    found["distance"], found["margin"] = random.random(n_rows), random.normal(size=n_rows)
    return found


def test_clustering_comes_back(tmp_path: Path) -> None:
    path, written = tmp_path / "clusters.safetensors", clustering()
    write_clustering(path, written)
    read = read_clustering(path)
    assert torch.equal(read.centers, written.centers)
    assert read.centers.dtype == torch.float32
    assert read.duals.tolist() == written.duals.tolist()
    assert (read.duals.dtype, read.counts.dtype) == (torch.float64, torch.int64)
    assert read.counts.tolist() == [1, 2, 3]
    assert read.metric == "cosine"
    assert dict(read.facts) == FACTS


def test_clustering_as_safetensors_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "clusters.safetensors"
    write_clustering(path, clustering())
    with safe_open(path, "np") as file:
        assert sorted(file.keys()) == ["centers", "counts", "duals"]
        about = json.loads(file.metadata()["coke clustering"])
    assert about == {"format_version": 1, "coke_version": coke.__version__, "metric": "cosine", **FACTS}
    written = path.read_bytes()
    for _ in range(5):
        write_clustering(path, read_clustering(path))
        assert path.read_bytes() == written


def changed(path: Path, about: dict[str, Any] | None, **tensors: torch.Tensor) -> Path:
    """The file with other metadata and tensors."""
    whole = {
        "centers": torch.ones(3, 2),
        "duals": torch.zeros(3).double(),
        "counts": torch.ones(3, dtype=torch.int64),
    }
    kept = {name: value for name, value in {**whole, **tensors}.items() if value.numel()}
    known = {"format_version": 1, "metric": "euclidean"}
    metadata = {} if about is None else {"coke clustering": json.dumps({**known, **about})}
    save_file(kept, path, metadata)
    return path


@pytest.mark.parametrize(
    ("about", "tensors", "expected"),
    [
        (None, {}, "holds no clustering: it is safetensors of another kind"),
        ({"format_version": 2, "coke_version": "9.9"}, {}, "has format 2 (of coke 9.9), this coke"),
        ({"metric": "manhattan"}, {}, "metric 'manhattan'"),
        ({}, {"duals": torch.empty(0)}, "lacks duals"),
        ({}, {"duals": torch.zeros(4).double()}, "is damaged: its tensors have shapes"),
        ({}, {"centers": torch.ones(3)}, "is damaged"),
        ({}, {"duals": torch.zeros(3)}, "its tensors are of torch.float32, torch.float32, torch.int64"),
        ({}, {"centers": torch.ones(3, 2).bfloat16()}, "its tensors are of torch.bfloat16"),
        ({}, {"counts": torch.tensor([1, -1, 1])}, "negative counts"),
        ({"inertia": None}, {}, "inertia None is no number"),
        ({"format_version": "1"}, {}, "has format '1'"),
        ({}, {"centers": torch.full((3, 2), torch.nan)}, "NaN or infinity among its 3 centers"),
    ],
)
def test_other_files_are_refused(
    about: dict[str, Any] | None, tensors: dict[str, torch.Tensor], expected: str, tmp_path: Path
) -> None:
    path = changed(tmp_path / "other.safetensors", about, **tensors)
    with pytest.raises(DataError) as caught:
        read_clustering(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\xff" * 100])
def test_unreadable_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        read_clustering(path)
    with pytest.raises(DataError, match="there is no such file"):
        read_clustering(tmp_path / "nothing.safetensors")


def test_clusters_of_a_run_are_another_kind(tmp_path: Path) -> None:
    """`coke pretrain` writes a clusters.safetensors too."""
    path = tmp_path / "clusters.safetensors"
    save_file({"centers_0": torch.ones(3, 2), "duals_0": torch.zeros(3)}, path)
    with pytest.raises(DataError, match="of another kind"):
        read_clustering(path)


@pytest.mark.parametrize("cuts", [[10], [1, 2, 3], [7, 0, 12]])
def test_assignments(cuts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the rows come, they stand there in order, in row groups that fit into memory."""
    monkeypatch.setattr("coke.bounded.command.files._ROW_GROUP", 5)
    path, places = tmp_path / "clusters.parquet", some_places(sum(cuts))
    with assignments_file(path, "cosine", {"gap": 0.5}) as write:
        for part in np.split(places, np.cumsum(cuts)[:-1]):
            write(part)
        assert not path.exists()
    table = pq.read_table(path)
    assert table.schema.names == ["row", "cluster", "distance", "margin", "second"]
    assert [str(field.type) for field in table.schema] == ["int64", "int32", "float", "float", "int32"]
    assert table["row"].to_pylist() == list(range(len(places)))
    for name in PLACE.names or ():
        assert table[name].to_pylist() == places[name].tolist()
    about = json.loads(table.schema.metadata[b"coke clustering"])
    assert about == {"format_version": 1, "coke_version": coke.__version__, "metric": "cosine", "gap": 0.5}
    assert os.listdir(tmp_path) == ["clusters.parquet"]


def test_no_other_cluster_is_null(tmp_path: Path) -> None:
    places = some_places(3)
    places["second"] = -1
    with assignments_file(tmp_path / "one.parquet", "cosine", {}) as write:
        write(places)
    table = pq.read_table(tmp_path / "one.parquet")
    assert table["second"].null_count == table["margin"].null_count == 3
    assert table["distance"].null_count == 0


def test_no_rows_are_a_table_too(tmp_path: Path) -> None:
    with assignments_file(tmp_path / "none.parquet", "cosine", {}):
        pass
    assert pq.read_table(tmp_path / "none.parquet").schema.field("row").type == pa.int64()


def test_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "clusters.parquet"
    path.write_text("from before")

    def fail_midway() -> None:
        with assignments_file(path, "cosine", {}) as write:
            write(some_places(10))
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail_midway()
    assert path.read_text() == "from before"
    assert os.listdir(tmp_path) == ["clusters.parquet"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("there.parquet", "--out {path} exists: pass --overwrite"),
        ("clusters.csv", "let its name end in .parquet"),
        ("folder.parquet", "is a folder"),
        ("nowhere/clusters.parquet", "there is no folder"),
        ("there.parquet/clusters.parquet", "there is no folder"),
    ],
)
def test_places_that_cannot_be_written(name: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "there.parquet").touch()
    (tmp_path / "folder.parquet").mkdir()
    path = tmp_path / name
    with pytest.raises(ConfigError) as caught:
        check_out(path, ".parquet", "--out")
    assert expected.format(path=path) in str(caught.value)
    check_out(tmp_path / "there.parquet", ".parquet", "--out", overwrite=True)
    check_out(tmp_path / "new.parquet", ".parquet", "--out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="nothing can be written"):
        check_out(tmp_path / "locked" / "clusters.parquet", ".parquet", "--out")


@pytest.mark.parametrize("text", ["[1]", "3", "null"])
def test_metadata_of_another_shape(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"centers": torch.ones(3, 2)}, path, {"coke clustering": text})
    with pytest.raises(DataError, match="holds no clustering"):
        read_clustering(path)


def test_names_that_could_not_be_read_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--out b'.*o.xff.parquet' is not UTF-8"):
        check_out(tmp_path / os.fsdecode(b"o\xff.parquet"), ".parquet", "--out")
