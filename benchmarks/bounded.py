"""Size-constrained k-means beside its peers and beside the bare product, on one machine in one run.

Every row of the table below has the same data, starting centers, iterations and threads for all candidates, which
run in turns. Inertia is recomputed for all of them in float64 by one function, as are the sizes.

    | row  | work                                                           | beside                       |
    |------|----------------------------------------------------------------|------------------------------|
    | 20k  | 20,000 x 32, K 200, N/2K ... 2N/K, 10 iterations               | k-means-constrained          |
    | 50k  | 50,000 x 64, K 100, N/2K ... 2N/K, 5 iterations                | k-means-constrained          |
    | 1M   | 1,000,000 x 128, K 1000, N/4K ... 4N/K, 10 iterations; memory  | faiss, without any bound     |
    | 10M  | 10,000,000 x 128 float16 in a memory map, otherwise as 1M      | itself with 1,000,000 rows   |
    | 200k | 200,000 x 128, K 1000, no bounds, 10 iterations                | scikit-learn and faiss       |

    uv run --with faiss-cpu --with k-means-constrained python benchmarks/bounded.py [--only 20k 50k 1M 10M 200k]
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import _candidates as candidates
import _common as common
import _machine
import _turns as turns
from _fit_elsewhere import fit_elsewhere
from _mixtures import Data, starting_centers
from _verdicts import BASE, audit, figures_of, itself_verdict, verdict
from _work import WORK, Work, setting_of, tiny, words_of

PEERS = "uv run --with faiss-cpu --with k-means-constrained "
MIB = 2**20
WARM_ROWS, WARM_CLUSTERS = 2_000, 8
SMALL_ROWS = 100_000  # with fewer, as in a quick run, no process is worth its start


def beside_peers(name: str, work: Work, folder: Path, threads: int) -> dict[str, Any]:
    """A row whose candidates run in this process."""
    found: dict[str, Any] = {"setting": setting_of(work), "data": {}}
    for kind, parameters in work.data.items():
        data = Data(*parameters)
        print(f"\n{name}, {data.words}: {words_of(work)}", flush=True)
        rows = data.rows(work.n_rows, work.n_features)
        centers = starting_centers(rows, work.n_clusters)
        problem = candidates.Problem(rows, centers, work.iterations, work.sizes(work.n_rows))
        for candidate in work.candidates:
            candidates.CANDIDATES[candidate](problem.part(WARM_ROWS, WARM_CLUSTERS))
        calls = {candidate: _call(candidate, problem) for candidate in work.candidates}
        seconds, last = turns.turns(calls, repetitions=work.repetitions, budget=work.budget)
        part: dict[str, Any] = {"words": data.words, "times": turns.summary(seconds, BASE), "results": {}}
        turns.print_laps(part["times"], BASE)
        for candidate, result in last.items():
            if result.labels is not None:
                part["results"][candidate] = audit(problem, result)
                print(f"  {candidate}: {figures_of(part['results'][candidate])}", flush=True)
        part["checks"] = verdict(name, part, bounded=work.ratio is not None)
        if name == "1M":
            part["memory"] = in_memory(rows, work, centers, folder, threads)
            beyond = (part["memory"]["peak"] - part["memory"]["data"]) / MIB
            what = "peak anonymous memory of a process that fits, beyond the data"
            part["checks"].append(turns.check(what, beyond, 1024, unit=" MiB"))
        found["data"][kind] = part
    return found


def _call(candidate: str, problem: candidates.Problem) -> Callable[[], candidates.Found]:
    return lambda: candidates.CANDIDATES[candidate](problem)


def in_memory(rows: Any, work: Work, centers: Any, folder: Path, threads: int) -> dict[str, Any]:
    """Memory of a process of its own that holds the rows as an array and fits."""
    path = folder / "rows.npy"
    np.save(path, rows)
    found = fit_elsewhere(path, work.n_rows, work, centers, threads=threads, audited=False)
    path.unlink()
    before, data, peak = (found[key] / MIB for key in ("before", "data", "peak"))
    print(f"  anonymous memory, MiB: {before:.0f} with the data ({data:.0f}) loaded, {peak:.0f} at most")
    return found


def against_itself(name: str, work: Work, folder: Path, threads: int) -> dict[str, Any]:
    """A memory map of N rows beside a tenth of it, each fit in a process of its own."""
    ((kind, parameters),) = work.data.items()
    data, path, tenth = Data(*parameters), folder / "rows.npy", work.n_rows // 10
    print(f"\n{name}, {data.words}: {words_of(work)}", flush=True)
    began = time.perf_counter()
    data.write(path, work.n_rows, work.n_features)
    print(f"  {path.stat().st_size / 1e9:.2f} GB written in {time.perf_counter() - began:.0f} s", flush=True)
    centers = starting_centers(np.load(path, mmap_mode="r")[:tenth], work.n_clusters)
    fits: dict[str, list[dict[str, Any]]] = {"tenth": [], "all": []}

    def run(lap: str, n_rows: int) -> candidates.Found:
        audited = not fits[lap]  # it takes long, and all repetitions give the same
        here = work.n_rows < SMALL_ROWS
        found = fit_elsewhere(path, n_rows, work, centers, threads=threads, audited=audited, here=here)
        fits[lap].append(found)
        return candidates.Found({lap: fits[lap][-1]["seconds"]})

    calls = {"tenth": lambda: run("tenth", tenth), "all": lambda: run("all", work.n_rows)}
    seconds, _ = turns.turns(calls, repetitions=work.repetitions, budget=work.budget)
    path.unlink()
    part: dict[str, Any] = {"words": data.words, "times": turns.summary(seconds, "tenth"), "results": {}}
    turns.print_laps(part["times"], "tenth")
    for lap, runs in fits.items():
        found = part["results"][lap] = runs[0] | {"peak": max(run["peak"] for run in runs)}
        print(f"  {lap}: {figures_of(found)}, {found['peak'] / MIB:.0f} MiB anonymous at most", flush=True)
    part["checks"] = itself_verdict(part, tenth, work.n_rows)
    return {"setting": setting_of(work), "data": {kind: part}}


def usable(name: str, work: Work, quick: bool) -> Work:
    """The work without peers that are not installed: in a quick run, and said; else an error."""
    absent = candidates.missing(work.candidates)
    if not absent:
        return work
    if not quick:
        raise SystemExit(f"{name}: {', '.join(absent)} not installed: {PEERS}python benchmarks/bounded.py")
    print(f"{name}: without {', '.join(absent)}, not installed")
    return replace(work, candidates=tuple(c for c in work.candidates if c not in absent))


def merged(path: Path, rows: dict[str, Any], quick: bool) -> dict[str, Any]:
    """Results of a file, if there is one of the same kind, with these rows in place of its own."""
    if not path.exists():
        return dict(rows)
    former = json.loads(path.read_text(encoding="utf-8"))
    return (former["results"] if former.get("quick", False) == quick else {}) | rows


def main() -> None:
    """Measure, print, write after each row."""
    parser = common.arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK), help="rows of the table")
    parser.add_argument("--threads", type=int, default=2, help="of every library")
    parser.add_argument("--budget", type=float, help="seconds for the repetitions of a comparison")
    parser.add_argument(
        "--folder", type=Path, help="for files of up to 2.6 GB, on a disk; default: temporary"
    )
    options = parser.parse_args()
    _machine.start_neutral(options.threads)
    where = _machine.environment(options.threads, PEERS)
    rows: dict[str, Any] = {}
    for name in options.only:
        work = usable(name, tiny(WORK[name]) if options.quick else WORK[name], options.quick)
        work = replace(
            work, repetitions=options.pairs or work.repetitions, budget=options.budget or work.budget
        )
        measure = against_itself if work.mapped else beside_peers
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            row = measure(name, work, Path(folder), options.threads)
        took = time.perf_counter() - began
        print(f"  {name} took {took:.0f} s", flush=True)
        rows[name] = {"environment": where | {"took": took}, **row}
        if options.out or not options.quick:
            path = options.out or common.RESULTS / "bounded.json"
            results = merged(path, {name: rows[name]}, options.quick)
            common.write_result("bounded", options, {"environment": where, "results": results})
    if options.quick and not options.out:
        common.write_result("bounded", options, {})


if __name__ == "__main__":
    main()
