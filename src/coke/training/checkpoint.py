"""Checkpoints: written whole or not at all, read without unpickling code, refused where they do not belong."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from coke.errors import ResumeError
from coke.run import FORMAT_VERSION, Run, atomic
from coke.training.config import FREE, Config, without_fixed
from coke.training.settings import differences

KEPT = 2  # the newest, and one before it should that be damaged


def save(run: Run, state: dict[str, Any], *, epoch: int, step: int) -> Path:
    """Write a checkpoint that continues with step ``step`` of epoch ``epoch``; keep the newest `KEPT`."""
    path = run.checkpoints / f"epoch-{epoch:05d}-step-{step:08d}.pt"
    with atomic(path, "wb") as stream:
        try:
            torch.save({"format_version": FORMAT_VERSION, "epoch": epoch, "step": step, **state}, stream)
        except RuntimeError as error:  # torch's writer complains of the file after the disk has
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
    for old in sorted(run.checkpoints.glob("epoch-*-step-*.pt"))[:-KEPT]:
        old.unlink()
    return path


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
    except Exception as error:
        raise ResumeError(f"{path} cannot be read ({error}): {advice}") from error
    if damaged is not None:
        raise ResumeError(f"{path} is damaged (checksum of {damaged}): {advice}")
    if not isinstance(state, dict) or "format_version" not in state:
        raise ResumeError(f"{path} is no checkpoint of coke: {advice}")
    if state["format_version"] > FORMAT_VERSION:
        raise ResumeError(f"{path} has format {state['format_version']}, this coke reads {FORMAT_VERSION}")
    return dict(state)


def check_same(state: Mapping[str, Any], config: Config, fingerprint: str, n_images: int) -> list[str]:
    """What changed since the checkpoint, in words; raises `ResumeError` where it decides what is learned."""
    settings, fixed = without_fixed(state["config"])
    stored = Config(**settings).as_dict()  # keys newer than the run were at their defaults in it
    changed = {**fixed, **differences(stored, config.as_dict())}
    learned = {key: pair for key, pair in changed.items() if key.split(".")[0] not in FREE}
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
    return [f"{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items()]
