"""How far the online assignment strays from the optimum and from its bounds, as the stream gets longer.

Streams of N = 1e3 ... 1e6 images with fixed centers, assigned one image at a time and in batches of 128, under several
rules for h = eta / B. Against the exact optimum of the same images: signed regret, priced regret (each missing image
charged at the optimum's own price, its dual), and the largest shortfall r N / K - n_k. Beside it Sinkhorn in a window
of 4,096 images, and greedy nearest. Slopes are those of log10 of the mean over seeds by log10 N, where the climb of a
dual over the stream is at least `CLIMB` times the largest dual that the optimum needs: below that none can get there.

    OMP_NUM_THREADS=1 uv run --with matplotlib python benchmarks/online_theory.py    # five minutes; and docs/theory.svg
    python benchmarks/online_theory.py --page                  # tables and figure alone, from the result file
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from scipy.stats import t as student

import _common as common
import _theory_page as page
from _optimum import optimum
from _streams import (
    CHUNK,
    DATA,
    DIM,
    FALLING,
    NOISE,
    PUBLISHED_HIT,
    RULES,
    SCALE,
    TAIL,
    Array,
    Group,
    Runs,
    Stream,
    Window,
)

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)  # r N / K is a whole number
CLUSTERS, BATCHES, RATIOS = (10, 100), (1, 128), (0.4, 1.0)
CLIMB = 4.0
SHORT = 100_000  # length of what is measured beside: sorted streams, Sinkhorn with ten iterations
FIGURE = common.ROOT / "docs" / "theory.svg"

Key = tuple[Any, ...]  # data, ratio, rule, size
Rows = dict[Key, list[tuple[float, ...]]]  # per seed: shortfall, regret, priced regret
Optima = dict[Key, tuple[Array, float]]  # of stream, ratio, size: duals and value


def compare(counts: Array, value: float, bound: float, best: tuple[Array, float]) -> tuple[float, ...]:
    """Largest shortfall, signed regret, and regret with each missing image charged at its price."""
    prices, optimal = best
    regret = optimal - value
    return float((bound - counts).max()), regret, regret - float(prices @ (counts - bound))


def offline(streams: Sequence[Stream], sizes: Sequence[int]) -> tuple[Optima, Rows]:
    """The optimum of every stream, ratio and size; greedy nearest and Sinkhorn against it."""
    optima: Optima = {}
    rows: Rows = defaultdict(list)
    short = [size for size in sizes if size <= SHORT]
    for stream in streams:
        scores, _ = stream.scores(sizes[-1])
        labels = {"greedy": scores.argmax(axis=1)}
        labels["Sinkhorn"], soft = Window(stream.n_clusters).run(scores, sizes)
        ten = "Sinkhorn, 10 iterations"
        labels[ten], _ = Window(stream.n_clusters, 10).run(scores[: short[-1]], short)
        cosines = {
            name: np.take_along_axis(scores[: len(own)], own[:, None], 1)[:, 0]
            for name, own in labels.items()
        }
        for ratio in RATIOS:
            duals, radius = np.zeros(stream.n_clusters), 4.0
            for size in sizes:
                best = optima[stream, ratio, size] = optimum(scores[:size], ratio, duals, radius)
                duals, radius = best[0], 0.3 if size < 3000 else 2.5 / np.sqrt(size)
                bound = ratio * size / stream.n_clusters
                for name in labels if size <= SHORT else [name for name in labels if name != ten]:
                    counts = np.bincount(labels[name][:size], minlength=stream.n_clusters)
                    value = cosines[name][:size].sum(dtype=np.float64)
                    rows[stream.data, ratio, name, size].append(compare(counts, value, bound, best))
                rows[stream.data, ratio, "Sinkhorn, soft", size].append(
                    (float((bound - soft[size]).max()), np.nan, np.nan)
                )
    return optima, rows


def online(
    streams: Sequence[Stream], sizes: Sequence[int], batch: int, optima: Optima
) -> tuple[Rows, float, float]:
    """Every rule and ratio over all streams at once; the inequality's smallest slack; largest regret over bound.

    A rule that does not know N runs once and is read at every size. Reading is done on a copy that takes the images
    up to the size, the last batch short, while the run itself goes on with full batches.
    """
    n_clusters = streams[0].n_clusters
    groups = [
        Group(rule, ratio, size)
        for rule in (RULES[:4] if batch == 1 else RULES)  # the fifth is the first in batches of one
        for ratio in RATIOS
        for size in (sizes if "N" in rule else sizes[-1:])
    ]
    runs = Runs.start(groups, batch, len(streams), n_clusters)
    rows: Rows = defaultdict(list)
    regrets: Rows = defaultdict(list)
    slack = np.inf
    for index in range(-(-sizes[-1] // CHUNK)):
        cosines = np.stack([stream.chunk(index)[0] for stream in streams]).astype(np.float64)
        start, end = index * CHUNK, (index + 1) * CHUNK
        for size in (size for size in sizes if start < size <= end):
            full = size - (size - start) % batch
            runs.take(cosines[:, runs.seen - start : full - start])
            slack = min(slack, inequality(runs))
            done = runs.keep([g for g in runs.groups if g.n_images == size or "N" not in g.rule])
            done.take(cosines[:, full - start : size - start])
            for (g, group), (s, stream) in product(enumerate(done.groups), enumerate(streams)):
                best, bound = optima[stream, group.ratio, size], group.ratio * size / n_clusters
                found = compare(done.counts[s, g], done.value[s, g], bound, best)
                rows[stream.data, group.ratio, group.rule, size].append(found)
                if group.rule not in FALLING:
                    regrets[stream.data, group.ratio, group.rule, size].append(
                        (found[1], done.regret_bound[s, g])
                    )
            runs = runs.keep([g for g in runs.groups if g.n_images > size])
        if runs.groups:
            runs.take(cosines[:, runs.seen - start :])
    means = [np.mean(pairs, axis=0) for pairs in regrets.values()]
    return rows, slack, max(regret / bound for regret, bound in means)


def inequality(runs: Runs) -> float:
    """Smallest of (B / eta) (rho_k - 0) - (r N / K - n_k): never negative after full batches, whatever the stream.

    With a falling step the last, smallest one counts, and duals must not be negative: r < 1 only.
    """
    slacks = [np.inf]
    for g, group in enumerate(runs.groups):
        if runs.seen and (group.rule not in FALLING or group.ratio < 1):
            last = group.hit(np.array([float(runs.seen)]), runs.batch)[0]
            short = group.ratio * runs.seen / runs.counts.shape[2] - runs.counts[:, g]
            slacks.append(float((runs.duals[:, g] / last - short).min()))
    return min(slacks)


def in_order_of_clusters(streams: Sequence[Stream], size: int, batch: int, optima: Optima) -> Rows:
    """The rule c / sqrt(N) on the same images sorted by the cluster that they were drawn from."""
    sorted_scores = []
    for stream in streams:
        scores, sources = stream.scores(size)
        sorted_scores.append(scores[np.argsort(sources, kind="stable")])
    groups = [Group("c/sqrt(N)", ratio, size) for ratio in RATIOS]
    runs = Runs.start(groups, batch, len(streams), streams[0].n_clusters)
    for start in range(0, size, CHUNK):
        runs.take(np.stack([scores[start : start + CHUNK] for scores in sorted_scores]).astype(np.float64))
    rows: Rows = defaultdict(list)
    for (g, group), (s, stream) in product(enumerate(groups), enumerate(streams)):
        best, bound = optima[stream, group.ratio, size], group.ratio * size / stream.n_clusters
        found = compare(runs.counts[s, g], runs.value[s, g], bound, best)
        rows[stream.data, group.ratio, "c/sqrt(N), sorted", size].append(found)
    return rows


def climb(rule: str, ratio: float, size: int, n_clusters: int, batch: int) -> float:
    """How far the dual of an empty cluster rises over the stream; infinite for what has no duals."""
    first = SCALE / PUBLISHED_HIT
    hits = {
        "c/sqrt(N)": SCALE * np.sqrt(size),
        "c/sqrt(t)": 2 * SCALE * np.sqrt(size),
        "0.02": PUBLISHED_HIT * size,
        "0.02 falling": 2 * SCALE * (np.sqrt(first**2 + size) - first),
        "eta = c/sqrt(N)": SCALE * np.sqrt(size) / batch,
    }
    return hits[rule] * ratio / n_clusters if rule in hits else np.inf


def interval(values: Array) -> dict[str, float]:
    """Mean over seeds (first axis) and half its 95 % interval by Student's t."""
    spread = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return {"mean": float(values.mean()), "half_width": float(spread)}


def slope(sizes: Sequence[int], values: Array) -> dict[str, float] | None:
    """Slope of log10 |mean over seeds| of values [seeds, sizes] over log10 sizes; None where its sign changes.

    The 95 % interval comes from leaving out each seed in turn (jackknife, Student's t).
    """
    n_seeds = len(values)
    means = np.stack(
        [values.mean(axis=0)] + [np.delete(values, i, axis=0).mean(axis=0) for i in range(n_seeds)]
    )
    if len(sizes) < 3 or not ((means > 0).all() or (means < 0).all()):
        return None
    whole, *left = np.polyfit(np.log10(sizes), np.log10(np.abs(means)).T, 1)[0]
    found = interval(n_seeds * whole - (n_seeds - 1) * np.array(left))
    return found | {
        "mean": float(whole),
        "from": sizes[0],
        "to": sizes[-1],
        "sign": float(np.sign(means[0, 0])),
    }


def fitted(rows: Rows, needed: dict[Key, float], n_clusters: int, batch: int) -> list[dict[str, Any]]:
    """One entry per data, ratio and rule: the figures at every size, and their slopes where duals can act."""
    entries = []
    for data, ratio, rule in dict.fromkeys(key[:3] for key in rows):
        sizes = [key[3] for key in rows if key[:3] == (data, ratio, rule)]
        values = np.array([rows[data, ratio, rule, size] for size in sizes])  # [sizes, seeds, 3]
        able = [
            climb(rule, ratio, size, n_clusters, batch) >= CLIMB * needed[data, ratio, size] for size in sizes
        ]
        first = len(able) - able[::-1].index(False) if False in able else 0
        entry: dict[str, Any] = {"K": n_clusters, "batch": batch, "data": data, "ratio": ratio, "rule": rule}
        entry["sizes"] = sizes
        for column, name in enumerate(("shortfall", "regret", "priced")):
            found = values[:, :, column].T
            if not np.isfinite(found).all():
                continue
            intervals = [interval(found[:, i]) for i in range(len(sizes))]
            entry[name] = {key: [figure[key] for figure in intervals] for key in ("mean", "half_width")}
            entry[f"{name}_slope"] = slope(sizes[first:], found[:, first:])
            last = max(first, len(sizes) - 3)
            entry[f"{name}_slope_end"] = slope(sizes[last:], found[:, last:])
        for name in ("shortfall_slope", "shortfall_slope_end"):
            if entry[name] and entry[name]["sign"] < 0:  # the bound holds by itself, by a margin that grows
                entry[name] = None
        entries.append(entry)
    return entries


def measure(n_clusters: int, sizes: Sequence[int], seeds: int) -> dict[str, Any]:
    """Everything for one K."""
    streams = [Stream(n_clusters, data, seed) for data in DATA for seed in range(seeds)]
    began = time.perf_counter()

    def say(what: str) -> None:
        print(f"K {n_clusters}, {time.perf_counter() - began:.0f} s: {what}", flush=True)

    optima, beside = offline(streams, sizes)
    say("optima, greedy, Sinkhorn")
    needed: dict[Key, float] = {}
    optimal: dict[str, dict[str, float]] = {}
    for data, ratio, size in product(DATA, RATIOS, sizes):
        found = [optima[stream, ratio, size] for stream in streams if stream.data == data]
        needed[data, ratio, size] = float(np.mean([duals.max() for duals, _ in found]))
        cosine = float(np.mean([value / size for _, value in found]))
        optimal[f"{data}, r {ratio}, N {size}"] = {
            "mean_cosine": cosine,
            "largest_dual": needed[data, ratio, size],
        }
    result: dict[str, Any] = {"optimum": optimal, "entries": fitted(beside, needed, n_clusters, 128)}
    for batch in BATCHES:
        rows, slack, share = online(streams, sizes, batch, optima)
        size = max(size for size in sizes if size <= SHORT)
        tailed = [stream for stream in streams if stream.data == "long-tailed"]
        rows |= in_order_of_clusters(tailed, size, batch, optima)
        result["entries"] += fitted(rows, needed, n_clusters, batch)
        result[f"B {batch}"] = {
            "smallest_slack_of_the_inequality": slack,
            "largest_regret_over_its_bound": share,
        }
        say(
            f"online, B {batch}: inequality off by {-min(slack, 0):.1g} images, regret {share:.2f} of its bound"
        )
    return result


def show(result: dict[str, Any]) -> None:
    """The tables of docs/theory.md, and its figure where matplotlib is at hand."""
    print("\n" + page.slopes(result) + "\n\n" + page.figures(result))
    if importlib.util.find_spec("matplotlib") is None:
        print("\nno figure: matplotlib is not installed (uv run --with matplotlib ...)")
    elif not result.get("quick", False):
        page.draw(result, FIGURE)
        print(f"\ndrawn: {FIGURE.relative_to(common.ROOT)}, {FIGURE.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    """Measure, print, write, draw."""
    parser = common.arguments(__doc__)
    parser.add_argument("--page", action="store_true", help="only tables and figure, from the result file")
    options = parser.parse_args()
    if options.page:
        path = options.out or common.RESULTS / "online_theory.json"
        show(json.loads(path.read_text(encoding="utf-8")))
        return
    seeds = options.pairs or (2 if options.quick else 10)
    sizes = SIZES[:3] if options.quick else SIZES
    where = common.environment()
    common.print_environment(where)
    print(f"{seeds} seeds; D {DIM}, noise {NOISE}, tail {TAIL:g}, c {SCALE:g}", flush=True)
    results = {f"K {n_clusters}": measure(n_clusters, sizes, seeds) for n_clusters in CLUSTERS}
    setting = {"seeds": seeds, "dim": DIM, "noise": NOISE, "tail": TAIL, "c": SCALE, "climb": CLIMB}
    result = {"environment": where, "setting": setting, "results": results, "quick": options.quick}
    show(result)
    common.write_result("online_theory", options, result)


if __name__ == "__main__":
    main()
