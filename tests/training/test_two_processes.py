"""Two gloo processes learn what one does, uneven batches included, and hold the same state as each other."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import two_processes
from coke.run import Run
from tiny_runs import TIMES, assert_equal, write_textures

pytestmark = pytest.mark.slow
TESTS = Path(two_processes.__file__).parent


@pytest.fixture(scope="module")
def outs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the runs of two processes, and of one: 203 images make batches of 33 and 34."""
    images = write_textures(tmp_path_factory.mktemp("images"), 203, labelled=True)
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
    }
    command = [*launch, str(TESTS / "two_processes.py"), str(images), str(two)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn, "BatchNorm1d", two_processes.NoNorm)
        states = {name: two_processes.train(images, one, name) for name in two_processes.RUNS}
    torch.save(states, one / "rank 0.pt")
    return two, one


@pytest.mark.parametrize("name", list(two_processes.RUNS))
def test_processes_agree_with_each_other(outs: tuple[Path, Path], name: str) -> None:
    """Bit for bit: weights, centers, duals, counts, labels and their averages."""
    first, second = (torch.load(outs[0] / f"rank {rank}.pt")[name] for rank in (0, 1))
    assert_equal(first, second)


@pytest.mark.parametrize("name", list(two_processes.RUNS))
def test_two_learn_what_one_learns(outs: tuple[Path, Path], name: str) -> None:
    """Without batch norm only the order of sums differs, so all figures agree to rounding."""
    two, one = (Run(out / name) for out in outs)
    assert len(two.metrics("step")) == len(one.metrics("step")) == 3 * 6
    for ours, theirs in zip(two.metrics("step"), one.metrics("step"), strict=True):
        assert (ours["epoch"], ours["step"]) == (theirs["epoch"], theirs["step"])
        assert ours["learning_rate"] == theirs["learning_rate"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    for ours, theirs in zip(two.metrics("epoch"), one.metrics("epoch"), strict=True):
        for key in ours.keys() - TIMES - {"heads", "verdict", "kind"}:
            if theirs[key] is None:
                assert ours[key] is None
            else:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=0.01), key
        assert [head["bound"] for head in ours["heads"]] == [head["bound"] for head in theirs["heads"]]
    states = [torch.load(out / "rank 0.pt")[name] for out in outs]
    labels = [state["memory"]["labels"] for state in states]
    assert (labels[0] == labels[1]).float().mean() > 0.97
    for key, value in states[0]["network"].items():
        torch.testing.assert_close(value, states[1]["network"][key], rtol=1e-2, atol=1e-3)


def test_whole_run_with_batch_norm(outs: tuple[Path, Path]) -> None:
    """One set of files, every image in it, and all figures of each epoch."""
    run = Run(outs[0] / "batch norm")
    assert run.environment["processes"] == 2
    assert len(run.metrics("epoch")) == 4
    assert len(run.metrics("step")) == 3 * 6
    losses = [record["loss"] for record in run.metrics("epoch")[1:]]
    assert all(math.isfinite(loss) for loss in losses)
    assert len(pq.read_table(run.assignments)) == 203
    assert run.report.is_file()
    assert set(run.evaluation["representations"]) == {"raw pixels", "untrained", "trained"}
