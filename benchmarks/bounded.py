"""Size-constrained k-means on real vectors beside its peers: the same rows, starting centers, iterations and threads.

All candidates run in turns; inertia and sizes are recomputed for all by one function. `ROWS` is the table: what is
clustered, beside whom, and what is wanted. Real vectors are looked for in the folder COKE_SHARED_DATA, else in
shared/data beside the checkout; rows of the table whose vectors are not there are skipped with a line.

    uv run --with faiss-cpu --with k-means-constrained python benchmarks/bounded.py [--only words cifar ...]
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

import _common as common
import _peers as peers
import _rows as rows
from _peers import FLOW, Found, Problem
from memory import MIB, resident

ALL, QUICK_ROWS = 10**9, 500
# Seconds of the engine before (acb7149: 20k, 50k; 9cfe021: 200k, 1m), judged on the same machine and threads alone.
BEFORE_ON = ("Linux x86_64, AMD EPYC, 2 cores", 2)
BEFORE, MEMORY = "seconds on the machine of the engine before", "MiB beyond the rows and the libraries"


@dataclass(frozen=True)
class Case:
    """One problem: rows, N, K, sizes as multiples of N / K, iterations, peers, and the most each figure may be."""

    what: str
    rows: rows.Rows
    n_rows: int
    n_clusters: int
    ratio: tuple[float, float] | None
    iterations: int = 10
    peers: tuple[str, ...] = ()
    wanted: dict[str, float] = field(default_factory=dict)
    repetitions: int = 3
    once: tuple[str, ...] = (FLOW, "elkan")  # too slow to repeat

    def problem(self, quick: bool) -> Problem:
        """Its rows and k-means++ centers; quick: so few that figures mean nothing."""
        found = self.rows(min(self.n_rows, QUICK_ROWS) if quick else self.n_rows)
        n, k = len(found), self.n_clusters
        k = min(k, max(n // 10, k * n // self.n_rows)) if quick else k
        low, high = self.ratio or (0, 0)
        sizes = None if self.ratio is None else (math.floor(low * n / k), math.ceil(high * n / k))
        iterations = min(self.iterations, 3) if quick else self.iterations
        return Problem(found, rows.starting_centers(found, k), iterations, sizes)

    def __call__(self, name: str, options: Any) -> dict[str, Any]:
        """Run the candidates in turns, recompute what they found, judge."""
        problem = self.problem(options.quick)
        (n, d), k = problem.rows.shape, len(problem.centers)
        setting = {"N": n, "D": d, "K": k, "sizes": problem.sizes, "iterations": problem.iterations}
        print(
            f"\n{name}, {self.what}: {', '.join(f'{key} {value}' for key, value in setting.items())}",
            flush=True,
        )
        names, moves = peers.present("coke", *self.peers), [problem.iterations]

        def call(candidate: str) -> Found:
            iterations = moves[-1] if candidate == "faiss" else problem.iterations  # faiss does not know rest
            found = peers.CANDIDATES[candidate](
                Problem(problem.rows, problem.centers, iterations, problem.sizes)
            )
            if candidate == "coke":
                moves.append(found.iterations)
            return found

        few, sizes = problem.rows[:200], problem.sizes and (1, min(200, n))
        for candidate in names:  # what is loaded or compiled on first use does not count
            peers.CANDIDATES[candidate](Problem(few, problem.centers[:2], 2, sizes))
        calls = {candidate: partial(call, candidate) for candidate in names}
        times, last = peers.turns(calls, options.pairs or self.repetitions, self.once)
        results: dict[str, dict[str, Any]] = {}
        for candidate, found in last.items():
            result = results[candidate] = {"iterations": found.iterations, **found.says}
            result["inertia"] = peers.inertia(problem.rows, found.centers, found.labels)
            result["outside"] = peers.outside(found.labels, k, problem.sizes)
            print(f"  {candidate}: {', '.join(f'{key} {value:.9g}' for key, value in result.items())}")
        own, seconds = results["coke"], times["coke"]["seconds"]["median"]
        figures = {"seconds": seconds, "outside": own["outside"], "gap": own["gap"]}
        figures["own inertia off by"] = abs(above(own["own inertia"], own["inertia"]))
        for candidate in names[1:]:
            figures[f"time / {candidate}"] = times[candidate]["ratio"]["median"]
            figures[f"inertia above {candidate}"] = above(own["inertia"], results[candidate]["inertia"])
            if f"{candidate}, predict" in times:
                figures[f"predict / {candidate}"] = times[f"{candidate}, predict"]["ratio"]["median"]
        if options.as_before and not options.quick:
            figures[BEFORE] = seconds
        if MEMORY in self.wanted:
            command = [sys.executable, __file__, "--memory-of", name, "--threads", str(options.threads)]
            command += ["--quick"] if options.quick else []
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            peak, before = map(float, done.stdout.split())
            figures[MEMORY] = peak - before
            print(
                f"  {before:.0f} MiB beyond the rows were there before it fitted (libraries), {peak:.0f} at the most"
            )
        checks = peers.judge(figures, {"outside": 0, "own inertia off by": 1e-6} | self.wanted)
        return entry(self.what, setting, times, figures, checks) | {"results": results}

    def memory(self, quick: bool) -> tuple[float, float]:
        """Resident MiB of this process, libraries and all, beyond the rows: the peak once it has fitted, and before."""
        problem = self.problem(quick)
        before = resident("VmRSS")
        peers.coke(problem)
        return (resident("VmHWM") - problem.rows.nbytes) / MIB, (before - problem.rows.nbytes) / MIB


def entry(what: str, setting: Any, times: Any, figures: Any, checks: Any) -> dict[str, Any]:
    """One case of a result."""
    return {"what": what, "setting": setting, "times": times, "figures": figures, "checks": checks}


def above(own: float, other: float) -> float:
    """How far one sum lies above another, relative to it.

    >>> above(3.0, 2.0), above(0.0, 0.0), above(1.0, 0.0)
    (0.5, 0.0, inf)
    """
    return 0.0 if own == other else own / other - 1 if other else math.inf


COSTS: dict[str, Callable[[np.random.Generator, int, int], Any]] = {
    "random": lambda r, n, k: r.random((n, k)),
    "geometric": lambda r, n, k: ((r.standard_normal((n, 1, 4)) - r.standard_normal((1, k, 4))) ** 2).sum(2),
    "all ties": lambda r, n, k: np.ones((n, k)),
    "two costs": lambda r, n, k: r.integers(1, 3, (n, k)).astype(float),
    "i x j": lambda r, n, k: np.outer(np.arange(1.0, n + 1), np.arange(1.0, k + 1)),
    "12 orders of magnitude": lambda r, n, k: 10 ** r.uniform(-6, 6, (n, k)),
}
SHAPES, QUICK_SHAPES = ((1_000, 20), (5_000, 100), (20_000, 100), (1_000, 1_000)), ((60, 6), (40, 40))
MOST_SCIPY_ROWS = 5_000  # its matrix is N x N


def balanced(what: str, shape: int, name: str, options: Any) -> dict[str, Any]:
    """`assign_balanced` with equal sizes, beside scipy's assignment whose columns are repeated N / K times."""
    from scipy.optimize import linear_sum_assignment

    from coke import assign_balanced

    n, k = QUICK_SHAPES[shape % 2] if options.quick else SHAPES[shape]
    cost, size = COSTS[what](np.random.default_rng(0), n, k), n // k
    print(f"\n{name}, {what}: {n:,} x {k:,}, all sizes {size}", flush=True)

    def timed(call: Callable[[], Any]) -> Found:
        began = time.perf_counter()
        labels = call()
        return Found(time.perf_counter() - began, labels)

    calls = {"coke": lambda: timed(lambda: assign_balanced(cost, size, size))}
    if n <= MOST_SCIPY_ROWS:
        repeated = lambda: linear_sum_assignment(np.repeat(cost, size, axis=1))[1] // size  # noqa: E731
        calls["scipy"] = lambda: timed(repeated)
    else:
        print(f"  without scipy: it would want {n:,} x {n:,} costs")
    times, last = peers.turns(calls, options.pairs or 3, ("scipy",) if n >= 5_000 else ())
    sums = {who: math.fsum(cost[np.arange(n), found.labels]) for who, found in last.items()}
    figures = {"outside": peers.outside(last["coke"].labels, k, (size, size)), "cost": sums["coke"]}
    wanted: dict[str, float] = {"outside": 0}
    if "scipy" in times:
        figures |= {"time / scipy": times["scipy"]["ratio"]["median"]}
        figures |= {"cost above scipy": above(sums["coke"], sums["scipy"])}
        wanted |= {"cost above scipy": 1e-9} | (
            {"time / scipy": 3 if k == n else 1} if k == n or n >= 5_000 else {}
        )
    return entry(what, {"N": n, "K": k}, times, figures, peers.judge(figures, wanted))


def assign_cold(name: str, options: Any) -> dict[str, Any]:
    """New rows to the centers of a fit without bounds, so with prices of 0, within bounds."""
    from coke import ConstrainedKMeans

    few, n, k = (500, 2_000, 10) if options.quick else (100_000, 1_000_000, 1_000)
    print(f"\n{name}, mixture: {n:,} new rows x 128, K {k:,}, 0.25 to 4 x N/K", flush=True)
    data = rows.mixture(few + n)
    parameters = {"init": rows.starting_centers(data[:few], k), "max_iter": 2, "tol": 0, "random_state": 0}
    estimator = ConstrainedKMeans(k, **parameters).fit(data[:few])

    def call() -> Found:
        began = time.perf_counter()
        found = estimator.assignment(data[few:], min_size_ratio=0.25, max_size_ratio=4)
        says = {"sweeps": found.n_sweeps, "gap": found.gap}
        return Found(time.perf_counter() - began, np.asarray(found.labels), says=says)

    times, last = peers.turns({"coke": call}, options.pairs or 1)
    figures = last["coke"].says | {
        "outside": peers.outside(last["coke"].labels, k, (n // (4 * k), 4 * n // k))
    }
    return entry(
        "mixture", {"N": n, "K": k}, times, figures, peers.judge(figures, {"sweeps": 4, "outside": 0})
    )


LOOSE, TIGHT, HALF, THREE, EQUAL = (0.25, 4), (0.95, 1.05), (0.5, 2), (0.5, 1.5), (1, 1)
LONG = {"iterations": 100, "peers": ("faiss", "elkan"), "wanted": {"time / faiss": 0.5, "time / elkan": 1.0}}
HARD = {"wanted": {"seconds": 2.0}}
FLOWS = {"peers": (FLOW,), "wanted": {f"time / {FLOW}": 1.0, "gap": 0}}
SMALL = {"peers": ("scikit-learn",), "wanted": {"time / scikit-learn": 2.0, "predict / scikit-learn": 2.0}}
SMALL_FLOW = {"peers": (FLOW,), "wanted": {f"time / {FLOW}": 1.0}, "repetitions": 5, "once": ()}
words, equal_rows = (
    rows.words,
    lambda r, n: np.where(np.arange(n)[:, None] < n // 10, 1, r.standard_normal((n, 16))),
)
ROWS: dict[str, list[Callable[[str, Any], dict[str, Any]]]] = {
    "words-20k": [Case("words", words, 20_000, 200, HALF, 10, (FLOW, "faiss"),
                       {f"time / {FLOW}": 1 / 40, "time / faiss": 3, f"inertia above {FLOW}": 1e-3})],
    "words": [Case("words", words, ALL, 1_000, LOOSE, 10, ("faiss",), {"time / faiss": 1.6, "gap": 1e-8})],
    "words-tight": [Case("words", words, ALL, 1_000, TIGHT, 10, ("faiss",), {"time / faiss": 2.5, "gap": 1e-8})],
    "mixture-1m": [Case("mixture", rows.mixture, 1_000_000, 1_000, LOOSE, 10, ("faiss",),
                        {"time / faiss": 1.6, "gap": 1e-6, MEMORY: 1024})],
    "cifar": [Case("64 components of CIFAR-10", rows.cifar, ALL, 500, LOOSE, 10, ("faiss",))],
    "normal-20k": [Case("normal", rows.normal(32), 20_000, 200, HALF, 10, (FLOW,), {BEFORE: 0.2516})],
    "normal-50k": [Case("normal", rows.normal(64), 50_000, 100, HALF, 5, (FLOW,), {BEFORE: 0.4572})],
    "normal-200k-free": [Case("mixture", rows.mixture, 200_000, 1_000, None, 10,
                              ("scikit-learn", "faiss"), {BEFORE: 4.427})],
    "normal-1m": [Case("normal", rows.normal(128), 1_000_000, 1_000, LOOSE, 10, ("faiss",), {BEFORE: 25.46})],
    "free": [Case("words", words, ALL, 1_000, None, 10, ("scikit-learn", "faiss"),
                  {"time / scikit-learn": 1, "time / faiss": 1.2})],
    "long": [Case("words to rest", words, ALL, 1_000, LOOSE, **LONG)],
    "long-free": [Case("words to rest", words, ALL, 1_000, None, **LONG)],
    "hard": [
        Case("one feature", rows.normal(1), 20_000, 100, EQUAL, 10, **HARD),
        Case("two values", rows.drawn(lambda r, n: r.integers(0, 2, (n, 1))), 50_000, 50, EQUAL, 10, **HARD),
        Case("a tenth is one row", rows.drawn(equal_rows), 4_000, 20, (0.5, 1.5), 50, **HARD),
        Case("1 to 5", rows.drawn(lambda r, n: r.integers(1, 6, (n, 1))), 1_000, 20, (0.4, 2), 50, **HARD),
        Case("50 values", rows.drawn(lambda r, n: r.standard_normal((50, 8))[r.integers(0, 50, n)]),
             1_000, 100, HALF, 50, **HARD),
    ],
    "groups": [Case("words, 1 to 3", words, 500, 250, THREE, **FLOWS), Case("pairs", words, 400, 200, EQUAL, **FLOWS),
               Case("words, 1 to 3", words, 4_000, 2_000, THREE, **FLOWS)],
    "balanced": [partial(balanced, what, shape) for shape in range(len(SHAPES)) for what in COSTS],
    "assign-cold": [assign_cold],
    "small": [*(Case("normal", rows.normal(d), n, 8, None, repetitions=50, **SMALL)
                for n, d in ((50, 2), (200, 4), (1_000, 8), (10_000, 10))),
              *(Case(name, partial(rows.small_real, name), ALL, 10, HALF, **SMALL_FLOW) for name in rows.SMALL_REAL)],
}  # fmt: skip


def main() -> None:
    """Measure, print, write after each row."""
    parser = common.arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows of the table")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every library")
    parser.add_argument("--memory-of", choices=ROWS, help="(used by the benchmark itself)")
    options = parser.parse_args()
    if options.memory_of:
        peers.set_threads(options.threads, ())
        print(*ROWS[options.memory_of][0].memory(options.quick))
        return
    where = peers.environment(options.threads)
    options.as_before = (where["machine"], where["threads"]) == BEFORE_ON
    path = options.out or common.RESULTS / "bounded.json"
    former = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results = former.get("results", {}) if former.get("quick") == options.quick else {}
    short = []
    for name in options.only:
        try:
            cases = [case(name, options) for case in ROWS[name]]
        except rows.AbsentError as absent:
            print(f"\n{name}: skipped, {absent}")
            continue
        for case in cases:
            missed = [check for check in case["checks"] if not check["met"]]
            short += [
                f"{name}, {case['what']}: {c['what']} {c['value']}, wanted <= {c['wanted']:g}" for c in missed
            ]
        results[name] = {"environment": where, "cases": cases}
        if options.out or not options.quick:
            common.write_result("bounded", options, {"environment": where, "results": results})
    print("\n".join(["", "missed, or not measured:", *short] if short else ["", "all met"]))


if __name__ == "__main__":
    main()
