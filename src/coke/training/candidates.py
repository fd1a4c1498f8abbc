"""Which network, and views of which size, a machine has time for: each is timed, the first that fits is taken.

A pass of a few images stands for an epoch: crops, clusters and losses beside it weigh little (docs/log.md, "Which
network in the time there is"). Times of one machine differ by a third from call to call where other work runs beside
it, so the choice is the same each time unless one of them lies within `MARGIN` of the limit, and then that is said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from coke.training.schedule import FEW_EPOCHS

SMALL_IMAGE = 64  # px: up to here the small stem, beyond it timm's own
CPU_SIDE = 128  # px, the largest view that a CPU gets without asking how long it takes
MANY_IMAGES = 200_000  # from here on a larger network than a ResNet-18
ENOUGH = (
    50  # epochs of a large network: with few it learns less than a small one in the same time (docs/log.md)
)
MARGIN = 1.5  # times or a part of the limit, within which another call may choose otherwise
_IMAGES = {"cpu": 4, "cuda": 128}  # of a timed pass, in which an image takes about as long as in a batch
_PASSES = 3  # of which the fastest counts; two where they take longer than a second


@dataclass(frozen=True)
class Candidate:
    """A network and its views' size, px; it is passed over where it has time for fewer epochs than ``least``."""

    backbone: str
    size: int
    least: int = 0


def candidates(n_images: int, side: int, size: int | None = None) -> list[Candidate]:
    """From the strongest to the fastest. ``side``: of the images, px; ``size``: of the views, where it is given."""
    if (size or side) <= SMALL_IMAGE:
        size = size or max(8, side)
        found = [
            Candidate("coke_resnet18_small", size, ENOUGH),
            Candidate("coke_conv5_w24", size, FEW_EPOCHS),
        ]
        return [*found, Candidate("coke_conv5_w16", size)]
    largest = size or min(224, side // 32 * 32)
    found = [
        Candidate("resnet50" if n_images >= MANY_IMAGES else "resnet18", largest, ENOUGH),
        Candidate("resnet18", size or min(CPU_SIDE, largest), FEW_EPOCHS),
    ]
    found += [] if size else [Candidate("coke_conv5_w24", SMALL_IMAGE)]
    return list({(candidate.backbone, candidate.size): candidate for candidate in found}.values())


def fitting(
    options: Sequence[Candidate], seconds: Callable[[Candidate], float], *, minutes: float, epochs: int
) -> tuple[Candidate, str]:
    """The first that has time, else the last, and why in words.

    Args:
        options: from the strongest to the fastest.
        seconds: what an epoch of one takes.
        minutes: for all epochs.
        epochs: as many as are wanted.

    Examples:
        >>> options = [Candidate("resnet18", 224, 50), Candidate("resnet18", 128, 20), Candidate("coke_conv5_w24", 64)]
        >>> times = {224: 700.0, 128: 200.0, 64: 12.0}
        >>> taken, why = fitting(options, lambda c: times[c.size], minutes=60, epochs=200)
        >>> print(taken.size, why.replace("; ", ";\\n"))
        64 on this machine resnet18 at 224 px would take 39 hours for 200 epochs;
        resnet18 at 128 px would take 11 hours;
        coke_conv5_w24 at 64 px takes 40 minutes, of max_minutes=60;
        resnet18 at 128 px is near the limit, and another moment may choose otherwise: backbone=NAME, views.size=NUMBER
    """
    said: list[str] = []
    near = ""
    several = len({option.size for option in options}) > 1
    for option in options:
        epoch = seconds(option) / 60
        name = option.backbone + (f" at {option.size} px" if several else "")
        fits, wanted = minutes / epoch, option.least
        if option != options[-1] and wanted / MARGIN < fits < wanted * MARGIN:
            near = f"; {name} is near the limit, and another moment may choose otherwise: backbone=NAME"
            near += ", views.size=NUMBER" if several else ""
        if fits >= wanted or option == options[-1]:
            has = (
                f"takes {_long(epoch * epochs)}, of max_minutes={minutes:g}"
                if fits >= epochs
                else f"has time for about {fits:.0f} of {epochs} epochs in max_minutes={minutes:g}"
            )
            return option, f"on this machine {'; '.join([*said, f'{name} {has}'])}{near}"
        said.append(f"{name} would take {_long(epoch * epochs)}" + ("" if said else f" for {epochs} epochs"))
    raise AssertionError("there is no network to choose from")


@cache
def seconds_per_image(backbone: str, size: int, device: str) -> float:
    """Of a forward and a backward pass of an untrained network; once in a process. Random states stay as they are."""
    from coke.backbones import create

    with torch.random.fork_rng(devices=[]):
        network = create(backbone, size).to(device).train()
        images = torch.rand(_IMAGES[device], 3, size, size, device=device)
    times: list[float] = []
    while len(times) < 2 or (len(times) < _PASSES and sum(times) < 1):
        began = time.monotonic()
        network(images).square().sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic() - began)
    return min(times) / len(images)


def _long(minutes: float) -> str:
    if minutes >= 100:
        return f"{minutes / 60:.0f} hours"
    return f"{minutes:.0f} minutes" if minutes >= 1.5 else "about a minute"
