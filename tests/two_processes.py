"""Runs that ``tests/training/test_two_processes.py`` makes in one process and in two: SCRIPT IMAGES OUT."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import coke.backbones
from coke import distributed
from coke.run import Run
from coke.training.plan import make_plan
from coke.training.session import start, write_outputs
from tiny_runs import SETTINGS, tiny

TWO_VIEWS: dict[str, Any] = {
    "views": [{"size": 16}, {"size": 16, "solarise": 0.2}],
    "objective.temperature": 0.05,
    "objective.label_weight": 0.2,
    "objective.prediction_share": 0.5,
}
SHARED = {"objective.decorrelation": 0, "objective.rotation": 0.4}  # the first is of each process's own rows
RUNS: dict[str, dict[str, Any]] = {
    "one view": {**SHARED, "averaging_share": 0.3},
    "two views, accumulated": {**SHARED, **TWO_VIEWS, "accumulate": 2},
}


class NoNorm(nn.Identity):
    """Stands for batch norm, whose statistics are each process's own on a CPU."""

    def __init__(self, width: int) -> None:
        super().__init__()


def train(images: Path, out: Path, name: str) -> dict[str, Any]:
    """One run without batch norm; its state, to be compared."""
    plan = make_plan(images, None, {**SETTINGS, **RUNS[name]}, backbone=tiny())
    run = Run(out / name)
    training = start(plan, run, backbone=tiny())
    training.fit(run)
    write_outputs(run, training)
    training.logbook.close()
    learner = training.learner
    return {
        "network": learner.network.module.state_dict(),
        "clusterings": [clustering.state_dict() for clustering in learner.clusterings],
        "memory": learner.memory.state_dict(),
    }


def main(images: Path, out: Path) -> None:
    """All runs, then one with batch norm through the public call."""
    norm, nn.BatchNorm1d = nn.BatchNorm1d, NoNorm
    states = {name: train(images, out, name) for name in RUNS}
    nn.BatchNorm1d = norm
    torch.save(states, out / f"rank {distributed.rank()}.pt")
    torch.manual_seed(0)
    network = timm.create_model("coke_conv5_w16", num_classes=0)
    coke.pretrain(images, out=out / "batch norm", backbone=network, overrides={**SETTINGS, **TWO_VIEWS})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
