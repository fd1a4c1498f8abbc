"""The example of a loop of one's own runs, learns and keeps its bounds, and the documentation shows it."""

import ast
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "own_loop.py"
EPOCH = re.compile(r"epoch (\d+): loss (\S+), sizes (\[.*\])")
N_IMAGES, N_CLUSTERS, RATIO = 2000, 20, 0.4


@pytest.fixture(scope="module")
def epochs() -> list[tuple[float, list[int]]]:
    """Loss and sizes of each epoch, as printed."""
    command = [sys.executable, str(EXAMPLE)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    found = [EPOCH.fullmatch(line) for line in done.stdout.splitlines()]
    assert all(found), done.stdout
    assert [int(match[1]) for match in found if match] == list(range(len(found)))
    return [(float(match[2]), ast.literal_eval(match[3])) for match in found if match]


@pytest.mark.slow
def test_loss_falls_below_chance(epochs: list[tuple[float, list[int]]]) -> None:
    losses = [loss for loss, _ in epochs]
    assert math.isnan(losses[0])  # the first pass only clusters
    assert losses[-1] < losses[1]
    assert losses[-1] < 0.9 * math.log(N_CLUSTERS)


@pytest.mark.slow
def test_sizes_hold(epochs: list[tuple[float, list[int]]]) -> None:
    """Online, a bound may be missed by a few images while features move; it must not be missed by much."""
    for _, sizes in epochs:
        assert sum(sizes) == N_IMAGES
        assert len(sizes) == N_CLUSTERS
        assert min(sizes) >= 0.75 * RATIO * N_IMAGES / N_CLUSTERS


def test_example_is_short_and_without_the_trainer() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 40
    assert not re.search(r"trainer|lightning|pretrain\b", "\n".join(text.splitlines()[1:]))
    assert {"LabelMemory", "Objective", "OnlineConstrainedKMeans"} <= set(re.findall(r"\w+", text))
    assert f"N, BATCH, K, DIM, RATIO = {N_IMAGES}, 128, {N_CLUSTERS}, 64, {RATIO}" in text


def test_documentation_shows_the_same_code() -> None:
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own-loop.md").read_text(), re.S)
    assert shown[0] == EXAMPLE.read_text()
