"""What every benchmark shares: interleaved timing, medians and quartiles, the environment, the result file.

A figure is a claim, so each result names the machine, the versions, the commit, the command, how often it was
measured and how far the measurements spread. Candidates of a comparison are timed in turns, in an order that
rotates, so that a machine that slows down for a while slows down all of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(os.environ.get("COKE_RESULTS", ROOT / "benchmarks" / "results"))
PACKAGES = ("torch", "torchvision", "timm", "lightning-fabric", "numpy", "scikit-learn")
EVICT_MIB = 64  # written before a timed call in the "cold" mode: beyond any L2, and most of a shared L3

Times = dict[str, list[float]]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=(description or "").strip().split("\n\n")[0])
    parser.add_argument("--pairs", "--repetitions", type=int, help="repetitions of every comparison")
    parser.add_argument("--quick", action="store_true", help="only show that it runs; writes no result")
    parser.add_argument(
        "--out", type=Path, default=None, help="result file; default benchmarks/results/NAME.json"
    )
    return parser


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    *,
    pairs: int,
    warmup: int = 3,
    before: Callable[[], object] = lambda: None,
    synchronise: Callable[[], object] = lambda: None,
) -> Times:
    """Seconds of each candidate, ``pairs`` of each, in rotating order.

    before: runs untimed before every single call (fresh inputs, evicted caches).
    synchronise: waits for the device, inside the timed part.
    """
    times: Times = {name: [] for name in candidates}
    names = list(candidates)
    gc.collect()
    gc.disable()
    try:
        for repetition in range(-warmup, pairs):
            shift = repetition % len(names)
            for name in names[shift:] + names[:shift]:
                before()
                synchronise()
                began = time.perf_counter()
                candidates[name]()
                synchronise()
                seconds = time.perf_counter() - began
                if repetition >= 0:
                    times[name].append(seconds)
    finally:
        gc.enable()
    return times


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles by linear interpolation.

    >>> quartiles([4.0, 1.0, 3.0, 2.0, 5.0])
    {'median': 3.0, 'lower': 2.0, 'upper': 4.0}
    """
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return {"median": at(0.5), "lower": at(0.25), "upper": at(0.75)}


def summarise(
    times: Times, base: str, wanted: Mapping[str, float] | None = None
) -> dict[str, dict[str, Any]]:
    """Per candidate: milliseconds, and the ratio to ``base`` pair by pair (median of ratios, quartiles).

    The claim is the median. The fastest of each stands beside it because on a shared machine a call after a
    long pause finds its instructions evicted by other processes, which only the fastest repetitions escape.
    """
    wanted = wanted or {}
    summary: dict[str, dict[str, Any]] = {}
    for name, values in times.items():
        ratios = [value / reference for value, reference in zip(values, times[base], strict=True)]
        row: dict[str, Any] = {
            "n": len(values),
            "ms": {key: 1e3 * value for key, value in quartiles(values).items()}
            | {"fastest": 1e3 * min(values)},
            "ratio": quartiles(ratios),
        }
        row["ratio"]["of_medians"] = row["ms"]["median"] / (1e3 * quartiles(times[base])["median"])
        row["ratio"]["of_fastest"] = row["ms"]["fastest"] / (1e3 * min(times[base]))
        if name in wanted:
            row["wanted"] = wanted[name]
            row["met"] = row["ratio"]["median"] <= wanted[name]
        summary[name] = row
    return summary


def print_summary(title: str, summary: Mapping[str, Mapping[str, Any]]) -> None:
    """A summary as lines: time, ratio, quartiles in brackets, and what is wanted."""
    n_pairs = next(iter(summary.values()))["n"]
    print(f"\n{title} (medians of {n_pairs} interleaved repetitions, quartiles in brackets)")
    width = max(map(len, summary))
    for name, row in summary.items():
        ms, ratio = row["ms"], row["ratio"]
        line = (
            f"  {name:{width}}  {ms['median']:9.3f} ms [{ms['lower']:.3f}, {ms['upper']:.3f}]"
            f"   {ratio['median']:6.3f} x [{ratio['lower']:.3f}, {ratio['upper']:.3f}]"
            f"   fastest {ms['fastest']:.3f} ms, {ratio['of_fastest']:.3f} x"
        )
        if "wanted" in row:
            line += f"   wanted <= {row['wanted']:.2f} x: {'met' if row['met'] else 'MISSED'}"
        print(line)


def environment(device: str = "cpu") -> dict[str, Any]:
    """Machine, versions, commit, threads and load, as they are now."""
    import torch

    found: dict[str, Any] = {
        "machine": f"{platform.system()} {platform.machine()}, {_cpu_name()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **_versions(PACKAGES)},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d %H:%M %z"),
        "command": "python " + " ".join(sys.argv),
    }
    return found


def print_environment(found: Mapping[str, Any]) -> None:
    """The environment as lines."""
    print(f"$ {found['command']}")
    print(
        f"{found['machine']}; device {found['device']}; {found['threads']} thread(s); load {found['load_before']}"
    )
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    print(f"commit {found['commit']}; {found['date']}; {versions}", flush=True)


def commit() -> str:
    """The commit of the sources, "+changes" where files of src/ differ from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--", "src") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git here)"


def write_result(name: str, options: argparse.Namespace, result: Mapping[str, Any]) -> None:
    """Write benchmarks/results/NAME.json, or --out; --quick alone writes nothing."""
    if options.quick and options.out is None:
        print("\n--quick: nothing written, and no figure above is a measurement")
        return
    path = options.out or RESULTS / f"{name}.json"
    write_json(path, {**result, "load_after": round(os.getloadavg()[0], 2), "quick": bool(options.quick)})
    print(f"\nwritten: {_relative(path)}")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """One JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(_rounded(value), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def evict_caches(buffer: Any) -> None:
    """Write over a buffer (see `EVICT_MIB`) so that what a candidate reads comes from memory, as in a step."""
    buffer.add_(1)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def _relative(path: Path) -> Path:
    path = path.resolve()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
