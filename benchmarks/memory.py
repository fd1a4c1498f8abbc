"""Peak memory of clustering and label memory over an epoch: labels and centers, never features of all images.

A fresh process per number of images N streams N features (drawn batch by batch) through everything that
clustering adds to a supervised step: label read, assignment, classifier logits and target, update, label
write, figures of health; three heads, stage 1 and then stage 2. The loss, by far the slowest of these and the
same for every batch, is computed for every 50th only: a peak needs it once. The peak resident memory, less
what was held before anything was built, stands beside what N x D float32 features would take.

    python benchmarks/memory.py
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import _common as common

BATCH, DIM = 256, 128
HEADS = (3000, 4000, 5000)
IMAGES = (100_000, 1_000_000)
LOSS_EVERY = 50  # batches
MIB = 1 << 20


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"{field} is not in /proc/self/status")


def reset_peak() -> bool:
    """Let the high-water mark start anew; False where the kernel does not."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return resident("VmHWM") - resident("VmRSS") < MIB


def stream(n_images: int) -> dict[str, int]:
    """Bytes above the start, of one process: held after construction, peaks of both stages."""
    import torch
    from torch.nn.functional import normalize

    from coke import LabelMemory, OnlineConstrainedKMeans
    from coke.method.network import Output
    from coke.method.objective import Objective
    from coke.training.health import EpochFigures

    torch.set_num_threads(1)
    torch.manual_seed(0)
    objective = Objective()

    def epoch(clusterings: list[OnlineConstrainedKMeans], memory: LabelMemory, figures: EpochFigures) -> None:
        for start in range(0, len(memory), BATCH):
            ids = torch.arange(start, min(start + BATCH, len(memory)))
            features = normalize(torch.randn(len(ids), DIM))
            old = memory.read(ids)
            labels = torch.stack([clustering.assign(features) for clustering in clusterings], dim=1)
            target = objective.target(*memory.read_average(ids), averaging=memory.averaging)
            if start // BATCH % LOSS_EVERY == 0:
                frozen = [clustering.frozen_centers for clustering in clusterings]
                with torch.no_grad():
                    objective([Output(features, features)], [], target, frozen)
            for clustering, head in zip(clusterings, labels.unbind(1), strict=True):
                clustering.update(features, head)
            memory.write(ids, labels)
            figures.add_labels(features, old, labels)
        for clustering in clusterings:
            clustering.end_epoch()

    def build(
        heads: tuple[int, ...], n: int
    ) -> tuple[list[OnlineConstrainedKMeans], LabelMemory, EpochFigures]:
        clusterings = [OnlineConstrainedKMeans(k, DIM) for k in heads]
        return clusterings, LabelMemory(n, heads), EpochFigures(heads, DIM, torch.device("cpu"))

    epoch(*build((8, 8, 8), 4 * BATCH))  # libraries allocate their workspaces
    resets = reset_peak()
    base = resident("VmRSS")
    clusterings, memory, figures = build(HEADS, n_images)
    found = {"held_at_start": resident("VmRSS") - base, "resets": int(resets)}
    epoch(clusterings, memory, figures)
    found["peak_stage_1"] = _peak() - base
    reset_peak()
    memory.begin_averaging()
    for clustering in clusterings:
        clustering.begin_averaging()
    found["peak_begin_averaging"] = _peak() - base
    reset_peak()
    epoch(clusterings, memory, figures)
    found["peak_stage_2"] = _peak() - base
    found["label_bytes"] = sum(buffer.numel() * buffer.element_size() for buffer in memory.buffers())
    found["center_bytes"] = sum(b.numel() * b.element_size() for c in clusterings for b in c.buffers())
    return found


def _peak() -> int:
    """The high-water mark since it was last reset (in bytes; of the whole life where it cannot be reset)."""
    try:
        return resident("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def expected(n_images: int) -> dict[str, int]:
    """Bytes by the formula: centers twice, one batch of scores and probabilities, int16 labels and slots."""
    clusters = sum(HEADS)
    return {
        "centers": 2 * clusters * DIM * 4,
        "labels_stage_1": n_images * len(HEADS) * 2,
        "labels_stage_2": n_images * len(HEADS) * (2 + 5 * (2 + 2)),
        "batch": 4 * BATCH * clusters * 4,
        "features_never_kept": n_images * DIM * 4,
    }


def main() -> None:
    """Measure in child processes, print, write."""
    parser = common.arguments(__doc__)
    parser.add_argument("--child", type=int, default=None, help="(used by the benchmark itself)")
    options: Namespace = parser.parse_args()
    if options.child:
        print(json.dumps(stream(options.child)))
        return
    where = common.environment()
    common.print_environment(where)
    print(
        f"batch {BATCH}, dimension {DIM}, K {', '.join(map(str, HEADS))}; peak resident memory above the start, MiB"
    )
    repetitions = options.pairs or 1  # the allocator is nearly deterministic, an epoch of 1e6 takes minutes
    results: dict[str, Any] = {}
    columns = ("held_at_start", "peak_stage_1", "peak_begin_averaging", "peak_stage_2")
    for n_images in (3000,) if options.quick else IMAGES:
        children = [_child(n_images) for _ in range(repetitions)]
        row: dict[str, Any] = {key: common.quartiles([child[key] for child in children]) for key in columns}
        row |= {"n": repetitions, "expected": expected(n_images), "label_bytes": children[0]["label_bytes"]}
        row |= {"center_bytes": children[0]["center_bytes"], "peak_was_reset": bool(children[0]["resets"])}
        results[f"N {n_images:,}"] = row
        print(f"\nN {n_images:,} (median of {repetitions})")
        for key in columns:
            lower, median, upper = (row[key][name] / MIB for name in ("lower", "median", "upper"))
            print(f"  {key:22} {median:8.1f} [{lower:.1f}, {upper:.1f}]")
        for key, value in row["expected"].items():
            print(f"  by formula: {key:22} {value / MIB:8.1f}", flush=True)
    _judge(results)
    setting = {"batch": BATCH, "dim": DIM, "heads": HEADS}
    common.write_result("memory", options, {"environment": where, "setting": setting, "results": results})


def _judge(results: dict[str, Any]) -> None:
    """How memory grows with N, where there are two of them."""
    if len(results) < 2:
        return
    small, large = results.values()
    for stage in ("peak_stage_1", "peak_begin_averaging", "peak_stage_2"):
        growth = (large[stage]["median"] - small[stage]["median"]) / (IMAGES[1] - IMAGES[0])
        large[f"bytes_per_image_{stage}"] = growth
        print(f"{stage}: {growth:.1f} bytes per further image (a feature would take {4 * DIM})")
        assert math.isfinite(growth)


def _child(n_images: int) -> dict[str, int]:
    command = [sys.executable, str(Path(__file__)), "--child", str(n_images)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
