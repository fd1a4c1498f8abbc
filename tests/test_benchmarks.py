"""Every benchmark runs: ``--quick`` shows that it works, its figures mean nothing and are not written."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
DATA = ROOT / "../shared/data/cifar10"


@pytest.fixture(scope="module")
def common() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_common", BENCHMARKS / "_common.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quartiles_are_numpys(common: ModuleType) -> None:
    values = np.random.default_rng(0).normal(size=37).tolist()
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75])
    assert common.quartiles(values) == pytest.approx({"lower": lower, "median": median, "upper": upper})


def test_ratios_are_taken_pair_by_pair(common: ModuleType) -> None:
    times = {"base": [1.0, 2.0, 4.0], "other": [2.0, 2.0, 2.0]}
    summary = common.summarise(times, "base", {"other": 0.9})
    assert summary["other"]["ratio"]["median"] == 1.0  # of 2, 1 and 0.5
    assert summary["other"]["met"] is False
    assert summary["other"]["n"] == 3


def test_candidates_run_equally_often_in_rotating_order(common: ModuleType) -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = common.interleaved(calls, pairs=3, warmup=0)
    assert "".join(order) == "abcbcacab"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


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
