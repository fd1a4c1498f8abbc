"""benchmarks/bounded*.py: their arithmetic, and that each of them runs where its peers are missing."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
MODULES = (
    "_anonymous",
    "_candidates",
    "_fit_elsewhere",
    "_machine",
    "_mixtures",
    "_turns",
    "_verdicts",
    "_work",
    "bounded",
    "bounded_gpu",
    "bounded_scaling",
)


@pytest.fixture(scope="module")
def modules() -> Iterator[SimpleNamespace]:
    """The benchmark's modules by name, underscores dropped."""
    sys.path.insert(0, str(BENCHMARKS))
    precision = torch.get_float32_matmul_precision()
    yield SimpleNamespace(**{name.lstrip("_"): importlib.import_module(name) for name in MODULES})
    torch.set_float32_matmul_precision(precision)
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(modules: SimpleNamespace, name: str) -> None:
    module: ModuleType = getattr(modules, name.lstrip("_"))
    assert doctest.testmod(module).failed == 0


def test_inertia_and_violation_are_those_of_brute_force(modules: SimpleNamespace) -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((300, 5)).astype(np.float32)
    centers = random.standard_normal((7, 5)).astype(np.float32)
    labels = random.integers(0, 6, 300)
    distances = cdist(rows.astype(np.float64), centers.astype(np.float64), "sqeuclidean")
    found = modules.candidates.inertia(rows, centers, labels)
    assert found == pytest.approx(distances[np.arange(300), labels].sum(), rel=1e-12)
    counts = [sum(labels == k) for k in range(7)]
    low, high = 45, 52
    outside = sum(max(low - n, 0) + max(n - high, 0) for n in counts)
    assert modules.candidates.violation(labels, 7, (low, high)) == outside > 45
    assert modules.candidates.violation(labels, 7, None) == 0


def test_candidates_start_from_the_same_centers_and_move_them_equally_often(
    modules: SimpleNamespace,
) -> None:
    rows = modules.mixtures.Data(5, 0.5).rows(400, 4)
    centers = modules.mixtures.starting_centers(rows, 6)
    problem = modules.candidates.Problem(rows, centers, 3, None)
    own, peer = modules.candidates.coke(problem), modules.candidates.scikit_learn(problem)
    assert own.figures["iterations"] == peer.figures["iterations"] == 3
    assert np.array_equal(own.labels, peer.labels)
    assert own.centers == pytest.approx(peer.centers, abs=1e-5)
    assert own.figures["passes"] == 5  # the check of the values, three iterations, the labels


def test_a_written_mixture_holds_the_rows_of_one_in_memory(modules: SimpleNamespace, tmp_path: Path) -> None:
    data = modules.mixtures.Data(3, 0.1)
    path = tmp_path / "rows.npy"
    data.write(path, 1_000, 4)
    mapped = np.load(path, mmap_mode="r")
    assert mapped.dtype == np.float16
    assert np.array_equal(mapped, data.rows(1_000, 4).astype(np.float16))


def test_a_mixture_has_long_tailed_sizes_around_its_centers(modules: SimpleNamespace) -> None:
    rows = modules.mixtures.Data(3, 0.0).rows(11_000, 4)
    _, counts = np.unique(rows, axis=0, return_counts=True)
    assert sorted(counts)[-3:] == pytest.approx([2_000, 3_000, 6_000], rel=0.1)


def test_a_peak_that_is_gone_is_seen(modules: SimpleNamespace) -> None:
    size = 64 * 2**20
    with modules.anonymous.AnonymousPeak() as memory:
        block = np.ones(size, dtype=np.uint8)
        for _ in range(20):
            block += 1  # long enough for a reading
        del block
    assert memory.before + size <= memory.peak + 2**20
    assert modules.anonymous.anonymous() < memory.before + size


def test_turns_rotate_and_stop_before_the_budget(
    modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, order = [0.0], []

    def call(name: str) -> Any:
        clock[0] += 5.0
        order.append(name)
        return modules.candidates.Found({name: 5.0, f"{name} twice": 10.0})

    monkeypatch.setattr(modules.turns.time, "perf_counter", lambda: clock[0])
    calls = {name: (lambda name=name: call(name)) for name in "ab"}
    seconds, last = modules.turns.turns(calls, repetitions=9, budget=30.5)
    assert (
        "".join(order) == "abba"
    )  # ten seconds each, and a third one would end at 31, by the reserve of a tenth
    assert {lap: len(values) for lap, values in seconds.items()} == {
        "a": 2,
        "a twice": 2,
        "b": 2,
        "b twice": 2,
    }
    assert set(last) == {"a", "b"}


def part(modules: SimpleNamespace, **seconds: list[float]) -> dict[str, Any]:
    times = modules.turns.summary({name.replace("_", "-"): v for name, v in seconds.items()}, "coke")
    own = {"inertia": 100.0, "own_inertia": 100.0, "violation": 0, "gap": 1e-5, "iterations": 10}
    peer = {"inertia": 99.95, "violation": 0, "iterations": 10}
    return {"times": times, "results": {"coke": own, "k-means-constrained": peer}}


def met(checks: list[dict[str, Any]]) -> dict[str, bool]:
    return {check["what"]: check["met"] for check in checks}


def test_a_row_is_judged_by_ratios_of_pairs(modules: SimpleNamespace) -> None:
    good = part(
        modules, coke=[1.0, 2.0, 1.0], k_means_constrained=[41.0, 90.0, 39.0], product=[0.5, 1.0, 0.4]
    )
    found = met(modules.verdicts.verdict("20k", good, bounded=True))
    assert all(found.values())
    assert good["coke_over"]["product"] == 2.0
    good["times"]["k-means-constrained"]["ratio"]["median"] = 39.9
    good["results"]["k-means-constrained"]["inertia"] = 99.8
    good["results"]["coke"]["gap"] = 2e-4
    found = met(modules.verdicts.verdict("20k", good, bounded=True))
    assert not found["times faster than k-means-constrained"]
    assert not found["inertia above that of k-means-constrained"]
    assert not found["certified gap"]
    assert found["violation"]


def test_time_and_memory_a_row_are_those_of_further_rows(modules: SimpleNamespace) -> None:
    own = {"inertia": 1.0, "own_inertia": 1.0, "violation": 0, "gap": 0.0}
    result = {
        "times": {"all": {"ratio": {"median": 10.5}}},
        "results": {"tenth": {**own, "peak": 1_000}, "all": {**own, "peak": 1_000 + 900 * 15}},
    }
    checks = modules.verdicts.itself_verdict(result, 100, 1_000)
    assert [check["value"] for check in checks[:2]] == pytest.approx([1.05, 15.0])
    assert all(check["met"] for check in checks)
    result["results"]["all"]["peak"] += 900 * 2
    result["times"]["all"]["ratio"]["median"] = 11.5
    assert [c["met"] for c in modules.verdicts.itself_verdict(result, 100, 1_000)[:2]] == [False, False]


def test_rows_are_merged_into_a_result_of_the_same_kind(modules: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "bounded.json"
    assert modules.bounded.merged(path, {"1M": 1}, False) == {"1M": 1}
    path.write_text(json.dumps({"quick": False, "results": {"1M": 1, "20k": 2}}))
    assert modules.bounded.merged(path, {"20k": 3}, False) == {"1M": 1, "20k": 3}
    assert modules.bounded.merged(path, {"20k": 3}, True) == {"20k": 3}


def test_the_full_table_is_the_issues(modules: SimpleNamespace) -> None:
    work = modules.work.WORK
    shapes = {name: (w.n_rows, w.n_features, w.n_clusters, w.iterations) for name, w in work.items()}
    assert shapes == {
        "20k": (20_000, 32, 200, 10),
        "50k": (50_000, 64, 100, 5),
        "1M": (1_000_000, 128, 1000, 10),
        "10M": (10_000_000, 128, 1000, 2),
        "200k": (200_000, 128, 1000, 10),
    }
    assert work["50k"].sizes(50_000) == (250, 1_000)
    assert work["10M"].sizes(10_000_000) == (2_500, 40_000)


def test_a_missing_peer_is_an_error_unless_quick(
    modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules.candidates, "missing", lambda names: ["faiss"] if "faiss" in names else [])
    work = modules.work.WORK["1M"]
    with pytest.raises(SystemExit, match="faiss not installed: uv run --with faiss-cpu"):
        modules.bounded.usable("1M", work, False)
    assert modules.bounded.usable("1M", work, True).candidates == ("coke", "product")


def test_bare_sweeps_find_the_nearest_center(modules: SimpleNamespace) -> None:
    rows = modules.bounded_gpu.resident(500, 8, 5, "cpu")
    centers = rows[:20].float()
    bare = modules.bounded_gpu.Bare(rows, centers, torch.float32, 128)
    bare.sweep()
    nearest = torch.cdist(rows.double(), centers.double()).argmin(1)
    assert torch.equal(bare.labels.long(), nearest)


def test_lines_of_the_figure_vary_one_size_alone(modules: SimpleNamespace) -> None:
    base = {"N": 10, "K": 2, "D": 4}
    points = [base, base | {"N": 100}, base | {"K": 8}]
    entries = [
        {"point": p, "times": {"coke": {"seconds": {"median": s, "least": s, "most": s}}}}
        for p, s in zip(points, (1.0, 20.0, 8.0), strict=True)
    ]
    line = modules.bounded_scaling.line(entries, base, "N", "coke")
    assert (line["sizes"], line["median"]) == ([10, 100], [1.0, 20.0])
    found = modules.bounded_scaling.slopes(entries, base)
    assert found["N"]["coke"] == pytest.approx(np.log10(20))
    assert found["K"]["coke"] == pytest.approx(1.5)
    assert "D" not in found


def quick(name: str, out: Path, *words: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--out", str(out), *words]
    environ = os.environ | {"OPENBLAS_CORETYPE": "Haswell"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["quick"] is True
    assert result["environment"]["commit"] in done.stdout
    return dict(result) | {"printed": done.stdout}


@pytest.mark.slow
def test_bounded_runs_and_merges_its_rows(tmp_path: Path) -> None:
    out = tmp_path / "bounded.json"
    first = quick("bounded", out, "--threads", "1", "--only", "200k", "1M")
    assert "OPENBLAS_CORETYPE" in first["printed"].splitlines()[0]
    result = quick("bounded", out, "--threads", "1", "--only", "10M")["results"]
    assert set(result) == {"200k", "1M", "10M"}
    for row in result.values():
        assert row["environment"]["command"].startswith("uv run --with faiss-cpu")
        for found in row["data"].values():
            assert met(found["checks"])["own inertia beside its recomputation"]
            assert met(found["checks"]).get("violation", True)
    assert result["1M"]["data"]["mixture"]["memory"]["peak"] > 0
    assert result["200k"]["data"]["mixture"]["same_iterations"]


@pytest.mark.slow
def test_scaling_and_gpu_run(tmp_path: Path) -> None:
    result = quick("bounded_scaling", tmp_path / "scaling.json", "--threads", "1")["results"]
    assert len(result["points"]) == 4
    assert all(entry["coke"]["violation"] == 0 for entry in result["points"])
    result = quick("bounded_gpu", tmp_path / "gpu.json", "--device", "cpu")["results"]
    assert result["coke"]["violation"] == 0
    assert set(result["times"]) == {"coke", "bare", "bare, float16"}
