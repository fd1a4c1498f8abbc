"""The embedded default: ten procedural textures, made here, the same for a seed on every run.

Angle, phase, pitch, bend, polarity, light and noise are random in every image, so that raw pixels say little;
what differs between classes is local structure, which a convolutional network can learn without labels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from coke.errors import DataError
from coke.images.table import Pixels, Rows, Table, row_keys

NAME = "textures"
CLASSES = ("stripes", "checks", "dots", "rings", "waves", "bars", "grids", "cells", "blobs", "hexagons")
TINT = (1.0, 0.97, 0.9)
"""Warm paper, the same for all classes and images: colour carries no class."""

_Pattern = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
_CELL = np.sqrt(np.sqrt(3) / 2)
"""Scales a triangular lattice so that it has one point per unit of area, as the square one has."""


def textures(n_images: int, size: int = 24, seed: int = 0, difficulty: float = 0.4) -> tuple[Tensor, Tensor]:
    """``n_images`` textures, uint8 [n, 3, size, size], and their labels, int64 [n], numbers of `CLASSES`.

    Labels are balanced (counts differ by at most one) and shuffled. difficulty in [0, 1] scales the standard
    deviation of the noise (a third of it) and the light gradient across the image (two thirds of it), where
    the range of values is 1.

    >>> images, labels = textures(20, size=24, seed=0)
    >>> images.shape, torch.bincount(labels).tolist()
    (torch.Size([20, 3, 24, 24]), [2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """
    if n_images < 1 or size < 1 or not 0 <= difficulty <= 1:
        raise DataError(
            "textures need n_images >= 1, size >= 1 and difficulty in [0, 1], "
            f"got {n_images}, {size}, {difficulty}"
        )
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(n_images) % len(CLASSES))
    grey = np.empty((n_images, size, size), dtype=np.float32)
    for number, name in enumerate(CLASSES):
        members = np.flatnonzero(labels == number)
        if len(members):
            grey[members] = _draw(_PATTERNS[name], len(members), size, random)
    grey = _photograph(grey, difficulty, random)
    tinted = grey[:, None] * np.asarray(TINT, dtype=np.float32)[:, None, None]
    pixels = np.rint(np.clip(tinted, 0, 1) * 255).astype(np.uint8)
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))


def find_textures() -> Table:
    """The embedded default: 5,000 images to learn from, 1,000 to ask probes about."""

    def read(n_images: int, seed: int, name: str) -> Rows:
        pixels, labels = textures(n_images, seed=seed)
        return Rows(name, row_keys(n_images), Pixels(pixels), labels, list(CLASSES))

    return Table(NAME, {"train": partial(read, 5000, 0), "test": partial(read, 1000, 1)})


def _draw(pattern: _Pattern, n_images: int, size: int, random: np.random.Generator) -> np.ndarray:
    """A pattern in [-1, 1] at random angle, pitch (4.5 to 9 pixels) and phase: float32 [n, size, size]."""
    side = np.arange(size, dtype=np.float32) - (size - 1) / 2
    angle = _uniform(random, 0, 2 * np.pi, n_images)
    pitch = _uniform(random, 4.5, 9, n_images)
    x, y = side[None, None, :] / pitch, side[None, :, None] / pitch
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    u, v = u + _bend(u, v, pitch, random), v + _bend(u, v, pitch, random)
    u, v = u + _uniform(random, 0, 64, n_images), v + _uniform(random, 0, 64, n_images)
    return np.clip(pattern(u, v, random), -1, 1)


def _uniform(random: np.random.Generator, low: float, high: float, n_images: int) -> np.ndarray:
    """One number for each image, float32 [n, 1, 1]."""
    return random.uniform(low, high, (n_images, 1, 1)).astype(np.float32)


def _bend(u: np.ndarray, v: np.ndarray, pitch: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A displacement of a fifth of a pitch over 16 to 32 pixels, as of cloth: [n, size, size].

    Without it two images of a class at about the same angle and pitch coincide, and raw pixels find it.
    """
    direction = _uniform(random, 0, 2 * np.pi, len(u))
    length = _uniform(random, 16, 32, len(u)) / pitch
    phase = _uniform(random, 0, 1, len(u))
    return 0.2 * _wave((np.cos(direction) * u + np.sin(direction) * v) / length + phase)


def _photograph(pattern: np.ndarray, difficulty: float, random: np.random.Generator) -> np.ndarray:
    """Polarity, contrast, brightness, light from one side and noise: float32 [n, size, size] around 0.5."""
    n_images, size, _ = pattern.shape
    polarity = np.where(random.random((n_images, 1, 1)) < 0.5, np.float32(-1), np.float32(1))
    contrast = _uniform(random, 0.25, 0.4, n_images)
    brightness = _uniform(random, 0.45, 0.55, n_images)
    direction = _uniform(random, 0, 2 * np.pi, n_images)
    side = (np.arange(size, dtype=np.float32) - (size - 1) / 2) / max(size - 1, 1)
    light = np.cos(direction) * side[None, None, :] + np.sin(direction) * side[None, :, None]
    noise = random.standard_normal(pattern.shape, dtype=np.float32)
    return brightness + contrast * polarity * pattern + difficulty * (light * 2 / 3 + noise / 3)


def _edge(distance: np.ndarray) -> np.ndarray:
    """Positive distances white, negative black, with an edge about a pixel wide (distances in pitches)."""
    return np.clip(6 * distance, -1, 1)


def _wave(position: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * position)


def _from_line(position: np.ndarray) -> np.ndarray:
    """Distance to the nearest whole number, 0 to 0.5."""
    return np.abs(position - np.rint(position))


def _stripes(u: np.ndarray, v: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _edge(0.25 - _from_line(u))


def _checks(u: np.ndarray, v: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _edge(0.35 * _wave(u / 1.4) * _wave(v / 1.4))


def _dots(u: np.ndarray, v: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _edge(0.28 - np.hypot(_from_line(u), _from_line(v)))


def _rings(u: np.ndarray, v: np.ndarray, random: np.random.Generator) -> np.ndarray:
    radius = np.hypot(_from_line(u / 1.3), _from_line(v / 1.3)) * 1.3
    return _edge(0.12 - np.abs(radius - 0.42))


def _waves(u: np.ndarray, v: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _edge(0.25 - _from_line(u + 0.3 * _wave(v / 1.5)))


def _bars(u: np.ndarray, v: np.ndarray, random: np.random.Generator) -> np.ndarray:
    shifted = v / 2 + np.rint(u) / 2  # every other column by half a bar, as in brickwork
    return _edge(np.minimum(0.22 - _from_line(u), 2 * (0.3 - _from_line(shifted))))


def _grids(u: np.ndarray, v: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _edge(0.12 - np.minimum(_from_line(u), _from_line(v)))


def _cells(u: np.ndarray, v: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Edges between the regions nearest to points that lie at random, one in each square."""
    shift = random.uniform(-0.45, 0.45, (2, len(u), 11, 11)).astype(np.float32)
    column, row = np.rint(u).astype(np.int64), np.rint(v).astype(np.int64)
    which = np.arange(len(u))[:, None, None]
    distances = []
    for right in (-1, 0, 1):
        for up in (-1, 0, 1):
            at = which, (column + right) % 11, (row + up) % 11
            distances.append(np.hypot(u - (column + right + shift[0][at]), v - (row + up + shift[1][at])))
    nearest = np.partition(np.stack(distances), 1, axis=0)
    return _edge(nearest[1] - nearest[0] - 0.15)


def _blobs(u: np.ndarray, v: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Where a sum of plane waves in random directions is high: round shapes without a lattice."""
    total = np.zeros_like(u)
    for _ in range(10):
        direction = _uniform(random, 0, 2 * np.pi, len(u))
        offset, pace = _uniform(random, 0, 1, len(u)), _uniform(random, 0.5, 0.8, len(u))
        total += _wave(pace * (np.cos(direction) * u + np.sin(direction) * v) + offset)
    return _edge(0.12 * total)


def _hexagons(u: np.ndarray, v: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Honeycomb: edges between the regions nearest to the points of a triangular lattice."""
    u, v = u * _CELL * 0.85, v * _CELL * 0.85
    distances = []
    for offset in (0.0, 0.5):  # the lattice is two rectangular ones, side by side
        row = np.rint(v / np.sqrt(3) - offset) + offset
        column = np.rint(u - offset) + offset
        for right in (-1, 0, 1):
            distances.append(np.hypot(u - column - right, v - row * np.sqrt(3)))
    nearest = np.partition(np.stack(distances), 1, axis=0)
    return _edge(nearest[1] - nearest[0] - 0.18)


_PATTERNS: dict[str, _Pattern] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "rings": _rings,
    "waves": _waves,
    "bars": _bars,
    "grids": _grids,
    "cells": _cells,
    "blobs": _blobs,
    "hexagons": _hexagons,
}
