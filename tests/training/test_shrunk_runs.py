"""Runs on images that are large beside their views: copies are seen, and where these are kept changes no bit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

import coke
from coke.cli import main
from coke.errors import ConfigError, ResumeError
from coke.run import Run
from coke.training.loop import Stopped
from tiny_runs import SETTINGS, assert_equal, assert_same_run, records, tiny, write_textures

KEYS: dict[str, Any] = {**SETTINGS, "epochs": 3, "checkpoint_minutes": 0, "knn_every": 1}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 to 72 px, beside views of 16 px: copies of 34 px are enough for crops of 0.3."""
    return write_textures(tmp_path_factory.mktemp("images"), 120, size=72, mixed=True, labelled=True)


def train(
    images: Path, out: Path, *, resume: bool = False, interrupt_at: int | None = None, **keys: Any
) -> Run:
    backbone = tiny(1, interrupt_at=interrupt_at)
    return coke.pretrain(images, out=out, backbone=backbone, resume=resume, overrides={**KEYS, **keys})


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(images, tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize("cache", ["none", "folder", "little memory"])
def test_where_copies_are_kept_changes_no_bit(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    if cache == "little memory":
        monkeypatch.setattr("coke.training.session.memory_share", lambda n_processes: 30_000)
    asked = {"folder": str(tmp_path / "copies")}.get(cache, cache.split()[-1])
    other = train(images, tmp_path / "run", cache=asked, workers=1)
    assert_same_run(run, other)
    assert len(list(tmp_path.glob("copies/*/*/*.npy"))) == (120 if cache == "folder" else 0)


def test_a_resumed_run_is_the_same_with_another_cache(run: Run, images: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(images, tmp_path / "run", interrupt_at=4, cache="none")
    resumed = train(images, tmp_path / "run", resume=True, cache=str(tmp_path / "copies"))
    assert_same_run(run, resumed)


def test_what_is_seen_is_said(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "120 large images are seen through copies of 34 px (shorter side), 0.4 MB in memory"
    console = Console(file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115 the bar too
    run = coke.pretrain(images, out=tmp_path / "run", backbone=tiny(1), overrides=KEYS, console=console)
    assert said in [record["text"] for record in run.metrics("event")]
    words = ["backbone=coke_conv5_w16", "epochs=2", "views.size=16", "n_clusters=[4]", "workers=0"]
    assert main(["pretrain", str(images), "--dry-run", *words]) == 0
    told = capsys.readouterr().out
    assert said in told
    assert "decoded anew each epoch, but for copies of large ones" in told
    assert main(["pretrain", str(images), "--dry-run", *words, "shrink=false"]) == 0
    assert "large images" not in capsys.readouterr().out


def test_outputs_are_made_from_the_originals(run: Run, images: Path, tmp_path: Path) -> None:
    """What is learned from copies is not the same; final features are those that `coke embed` gives."""
    whole = train(images, tmp_path / "run", shrink=False)
    losses = [[record["loss"] for record in records(one) if record["kind"] == "step"] for one in (run, whole)]
    assert losses[0] != losses[1]
    model = coke.load(run.path, backbone=tiny(1))
    stored = pq.read_table(run.assignments)
    found = model.predict(
        [images / key for key in stored["key"].to_pylist()], min_size_ratio=run.config["min_size_ratio"]
    )
    assert found.cluster.tolist() == stored["cluster_0"].to_pylist()


def test_runs_from_before_go_on_as_they_were(images: Path, tmp_path: Path) -> None:
    """Their configuration says nothing of copies: there were none."""
    whole = train(images, tmp_path / "whole", shrink=False)
    with pytest.raises(Stopped):
        train(images, tmp_path / "run", interrupt_at=4, shrink=False)
    older = Run(tmp_path / "run")
    older.write_config({key: value for key, value in older.config.items() if key not in ("shrink", "cache")})
    resumed = coke.pretrain(images, out=older.path, backbone=tiny(1), resume=True)
    assert resumed.config["shrink"] is False
    assert_equal(records(whole), records(resumed))


def test_whether_copies_are_seen_cannot_change_on_the_way(run: Run, images: Path, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    with pytest.raises(ResumeError, match="shrink: True in the run, False asked"):
        train(images, copy.path, resume=True, epochs=4, shrink=False)


@pytest.mark.parametrize("cache", ["", "{}/0.png"])
def test_a_cache_that_cannot_be_is_refused_before_images_are_read(tmp_path: Path, cache: str) -> None:
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(
        ConfigError, match=r"cache='.*' must be memory, none, or a folder that can be written to"
    ):
        train(tmp_path, tmp_path / "run", cache=cache.format(tmp_path))
