"""What a run says and leaves where something outside of it goes wrong: its folder, the disk, an earlier process."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import coke
from coke.cli import main
from coke.errors import ResumeError
from coke.run import Run
from coke.training import checkpoint
from tiny_runs import SETTINGS, Tiny, assert_same_run, write_textures

N_STEPS = 5  # 200 images in batches of 40


class Disturbed(Tiny):
    """Calls something during a forward pass of training, counted from 1."""

    def __init__(self, call: int = 0, happens: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.call, self.happens = call, happens

    def forward(self, images: Tensor) -> Tensor:
        output = super().forward(images)
        if self.training and self.calls == self.call:
            self.happens()
        return output


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_textures(tmp_path_factory.mktemp("images"))


def train(images: Path, out: Path, *disturbance: Any, resume: bool = False, **keys: Any) -> Run:
    torch.manual_seed(1)
    backbone = Disturbed(*disturbance)
    return coke.pretrain(images, out=out, backbone=backbone, resume=resume, overrides={**SETTINGS, **keys})


class Crash(Exception):
    pass


def crash() -> None:
    raise Crash


@contextmanager
def no_file_above(n_bytes: int) -> Iterator[None]:
    """A disk that is full once a file has so many bytes."""
    before, cached = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # Python would keep half of what it compiles now
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        sys.dont_write_bytecode = cached
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("call", [N_STEPS + 3, 4 * N_STEPS])
def test_a_folder_that_was_removed(images: Path, tmp_path: Path, call: int) -> None:
    """Before, a new one grew under its name, with the newest checkpoints and nothing to resume them by."""
    run = Run(tmp_path / "run")
    with pytest.raises(ResumeError, match=r"run/config\.yaml is gone: the run folder was removed or moved"):
        train(images, run.path, call, lambda: shutil.rmtree(run.path))
    assert not run.path.exists()


def test_a_folder_that_was_moved_is_brought_back(images: Path, tmp_path: Path) -> None:
    whole, run = train(images, tmp_path / "whole"), Run(tmp_path / "run")
    with pytest.raises(ResumeError, match="bring it back and go on with --resume"):
        train(images, run.path, 12, lambda: run.path.rename(tmp_path / "moved"), checkpoint_epochs=1)
    (tmp_path / "moved").rename(run.path)
    assert_same_run(train(images, run.path, resume=True), whole)


def test_no_space_for_the_report(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with the file's name; the old page and all else stay as they are."""
    run = train(images, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with no_file_above(run.report.stat().st_size // 2):
        assert main(["report", str(run.path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"coke: [Errno 27] File too large: '{run.report}'"
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_no_space_for_a_checkpoint(images: Path, tmp_path: Path) -> None:
    """What was saved stays, and is gone on from."""
    whole, run = train(images, tmp_path / "whole", checkpoint_epochs=1), Run(tmp_path / "run")

    def fill() -> None:
        disk.enter_context(no_file_above(10_000))

    with ExitStack() as disk, pytest.raises(OSError, match=r"too large: '.*epoch-00003-step-00000000\.pt'"):
        train(images, run.path, 2 * N_STEPS + 3, fill, checkpoint_epochs=1)
    assert checkpoint.load(run)["epoch"] == 2
    assert not [*run.path.rglob("*.tmp")]
    assert_same_run(train(images, run.path, resume=True, checkpoint_epochs=1), whole)


def test_no_space_for_a_record(images: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")

    def fill() -> None:
        disk.enter_context(no_file_above(run.metrics_file.stat().st_size))

    with ExitStack() as disk, pytest.raises(OSError, match=r"File too large: '.*metrics\.jsonl'"):
        train(images, run.path, 12, fill)


def test_what_dead_processes_left_goes(images: Path, tmp_path: Path) -> None:
    """Of processes that are there, and of other programs, nothing goes."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    run = Run(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    left = [
        run.path / f".report.html.{process.pid}.tmp",
        run.checkpoints / f".epoch-00001-step-00000000.pt.{process.pid}.tmp",
    ]
    kept = [run.path / ".report.html.1.tmp", run.path / ".notes.tmp", run.path / f"{process.pid}.tmp"]
    for path in (*left, *kept):
        path.write_text("half")
    train(images, run.path)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_tensorboard_shows_each_step_once(images: Path, tmp_path: Path) -> None:
    """After a crash some steps past the newest checkpoint, within an epoch and before its end."""
    run = Run(tmp_path / "run")
    settings = {"tensorboard": True, "checkpoint_epochs": 1, "epochs": 5}
    for call, resume in ((2 * N_STEPS + 4, False), (2 * N_STEPS, True)):
        with pytest.raises(Crash):
            train(images, run.path, call, crash, resume=resume, **settings)
    train(images, run.path, resume=True, **settings)
    shown = EventAccumulator(str(run.tensorboard), {"scalars": 0})
    shown.Reload()
    steps = [event.step for event in shown.Scalars("step/loss")]
    assert steps == list(range(N_STEPS + 1, 5 * N_STEPS + 1))
    assert [event.step for event in shown.Scalars("epoch/effective_rank")] == [
        N_STEPS * n for n in range(1, 6)
    ]
    losses = [record["loss"] for record in run.metrics("step")]
    assert [event.value for event in shown.Scalars("step/loss")] == pytest.approx(losses)
