"""benchmarks/bounded*.py run, judge by what they recompute, and call no miss met."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
MODULES = ("_peers", "_rows", "bounded", "bounded_gpu", "bounded_scaling", "bounded_sweep")
OPTIONS = Namespace(quick=True, pairs=1, threads=1, as_before=True)


@pytest.fixture(scope="module")
def modules() -> Iterator[SimpleNamespace]:
    """The benchmarks' modules by name, underscores dropped."""
    sys.path.insert(0, str(BENCHMARKS))
    yield SimpleNamespace(**{name.lstrip("_"): importlib.import_module(name) for name in MODULES})
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(modules: SimpleNamespace, name: str) -> None:
    assert doctest.testmod(getattr(modules, name.lstrip("_"))).failed == 0


def test_inertia_and_rows_outside_are_those_of_brute_force(modules: SimpleNamespace) -> None:
    random = np.random.default_rng(0)
    rows, centers = (random.standard_normal((n, 5)).astype(np.float32) for n in (300, 7))
    labels = random.integers(0, 6, 300)
    distances = cdist(rows.astype(np.float64), centers.astype(np.float64), "sqeuclidean")
    found = modules.peers.inertia(rows, centers, labels)
    assert found == pytest.approx(distances[np.arange(300), labels].sum(), rel=1e-12)
    counts = [int(sum(labels == k)) for k in range(7)]
    outside = sum(max(45 - n, 0) + max(n - 52, 0) for n in counts)
    assert modules.peers.outside(labels, 7, (45, 52)) == outside > 45
    assert modules.peers.outside(labels, 7, None) == 0


def test_turns_rotate_and_ratios_are_taken_pair_by_pair(modules: SimpleNamespace) -> None:
    order, seconds = [], {"a": iter((2.0, 6.0, 3.0)), "b": iter((1.0, 2.0, 3.0)), "slow": iter((8.0,))}

    def call(name: str) -> Any:
        order.append(name[0])
        return modules.peers.Found(next(seconds[name]))

    calls = {name: (lambda name=name: call(name)) for name in seconds}
    times, _ = modules.peers.turns(calls, 3, once=("slow",))
    assert "".join(order) == "absbaab"
    assert times["b"]["ratio"] == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert times["a"]["seconds"] == {"median": 3.0, "least": 2.0, "most": 6.0}
    assert (times["slow"]["n"], times["slow"]["ratio"]["median"]) == (1, 0.25)


def met(case: dict[str, Any]) -> dict[str, bool | None]:
    return {check["what"]: check["met"] for check in case["checks"]}


def test_what_a_candidate_says_of_itself_is_not_believed(
    modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = modules.bounded.Case(
        "normal", modules.rows.normal(4), 300, 6, (1, 1), 3, ("scikit-learn",), {"gap": 1e-8, "memory": 1}
    )
    assert met(case("honest", OPTIONS)) == {
        "outside": True,
        "own inertia off by": True,
        "gap": True,
        "memory": None,
    }
    assert "memory not measured" in capsys.readouterr().out

    def liar(problem: Any) -> Any:
        found = modules.peers.scikit_learn(problem)  # outside of the sizes
        found.says = {"own inertia": 1.0, "gap": float("nan")}
        return found

    monkeypatch.setitem(modules.peers.CANDIDATES, "coke", liar)
    case.wanted["inertia above scikit-learn"] = -0.1
    result = case("lying", OPTIONS)
    assert result["results"]["coke"]["inertia"] == result["results"]["scikit-learn"]["inertia"] > 2
    assert set(met(result).values()) == {False, None}
    assert capsys.readouterr().out.count("MISSED") == 4


def test_all_start_from_the_same_centers_and_move_them_equally_often(modules: SimpleNamespace) -> None:
    problem = modules.bounded.Case("normal", modules.rows.normal(4), 400, 6, None, 3).problem(quick=False)
    own, peer = modules.peers.coke(problem), modules.peers.scikit_learn(problem)
    assert own.iterations == peer.iterations == 3
    assert np.array_equal(own.labels, peer.labels)
    assert own.centers == pytest.approx(peer.centers, abs=1e-5)


def test_a_mixture_has_long_tailed_sizes_around_its_centers(modules: SimpleNamespace) -> None:
    rows = modules.rows.mixture(11_000, 3, 256)  # 23 apart within a group, 32 between them
    _, counts = np.unique((cdist(rows, rows[:50]) < 27).argmax(1), return_counts=True)
    assert sorted(counts)[-3:] == pytest.approx([2_000, 3_000, 6_000], rel=0.1)


def test_bare_sweeps_find_the_nearest_center(modules: SimpleNamespace) -> None:
    rows = modules.bounded_gpu.resident(500, 8, 5, "cpu")
    bare = modules.bounded_gpu.Bare(rows, rows[:20].float(), torch.float32, 128)
    bare.sweep()
    assert torch.equal(bare.labels.long(), torch.cdist(rows.double(), rows[:20].double()).argmin(1))


def test_lines_of_the_figure_vary_one_size_alone(modules: SimpleNamespace) -> None:
    base = {"N": 10, "K": 2, "D": 4}
    points = zip((base, base | {"N": 100}, base | {"K": 8}), (1.0, 20.0, 8.0), strict=True)
    entries = [{"point": p, "times": {"coke": {"seconds": modules.peers.spread([s])}}} for p, s in points]
    line = modules.bounded_scaling.line(entries, base, "N", "coke")
    assert (line["values"], line["median"]) == ([10, 100], [1.0, 20.0])
    found = modules.bounded_scaling.slopes(entries, base)
    assert (found["N"]["coke"], found["K"]["coke"]) == pytest.approx((np.log10(20), 1.5))
    assert "D" not in found


def quick(name: str, out: Path, *words: str) -> tuple[dict[str, Any], str]:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--out", str(out), *words]
    environ = os.environ | {"COKE_SHARED_DATA": str(out.parent), "OPENBLAS_CORETYPE": "Haswell"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["quick"] is True
    assert result["environment"]["commit"] in done.stdout
    return result["results"], done.stdout


@pytest.mark.slow
def test_every_row_runs_and_says_what_it_skips(tmp_path: Path) -> None:
    out, here = tmp_path / "bounded.json", ("--threads", "1", "--repetitions", "1")
    results, printed = quick("bounded", out, *here)
    assert {"normal-20k", "mixture-1m", "hard", "balanced", "assign-cold", "small"} <= set(results)
    assert "words-20k: skipped" in printed
    assert "cifar: skipped" in printed
    assert "'OPENBLAS_CORETYPE': 'Haswell'" in printed
    for cases in results.values():
        for case in cases["cases"]:
            assert met(case)["outside"]
            assert met(case).get("own inertia off by", True)
            assert met(case).get("cost above scipy", True)
    memory = results["mixture-1m"]["cases"][0]["figures"]["MiB beyond the rows and the libraries"]
    assert 50 < memory < 1_024
    (tmp_path / "words").mkdir()
    rows = np.random.default_rng(0).standard_normal((600, 16)).astype(np.float16)
    np.save(tmp_path / "words" / "vectors.npy", rows)
    merged, printed = quick("bounded", out, *here, "--only", "words", "long-free")
    assert set(merged) == set(results) | {"words", "long-free"}
    assert "skipped" not in printed


@pytest.mark.slow
def test_scaling_and_gpu_run(tmp_path: Path) -> None:
    results, _ = quick("bounded_scaling", tmp_path / "scaling.json", "--threads", "1")
    assert len(results["points"]) == 4
    assert all(all(met(entry).values()) for entry in results["points"])
    results, _ = quick("bounded_gpu", tmp_path / "gpu.json", "--device", "cpu")
    assert set(results["times"]) == {"coke", "bare", "bare, float16"}
    assert met(results)["outside"]
    results, _ = quick("bounded_sweep", tmp_path / "sweep.json")
    assert len(results["sweeps"]) in (3, 6)
    assert results["search"]["compiled"] > 0
