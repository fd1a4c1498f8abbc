"""How the time of size-constrained k-means grows with N, K and D, beside the bare product and its peers.

One of the three varies, the other two stay as `BASE` says. Data: standard normal rows; for coke also mixtures of K / 2
Gaussians with long-tailed sizes, many of them below the minimum. Sizes N/2K ... 2N/K; 5 iterations from k-means++
centers. k-means-constrained and the mixtures run where N K is small enough to wait for them; faiss has no bounds. Draws
docs/scaling.svg where matplotlib is at hand.

    uv run --with faiss-cpu --with k-means-constrained --with matplotlib python benchmarks/bounded_scaling.py
    uv run --with matplotlib python benchmarks/bounded_scaling.py --plot      # the figure alone, from the result
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import _candidates as candidates
import _common as common
import _machine
import _turns as turns
from _mixtures import Data, starting_centers

BASE = {"N": 100_000, "K": 200, "D": 64}
VARIED = {
    "N": (10_000, 30_000, 100_000, 300_000, 1_000_000),
    "K": (10, 30, 100, 300, 1_000, 3_000),
    "D": (8, 32, 128, 512),
}
TINY_BASE = {"N": 1_000, "K": 8, "D": 8}
TINY = {"N": (500, 1_000), "K": (4, 8), "D": (4, 8)}
ITERATIONS, NOISE, RATIO = 5, 0.5, 2
MOST_EDGES = 3e6  # N K, for k-means-constrained
MOST_PAIRS = 6e7  # N K, for the mixtures
POINT_BUDGET = 20.0  # seconds for the repetitions of a point
COLOURS = {
    "coke": "#0b62a4",
    "coke, mixture": "#7fb2dd",
    "k-means-constrained": "#d9822b",
    "faiss with labels": "#13807c",
    "product": "#8a8a8a",
}
NAMES = {
    "coke": "coke, within sizes",
    "coke, mixture": "... on long-tailed mixtures",
    "k-means-constrained": "k-means-constrained",
    "faiss with labels": "faiss, no sizes",
    "product": "the bare product",
}
PEERS = "uv run --with faiss-cpu --with k-means-constrained --with matplotlib "


def points(base: dict[str, int], varied: dict[str, Sequence[int]]) -> list[dict[str, int]]:
    """Every N, K, D once.

    >>> points({"N": 8, "K": 2}, {"N": (4, 8), "K": (2, 3)})
    [{'N': 4, 'K': 2}, {'N': 8, 'K': 2}, {'N': 8, 'K': 3}]
    """
    found: list[dict[str, int]] = []
    for name, values in varied.items():
        for value in values:
            point = base | {name: value}
            if point not in found:
                found.append(point)
    return found


def measure(point: dict[str, int], repetitions: int) -> dict[str, Any]:
    """Times of all candidates at one point."""
    n_rows, n_clusters = point["N"], point["K"]
    normal, mixed = (_problem(data, point) for data in (Data(), Data(max(n_clusters // 2, 2), NOISE)))
    names = ["coke", "faiss", "product"]
    names += ["k-means-constrained"] if n_rows * n_clusters <= MOST_EDGES else []
    absent = candidates.missing(tuple(names))
    calls = {
        name: (lambda candidate=candidates.CANDIDATES[name]: candidate(normal))
        for name in names
        if name not in absent
    }
    for call in calls:
        candidates.CANDIDATES[call](normal.part(min(2_000, n_rows), 4))
    if n_rows * n_clusters <= MOST_PAIRS:
        calls["coke, mixture"] = lambda: _renamed(candidates.coke(mixed), "coke, mixture")
    print(f"\nN {n_rows:,}, K {n_clusters:,}, D {point['D']}", flush=True)
    seconds, last = turns.turns(calls, repetitions=repetitions, budget=POINT_BUDGET)
    times = turns.summary(seconds, "coke")
    turns.print_laps(times, "coke")
    entry: dict[str, Any] = {"point": point, "times": times}
    for lap in ("coke", "coke, mixture"):
        if lap in last:
            own, sizes = last[lap], normal.sizes
            outside = candidates.violation(own.labels, n_clusters, sizes)
            of_product = times[lap]["seconds"]["median"] / times["product"]["seconds"]["median"]
            print(
                f"  {lap}: {of_product:.2f} times the bare product, {own.figures['passes']} passes, "
                f"gap {own.figures['gap']:.2g}, violation {outside}",
                flush=True,
            )
            entry[lap] = own.figures | {"violation": outside, "of_product": of_product}
    return entry


def _problem(data: Data, point: dict[str, int]) -> candidates.Problem:
    rows, mean = data.rows(point["N"], point["D"]), point["N"] / point["K"]
    sizes = -int(-mean // RATIO), int(mean * RATIO)
    return candidates.Problem(rows, starting_centers(rows, point["K"]), ITERATIONS, sizes)


def _renamed(found: candidates.Found, lap: str) -> candidates.Found:
    return replace(found, laps={lap: found.laps["coke"]})


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Of log seconds over log size, by least squares.

    >>> round(slope([1, 10, 100], [3, 30, 300]), 6)
    1.0
    """
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum(
        (a - mean_x) ** 2 for a in x
    )


def line(
    entries: Sequence[dict[str, Any]], base: dict[str, int], varied: str, lap: str
) -> dict[str, list[Any]]:
    """Where ``varied`` alone changes: its values, and median, least and most seconds of a lap."""
    on = [
        entry
        for entry in entries
        if lap in entry["times"] and all(entry["point"][n] == base[n] for n in base if n != varied)
    ]
    on.sort(key=lambda entry: entry["point"][varied])
    seconds = [entry["times"][lap]["seconds"] for entry in on]
    found: dict[str, list[Any]] = {"sizes": [entry["point"][varied] for entry in on]}
    return found | {name: [value[name] for value in seconds] for name in ("median", "least", "most")}


def slopes(entries: Sequence[dict[str, Any]], base: dict[str, int]) -> dict[str, dict[str, float]]:
    """Slope of each lap over N, K and D."""
    found: dict[str, dict[str, float]] = {}
    for varied in base:
        for lap in COLOURS:
            values = line(entries, base, varied, lap)
            if len(values["sizes"]) >= 2:
                found.setdefault(varied, {})[lap] = slope(values["sizes"], values["median"])
    return found


def draw(result: dict[str, Any], path: Path) -> None:
    """Seconds over N, K and D, logarithmic, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "scaling", "font.size": 9})
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    base, entries = result["setting"]["base"], result["results"]["points"]
    words = {"N": "rows, N", "K": "clusters, K", "D": "features, D"}
    canvas, axes = pyplot.subplots(1, 3, figsize=(12, 4.2), sharey=True, layout="constrained")
    for axis, varied in zip(axes, words, strict=True):
        for lap, colour in COLOURS.items():
            values = line(entries, base, varied, lap)
            if not values["sizes"]:
                continue
            dashed = "--" if lap == "product" else "-"
            axis.plot(values["sizes"], values["median"], dashed, color=colour, marker="o", markersize=3.5)
            axis.fill_between(
                values["sizes"], values["least"], values["most"], color=colour, alpha=0.2, linewidth=0
            )
        others = ", ".join(f"{name} {base[name]:,}" for name in base if name != varied)
        axis.set(xscale="log", yscale="log", xlabel=words[varied], title=others)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(True, color="#e4e4e4", linewidth=0.6)
    axes[0].set_ylabel(f"seconds, {ITERATIONS} iterations and labels")
    shown = [lap for lap in COLOURS if any(lap in entry["times"] for entry in entries)]
    lines = [
        pyplot.Line2D([], [], color=COLOURS[lap], marker="o", markersize=3.5, label=NAMES[lap])
        for lap in shown
    ]
    canvas.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
    where = result["environment"]
    canvas.suptitle(f"{where['threads']} threads; medians, and the range of all repetitions")
    canvas.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(canvas)


def show(result: dict[str, Any], path: Path) -> None:
    """Slopes as lines, and the figure."""
    for varied, found in slopes(result["results"]["points"], result["setting"]["base"]).items():
        words = ", ".join(f"{NAMES[lap]} {value:.2f}" for lap, value in found.items())
        print(f"slope over {varied}: {words}")
    if importlib.util.find_spec("matplotlib") is None:
        print("no figure: matplotlib is not installed (uv run --with matplotlib ...)")
        return
    draw(result, path)
    print(f"drawn: {path}, {path.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    """Measure, print, write, draw."""
    parser = common.arguments(__doc__)
    parser.add_argument("--threads", type=int, default=2, help="of every library")
    parser.add_argument("--plot", action="store_true", help="only slopes and figure, from the result file")
    parser.add_argument("--figure", type=Path, default=common.ROOT / "docs" / "scaling.svg")
    options = parser.parse_args()
    if options.plot:
        path = options.out or common.RESULTS / "bounded_scaling.json"
        show(json.loads(path.read_text(encoding="utf-8")), options.figure)
        return
    if (absent := candidates.missing(("faiss", "k-means-constrained"))) and not options.quick:
        parser.error(f"{', '.join(absent)} not installed: {PEERS}python benchmarks/bounded_scaling.py")
    _machine.start_neutral(options.threads)
    where = _machine.environment(options.threads, PEERS)
    base, varied = (TINY_BASE, TINY) if options.quick else (BASE, VARIED)
    repetitions = options.pairs or (1 if options.quick else 3)
    began = time.perf_counter()
    entries = [measure(point, repetitions) for point in points(base, varied)]
    print(f"\n{len(entries)} points in {time.perf_counter() - began:.0f} s")
    setting = {
        "base": base,
        "iterations": ITERATIONS,
        "noise": NOISE,
        "ratio": RATIO,
        "repetitions": repetitions,
    }
    result = {"environment": where, "setting": setting}
    result["results"] = {"points": entries, "slopes": slopes(entries, base)}
    common.write_result("bounded_scaling", options, result)
    if not options.quick:
        show(result, options.figure)
    elif options.out:
        show(result, options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
