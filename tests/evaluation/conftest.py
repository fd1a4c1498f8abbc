"""Small image sets, held in memory or read from files."""

import pytest
import torch
from PIL import Image

from coke.images.scan import scan
from coke.images.table import Files, Pixels, Rows


def in_memory(pixels, labels=None, name="made"):
    """An image set of uint8 [N, 3, H, W]."""
    keys = [f"row {index}" for index in range(len(pixels))]
    return scan(Rows(name, keys, Pixels(pixels), labels, None if labels is None else list("abcdefghij")))


@pytest.fixture
def make_set():
    return in_memory


@pytest.fixture
def make_folder(tmp_path):
    """The same images as PNG files, decoded at every read: several sizes are fine."""

    def make(images, labels=None):
        keys = [f"{index:04d}.png" for index in range(len(images))]
        for key, image in zip(keys, images, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / key)
        rows = Rows(
            "files", keys, Files(tmp_path, keys), labels, None if labels is None else list("abcdefghij")
        )
        return scan(rows, resident_bytes=0)

    return make


@pytest.fixture
def noise():
    """Deterministic random pixels: uint8 [n, 3, height, width]."""

    def draw(n, height, width=None, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(256, (n, 3, height, width or height), generator=generator, dtype=torch.uint8)

    return draw
