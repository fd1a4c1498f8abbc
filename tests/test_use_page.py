"""docs/use.md is true: its commands run in order, on a run of a second, and its Python with them."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import coke
from coke import cli
from coke.model.graph import PACKAGES
from released_files import Released, released_state, write_released
from tiny_runs import SETTINGS, write_textures

PAGE = (Path(__file__).parents[1] / "docs" / "use.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in re.findall(r"^    coke (.*)$", PAGE, re.M)]
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
HAS_ONNX = all(importlib.util.find_spec(name) for name in PACKAGES)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page takes for granted: photographs, a run of a torchvision architecture, a released checkpoint."""
    place = tmp_path_factory.mktemp("page")
    write_textures(place / "photographs", 60)
    write_textures(place / "new-photographs", 40, seed=1)
    keys: dict[str, Any] = {**SETTINGS, "backbone": "resnet18", "epochs": 2, "batch_size": 20}
    coke.pretrain(place / "photographs", out=place / "runs" / "birds", overrides=keys)
    write_released(place / "coke_single_view.pth.tar", released_state(Released()))
    return place


@pytest.mark.slow
def test_commands_and_code_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    first, *others = COMMANDS
    assert first == ["pretrain", "photographs", "--out", "runs/birds"]
    assert {words[0] for words in others} == {"embed", "cluster", "predict", "export", "import"}
    for words in others:
        if "onnx" not in words or HAS_ONNX:
            assert cli.main(words) == 0, words
    assert pq.read_table("groups.parquet")["key"].equals(pq.read_table("birds.parquet")["key"])
    sizes = pq.read_table("even.parquet")["cluster_0"].value_counts().field("counts").to_pylist()
    assert max(sizes) <= 2 * 40 / 4
    in_python, in_onnx = BLOCKS
    names: dict[str, Any] = {}
    exec(in_python, names)
    assert names["features"].shape == (2, 512)
    assert names["rows"][:, 0].tolist() == [0, 1]
    if not HAS_ONNX:
        pytest.skip("the extra onnx is not installed: its export and code were left out")
    exec(in_onnx, names)
    assert names["cluster"].shape == (3,)


def test_formats_are_those_of_the_command_line() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.M)
    assert sorted(rows) == sorted(["timm", "hf", "torchvision", "safetensors", "onnx"])
    for name in rows:
        assert cli.parser().parse_args(["export", "run", "--to", name, "--out", "x"]).to == name
