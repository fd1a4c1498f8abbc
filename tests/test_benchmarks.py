"""Every benchmark runs: ``--quick`` shows that it works, its figures mean nothing and are not written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
DATA = ROOT / "../shared/data/cifar10"


def run(name: str, *words: str) -> str:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clustering", "step", "memory", "imports", "augmentation"])
def test_quick_mode_measures_and_writes_where_asked(name: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    printed = run(name, "--out", str(out))
    result = json.loads(out.read_text())
    assert result["quick"] is True
    assert result["results"]
    for key in ("machine", "versions", "commit", "command"):
        assert result["environment"][key]
    assert result["environment"]["commit"] in printed


@pytest.mark.slow
def test_evidence_trains_on_a_subset(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    out = tmp_path / "result.json"
    run("evidence", "--data", str(DATA), "--out", str(out), "linear_probe=false")
    scores = json.loads(out.read_text())["results"]
    assert set(scores) == {"raw pixels", "untrained", "trained"}
    for name in scores:
        assert 0 <= scores[name]["knn"]["mean"] <= 1
        assert scores[name]["knn_first"]["mean"] == pytest.approx(scores[name]["knn"]["mean"])


def test_evidence_without_data_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "evidence.py"), "--data", str(tmp_path / "nowhere")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "nowhere is not there" in done.stderr
    assert "Traceback" not in done.stderr


def test_results_of_the_repository_name_their_conditions() -> None:
    files = sorted((BENCHMARKS / "results").rglob("*.json"))
    for file in files:
        result = json.loads(file.read_text())
        assert not result.get("quick"), f"{file.name} was written by --quick"
        assert result["environment"]["commit"]
        assert result["environment"]["command"]
