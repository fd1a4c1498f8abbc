"""Runs that take a third of a second: a few hundred textures, a network of two convolutions, four epochs."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from coke.images.textures import textures
from coke.run import Run
from coke.training.checkpoint import load

TIMES = {"seconds", "data_wait", "images_per_second"}
SETTINGS: dict[str, Any] = {
    "n_clusters": [4, 6],
    "dim": 16,
    "batch_size": 40,
    "epochs": 4,
    "learning_rate": 0.05,
    "log_every": 1,
    "tensorboard": False,
    "linear_probe": False,
    "workers": 0,
    "views.size": 16,
}


class Tiny(nn.Module):
    """Two convolutions: [B, 3, H, W] -> [B, 16].

    Args:
        dropout: makes training depend on the random state.
        interrupt_at: the training forward pass, counted from 1, during which the process is sent a SIGTERM.
    """

    def __init__(self, dropout: float = 0.0, interrupt_at: int | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
        )
        self.calls, self.interrupt_at = 0, interrupt_at

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            if self.calls == self.interrupt_at:
                signal.raise_signal(signal.SIGTERM)
        return self.layers(images)


def tiny(seed: int = 0, **arguments: Any) -> Tiny:
    """A `Tiny` whose weights follow from the seed."""
    torch.manual_seed(seed)
    return Tiny(**arguments)


def write_textures(
    folder: Path,
    n_images: int = 200,
    *,
    size: int = 16,
    seed: int = 0,
    labelled: bool = False,
    mixed: bool = False,
) -> Path:
    """Textures as PNG files, in class folders if labelled; ``mixed`` sizes are not held in memory."""
    pixels, labels = textures(n_images, size=size, seed=seed)
    for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        place = folder / f"class {label}" if labelled else folder
        place.mkdir(parents=True, exist_ok=True)
        width = size - number % 3 if mixed else size
        Image.fromarray(image.permute(1, 2, 0).numpy()[:, :width]).save(place / f"{number:04d}.png")
    return folder


def records(run: Run) -> list[dict[str, Any]]:
    """What a run measured, without what the clock said."""
    kept = [record for record in run.metrics() if record["kind"] != "event"]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in kept]


def assert_same_run(left: Run, right: Run) -> None:
    """Two finished runs measured, learned and wrote the same, bit for bit."""
    assert_equal(records(left), records(right))
    for name in ("backbone", "clusters", "initial"):
        assert_equal(load_file(getattr(left, name)), load_file(getattr(right, name)), name)
    assert left.assignments.read_bytes() == right.assignments.read_bytes()
    states = [{k: v for k, v in load(run).items() if k not in ("elapsed", "config")} for run in (left, right)]
    assert_equal(*states)


def assert_equal(left: Any, right: Any, where: str = "") -> None:
    """Equal to the last bit, NaN equal to itself, through lists, mappings and tensors."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_equal(one, other, f"{where}.{index}")
    elif isinstance(left, Tensor):
        assert left.dtype == right.dtype, where
        assert torch.equal(left, right), where
    elif not (isinstance(left, float) and math.isnan(left) and math.isnan(right)):
        assert left == right, where
