"""Two gloo processes learn what one does, uneven batches included, and hold the same state as each other."""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import two_processes
from coke.run import Run
from coke.training import checkpoint
from coke.training.loop import Stopped
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
    with pytest.raises(Stopped):
        two_processes.train(
            images, two / "begun by one", two_processes.RESUMED, stop_at=two_processes.STOPPED_AT
        )
    command = [*launch, str(TESTS / "two_processes.py"), str(images), str(two)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    states = {name: two_processes.train(images, one, name) for name in two_processes.RUNS}
    two_processes.train(images, two / "begun by two", two_processes.RESUMED, resume=True)
    torch.save(states, one / "rank 0.pt")
    return two, one


@pytest.mark.parametrize("name", list(two_processes.RUNS))
def test_processes_agree_with_each_other(outs: tuple[Path, Path], name: str) -> None:
    """Bit for bit: weights, centers, duals, counts, labels and their averages."""
    first, second = (torch.load(outs[0] / f"rank {rank}.pt")[name] for rank in (0, 1))
    assert_equal(first, second)


PLACES = [*two_processes.RUNS, *(f"begun by {who}/{two_processes.RESUMED}" for who in ("one", "two"))]


@pytest.mark.parametrize("name", PLACES)
def test_two_learn_what_one_learns(outs: tuple[Path, Path], name: str) -> None:
    """Batch norm, decorrelation and all: only the order of sums differs, also where one goes on from the other."""
    two, one = Run(outs[0] / name), Run(outs[1] / Path(name).name)
    assert len(two.metrics("step")) == len(one.metrics("step")) == 3 * 6
    for ours, theirs in zip(two.metrics("step"), one.metrics("step"), strict=True):
        assert (ours["epoch"], ours["step"]) == (theirs["epoch"], theirs["step"])
        assert ours["learning_rate"] == theirs["learning_rate"]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    for ours, theirs in zip(two.metrics("epoch"), one.metrics("epoch"), strict=True):
        for key in ours.keys() - TIMES - {"verdict", "kind"}:
            assert_near(ours[key], theirs[key], key)
    ours, theirs = checkpoint.load(two), checkpoint.load(one)
    assert torch.equal(ours["memory"]["labels"], theirs["memory"]["labels"])
    for head, other in zip(ours["clusterings"], theirs["clusterings"], strict=True):
        assert torch.equal(head["counts"], other["counts"])
        torch.testing.assert_close(head["duals"], other["duals"], rtol=0, atol=1e-6)
        torch.testing.assert_close(head["centers"], other["centers"], rtol=0, atol=1e-5)
    for key, value in ours["network"].items():
        torch.testing.assert_close(value, theirs["network"][key], rtol=1e-4, atol=1e-5)
    assert pq.read_table(two.assignments)["cluster_0"].equals(pq.read_table(one.assignments)["cluster_0"])


def assert_near(ours: Any, theirs: Any, where: str) -> None:
    if isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            assert_near(one, other, where)
    elif isinstance(ours, dict):
        for key, value in ours.items():
            assert_near(value, theirs[key], f"{where} {key}")
    elif ours is None:
        assert theirs is None, where
    else:
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5), where


@pytest.mark.parametrize(("began", "ended"), [("one", "1 -> 2"), ("two", "2 -> 1")])
def test_other_processes_are_named(outs: tuple[Path, Path], began: str, ended: str) -> None:
    events = Run(outs[0] / f"begun by {began}" / two_processes.RESUMED).metrics("event")
    (text,) = [event["text"] for event in events if "resumed at" in event["text"]]
    assert text.endswith(f"(processes: {ended})")


def test_whole_run(outs: tuple[Path, Path]) -> None:
    """One set of files, every image in it, and all figures of each epoch."""
    run = Run(outs[0] / "whole")
    assert run.environment["processes"] == 2
    assert len(run.metrics("epoch")) == 4
    assert len(run.metrics("step")) == 3 * 6
    losses = [record["loss"] for record in run.metrics("epoch")[1:]]
    assert all(math.isfinite(loss) for loss in losses)
    assert len(pq.read_table(run.assignments)) == 203
    assert run.report.is_file()
    assert set(run.evaluation["representations"]) == {"raw pixels", "untrained", "trained"}


def test_a_process_that_dies(tmp_path: Path) -> None:
    """Without a word, within an epoch: the other one ends by itself, soon, and says who it is and where it stood."""
    images = write_textures(tmp_path / "images", 100)
    words = (
        "backbone=coke_conv5_w16 n_clusters=5 views.size=16 batch_size=20 epochs=500 log_every=1 workers=0"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_WORLD_SIZE": "1"}
    command = [sys.executable, "-m", "coke", "pretrain", str(images), "--out", str(tmp_path / "run")]
    started = [
        subprocess.Popen(
            [*command, *words.split()],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        deadline = time.monotonic() + 120
        while not Run(tmp_path / "run").metrics("step") and time.monotonic() < deadline:
            time.sleep(0.1)
        started[1].kill()
        said = started[0].communicate(timeout=60)[1]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert started[0].returncode == 1, said
    (line,) = [line for line in said.splitlines() if line.startswith("coke: ")]
    assert re.match(r"coke: process 0 of 2 lost another one at epoch \d+, step \d+, whose own words", line)
    assert "Traceback" not in said
