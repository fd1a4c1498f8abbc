"""Checkpoints that are broken, foreign or hostile are refused in words, and only the newest are kept."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from coke.errors import ResumeError
from coke.run import FORMAT_VERSION, Run
from coke.training import checkpoint
from tiny_runs import assert_equal

STATE: dict[str, Any] = {
    "network": {"a": torch.arange(4.0), "b": torch.tensor([1], dtype=torch.int8)},
    "optimizer": {},
    "scaler": {},
    "clusterings": [{"duals": torch.zeros(3)}],
    "memory": {"labels": torch.tensor([[2], [-1]], dtype=torch.int8)},
    "schedule": {"n_epochs": 20, "trained_steps": 5, "progress": 0.25},
    "figures": {},
    "random": {"cpu": torch.get_rng_state(), "cuda": None},
    "config": {"epochs": 3, "views": [{"size": 16}], "init": None},
    "data": {"fingerprint": "a", "n_images": 2},
    "elapsed": 0.5,
}


def save(run: Run, epoch: int, step: int) -> Path:
    return checkpoint.save(run, STATE, epoch=epoch, step=step)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(Run(tmp_path), 3, 17)
    expected = {"format_version": FORMAT_VERSION, "epoch": 3, "step": 17, **STATE}
    assert_equal(checkpoint.load(Run(tmp_path)), expected)


def test_newest_are_kept(tmp_path: Path) -> None:
    """In order of epoch and step, also where the numbers have more digits; other files stay."""
    run = Run(tmp_path)
    run.checkpoints.mkdir()
    run.initial.write_bytes(b"")
    for epoch, step in [(2, 3), (9, 0), (10, 0), (10, 900), (10, 1000)]:
        save(run, epoch, step)
    names = sorted(path.name for path in run.checkpoints.glob("*"))
    assert names == [
        "epoch-00010-step-00000900.pt",
        "epoch-00010-step-00001000.pt",
        "initial.safetensors",
    ]
    assert checkpoint.load(run)["step"] == 1000


def test_broken_file_names_the_way_out(tmp_path: Path) -> None:
    run = Run(tmp_path)
    save(run, 1, 0)
    path = save(run, 2, 0)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        ResumeError, match=r"epoch-00002.*cannot be read.*delete it to resume from the one before"
    ):
        checkpoint.load(run)
    path.unlink()
    assert checkpoint.load(run)["epoch"] == 1


def test_changed_bytes_are_noticed(tmp_path: Path) -> None:
    """In the middle of a tensor, where reading alone finds nothing."""
    run = Run(tmp_path)
    numbers = torch.arange(1000, dtype=torch.float32)
    path = checkpoint.save(run, {"numbers": numbers}, epoch=1, step=0)
    content = bytearray(path.read_bytes())
    place = content.index(numbers.numpy().tobytes()) + 2000
    content[place : place + 4] = b"\0\0\0\0"
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)["numbers"], numbers)
    with pytest.raises(ResumeError, match=r"is damaged \(checksum of .*it is the only one: start a new run"):
        checkpoint.load(run)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_the_systems_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the complaint of torch's writer that follows it."""
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(checkpoint, "atomic", lambda path, mode: nullcontext(full))
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(Run(tmp_path), {"numbers": torch.zeros(100_000)}, epoch=1, step=0)


class Hostile:
    """Unpickled without care, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    run = Run(tmp_path)
    path = save(run, 1, 0)
    torch.save({**STATE, "format_version": 1, "more": Hostile(tmp_path / "harm")}, path)
    with pytest.raises(ResumeError, match="cannot be read"):
        checkpoint.load(run)
    assert not (tmp_path / "harm").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "harm").exists()  # the file was indeed hostile


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(3)])
def test_other_files_of_torch(tmp_path: Path, content: Any) -> None:
    run = Run(tmp_path)
    torch.save(content, save(run, 1, 0))
    with pytest.raises(ResumeError, match="epoch-00001"):
        checkpoint.load(run)


def test_newer_format(tmp_path: Path) -> None:
    run = Run(tmp_path)
    torch.save({**STATE, "format_version": FORMAT_VERSION + 1}, save(run, 1, 0))
    with pytest.raises(
        ResumeError, match=f"format {FORMAT_VERSION + 1}, this coke reads up to {FORMAT_VERSION}"
    ):
        checkpoint.load(run)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="holds no checkpoint to resume from: start it without --resume"):
        checkpoint.load(Run(tmp_path))
