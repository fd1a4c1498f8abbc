"""How the time of size-constrained k-means grows with N, K and D, beside faiss without bounds and the bare product.

One of the three varies, the other two stay as `BASE` says. Rows: embeddings of words (see bounded.py), their first D
features, repeated with jitter where there are too few; a mixture where the words are not. Sizes N/2K ... 2N/K; 5
iterations from k-means++ centers. Draws docs/scaling.svg where matplotlib is at hand.

    uv run --with faiss-cpu --with matplotlib python benchmarks/bounded_scaling.py
    uv run --with matplotlib python benchmarks/bounded_scaling.py --plot      # the figure alone, from the result
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import _common as common
import _peers as peers
import _rows as rows

BASE = {"N": 100_000, "K": 300, "D": 128}
VARIED = {
    "N": (10_000, 30_000, 100_000, 300_000, 1_000_000),
    "K": (10, 30, 100, 300, 1_000, 3_000),
    "D": (8, 16, 32, 64, 128),
}
TINY_BASE, TINY = {"N": 1_000, "K": 8, "D": 8}, {"N": (500, 1_000), "K": (4, 8), "D": (4, 8)}
ITERATIONS, JITTER = 5, 0.02  # of words, whose features have a standard deviation of 0.09
COLOURS = {"coke": "#0b62a4", "faiss": "#13807c", "product": "#8a8a8a"}
NAMES = {"coke": "coke, within sizes", "faiss": "faiss, no sizes", "product": "the bare product"}


def many(n: int, d: int) -> tuple[str, rows.Array]:
    """N rows of D features, and what they are."""
    try:
        once = rows.words(n)
    except rows.AbsentError as absent:
        print(f"a mixture instead: {absent}")
        return "mixture", np.ascontiguousarray(rows.mixture(n)[:, :d])
    found = np.ascontiguousarray(np.resize(once[:, :d], (n, d)))
    noise = np.random.default_rng(0).standard_normal((n - len(once), d), dtype=np.float32)
    found[len(once) :] += np.float32(JITTER) * noise
    return "words", found


def product(problem: peers.Problem) -> peers.Found:
    """Rows times centers, in blocks that stay in a cache: one product an iteration and one for the labels."""
    import torch

    block, columns = 1_024, torch.from_numpy(problem.centers).t().contiguous()
    scores, data = torch.empty(block, columns.shape[1]), torch.from_numpy(problem.rows)
    began = time.perf_counter()
    for _ in range(problem.iterations + 1):
        for part in data.split(block):
            torch.mm(part, columns, out=scores[: len(part)])
    return peers.Found(time.perf_counter() - began)


def measure(point: dict[str, int], repetitions: int) -> dict[str, Any]:
    """Times of all candidates at one point."""
    what, data = many(point["N"], point["D"])
    n, k = point["N"], point["K"]
    problem = peers.Problem(data, rows.starting_centers(data, k), ITERATIONS, (n // (2 * k), -(-2 * n // k)))
    print(f"\n{what}: N {n:,}, K {k:,}, D {point['D']}", flush=True)
    candidates = {name: peers.CANDIDATES[name] for name in peers.present("coke", "faiss")} | {
        "product": product
    }
    for call in candidates.values():
        call(peers.Problem(data[:200], problem.centers[:2], 2, (1, 200)))
    calls = {name: partial(call, problem) for name, call in candidates.items()}
    times, last = peers.turns(calls, repetitions)
    figures = {
        "gap": last["coke"].says["gap"],
        "outside": peers.outside(last["coke"].labels, k, problem.sizes),
    }
    checks = peers.judge(figures, {"outside": 0})
    return {"point": point, "rows": what, "times": times, "figures": figures, "checks": checks}


def line(entries: list[dict[str, Any]], base: dict[str, int], varied: str, name: str) -> dict[str, list[Any]]:
    """Where ``varied`` alone changes: its values, and median, least and most seconds of a candidate."""
    on = [
        e
        for e in entries
        if name in e["times"] and all(e["point"][n] == base[n] for n in base if n != varied)
    ]
    on.sort(key=lambda entry: entry["point"][varied])
    seconds = [entry["times"][name]["seconds"] for entry in on]
    found: dict[str, list[Any]] = {"values": [entry["point"][varied] for entry in on]}
    return found | {key: [value[key] for value in seconds] for key in ("median", "least", "most")}


def slopes(entries: list[dict[str, Any]], base: dict[str, int]) -> dict[str, dict[str, float]]:
    """Of log seconds over the log of what varies, by least squares: 1 is linear."""
    found: dict[str, dict[str, float]] = {}
    for varied in base:
        for name in COLOURS:
            values = line(entries, base, varied, name)
            if len(values["values"]) > 1:
                x, y = np.log(values["values"]), np.log(values["median"])
                found.setdefault(varied, {})[name] = float(np.polyfit(x, y, 1)[0])
    return found


def draw(result: dict[str, Any], path: Path) -> None:
    """Seconds over N, K and D, logarithmic, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "scaling", "font.size": 9})
    from matplotlib import pyplot

    base, entries = result["setting"]["base"], result["results"]["points"]
    words = {"N": "rows, N", "K": "clusters, K", "D": "features, D"}
    canvas, axes = pyplot.subplots(1, 3, figsize=(12, 4.2), sharey=True, layout="constrained")
    for axis, varied in zip(axes, words, strict=True):
        for name, colour in COLOURS.items():
            values = line(entries, base, varied, name)
            style = {"color": colour, "marker": "o", "markersize": 3.5, "label": NAMES[name]}
            axis.plot(values["values"], values["median"], "--" if name == "product" else "-", **style)
            axis.fill_between(values["values"], values["least"], values["most"], color=colour, alpha=0.2)
        others = ", ".join(f"{name} {base[name]:,}" for name in base if name != varied)
        axis.set(xscale="log", yscale="log", xlabel=words[varied], title=others)
        axis.grid(True, color="#e4e4e4", linewidth=0.6)
    axes[0].set_ylabel(f"seconds, {ITERATIONS} iterations and labels")
    canvas.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    threads = result["environment"]["threads"]
    canvas.suptitle(f"{entries[0]['rows']}, {threads} threads; medians, and the range of all repetitions")
    canvas.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(canvas)


def show(result: dict[str, Any], path: Path) -> None:
    """Slopes as lines, and the figure."""
    for varied, found in slopes(result["results"]["points"], result["setting"]["base"]).items():
        print(
            f"slope over {varied}: {', '.join(f'{NAMES[name]} {value:.2f}' for name, value in found.items())}"
        )
    if importlib.util.find_spec("matplotlib") is None:
        print("no figure: matplotlib is not installed (uv run --with matplotlib ...)")
        return
    draw(result, path)
    print(f"drawn: {path}")


def main() -> None:
    """Measure, print, write, draw."""
    parser = common.arguments(__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every library")
    parser.add_argument("--plot", action="store_true", help="only slopes and figure, from the result file")
    parser.add_argument("--figure", type=Path, default=common.ROOT / "docs" / "scaling.svg")
    options = parser.parse_args()
    if options.plot:
        path = options.out or common.RESULTS / "bounded_scaling.json"
        show(json.loads(path.read_text(encoding="utf-8")), options.figure)
        return
    where = peers.environment(options.threads)
    base, varied = (TINY_BASE, TINY) if options.quick else (BASE, VARIED)
    points = [base] + [base | {name: v} for name, values in varied.items() for v in values if v != base[name]]
    repetitions = options.pairs or (1 if options.quick else 3)
    entries = [measure(point, repetitions) for point in points]
    setting = {"base": base, "iterations": ITERATIONS, "repetitions": repetitions}
    results = {"points": entries, "slopes": slopes(entries, base)}
    result = {"environment": where, "setting": setting, "results": results}
    common.write_result("bounded_scaling", options, result)
    if options.out or not options.quick:
        show(result, options.out.with_suffix(".svg") if options.quick else options.figure)


if __name__ == "__main__":
    main()
