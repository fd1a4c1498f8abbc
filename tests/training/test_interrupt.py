"""Signals are remembered once, then act as they did before; and a stopped process leaves a checkpoint."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from coke.interrupt import Interrupt
from coke.run import Run
from coke.training import checkpoint
from tiny_runs import write_textures

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_is_remembered_second_acts(number: signal.Signals) -> None:
    came: list[int] = []
    before = signal.signal(number, lambda number, frame: came.append(number))
    try:
        with Interrupt() as interrupt:
            assert interrupt.signal is None
            signal.raise_signal(number)
            assert (interrupt.signal, came) == (number, [])
            signal.raise_signal(number)
            assert came == [number]
        signal.raise_signal(number)
        assert came == [number, number]
    finally:
        signal.signal(number, before)


def test_a_hang_up_that_is_ignored_stays_so() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGHUP)
        assert interrupt.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_come_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RuntimeError), Interrupt():
        raise RuntimeError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_nothing_is_done() -> None:
    found: list[int | None] = []

    def enter() -> None:
        with Interrupt() as interrupt:
            found.append(interrupt.signal)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "everyone"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)],
    ids=["terminated alone", "terminated with its workers", "interrupted with its workers"],
)
def test_process_that_is_stopped(tmp_path: Path, number: signal.Signals, everyone: bool) -> None:
    """``coke pretrain`` with a worker, stopped within an epoch: exit code, one line, a checkpoint, no orphans.

    A terminal and a batch system send the signal to all processes of a job.
    """
    images = write_textures(tmp_path / "images", 600, mixed=True)
    run = Run(tmp_path / "run")
    words = (
        "backbone=coke_conv5_w16 n_clusters=5 views.size=16 batch_size=20 epochs=500 log_every=1 workers=1"
    )
    command = [sys.executable, "-m", "coke", "pretrain", str(images), "--out", str(run.path), *words.split()]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 90
        while not run.metrics("step") and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, number) if everyone else process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("coke: ")]
    epoch, step = re.fullmatch(
        r"coke: stopped at epoch (\d+), step (\d+); --resume continues exactly there", line
    ).groups()
    assert "Traceback" not in output + errors
    state = checkpoint.load(run)
    assert (state["epoch"], state["step"]) == (int(epoch), int(step))
    assert not list(run.path.rglob("*.tmp"))


@pytest.mark.slow
def test_terminal_that_is_closed(tmp_path: Path) -> None:
    """With a bar and lines on it: the run goes on to the end of its step, and leaves a checkpoint."""
    images = write_textures(tmp_path / "images", 200)
    run = Run(tmp_path / "run")
    words = (
        "backbone=coke_conv5_w16 n_clusters=5 views.size=16 batch_size=20 epochs=500 log_every=1 workers=0"
    )
    process, terminal = pty.fork()
    if process == 0:
        command = [sys.executable, "-m", "coke", "pretrain", str(images), "--out", str(run.path)]
        os.execve(sys.executable, [*command, *words.split()], ENVIRONMENT)
    try:
        deadline = time.monotonic() + 90
        while not run.metrics("step") and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                os.read(terminal, 1 << 16)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 128 + signal.SIGHUP
    assert checkpoint.load(run)["epoch"] < 500
