"""Numbers that are not finite: the step is taken back, nothing of it is saved, and a run full of them stops."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import coke
from coke.errors import ResumeError
from coke.run import Run
from coke.training import checkpoint
from coke.training.learner import Learner
from coke.training.loop import Stopped
from coke.training.monitor import DivergedError
from tiny_runs import SETTINGS, Tiny, assert_equal, assert_same_run, records, write_textures

N_STEPS = 5  # 200 images in batches of 40
EVERY_STEP: dict[str, Any] = {"checkpoint_minutes": 0, "checkpoint_epochs": 1}


class Poisoned(Tiny):
    """Gives NaN for the batches whose sums of pixels it was told."""

    def __init__(self, poison: list[float], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.poison, self.seen = poison, list[float]()

    def forward(self, images: Tensor) -> Tensor:
        output = super().forward(images)
        if self.training:
            self.seen.append(float(images.double().sum()))
        return output * torch.nan if self.training and self.seen[-1] in self.poison else output


def poisoned(poison: list[float], **arguments: Any) -> Poisoned:
    torch.manual_seed(1)
    return Poisoned(poison, **arguments)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_textures(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def sums(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """What tells the batches of each step of a run, one epoch after the other."""
    backbone = poisoned([])
    train(images, tmp_path_factory.mktemp("sums") / "run", backbone)
    assert len(backbone.seen) == len(set(backbone.seen)) == 4 * N_STEPS
    return backbone.seen


def train(images: Path, out: Path, backbone: Tiny, *, resume: bool = False, **keys: Any) -> Run:
    return coke.pretrain(images, out=out, backbone=backbone, resume=resume, overrides={**SETTINGS, **keys})


def numbers(state: Any) -> Iterator[Tensor]:
    """All floating-point tensors of a checkpoint."""
    if isinstance(state, Tensor):
        yield from [state] if state.is_floating_point() else []
    elif isinstance(state, (dict, list, tuple)):
        for item in state.values() if isinstance(state, dict) else state:
            yield from numbers(item)


def skipped(run: Run) -> list[tuple[int, int]]:
    events = [event for event in run.metrics("event") if "not finite, the step is skipped" in event["text"]]
    return [(event["epoch"], event["step"]) for event in events]


def test_only_finite_states_are_saved_and_the_advice_works(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, both checkpoints that were kept held NaN, and a lower learning rate was refused."""
    monkeypatch.setattr(checkpoint, "KEPT", 1000)
    run = Run(tmp_path / "run")
    with pytest.raises(DivergedError, match=r"in 5 steps in a row.*--resume and learning_rate=1e\+29"):
        train(images, run.path, poisoned([]), learning_rate=1e30, **EVERY_STEP)
    paths = sorted(run.checkpoints.glob("*.pt"))
    assert len(paths) == N_STEPS  # of the clustering epoch
    for path in [*paths, run.capsule]:
        assert all(bool(values.isfinite().all()) for values in numbers(torch.load(path)))
    assert run.verdict["state"] == "diverging"
    assert run.report.is_file()
    assert skipped(run) == [(1, step) for step in range(N_STEPS)]
    with pytest.raises(ResumeError, match="batch_size: 40 in the run, 20 asked"):
        train(images, run.path, poisoned([]), resume=True, learning_rate=0.05, batch_size=20)
    whole = train(images, tmp_path / "whole", poisoned([]))
    resumed = train(images, run.path, poisoned([]), resume=True, learning_rate=0.05, **EVERY_STEP)
    ours, theirs = ([each for each in records(r) if each["epoch"] > 0] for r in (resumed, whole))
    skips = [each.pop("skipped") for each in ours if each["kind"] == "epoch"]
    assert set(skips) == {0}  # the checkpoint is older than they
    assert_equal(ours, [{k: v for k, v in each.items() if k != "skipped"} for each in theirs])
    assert any("learning_rate: 1e+30 -> 0.05" in record["text"] for record in run.metrics("event"))
    with pytest.raises(ResumeError, match=r"learning_rate: 0\.05 in the run"):  # it is past the trouble
        train(images, run.path, poisoned([]), resume=True, learning_rate=0.01, **EVERY_STEP)


def test_the_capsule_replays_the_step(images: Path, tmp_path: Path, sums: list[float]) -> None:
    """Taken for a checkpoint, it fails at once at the same step, on the images that it names."""
    run = Run(tmp_path / "run")
    with pytest.raises(DivergedError, match="epoch 2, step 1;"):
        train(images, run.path, poisoned(sums[7:12]), **EVERY_STEP)
    capsule = torch.load(run.capsule)
    assert (capsule["epoch"], capsule["step"], len(capsule["keys"])) == (2, 1, 40)
    assert set(capsule["keys"]) < {path.name for path in images.iterdir()}
    for path in run.checkpoints.glob("*.pt"):
        path.unlink()
    shutil.copy(run.capsule, run.checkpoints / "epoch-00002-step-00000001.pt")
    again = poisoned(sums[7:12])
    with pytest.raises(DivergedError, match="epoch 2, step 1;"):
        train(images, run.path, again, resume=True)
    assert again.seen == sums[11:12]
    healed = train(images, run.path, poisoned([]), resume=True)
    assert len(healed.metrics("epoch")) == 4


@pytest.mark.parametrize("log_every", [1, 3, 20])
@pytest.mark.parametrize("bad", [[2], [7], [9, 10], [11, 14, 19]], ids=str)
def test_a_skipped_step_is_as_if_it_had_not_been(
    images: Path,
    tmp_path: Path,
    sums: list[float],
    bad: list[int],
    log_every: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside a run in which somebody left the step out; wherever the host looks, and with random dropout."""
    run = train(images, tmp_path / "run", poisoned([sums[i] for i in bad], dropout=0.3), log_every=log_every)
    assert skipped(run) == [divmod(i, N_STEPS) for i in bad]
    assert run.metrics("epoch")[-1]["skipped"] == len(bad)
    step, calls = Learner.step, iter(range(1000))

    def without(learner: Learner, *arguments: Any) -> Tensor:
        if next(calls) not in bad:
            return step(learner, *arguments)
        learner._n_sound += 1
        return torch.zeros(())

    monkeypatch.setattr(Learner, "step", without)
    other = train(images, tmp_path / "other", poisoned([], dropout=0.3), log_every=log_every)
    ours, theirs = (checkpoint.load(each) for each in (run, other))
    for key in ("network", "optimizer", "clusterings", "memory", "schedule", "figures", "random"):
        assert_equal(ours[key], theirs[key], key)


@pytest.mark.parametrize("log_every", [1, 3])
def test_resumed_beside_a_skipped_step(
    images: Path, tmp_path: Path, sums: list[float], log_every: int
) -> None:
    """A signal before, in, between and after two bad steps in a row."""
    poison = [sums[7], sums[8]]
    whole = train(images, tmp_path / "whole", poisoned(poison), log_every=log_every)
    for call in (6, 8, 9, 10):
        out = tmp_path / f"run {call}"
        with pytest.raises(Stopped):
            train(images, out, poisoned(poison, interrupt_at=call), log_every=log_every)
        state = checkpoint.load(Run(out))
        assert all(bool(values.isfinite().all()) for values in numbers(state))
        assert_same_run(train(images, out, poisoned(poison), resume=True, log_every=log_every), whole)


def test_a_network_that_never_gave_a_number(images: Path, tmp_path: Path, sums: list[float]) -> None:
    """In the clustering epoch no learning rate is to blame."""
    with pytest.raises(DivergedError, match="epoch 0, step 4; check the images, the weights to start from"):
        train(images, tmp_path / "run", poisoned(sums))
