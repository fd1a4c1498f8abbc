"""docs/curate.md is true: its commands run in order, and write the files and columns that it tells of."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import coke
from coke.cli import main
from tiny_runs import SETTINGS, write_textures

PAGE = (Path(__file__).parents[2] / "docs" / "curate.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in re.findall(r"^    coke (.*)$", PAGE, re.M)]
SHORT = ["epochs=2", "linear_probe=false", "tensorboard=false", "workers=0"]
N, WANTED = 105, 100


@pytest.mark.nightly
def test_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_textures(Path("photographs"), N, size=16)
    keys = {**SETTINGS, "backbone": "resnet18", "epochs": 2, "batch_size": 35}
    run = coke.pretrain("photographs", out="runs/birds", overrides=keys)
    shutil.copy(run.backbone, "resnet18.safetensors")  # which says of what size its images are
    assert [words[0] for words in COMMANDS] == ["curate", "pretrain", "embed", "curate"]
    for words in COMMANDS:
        assert main([*words, *(SHORT if words[0] == "pretrain" else [])]) == 0, words

    section = PAGE.split("## What it writes")[1].split("\n## ")[0]
    told = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", section, re.M))
    assert list(told) == ["chosen.parquet", "chosen.dropped.parquet", "chosen.html"]
    for name, kept in (("chosen.parquet", WANTED), ("chosen.dropped.parquet", N - WANTED)):
        found = pq.read_table(name)
        assert len(found) == kept
        words = set(re.findall(r"`(\w+)`", told[name]))
        assert set(found.column_names) <= words, name
        assert words - set(found.column_names) <= {"run_cluster"}, name
    assert "run_cluster" in pq.read_schema("chosen.parquet").names
    assert "run_cluster" not in pq.read_schema("chosen-photographs.parquet").names
    assert Path("chosen.html").is_file()
    assert coke.Run("runs/chosen").environment["data"]["n_images"] == WANTED
