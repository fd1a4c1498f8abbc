"""Size-constrained k-means of 100 million rows that lie on a GPU, beside bare sweeps over the same rows.

NOT RUN YET on a GPU: none was at hand when this was written. No figure of this project comes from it.

100,000,000 x 128 float16 (25.6 GB, made on the device), K = 10,000, sizes N/4K ... 4N/K, 5 iterations. A bare sweep
multiplies every block of rows by the centers and takes each row's best cluster, in the same blocks and the same
precision; there are as many as a fit cannot do without: one an iteration and one for the labels. Wanted: at most twice
their time, a certified gap of at most 1e-3, no size outside its bounds.

    python benchmarks/bounded_gpu.py [--precision high]
    python benchmarks/bounded_gpu.py --quick --device cpu      # a few thousand rows: shows that it starts
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

import _common as common
import _peers as peers
from _peers import Found
from coke import ConstrainedKMeans

N_ROWS, N_FEATURES, N_CLUSTERS, ITERATIONS, RATIO = 100_000_000, 128, 10_000, 5, 4
QUICK = (5_000, 16, 25)
COMPONENTS, NOISE = 5_000, 1.0
BLOCK_PAIRS = 2**28  # scores of a bare sweep at a time: 1 GiB in float32
MOST_RATIO, MOST_GAP = 2.0, 1e-3


def resident(n_rows: int, n_features: int, n_components: int, device: str, seed: int = 0) -> Tensor:
    """A mixture with long-tailed sizes, as `_rows.mixture` has it, made in blocks on the device: float16 [N, D]."""
    generator = torch.Generator(device).manual_seed(seed)
    centers = torch.randn(n_components, n_features, generator=generator, device=device)
    edges = (1 / torch.arange(1, n_components + 1, device=device, dtype=torch.float64)).cumsum(0)
    edges = (edges / edges[-1]).float()
    rows = torch.empty(n_rows, n_features, dtype=torch.float16, device=device)
    for block in rows.split(2**20):
        drawn = torch.rand(len(block), generator=generator, device=device)
        component = torch.searchsorted(edges, drawn).clamp_(max=n_components - 1)
        noise = torch.randn(len(block), n_features, generator=generator, device=device)
        block.copy_(centers[component].add_(noise, alpha=NOISE))
    return rows


class Bare:
    """Sweeps that find each row's nearest center, and do nothing else."""

    def __init__(self, rows: Tensor, centers: Tensor, dtype: torch.dtype, block_rows: int) -> None:
        self.rows, self.dtype, self.block_rows = rows, dtype, block_rows
        self.columns = (2 * centers).to(dtype).t().contiguous()
        self.lift = -centers.square().sum(1).to(dtype)
        self.scores = torch.empty(block_rows, len(centers), dtype=dtype, device=rows.device)
        self.labels = torch.empty(len(rows), dtype=torch.int32, device=rows.device)

    def sweep(self) -> None:
        """Product, and the best column of each row."""
        for first in range(0, len(self.rows), self.block_rows):
            rows = self.rows[first : first + self.block_rows].to(self.dtype)
            scores = self.scores[: len(rows)]
            torch.addmm(self.lift, rows, self.columns, out=scores)
            self.labels[first : first + len(rows)] = scores.argmax(1)


def check_gpu(times: dict[str, dict[str, Any]], figures: dict[str, float]) -> list[dict[str, Any]]:
    """What the fit promises."""
    found = {
        "time / bare": times["bare"]["ratio"]["median"],
        "gap": figures["gap"],
        "outside": figures["outside"],
    }
    return peers.judge(found, {"time / bare": MOST_RATIO, "gap": MOST_GAP, "outside": 0})


def main() -> None:
    """Measure, print, write."""
    parser = common.arguments(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--precision", choices=("highest", "high"), default="highest", help="of products, as torch names it"
    )
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--clusters", type=int, default=None)
    options = parser.parse_args()
    on_gpu = options.device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        parser.error("no CUDA device here; --quick --device cpu shows that the benchmark starts")
    torch.set_float32_matmul_precision(options.precision)
    n_rows, n_features, n_clusters = QUICK if options.quick else (N_ROWS, N_FEATURES, N_CLUSTERS)
    n_rows, n_clusters = options.rows or n_rows, options.clusters or n_clusters
    sizes = -int(-n_rows // (RATIO * n_clusters)), int(RATIO * n_rows / n_clusters)
    where = common.environment(options.device)
    common.print_environment(where)
    print(
        f"{n_rows:,} x {n_features} float16, K {n_clusters:,}, sizes {sizes[0]:,} ... {sizes[1]:,}, "
        f"{ITERATIONS} iterations, precision {options.precision}",
        flush=True,
    )
    wait = torch.cuda.synchronize if on_gpu else (lambda: None)
    rows = resident(n_rows, n_features, min(COMPONENTS, n_clusters // 2), options.device)
    drawn = torch.randperm(n_rows, generator=torch.Generator().manual_seed(0))[:n_clusters]
    centers = rows[drawn.to(rows.device)].float()
    block_rows = min(max(BLOCK_PAIRS // n_clusters, 64), n_rows)

    def fit() -> Found:
        model = ConstrainedKMeans(
            n_clusters,
            min_size=sizes[0],
            max_size=sizes[1],
            init=centers,
            max_iter=ITERATIONS,
            tol=0,
            random_state=0,
        )
        wait()
        began = time.perf_counter()
        model.fit(rows)
        wait()
        seconds = time.perf_counter() - began
        outside = peers.outside(model.labels_.cpu().numpy(), n_clusters, sizes)
        says = {"iterations": model.n_iter_, "gap": model.gap_, "inertia": model.inertia_, "outside": outside}
        return Found(seconds, says=says)

    def bare(dtype: torch.dtype) -> Found:
        sweeps = Bare(rows, centers, dtype, block_rows)
        sweeps.scores.zero_()
        wait()
        began = time.perf_counter()
        for _ in range(ITERATIONS + 1):
            sweeps.sweep()
        wait()
        return Found(time.perf_counter() - began)

    ConstrainedKMeans(8, min_size=1, max_iter=2, n_init=1).fit(rows[:4_000])  # what is loaded on first use
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    calls = {"coke": fit, "bare": lambda: bare(torch.float32)}
    calls["bare, float16"] = lambda: bare(torch.float16)
    repetitions = options.pairs or (1 if options.quick else 3)
    times, last = peers.turns(calls, repetitions)
    figures = last["coke"].says
    figures["gpu_bytes"] = torch.cuda.max_memory_allocated() if on_gpu else 0
    print(f"  coke: {', '.join(f'{name} {value:.6g}' for name, value in figures.items())}")
    setting = {"N": n_rows, "D": n_features, "K": n_clusters, "sizes": sizes, "iterations": ITERATIONS}
    setting |= {"precision": options.precision, "block_rows": block_rows}
    results = {"times": times, "coke": figures, "checks": check_gpu(times, figures)}
    common.write_result(
        "bounded-cuda", options, {"environment": where, "setting": setting, "results": results}
    )


if __name__ == "__main__":
    main()
