"""`coke explore` as a person meets it: the table read by other means, refusals, and embedding-atlas where it is."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

import coke
from coke.cli import main
from coke.explore import atlas, command
from coke.explore.map import Map
from coke.explore.table import center_labels
from tiny_runs import SETTINGS, write_textures

N = 60
ATLAS = shutil.which("embedding-atlas")
needs_atlas = pytest.mark.skipif(not ATLAS, reason="embedding-atlas is not installed: coke-ssl[explore]")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, a run of them, its embeddings as parquet and .npy, and clusters of these."""
    place = tmp_path_factory.mktemp("explore")
    write_textures(place / "photos", N, size=20, labelled=True)
    keys: dict[str, Any] = {**SETTINGS, "backbone": "coke_conv5_w24", "epochs": 2, "batch_size": 20}
    coke.pretrain(place / "photos", out=place / "run", overrides=keys)
    for name in ("photos.parquet", "vectors.npy"):
        assert main(["embed", str(place / "run"), str(place / "photos"), "--out", str(place / name)]) == 0
    words = ["--k", "4", "--metric", "cosine", "--out", str(place / "clusters.parquet")]
    assert main(["cluster", str(place / "photos.parquet"), *words]) == 0
    return place


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same files, linked into a folder of the test's own."""
    for path in place.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table_of(*words: Any) -> pa.Table:
    """What it writes without serving."""
    assert main(["explore", *map(str, words), "--map", "pca", "--no-serve", "--out", "table.parquet"]) == 0
    return pq.read_table("table.parquet")


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main(["explore", *map(str, words)]) == 1
    line = capsys.readouterr().err
    assert line.startswith("coke: ")
    assert not Path("table.parquet").exists()
    return line


def vectors_of(path: str) -> np.ndarray:
    return np.stack(pq.read_table(path)["embedding"].to_numpy())


def test_embeddings_with_clusters_and_pictures(here: Path) -> None:
    table = table_of("photos.parquet", "--clusters", "clusters.parquet", "--data", "photos")
    embedded, clusters = pq.read_table("photos.parquet"), pq.read_table("clusters.parquet")
    assert table["key"].equals(embedded["key"])
    assert table["label"].equals(embedded["label"])
    assert table["row"].to_pylist() == list(range(N))
    assert table["cluster"].equals(clusters["cluster"])
    assert table["margin"].equals(clusters["margin"])
    np.testing.assert_allclose(table["score"], 1 - clusters["distance"].to_numpy(), atol=1e-6)
    assert table.schema.field("projection_x").type == table.schema.field("projection_y").type == pa.float32()
    assert b"PCA" in table.schema.metadata[b"map"]
    distances, ids = (
        NearestNeighbors(n_neighbors=15, metric="cosine").fit(vectors_of("photos.parquet")).kneighbors()
    )
    neighbours = table["neighbors"].to_pylist()
    found = np.array([one["ids"] for one in neighbours])
    np.testing.assert_allclose([one["distances"] for one in neighbours], distances, atol=1e-5)
    clear = np.diff(distances, axis=1).min(axis=1) > 1e-5  # ties may come in any order
    np.testing.assert_array_equal(found[clear], ids[clear])
    assert clear.any()
    np.testing.assert_allclose(table["similarity"], 1 - distances[:, 0], atol=1e-5)
    for row in (0, 17, N - 1):
        picture = table["image"][row].as_py()
        assert picture["path"] == table["key"][row].as_py()
        shown = np.asarray(Image.open(io.BytesIO(picture["bytes"])).convert("RGB"), float)
        original = np.asarray(Image.open(here / "photos" / picture["path"]).convert("RGB"), float)
        assert shown.shape == original.shape
        assert np.abs(shown - original).mean() < 15  # JPEG of the same picture: of another it is about 90


def test_labels_stand_within_their_clusters(here: Path) -> None:
    table = table_of("photos.parquet", "--clusters", "clusters.parquet")
    labels = pq.read_table("table.labels.parquet")
    places = np.stack([table["projection_x"], table["projection_y"]], axis=1)
    cluster, classes = table["cluster"].to_numpy(), np.array(table["label"].to_pylist())
    assert len(labels) == len(set(cluster))
    for one in labels.to_pylist():
        number, name = one["text"].split(" ", 1)
        own = places[cluster == int(number)]
        assert [one["x"], one["y"]] in own.tolist()
        assert one["priority"] == len(own)
        assert set(table["cluster_name"].filter(pa.array(cluster == int(number))).to_pylist()) == {
            one["text"]
        }
        names, counts = np.unique(classes[cluster == int(number)], return_counts=True)
        assert counts[names == name] == counts.max()
        assert one["content"] == one["text"]


def test_a_label_is_at_a_row_and_rows_without_cluster_have_none() -> None:
    where = Map(np.array([[0, 0], [1, 0], [9, 0], [5, 5]], np.float32), "")
    labels = center_labels(where, {"cluster": pa.array([3, 3, 3, None], pa.int32())}, None)
    assert labels.select(["x", "y", "text", "priority"]).to_pylist() == [
        {"x": 1.0, "y": 0.0, "text": "3", "priority": 3}
    ]


def test_a_run_shows_its_own_clusters(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = table_of("run", "--head", 1)
    assignments = pq.read_table("run/assignments.parquet")
    assert table["key"].equals(assignments["key"])
    for name in ("cluster", "score", "margin", "second"):
        assert table[name].equals(assignments[f"{name}_1"]), name
    assert table["image"].null_count == 0
    assert set(table["label"].to_pylist()) <= {f"class {number}" for number in range(10)}
    images = [str(here / "photos" / key) for key in table["key"].to_pylist()]
    projections = coke.load("run").embed(images, features="projection").numpy()
    distances, _ = NearestNeighbors(n_neighbors=15, metric="cosine").fit(projections).kneighbors()
    found = [one["distances"] for one in table["neighbors"].to_pylist()]
    np.testing.assert_allclose(found, distances, atol=1e-4)


def test_a_run_whose_images_moved_or_went(
    here: Path, capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    shutil.copytree(place / "run", "own")
    Path("own/map.parquet").unlink()  # as of an older coke
    for said in (Path("own/config.yaml"), Path("own/environment.json")):
        said.write_text(said.read_text().replace(str(place / "photos"), "gone"))
    assert "--data says where" in refused(capsys, "own", "--no-serve", "--out", "table.parquet")
    table_of("own", "--data", "photos")
    Path("table.parquet").unlink()
    Path("table.labels.parquet").unlink()
    n_rows = pq.read_metadata("own/assignments.parquet").num_rows
    near = pa.array([1, None, *range(n_rows - 2)], pa.int32())
    values = {"x": np.arange(n_rows, dtype=np.float32), "y": np.zeros(n_rows, np.float32), "nearest": near}
    values["similarity"] = pa.array([0.5, None, *[0.25] * (n_rows - 2)], pa.float32())
    pq.write_table(pa.table(values).replace_schema_metadata({"map": "made by hand"}), "own/map.parquet")
    capsys.readouterr()
    assert "for want of images" in refused(
        capsys, "own", "--map", "pca", "--no-serve", "--out", "table.parquet"
    )
    assert main(["explore", "own", "--no-serve", "--out", "table.parquet"]) == 0
    table = pq.read_table("table.parquet")
    said = capsys.readouterr().out
    assert "no pictures" in said
    assert "made by hand" in said
    assert "image" not in table.column_names
    assert table["projection_x"].to_pylist() == list(range(n_rows))
    first, second = table["neighbors"].to_pylist()[:2]
    assert first == {"ids": [1], "distances": [0.5]}
    assert second == {"ids": [], "distances": []}
    with_pictures = pq.read_table("table.parquet")
    assert with_pictures["similarity"][1].as_py() is None


def test_the_map_of_a_run_is_used_beside_its_images(here: Path, place: Path) -> None:
    shutil.copytree(place / "run", "own")
    n_rows = pq.read_metadata("own/assignments.parquet").num_rows
    nothing = {"nearest": pa.nulls(n_rows, pa.int32()), "similarity": pa.nulls(n_rows, pa.float32())}
    values = {"x": np.arange(n_rows, dtype=np.float32), "y": np.ones(n_rows, np.float32), **nothing}
    pq.write_table(pa.table(values).replace_schema_metadata({"words": "by hand"}), "own/map.parquet")
    words = ["explore", "own", "--no-serve", "--out", "table.parquet"]
    assert main(words) == 0
    table = pq.read_table("table.parquet")
    assert table["projection_x"].to_pylist() == list(range(n_rows))
    assert table.schema.metadata[b"map"] == b"by hand"
    assert {len(one["ids"]) for one in table["neighbors"].to_pylist()} == {15}
    assert table["image"].null_count == 0


def test_words_have_neither_keys_nor_pictures_nor_clusters_unless_asked(here: Path) -> None:
    np.save("words.npy", vectors_of("photos.parquet").astype(np.float16))
    table = table_of("words.npy")
    assert set(table.column_names) == {"row", "projection_x", "projection_y", "neighbors", "similarity"}
    assert not Path("table.labels.parquet").exists()
    Path("table.parquet").unlink()
    table = table_of("words.npy", "--k", 5)
    assert set(table["cluster"].to_pylist()) == set(range(5))
    assert table["margin"].null_count == 0
    keyed = here / "again"
    keyed.mkdir()
    os.chdir(keyed)  # monkeypatch goes back
    assert table_of(here / "vectors.npy")["key"].equals(pq.read_table(here / "photos.parquet")["key"])


@pytest.mark.parametrize("rows", [[[1.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]], [[1.0], [2.0], [-1.0]]])
def test_few_rows_and_rows_without_direction(here: Path, rows: list[list[float]]) -> None:
    np.save("few.npy", np.array(rows))
    ones = pa.table({"cluster": np.ones(len(rows), np.int32), "margin": pa.nulls(len(rows), pa.float32())})
    pq.write_table(ones, "ones.parquet")
    table = table_of("few.npy", "--clusters", "ones.parquet")
    others = [len(rows) - 1] * len(rows)
    assert [len(one["ids"]) for one in table["neighbors"].to_pylist()] == others
    assert table["cluster_name"].to_pylist() == ["1"] * len(rows)
    assert table["margin"].null_count == len(rows)
    assert np.isfinite(table["projection_x"].to_numpy()).all()


def test_clusters_of_other_rows_and_partly_known_ones(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clusters = pq.read_table("clusters.parquet")
    shuffled = np.random.default_rng(0).permutation(N)[:40]
    pq.write_table(clusters.take(shuffled), "some.parquet")
    capsys.readouterr()
    table = table_of("photos.parquet", "--clusters", "some.parquet")
    assert "20 of 60 rows have none there" in capsys.readouterr().out
    assert table["cluster"].null_count == 20
    known = np.sort(shuffled)
    assert table["cluster"].take(known).equals(clusters["cluster"].take(known))
    for file in Path().glob("table*"):
        file.unlink()
    by_row = table_of("vectors.npy", "--clusters", "clusters.parquet")
    assert by_row["cluster"].equals(clusters["cluster"])
    for file in Path().glob("table*"):
        file.unlink()
    other = clusters.set_column(1, "key", pa.array([f"else {row}" for row in range(N)]))
    pq.write_table(other, "other.parquet")
    words = ("photos.parquet", "--no-serve", "--out", "table.parquet", "--clusters")
    assert "none of its 60 rows is one of the 60" in refused(capsys, *words, "other.parquet")
    assert "no cluster of head 3" in refused(capsys, *words, "clusters.parquet", "--head", 3)
    assert "there is no such file" in refused(capsys, *words, "missing.parquet")
    pq.write_table(clusters.select(["cluster"]).slice(1), "short.parquet")
    assert "nothing says what belongs to what" in refused(capsys, *words, "short.parquet")


def test_pictures_that_cannot_be_read_are_told(
    here: Path, capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    shutil.copytree(place / "photos", "copy")
    keys = pq.read_table("photos.parquet")["key"].to_pylist()
    (here / "copy" / keys[3]).write_bytes(b"nothing")
    (here / "copy" / keys[5]).unlink()
    table = table_of("photos.parquet", "--data", "copy")
    missing = [row for row, image in enumerate(table["image"].to_pylist()) if image is None]
    assert missing == [3, 5]
    said = capsys.readouterr().out
    assert f"2 of {N} rows have no picture, the first is {keys[3]}" in said
    assert "1 of 60 rows are not among the images" in said


def test_what_is_refused_before_any_work(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--no-serve", "--out", "table.parquet")
    write_textures(here / "others" / "deep", 3)
    (here / "full").mkdir()
    (here / "full" / "file").touch()
    np.save("nan.npy", np.array([[1.0, 0], [np.nan, 1]]))
    (here / "half").mkdir()
    shutil.copy(here / "run" / "config.yaml", here / "half")
    said = {
        "no such run folder": ("nothing", *out),
        "is not finished": ("half", *out),
        "the first is row 1 (NaN or infinite)": ("nan.npy", *out),
        "none of the 60 rows is among its 3 images": ("photos.parquet", "--data", "others", *out),
        "so let its name end in .parquet": ("photos.parquet", "--no-serve", "--out", "table.csv"),
        "clusters.parquet exists": ("photos.parquet", "--no-serve", "--out", "clusters.parquet"),
        "lies among what is read": ("photos.parquet", "--overwrite", "--no-serve", "--out", "photos.parquet"),
        "it is not empty": ("photos.parquet", "--export", "full"),
        "--no-serve leaves nothing to do": ("photos.parquet", "--no-serve"),
        "this machine alone": ("photos.parquet", "--host", "0.0.0.0"),
        "1 ... 65535": ("photos.parquet", "--port", "70000"),
        "leave out one of them": ("photos.parquet", "--k", 3, "--clusters", "clusters.parquet", *out),
        "so 1 ... 60": ("photos.parquet", "--k", 61, *out),
        "has clusters of its own": ("run", "--k", 3, *out),
        "run/assignments.parquet has no cluster of head 7": ("run", "--head", 7, *out),
    }
    for sentence, words in said.items():
        assert sentence in refused(capsys, *words), sentence
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port} cannot be had" in refused(capsys, "photos.parquet", "--port", port)


def test_without_the_explorer_both_ways_to_it_are_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(here))
    if atlas.find_spec("embedding_atlas") is not None:
        pytest.skip("embedding-atlas is in this environment")
    said = refused(capsys, "photos.parquet")
    assert "coke-ssl[explore]" in said
    assert "uvx" in said
    fake = here / "uvx"
    fake.write_text("#!/bin/sh\nexit 3\n")
    fake.chmod(0o755)
    assert atlas.find_explorer() == [str(fake), "--from", "embedding-atlas>=0.26", "embedding-atlas"]
    said = refused(capsys, "photos.parquet", "--map", "pca", "--export", "copy")
    assert "exit code 3" in said
    assert not Path("copy").exists()


def test_many_rows_are_compared_within_clusters_or_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 20, 2000)
    vectors = (4 * draw.normal(size=(20, 16))[labels] + draw.normal(size=(2000, 16))).astype(np.float32)
    vectors[7] = 0  # has no direction
    _, ids = NearestNeighbors(n_neighbors=15, metric="cosine").fit(vectors).kneighbors()
    monkeypatch.setattr(command, "ALL_PAIRS", 100)
    for cluster, word in ((pa.array(labels), "its own cluster"), (None, "groups, made for this")):
        near, words = command.neighbours_of(vectors, cluster)
        assert word in words
        hits = np.mean([len(set(a) & set(b)) for a, b in zip(near.rows.tolist(), ids.tolist(), strict=True)])
        assert hits / 15 > 0.9, words


def started(*words: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "coke", "explore", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@needs_atlas
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_embedding_atlas_serves_it_until_it_is_stopped(here: Path, number: int, code: int) -> None:
    port = atlas.free_port(None)
    process = started(
        "photos.parquet", "--clusters", "clusters.parquet", "--data", "photos", "--port", port, "--map", "pca"
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("http"):
                break
        assert lines[-1] == f"http://127.0.0.1:{port}\n", "".join(lines)
        address = lines[-1].strip()
        metadata = json.load(urllib.request.urlopen(f"{address}/data/metadata.json", timeout=30))
        props = metadata["props"]
        assert props["data"]["projection"] == {"x": "projection_x", "y": "projection_y"}
        assert props["data"]["neighbors"] == "neighbors"
        assert props["data"]["image"] == "image"
        assert len(props["embeddingViewLabels"]) == 4
        query = json.dumps({"type": "json", "sql": "SELECT count(*) AS n, count(image) AS i FROM dataset"})
        asked = urllib.request.Request(
            f"{address}/data/query", query.encode(), {"Content-Type": "application/json"}
        )
        assert json.load(urllib.request.urlopen(asked, timeout=30)) == [{"n": N, "i": N}]
        process.send_signal(number)
        assert process.wait(30) == code
    finally:
        process.kill()
    for _ in range(50):
        if atlas._is_free(port):
            return
        time.sleep(0.1)
    raise AssertionError("the explorer was left behind")


@needs_atlas
@pytest.mark.slow
def test_embedding_atlas_writes_a_static_copy(here: Path) -> None:
    words = ["photos.parquet", "--data", "photos", "--export", "copy", "--map", "pca"]
    assert main(["explore", *words]) == 0
    assert (here / "copy" / "index.html").is_file()
    copied = pq.read_table("copy/data/dataset.parquet")
    assert copied.num_rows == N
    assert copied["image"].null_count == 0
    assert json.loads(Path("copy/data/metadata.json").read_text())["isStatic"]
