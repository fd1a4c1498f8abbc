"""A sweep of size-constrained k-means beside the bare product of rows and centers, and what compiling it gives.

One sweep lists every row's best cluster and its offers, with exact costs; the bare product, float32, cut into blocks
that stay in a cache, on as many threads of its own, is what must be done in any case. Beside them the same sweep by
torch's operations on whole blocks, which are what plain NumPy would do. Then the search in a process of its own, with
and without numba, and the first fit with an empty cache.

    python benchmarks/bounded_sweep.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import _common as common
import _rows as rows

N_ROWS, N_CLUSTERS, BLOCK, OFFERED = 200_000, 1_000, 1_024, 1.5  # offers: about so many a row
SEARCHED = """
import time, numpy as np
from coke import assign_balanced
costs = np.random.default_rng(0).random(({n}, 20)) * np.arange(1, 21)
assign_balanced(costs[:40], 2, 2)
began = time.perf_counter()
assign_balanced(costs, {n} // 20, {n} // 20)
print(time.perf_counter() - began)
"""
FIRST = """
import time, numpy as np
from coke.bounded import ConstrainedKMeans
values = np.random.default_rng(0).standard_normal((2000, 8), dtype=np.float32)
began = time.perf_counter()
ConstrainedKMeans(20, min_size_ratio=0.5, random_state=0).fit(values)
print(time.perf_counter() - began)
"""


def bare(values: Any, centers: Any, n_threads: int) -> Callable[[], None]:
    """The product of float32 rows and centers, every thread with blocks of its own."""
    import torch

    columns = centers.float().t().contiguous()

    def part(first: int) -> None:
        torch.set_num_threads(1)
        scores = torch.empty(BLOCK, columns.shape[1])
        for start in range(first * BLOCK, len(values), n_threads * BLOCK):
            some = values[start : start + BLOCK]
            torch.mm(some, columns, out=scores[: len(some)])

    def product() -> None:
        threads = [threading.Thread(target=part, args=(first,)) for first in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return product


def sweeps(values: Any, centers: Any) -> dict[str, Callable[[], Any]]:
    """The sweep with nothing kept, with bounds of groups kept for the next, and by operations on whole blocks."""
    from coke.bounded.costs import DistanceCosts, Prices, _DistancesElsewhere
    from coke.bounded.sweep import sweep
    from coke.vectors.arrays import ArrayVectors

    vectors, nothing = ArrayVectors(values), np.zeros(len(centers))
    nearest = np.partition(DistanceCosts(vectors, centers).some(4_096)[0], 1, axis=1)
    width = np.full(len(centers), np.quantile(nearest[:, 1] - nearest[:, 0], OFFERED - 1))
    prices = Prices(nothing, width, nothing)

    def one(keeps: bool, plain: bool) -> Any:
        costs = DistanceCosts(vectors, centers)
        if not keeps:
            costs.seen = None
        if plain:
            costs.under = lambda prices, _: partial(_DistancesElsewhere, costs, prices)  # type: ignore[method-assign]
        return sweep(costs, prices, np.full(len(values), -1, np.int32), block_rows=BLOCK if plain else None)

    return {
        "sweep": partial(one, False, False),
        "sweep, bounds of groups kept": partial(one, True, False),
        "sweep by operations on blocks": partial(one, False, True),
    }


def seconds(code: str, **variables: str) -> float:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    )
    return float(done.stdout)


def main() -> None:
    """Measure, print, write."""
    options = common.arguments(__doc__).parse_args()
    import torch

    from coke.bounded.thread_pool import torch_alone

    pairs = options.pairs or (1 if options.quick else 7)
    where = common.environment()
    common.print_environment(where)
    n_rows, n_clusters = (2_000, 64) if options.quick else (N_ROWS, N_CLUSTERS)
    try:
        name, values = "words", rows.words(n_rows)
    except rows.AbsentError as absent:
        print(f"a mixture instead: {absent}")
        name, values = "mixture", rows.mixture(n_rows)
    centers = torch.from_numpy(rows.starting_centers(values, n_clusters)).double()
    results: dict[str, Any] = {"rows": name, "shape": [*values.shape, n_clusters], "sweeps": {}}
    for n_threads in (1, os.cpu_count() or 1):
        for kind in ("float32", "float64", "float16"):
            torch.set_num_threads(n_threads)
            product = bare(torch.from_numpy(values.astype(np.float32)), centers, n_threads)
            with torch_alone():
                candidates = {"bare product": product} | sweeps(values.astype(kind), centers)
                times = common.interleaved(candidates, pairs=pairs, warmup=1)
            wanted = {key: 1.3 for key in times if key.startswith("sweep") and "blocks" not in key}
            summary = common.summarise(times, "bare product", wanted)
            title = f"{name} {values.shape[0]:,} x {values.shape[1]}, K {n_clusters}, {kind}, {n_threads} thread(s)"
            common.print_summary(title, summary)
            results["sweeps"][f"{kind}, {n_threads} thread(s)"] = summary
    size = 400 if options.quick else 4_000
    search = SEARCHED.format(n=size)
    results["search"] = {
        "costs": [size, 20],
        "compiled": seconds(search),
        "python": seconds(search, NUMBA_DISABLE_JIT="1"),
    }
    compiled, plain = results["search"]["compiled"], results["search"]["python"]
    print(f"\nsearch of {size} x 20 costs: compiled {compiled:.3f} s, not compiled {plain:.3f} s")
    if not options.quick:
        with tempfile.TemporaryDirectory() as empty:
            first, following = (seconds(FIRST, NUMBA_CACHE_DIR=empty) for _ in range(2))
        results["first fit"] = {"empty cache": first, "cached": following}
        print(f"first fit: {first:.1f} s with an empty cache, {following:.2f} s in the next process")
    common.write_result("bounded_sweep", options, {"environment": where, "results": results})


if __name__ == "__main__":
    main()
