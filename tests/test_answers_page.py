"""docs/answers.md is true: its commands run, one after the other, on a folder of images."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from coke.cli import main
from coke.run import Run
from tiny_runs import write_textures

PAGE = (Path(__file__).parents[1] / "docs" / "answers.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    uv run coke (.+)$", PAGE, re.M)
VERBS = ["pretrain", "pretrain", "pretrain", "evaluate", "embed", "cluster", "assign", "predict"]
VERBS += ["curate", "pretrain", "report", "export"]
SHORT = ["epochs=3", "linear_probe=false", "tensorboard=false", "workers=0"]


@pytest.mark.slow
def test_the_commands_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a few epochs instead of half an hour."""
    assert [command.split()[0] for command in COMMANDS] == VERBS
    monkeypatch.chdir(tmp_path)
    write_textures(Path("photos"), 200)
    write_textures(Path("labelled-photos"), 120, seed=1, labelled=True)
    write_textures(Path("new-photos"), 50, seed=2)
    said = []
    for command in COMMANDS:
        words = shlex.split(command)
        shortened = SHORT if words[0] == "pretrain" and "--resume" not in words else []
        assert main([*words, *shortened]) == 0, command
        said.append(capsys.readouterr().out)
    dry, trained, resumed, evaluated, *_ = said
    for promised in ("backbone coke_conv5_w24: ", "K = 7, 9, 12", "200 images are few", "3 epochs in about"):
        assert f"{promised}" in dry
        assert promised in trained
    assert "nothing is left to do: all 3 epochs are done" in resumed
    assert re.search(r"^\w+: .*\nreport: runs/photos/report.html\n", trained, re.M)
    assert all(name in evaluated for name in ("raw pixels", "untrained", "trained"))

    run = Run("runs/photos")
    assert run.report.is_file()
    rows = [
        len(pq.read_table(file))
        for file in (run.assignments, "photos.parquet", "clusters.parquet", "new.parquet")
    ]
    assert rows == [200, 200, 200, 50]
    clusters = pq.read_table("clusters.parquet")["cluster"].to_pylist()
    assert max(clusters.count(cluster) for cluster in range(8)) <= 2 * 200 / 8
    assert set(pq.read_table("new.parquet")["cluster_0"].to_pylist()) <= set(range(7))
    assert (len(pq.read_table("chosen.parquet")), len(pq.read_table("chosen.dropped.parquet"))) == (100, 100)
    assert "images: 100 readable" in said[VERBS.index("curate") + 1]
    assert Path("chosen.html").is_file()
    assert Path("photos-model", "model.safetensors").is_file()


def test_what_the_page_says_of_few_images_is_what_auto_says() -> None:
    from coke.training.auto import CPU_MINUTES, FEW_IMAGES

    assert f"coke says it below {FEW_IMAGES:,}" in PAGE
    assert CPU_MINUTES == 60
    assert "a CPU trains for an hour at most" in PAGE
