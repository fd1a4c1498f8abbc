"""``--continue RUN``: images added, gone and renamed; clusters keep their numbers, and the drift is told."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import coke
from coke.cli import main
from coke.errors import ConfigError, ResumeError
from coke.images.open import open_data
from coke.run import Run
from coke.training import continued
from coke.training.loop import Stopped
from tiny_runs import SETTINGS, assert_same_run, tiny, write_textures

KEYS: dict[str, Any] = {**SETTINGS, "backbone": "coke_conv5_w16", "epochs": 4, "min_size_ratio": 0.5}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_textures(tmp_path_factory.mktemp("images") / "first", 200)


@pytest.fixture(scope="module")
def earlier(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return coke.pretrain(images, out=tmp_path_factory.mktemp("runs") / "first", overrides=KEYS)


@pytest.fixture(scope="module")
def changed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 of the 200 are gone, the others have other names, and 30 are new."""
    folder = tmp_path_factory.mktemp("images") / "second"
    folder.mkdir()
    for number, file in enumerate(sorted(images.rglob("*.png"))[40:]):
        shutil.copy(file, folder / f"z{199 - number}.png")
    new = write_textures(tmp_path_factory.mktemp("more"), 230)
    for file in sorted(new.rglob("*.png"))[200:]:
        shutil.copy(file, folder / f"a{file.name}")
    return folder


@pytest.fixture(scope="module")
def later(earlier: Run, changed: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    shutil.rmtree(earlier.checkpoints)  # what a finished run leaves is enough
    return coke.pretrain(changed, out=tmp_path_factory.mktemp("runs") / "second", continues=earlier.path)


def clusters_by_content(run: Run, head: int) -> dict[bytes, int]:
    table = pq.read_table(run.assignments)
    return dict(zip(table["content"].to_pylist(), table[f"cluster_{head}"].to_pylist(), strict=True))


def test_what_is_carried_over(earlier: Run, later: Run) -> None:
    assert later.config["continues"] == str(earlier.path)
    same = {key: later.config[key] for key in later.config if key not in ("continues", "data")}
    assert same == {key: earlier.config[key] for key in same}
    begun, given = load_file(later.initial), load_file(earlier.backbone)
    assert all(torch.equal(begun[name], given[name]) for name in given)
    told = [record["text"] for record in later.metrics("event")]
    assert any("160 images that it knew, 30 new, 40 gone" in text for text in told)
    # the clustering pass: 160 have labels, which change no more than they did from epoch to epoch
    assert later.metrics("epoch")[0]["churn"] < earlier.metrics("epoch")[-1]["churn"] + 0.1
    assert earlier.metrics("epoch")[0]["churn"] is None


def test_clusters_keep_their_numbers(earlier: Run, later: Run) -> None:
    """Far more images than by chance are in the cluster of the same number."""
    for head, n_clusters in enumerate(SETTINGS["n_clusters"]):
        before, after = (clusters_by_content(run, head) for run in (earlier, later))
        kept = np.mean([before[content] == after[content] for content in before.keys() & after.keys()])
        assert kept > 1.5 / n_clusters
        sizes = np.bincount(list(after.values()), minlength=n_clusters)
        assert sizes.min() >= 0.5 * 190 / n_clusters - 1


def test_the_drift_is_told(earlier: Run, later: Run) -> None:
    found = json.loads(later.drift_file.read_text())
    assert (found["images"], found["earlier"]) == (160, str(earlier.path))
    told = [record["text"] for record in later.metrics("event")]
    for head, figures in enumerate(found["heads"]):
        before, after = (clusters_by_content(run, head) for run in (earlier, later))
        shared = before.keys() & after.keys()
        moves = Counter((before[content], after[content]) for content in shared)
        held = Counter(before[content] for content in shared)
        homes = {old: new for (old, new), count in moves.items() if 2 * count > held[old]}
        assert figures["n_clusters"] == len(held)
        assert figures["kept"] == pytest.approx(sum(n for (a, b), n in moves.items() if a == b) / len(shared))
        assert figures["emptied"] == sum(moves[old, old] == 0 for old in held)
        assert figures["split"] == len(held) - len(homes)
        assert figures["merged"] == sum(count > 1 for count in Counter(homes.values()).values())
        assert any(
            text.startswith(f"head {head}: {figures['kept']:.0%} of 160 known images") for text in told
        )


def test_drift_of_made_up_clusters(earlier: Run, later: Run, changed: Path) -> None:
    """0 and 1 fell together in 1, 2 fell apart, 3 stayed: nothing of 0 is left in 0."""
    images = open_data(changed).train
    contents = [row.tobytes() for row in images.hashes.numpy()]
    before = np.arange(len(contents)) % 4
    after = np.where(before == 0, 1, before)
    thirds = np.flatnonzero(before == 2)
    after[thirds[::3]], after[thirds[1::3]] = 0, 3
    rows = {content: row for row, content in enumerate(contents)}
    made = continued.Earlier(earlier, rows, torch.zeros(len(rows), 1), before[:, None])
    run = Run(later.path.parent / "made")
    run.path.mkdir()
    pq.write_table(
        pa.table({"key": [f"{row}.png" for row in range(len(after))], "cluster_0": after}), run.assignments
    )
    (head,) = continued.drift(made, run, images)["heads"]
    assert head == {
        "n_clusters": 4,
        "kept": pytest.approx((after == before).mean()),
        "emptied": 1,
        "split": 1,
        "merged": 1,
    }


def test_an_interrupted_one_is_resumed(earlier: Run, changed: Path, tmp_path: Path, images: Path) -> None:
    """As any run: to the same bytes, with the earlier run at hand or not."""
    first = coke.pretrain(images, out=tmp_path / "first", backbone=tiny(1), overrides=SETTINGS)
    whole = coke.pretrain(changed, out=tmp_path / "whole", backbone=tiny(2), continues=first.path)
    with pytest.raises(Stopped):
        coke.pretrain(changed, out=tmp_path / "run", backbone=tiny(3, interrupt_at=7), continues=first.path)
    resumed = coke.pretrain(out=tmp_path / "run", backbone=tiny(4), resume=True)
    assert_same_run(resumed, whole)
    assert resumed.drift_file.read_bytes() == whole.drift_file.read_bytes()


def test_on_the_command_line(
    earlier: Run, changed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", str(changed), "--continue", str(earlier.path), "--out", str(tmp_path / "run")]
    assert main([*words, "epochs=2", "linear_probe=false"]) == 0
    text = capsys.readouterr().out
    assert f"goes on from {earlier.path}: 160 images that it knew" in text
    assert "of 160 known images kept their cluster" in text


def test_refused_before_images_are_read(earlier: Run, changed: Path, tmp_path: Path) -> None:
    def refused(kind: type[Exception], sentence: str, **keys: Any) -> None:
        with pytest.raises(kind, match=sentence):
            coke.pretrain(changed, out=tmp_path / "run", **keys)
        assert not (tmp_path / "run").exists()

    path = earlier.path
    refused(
        ConfigError,
        r"n_clusters=\[4, 7\] does not fit .* which has \[4, 6\]",
        continues=path,
        n_clusters=[4, 7],
    )
    refused(ConfigError, r"dim=8 does not fit .* which has 16", continues=path, dim=8)
    refused(ResumeError, "holds no run: config.yaml is missing", continues=tmp_path / "nothing")
    unfinished = Path(shutil.copytree(path, tmp_path / "unfinished"))
    (unfinished / "projector.safetensors").unlink()
    refused(ResumeError, r"cannot be gone on from: projector.safetensors is missing", continues=unfinished)
    old = Path(shutil.copytree(path, tmp_path / "old"))
    table = pq.read_table(old / "assignments.parquet").drop_columns(["content"])
    pq.write_table(table, old / "assignments.parquet")
    refused(ResumeError, "was made by an older coke, which did not leave", continues=old)
