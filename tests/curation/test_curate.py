"""`coke curate` as a person meets it: the list and what went, read by other means; errors before any work."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import coke
from coke.cli import main
from coke.curation.choose import groups_of
from coke.curation.spread import spread_out
from coke.errors import ConfigError, DataError
from coke.images import open_data
from tiny_runs import SETTINGS, write_textures


def mixture(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Four groups of 400, 100, 30 and 10 rows, and the first 50 rows once more."""
    draw = np.random.default_rng(seed)
    groups = np.repeat(np.arange(4), [400, 100, 30, 10])
    rows = (8 * np.eye(4, 6)[groups] + draw.normal(size=(540, 6))).astype(np.float32)
    return np.concatenate([rows, rows[:50]]), np.concatenate([groups, groups[:50]])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", mixture()[0])
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main(["curate", *map(str, words)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_rare_groups_stay_and_copies_go() -> None:
    rows, groups = mixture()
    choice = coke.curate(rows, 80, n_clusters=8)
    assert len(np.unique(choice.rows)) == len(choice.rows) == 80
    assert (choice.instead[540:] == np.arange(50)).all()
    assert (choice.instead[choice.rows] < 0).all()
    shares = np.bincount(groups[choice.rows], minlength=4) / np.bincount(groups[:540])
    assert shares[3] > 4 * shares[0]  # the rarest group against the most common
    assert choice.taken.sum() == 80
    assert (choice.taken == np.bincount(choice.labels[choice.rows], minlength=8)).all()
    assert (choice.sizes == np.bincount(choice.labels[choice.instead < 0], minlength=8)).all()


def test_the_seed_decides_and_all_may_be_chosen() -> None:
    rows, _ = mixture()
    first, again = (coke.curate(rows, 60, seed=3) for _ in range(2))
    assert (first.rows == again.rows).all()
    everything = coke.curate(rows, 590, similarity=1.01)
    assert sorted(everything.rows.tolist()) == list(range(590))
    assert (everything.instead < 0).all()


def test_the_first_of_a_list_are_even_as_well() -> None:
    choice = coke.curate(mixture()[0], 100, n_clusters=10)
    first = np.bincount(choice.labels[choice.rows[:10]], minlength=10)
    assert first.max() == 1


def test_many_clusters_are_grouped() -> None:
    centers = np.random.default_rng(0).normal(size=(250, 4)).astype(np.float32)
    levels = groups_of(centers, 0)
    assert [len(level) for level in levels] == [250, 25]
    assert levels[0].max() < 25
    assert levels[1].max() < 3
    choice = coke.curate(np.random.default_rng(1).normal(size=(1200, 4)), 60, n_clusters=60)
    groups = np.bincount(choice.levels[0], weights=choice.taken)
    assert groups.max() - groups.min() <= 1


def test_a_cluster_is_covered() -> None:
    rows = np.random.default_rng(0).normal([5, 0, 0], 1, (60, 3))
    taken = spread_out(rows, np.arange(60), rows.mean(axis=0), 60)
    assert sorted(taken.tolist()) == list(range(60))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    radius = [(1 - (unit @ unit[taken[:n]].T).max(axis=1)).max() for n in range(1, 61)]
    assert all(later <= sooner + 1e-12 for sooner, later in itertools.pairwise(radius))
    next_one = 1 - (unit @ unit[taken[:5]].T).max(axis=1)
    assert next_one[taken[5]] == pytest.approx(next_one.max())


def test_embeddings_without_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curate", "rows.npy", "--n", "40", "--out", "list.parquet", "--clusters", "6"]) == 0
    said = capsys.readouterr().out
    chosen, dropped = pq.read_table("list.parquet"), pq.read_table("list.dropped.parquet")
    assert sorted(chosen["row"].to_pylist() + dropped["row"].to_pylist()) == list(range(590))
    assert chosen["priority"].to_pylist() == list(range(1, 41))
    why = dropped["why"].to_pylist()
    assert why.count("duplicate") == 50
    assert why.count("cluster full") == 500
    for line in dropped.to_pylist():
        assert (line["instead"] is None) == (line["similarity"] is None) == (line["why"] == "cluster full")
    assert sum(chosen["duplicates"].to_pylist()) <= 50
    assert "50 duplicates, 500 beyond" in said
    assert "--data" in said
    page = Path("list.html").read_text()
    assert "40 of 590 rows" in page
    assert "<script" not in page
    assert "http" not in page


def test_errors_come_before_any_work(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", "list.parquet")
    assert "--n 591 of 590 rows" in refused(capsys, "rows.npy", "--n", 591, *out)
    assert "--n must be at least 1" in refused(capsys, "rows.npy", "--n", 0, *out)
    line = refused(capsys, "rows.npy", "--n", 541, *out)
    assert "540 are left: 50 are duplicates" in line
    assert "Lower --n to 540" in line
    assert "--similarity 1.01" in line
    assert "neither a run nor embeddings" in refused(capsys, place / "..", "--n", 3, *out)
    assert "there is no such" in refused(capsys, "nothing.npy", "--n", 3, *out)
    assert "end in .parquet" in refused(capsys, "rows.npy", "--n", 3, "--out", "list.csv")
    assert "cosine above 0" in refused(capsys, "rows.npy", "--n", 3, "--similarity", -1, *out)
    assert "--clusters 600 of 590" in refused(capsys, "rows.npy", "--n", 3, "--clusters", 600, *out)
    write_textures(place / "photos", 5)
    assert "whose row is whose" in refused(capsys, "rows.npy", "--n", 3, "--data", "photos", *out)
    assert not Path("list.parquet").exists()
    Path("list.dropped.parquet").write_text("mine")
    assert "list.dropped.parquet exists" in refused(capsys, "rows.npy", "--n", 3, *out)
    assert Path("list.dropped.parquet").read_text() == "mine"


def test_rows_without_direction_are_refused() -> None:
    rows = mixture()[0]
    rows[[7, 9]] = 0
    rows[300, 2] = np.nan
    with pytest.raises(DataError, match=r"3 of 590 rows have no direction, the first is row 7 \(zero\)"):
        coke.curate(rows, 5)
    with pytest.raises(ConfigError, match="lower --n"):
        coke.curate(np.eye(3), 4)


def test_one_row_and_equal_rows() -> None:
    assert coke.curate(np.ones((1, 3)), 1).rows.tolist() == [0]
    choice = coke.curate(np.ones((40, 3)), 1)
    assert choice.rows.tolist() == [0]
    assert (choice.instead[1:] == 0).all()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Textures, three of them twice, and a run on them."""
    world = tmp_path_factory.mktemp("world")
    write_textures(world / "photos", 120)
    for number in range(3):
        copy = world / "photos" / f"copy {number}.png"
        copy.write_bytes((world / "photos" / f"{number:04d}.png").read_bytes())
    keys = {**SETTINGS, "backbone": "coke_conv5_w16", "epochs": 2}
    coke.pretrain(world / "photos", out=world / "run", overrides=keys)
    return world


def test_a_run_gives_a_list_that_pretrain_takes(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the list does not depend on where it lies
    assert main(["curate", str(world / "run"), "--n", "60", "--out", "list.parquet"]) == 0
    chosen = pq.read_table("list.parquet")
    assert {"row", "image", "key", "cluster", "run_cluster", "priority", "why", "duplicates"} == set(
        chosen.column_names
    )
    paths = [image["path"] for image in chosen["image"].to_pylist()]
    assert [Path(path).name for path in paths] == chosen["key"].to_pylist()
    dropped = pq.read_table("list.dropped.parquet").to_pylist()
    copies = {line["key"]: line for line in dropped if line["key"].startswith("copy")}
    keyed = {f"copy {number}.png": f"{number:04d}.png" for number in range(3)}
    found = {(line["key"], line["instead_key"]) for line in dropped if line["why"] == "duplicate"}
    assert set(keyed.items()) <= found | {(of, name) for name, of in found}
    assert len(copies) <= 3
    images = open_data("list.parquet").train
    assert len(images) == 60
    assert (
        images.read(0).numpy() == open_data(world / "photos").train.read(chosen["row"][0].as_py()).numpy()
    ).all()
    assert main(["pretrain", "list.parquet", "--dry-run"]) == 0
    words = [
        "n_clusters=[4]",
        "dim=16",
        "batch_size=20",
        "epochs=2",
        "backbone=coke_conv5_w16",
        "tensorboard=false",
    ]
    assert main(["pretrain", "list.parquet", "--out", "again", "linear_probe=false", *words]) == 0
    assert coke.Run("again").backbone.is_file()
    page = Path("list.html").read_text()
    assert page.count("data:image/jpeg;base64,") > 10
    assert "coke pretrain list.parquet" in page


def test_embeddings_with_their_images(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["embed", str(world / "run"), str(world / "photos"), "--out", "e.parquet"]) == 0
    words = ["curate", "e.parquet", "--data", str(world / "photos"), "--n", "20", "--out", "list.parquet"]
    assert main(words) == 0
    chosen = pq.read_table("list.parquet")
    keys = pq.read_table("e.parquet")["key"].to_pylist()
    assert chosen["key"].to_pylist() == [keys[row] for row in chosen["row"].to_pylist()]
    assert all(Path(image["path"]).is_file() for image in chosen["image"].to_pylist())
    assert main(words) == 1  # they exist
    assert main([*words, "--overwrite"]) == 0
    write_textures(tmp_path / "other", 3)
    with pytest.raises(DataError, match="have no image in other"):
        coke.curate("e.parquet", 3, images="other")


def test_images_without_files_travel_in_the_list(tmp_path: Path) -> None:
    run = tmp_path / "run"
    coke.pretrain(
        "textures", out=run, backbone=None, overrides={**SETTINGS, "backbone": "coke_conv5_w16", "epochs": 2}
    )
    coke.curate(run, 30, tmp_path / "list.parquet")
    table = pq.read_table(tmp_path / "list.parquet")
    images, textures = open_data(tmp_path / "list.parquet").train, open_data("textures").train
    for place, row in enumerate(table["row"].to_pylist()):
        assert (images.read(place).numpy() == textures.read(row).numpy()).all()


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: textures\n")
    with pytest.raises(ValueError, match="is not finished"):
        coke.curate(tmp_path, 3)
