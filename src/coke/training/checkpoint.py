"""Checkpoints: written whole or not at all, read without unpickling code, refused where they do not belong."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from coke import distributed, schemas
from coke.atomic import atomic
from coke.errors import ResumeError
from coke.run import FORMAT_VERSION, Run
from coke.training.batches import steps_per_epoch
from coke.training.config import FREE, Config, without_fixed
from coke.training.settings import differences

KEPT = 2  # the newest, and one before it should that be damaged
_STEADIER = frozenset({"learning_rate", "warmup_epochs", "clip_norm"})  # where numbers were not finite


def save(run: Run, state: dict[str, Any], *, epoch: int, step: int) -> Path:
    """Write a checkpoint that continues with step ``step`` of epoch ``epoch``; keep the newest `KEPT`."""
    path = run.checkpoints / f"epoch-{epoch:05d}-step-{step:08d}.pt"
    write(path, state, epoch=epoch, step=step)
    for old in sorted(run.checkpoints.glob("epoch-*-step-*.pt"))[:-KEPT]:
        old.unlink()
    return path


def write(path: Path, state: dict[str, Any], *, epoch: int, step: int) -> None:
    """Write a file that a run can be continued from, wherever it lies."""
    with atomic(path, "wb") as stream:
        try:
            torch.save({"format_version": FORMAT_VERSION, "epoch": epoch, "step": step, **state}, stream)
        except RuntimeError as error:  # torch's writer complains of the file after the disk has
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(run: Run) -> dict[str, Any]:
    """The newest checkpoint, on the host. Raises `ResumeError` where there is none that can be read."""
    path = run.latest_checkpoint()
    if path is None:
        raise ResumeError(f"{run.path} holds no checkpoint to resume from: start it without --resume")
    others = len(list(run.checkpoints.glob("epoch-*-step-*.pt"))) > 1
    advice = "delete it to resume from the one before" if others else "it is the only one: start a new run"
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums that it writes
            damaged = archive.testzip()
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own words fill a page and advise unsafe loading
        said = " ".join(str(error).split())[:200]
        raise ResumeError(f"{path} cannot be read ({type(error).__name__}: {said}): {advice}") from error
    if damaged is not None:
        raise ResumeError(f"{path} is damaged (checksum of {damaged}): {advice}")
    version = state.get("format_version") if isinstance(state, dict) else None
    if not isinstance(version, int):
        raise ResumeError(f"{path} is no checkpoint of coke: {advice}")
    if version > FORMAT_VERSION:
        raise schemas.newer(path, version, FORMAT_VERSION)
    schemas.checked(path, state, schemas.Checkpoint, advice)
    for why in (why for wrong, why in _impossible(state) if wrong):
        raise schemas.damaged(path, why, advice)
    return dict(state)


def _impossible(state: dict[str, Any]) -> list[tuple[bool, str]]:
    """What cannot be of a checkpoint whose entries are of the right kind, and whether it is so."""
    epoch, step = state["epoch"], state["step"]
    epochs, steps = state["schedule"]["n_epochs"], state.get("steps_per_epoch", 2**63)
    numbers = [
        *state["network"].values(),
        *(value for head in state["clusterings"] for value in head.values()),
    ]
    finite = all(bool(value.isfinite().all()) for value in numbers if value.is_floating_point())
    labels = state["memory"].get("labels")
    clusters = [len(head["duals"]) for head in state["clusterings"] if "duals" in head]
    fits = labels is not None and labels.dim() == 2 and labels.shape[1] == len(clusters)
    known = fits and bool(((labels >= -1) & (labels < torch.tensor(clusters))).all())
    return [
        (epoch > epochs or (epoch == epochs and step > 0), f"epoch {epoch}, step {step} of {epochs} epochs"),
        (step >= steps, f"step {step} of an epoch of {steps} steps"),
        (not finite, "it holds numbers that are not finite"),
        (not known, "its labels are not those of its clusters"),
    ]


def may_change(run: Run, state: Mapping[str, Any]) -> frozenset[str]:
    """Keys that may differ from the checkpoint's: `FREE`, and what makes steps smaller where it leads to a capsule."""
    if not run.capsule.is_file():
        return FREE
    there = torch.load(run.capsule, map_location="cpu", weights_only=True, mmap=True)
    led_there = (state["epoch"], state["step"]) <= (there["epoch"], there["step"])
    return FREE | _STEADIER if led_there else FREE


def check_same(
    state: Mapping[str, Any], config: Config, fingerprint: str, n_images: int, free: frozenset[str] = FREE
) -> list[str]:
    """What changed since the checkpoint, in words; raises `ResumeError` where it decides what is learned."""
    settings, fixed = without_fixed(state["config"])
    stored = Config(**settings).as_dict()  # keys newer than the run were at their defaults in it
    changed = {**fixed, **differences(stored, config.as_dict())}
    learned = {key: pair for key, pair in changed.items() if key.split(".")[0] not in free}
    data = state["data"]
    if (data["fingerprint"], data["n_images"]) != (fingerprint, n_images):
        learned["the images"] = (
            f"{data['n_images']:,} images {data['fingerprint'][:12]}",
            f"{n_images:,} images {fingerprint[:12]}",
        )
    if learned:
        shown = "; ".join(
            f"{key}: {old!r} in the run, " + (f"fixed at {new!r} now" if key in fixed else f"{new!r} asked")
            for key, (old, new) in learned.items()
        )
        raise ResumeError(f"cannot resume, since what is learned would change: {shown}")
    was, now = state.get("processes"), distributed.world_size()
    if was not in (None, now):  # not in older ones
        changed["processes"] = (was, now)
        then, steps = state["steps_per_epoch"], steps_per_epoch(n_images, config.batch_size)
        if then != steps:
            raise ResumeError(
                f"cannot resume on {now} processes what ran on {was}: an epoch would have {steps} steps, not {then}, "
                f"for batch_size={config.batch_size} leaves a process fewer than two images"
            )
    return [f"{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items()]
