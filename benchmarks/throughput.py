"""A whole epoch of training beside the bare supervised forward and backward pass of the same backbone.

Ours is everything that an epoch of `coke.pretrain` does: order and random numbers, views from resident images,
network, clustering of every head, loss, optimizer, figures, log and TensorBoard (no probe, no checkpoint). Bare is
backbone and ten-class classifier, forward and backward on one random batch that lies there already: no data, no
optimizer. Both have the same batch, precision, memory format and compilation. Stage 2 and the clustering path alone
(label read, assignment, update, label write of all heads) stand beside.

Wanted: an epoch runs at 0.85 times the bare images per second at least, clustering takes 3 % of the step at most,
stage 2 is not slower than stage 1.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --device cuda --precision bf16-mixed --batch-size 512 --compile --profile
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

import _common as common
import _training as training
from coke.images.splits import make_splits
from coke.interrupt import Interrupt
from coke.run import Run
from coke.training.auto import resolve
from coke.training.backbone import check_backbone, make_backbone
from coke.training.config import chosen
from coke.training.plan import Plan
from coke.training.recipes import find_recipe
from coke.training.session import start

SIZE, CLASSES, FOREVER = 32, 10, 1_000_000
PROFILED = 3  # steps
WANTED = {"epoch": 0.85, "clustering": 0.03}


class Ours:
    """A run whose epochs are run one by one."""

    def __init__(self, options: argparse.Namespace, folder: Path, stage: int) -> None:
        pixels = torch.randint(256, (options.images, 3, SIZE, SIZE), dtype=torch.uint8)
        images = training.resident(pixels)
        overrides = {
            "backbone": options.backbone,
            "n_clusters": options.heads,
            "batch_size": options.batch_size,
            "precision": options.precision,
            "accelerator": options.device,
            "compile": options.compile,
            "averaging_share": 1.0 if stage == 2 else 0.0,
            "epochs": FOREVER,
            "checkpoint_epochs": FOREVER,
            "checkpoint_minutes": FOREVER,
        }
        settings = {**find_recipe("cifar10").settings, "recipe": "cifar10", "data": "random"}
        resolved = resolve(chosen(settings, overrides), images)
        self.run = Run(folder / f"stage{stage}")
        plan = Plan(make_splits(images), resolved.config, resolved.reasons, "random")
        self.trainer = start(plan, self.run)
        self.trainer.learner.network.train()
        for _ in range(2 if stage == 1 else 3):  # the clustering pass, and the first epoch of each kind
            self.epoch()

    def epoch(self) -> None:
        """The next epoch."""
        self.trainer.run_epoch(self.run, Interrupt())


class Clustering:
    """All that a step does for its clusters, on features that are there."""

    def __init__(self, ours: Ours) -> None:
        learner = self.learner = ours.trainer.learner
        n_images, batch = len(learner.memory), ours.trainer.config.batch_size
        self.ids = torch.randperm(n_images)[:batch].to(learner.device)
        self.features = normalize(torch.randn(batch, learner.config.dim)).to(learner.device)

    def __call__(self) -> None:
        """One step's share."""
        self.learner.memory.read_average(self.ids)
        labels = [clustering.assign(self.features) for clustering in self.learner.clusterings]
        for clustering, head in zip(self.learner.clusterings, labels, strict=True):
            clustering.update(self.features, head)
        self.learner.memory.write(self.ids, torch.stack(labels, dim=1))


def bare_pass(ours: Ours) -> Callable[[], None]:
    """Forward and backward of backbone and classifier on one random batch."""
    config, fabric = ours.trainer.config, ours.trainer.fabric
    backbone = make_backbone(config)
    model: nn.Module = nn.Sequential(backbone, nn.Linear(check_backbone(backbone, config), CLASSES))
    model = model.to(memory_format=torch.channels_last)
    if config.compile:
        model.compile(dynamic=False)
    network = fabric.setup_module(model)
    network.train()
    rows = -(-len(ours.trainer.splits.train) // ours.trainer.batches.n_steps)
    images = torch.randn(rows, 3, SIZE, SIZE, device=fabric.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (rows,), device=fabric.device)

    def step() -> None:
        fabric.backward(cross_entropy(network(images), labels))
        for parameter in network.parameters():
            parameter.grad = None

    return step


def profiled(ours: Ours, path: Path) -> int:
    """Profile a few steps into a Chrome trace; how often the host waited, once at the end for the profiler."""
    learner, parts = ours.trainer.learner, list(itertools.islice(ours.trainer.batches.epoch(1), PROFILED))
    with torch.profiler.profile() as profile:
        for part in parts:
            learner.step(part, train=True)
    profile.export_chrome_trace(str(path))
    waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
    return sum(row.count for row in profile.key_averages() if row.key in waits)


def parse() -> argparse.Namespace:
    """The options, with defaults that depend on the device."""
    parser = training.device_arguments(__doc__)
    parser.add_argument("--images", type=int, default=None, help="an epoch; default 512, on a GPU 50,000")
    parser.add_argument("--compile", action="store_true", help="torch.compile for both")
    parser.add_argument("--profile", type=Path, default=None, help="write a Chrome trace of some steps here")
    options = parser.parse_args()
    training.settle_device(options, quick_batch=32)
    options.heads = [10, 20] if options.quick else [150, 200]
    usual = 50_000 if options.device == "cuda" else 512
    options.images = 64 if options.quick else options.images or usual
    options.pairs = options.pairs or (1 if options.quick else 10)
    return options


def main() -> None:
    """Measure, print, write."""
    options = parse()
    where = training.start(options)
    wait = torch.cuda.synchronize if options.device == "cuda" else (lambda: None)
    with tempfile.TemporaryDirectory() as folder:
        first, second = (Ours(options, Path(folder), stage) for stage in (1, 2))
        step, clustering = bare_pass(first), Clustering(first)
        n_steps = first.trainer.batches.n_steps

        def repeated(call: Callable[[], None]) -> Callable[[], None]:
            return lambda: [call() for _ in range(n_steps)] and None

        times = common.interleaved(
            {
                "bare": repeated(step),
                "coke, stage 1": first.epoch,
                "coke, stage 2": second.epoch,
                "clustering path": repeated(clustering),
            },
            pairs=options.pairs,
            warmup=1,
            synchronise=wait,
        )
        summary: dict[str, dict[str, Any]] = common.summarise(times, "bare")
        common.print_summary(f"an epoch of {options.images:,} images, {n_steps} steps", summary)
        waits = profiled(first, options.profile) if options.profile else None
        first.trainer.logbook.close()
        second.trainer.logbook.close()
    epoch = common.quartiles([b / c for b, c in zip(times["bare"], times["coke, stage 1"], strict=True)])
    stages = common.quartiles(
        [two / one for one, two in zip(times["coke, stage 1"], times["coke, stage 2"], strict=True)]
    )
    share = common.quartiles(
        [c / e for c, e in zip(times["clustering path"], times["coke, stage 1"], strict=True)]
    )
    results = {
        "throughput": {**epoch, "wanted": WANTED["epoch"], "met": epoch["median"] >= WANTED["epoch"]},
        "clustering": {
            **share,
            "wanted": WANTED["clustering"],
            "met": share["median"] <= WANTED["clustering"],
        },
        "stage 2 / stage 1": {**stages, "wanted": 1.0, "met": stages["lower"] <= 1.0},
        "images_per_second": options.images / common.quartiles(times["coke, stage 1"])["median"],
        "host_waits": waits,
        "times": summary,
    }
    for name in ("throughput", "clustering", "stage 2 / stage 1"):
        row = results[name]
        verdict = "met" if row["met"] else "MISSED"
        print(
            f"  {name}: {row['median']:.3f} [{row['lower']:.3f}, {row['upper']:.3f}], wanted {row['wanted']}: {verdict}"
        )
    print(f"  {results['images_per_second']:,.0f} images per second; host waits in {PROFILED} steps: {waits}")
    setting = {
        key: getattr(options, key)
        for key in ("backbone", "batch_size", "precision", "images", "compile", "heads")
    }
    name = "throughput" + ("-cuda" if options.device == "cuda" else "")
    common.write_result(name, options, {"environment": where, "setting": setting, "results": results})


if __name__ == "__main__":
    main()
