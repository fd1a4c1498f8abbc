"""docs/explore.md is true: its commands run, its columns are those of the table, its figures those of the code."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import coke
from coke.cli import main
from coke.explore.command import ALL_PAIRS, N_NEIGHBOURS
from coke.explore.thumbnails import LONGER, SHORTER
from tiny_runs import SETTINGS, write_textures

PAGE = (Path(__file__).parents[2] / "docs" / "explore.md").read_text(encoding="utf-8")


COMMANDS = [shlex.split(line) for line in re.findall(r"^    coke (.*)$", PAGE, re.M)]
HAS_ATLAS = bool(importlib.util.find_spec("embedding_atlas") or shutil.which("embedding-atlas"))
N = 60


@pytest.mark.nightly
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, but that a file is written where they would serve, and maps are quick."""
    monkeypatch.chdir(tmp_path)
    write_textures(Path("photographs"), N, labelled=True)
    keys = {**SETTINGS, "backbone": "coke_conv5_w16", "epochs": 2, "batch_size": 20}
    coke.pretrain("photographs", out="runs/birds", overrides=keys)
    for name in ("birds.parquet", "vectors.npy"):
        assert main(["embed", "runs/birds", "photographs", "--out", name]) == 0
    assert (
        main(["cluster", "birds.parquet", "--k", "4", "--metric", "cosine", "--out", "groups.parquet"]) == 0
    )
    assert len(COMMANDS) >= 5
    for number, words in enumerate(COMMANDS):
        assert words[0] == "explore"
        if "--export" in words:
            if HAS_ATLAS:
                assert main([*words, "--map", "pca"]) == 0, words
                assert Path("birds-explorer", "index.html").is_file()
            continue
        out = words[words.index("--out") + 1] if "--out" in words else f"{number}.parquet"
        added = [] if "--out" in words else ["--no-serve", "--out", out]
        assert main([*words, *added, "--map", "pca"]) == 0, words
        table = pq.read_table(out)
        assert len(table) == N
        assert "image" not in table.column_names or table["image"].null_count == 0
        assert Path(out).with_suffix(".labels.parquet").is_file()


def test_code_is_python() -> None:
    blocks = re.findall(r"```text\n(.*?)```", PAGE, re.S)
    assert blocks
    assert all(ast.parse(block).body for block in blocks)


def test_figures_are_those_of_the_code() -> None:
    assert f"sides of at most {SHORTER} and {LONGER} px" in PAGE
    assert f"the {N_NEIGHBOURS} rows of highest cosine: of all rows up to {ALL_PAIRS:,}" in PAGE


def test_every_column_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_textures(tmp_path / "photos", 20, labelled=True)
    folder = tmp_path / "photos"
    lines = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    draw = np.random.default_rng(0).normal(size=(len(lines), 8)).astype(np.float32)
    columns = {"key": lines, "label": [line.split("/")[0] for line in lines], "embedding": list(draw)}
    pq.write_table(pa.table(columns), "photos.parquet")
    words = ["photos.parquet", "--k", "3", "--data", "photos", "--no-serve", "--out", "table.parquet"]
    assert main(["explore", *words, "--map", "pca"]) == 0
    section = PAGE.split("## The table")[1].split("\n## ")[0]
    told = {
        name for row in re.findall(r"^\| (`.*?) \|", section, re.M) for name in re.findall(r"`(\w+)`", row)
    }
    assert set(pq.read_schema("table.parquet").names) | {"distance"} == told
