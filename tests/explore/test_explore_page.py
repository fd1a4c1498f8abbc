"""docs/explore.md is true: its commands parse, its columns are those of the table, its figures those of the code."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coke.cli import main, parser
from coke.explore.command import ALL_PAIRS, N_NEIGHBOURS
from coke.explore.thumbnails import LONGER, SHORTER
from tiny_runs import write_textures

PAGE = (Path(__file__).parents[2] / "docs" / "explore.md").read_text(encoding="utf-8")


def test_commands_parse_and_code_is_python() -> None:
    commands = re.findall(r"^    coke (.*)$", PAGE, re.M)
    assert len(commands) >= 5
    for words in commands:
        assert parser().parse_args(shlex.split(words)).verb == "explore"
    for block in re.findall(r"```text\n(.*?)```", PAGE, re.S):
        ast.parse(block)


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
