"""Runs that ``tests/training/test_two_processes.py`` makes in one process and in two: SCRIPT IMAGES OUT."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch

import coke.backbones
from coke import distributed
from coke.run import Run
from coke.training.loop import Stopped
from coke.training.plan import make_plan
from coke.training.session import start, write_outputs
from tiny_runs import SETTINGS, tiny

TWO_VIEWS: dict[str, Any] = {
    "views": [{"size": 16}, {"size": 16, "solarise": 0.2}],
    "objective.temperature": 0.05,
    "objective.label_weight": 0.2,
    "objective.prediction_share": 0.5,
}
CALM = {**SETTINGS, "learning_rate": 3e-4, "objective.decorrelation": 0.1, "objective.rotation": 0.4}
"""Training amplifies rounding: at 0.001 to 2.6e-5 of a loss over four epochs, at 0.05 five-fold in each step."""
RUNS: dict[str, dict[str, Any]] = {
    "one view": {**CALM, "averaging_share": 0.3},
    "two views, accumulated": {**CALM, **TWO_VIEWS, "accumulate": 2, "learning_rate": 1e-4},
}
RESUMED = "one view"
STOPPED_AT = 21  # the forward pass of training, of four in a step after the six of the clustering epoch


def train(
    images: Path, out: Path, name: str, *, resume: bool = False, stop_at: int | None = None
) -> dict[str, Any]:
    """One run; its state, to be compared. Raises `Stopped` where it is stopped."""
    run = Run(out / name)
    plan = make_plan(images, None, RUNS[name], run=run if resume else None, backbone=tiny())
    training = start(plan, run, backbone=tiny(1, interrupt_at=stop_at), resume=resume)
    try:
        training.fit(run)
    finally:
        training.logbook.close()
    write_outputs(run, training)
    learner = training.learner
    return {
        "network": learner.network.module.state_dict(),
        "clusterings": [clustering.state_dict() for clustering in learner.clusterings],
        "memory": learner.memory.state_dict(),
    }


def main(images: Path, out: Path) -> None:
    """All runs, one that one process began, one for one process to end; and one through the public call."""
    states = {name: train(images, out, name) for name in RUNS}
    train(images, out / "begun by one", RESUMED, resume=True)
    with suppress(Stopped):
        train(images, out / "begun by two", RESUMED, stop_at=STOPPED_AT)
    torch.save(states, out / f"rank {distributed.rank()}.pt")
    torch.manual_seed(0)
    network = timm.create_model("coke_conv5_w16", num_classes=0)
    coke.pretrain(images, out=out / "whole", backbone=network, overrides={**SETTINGS, **TWO_VIEWS})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
