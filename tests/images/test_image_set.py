"""The centre crop that evaluation uses, against torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as vision

from coke.images import open_data
from coke.images.image_set import center

from .builders import encode, picture


def write(folder, sizes):
    for seed, (height, width) in enumerate(sizes):
        (folder / f"{seed}.png").write_bytes(encode(picture(seed, height, width)))
    return open_data(folder, resident_bytes=0).train


@pytest.mark.parametrize("size", [24, 80])
def test_centre_is_torchvisions_resize_and_crop(size):
    for height, width in [(90, 140), (141, 91), (100, 100), (20, 33)]:
        image = torch.from_numpy(picture(0, height, width)).permute(2, 0, 1)
        shorter = size if size <= 64 else round(size * 256 / 224)
        bicubic = vision.InterpolationMode.BICUBIC
        expected = vision.center_crop(
            vision.resize(image.float(), [shorter], interpolation=bicubic, antialias=True), [size, size]
        )
        assert (center(image, size) - expected.round().clamp(0, 255)).abs().max() <= 1


@pytest.mark.parametrize("size", [1, 7, 64, 65, 224])
def test_every_shape_gives_the_size_asked_for(size):
    for height, width in [(1, 1), (3, 200), (64, 64), (65, 64), (230, 228)]:
        image = torch.full((3, height, width), 77, dtype=torch.uint8)
        assert center(image, size).shape == (3, size, size)
        assert center(image, size).unique().tolist() == [77]


def test_batches_come_in_order_and_the_last_is_short(tmp_path):
    images = write(tmp_path, [(10, 10), (20, 14), (10, 10), (9, 30), (10, 10)])
    batches = list(images.centered(10, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    together = torch.cat(batches)
    assert together.dtype == torch.uint8
    for index in (0, 2, 4):  # of the size already: untouched
        assert np.array_equal(together[index].permute(1, 2, 0).numpy(), picture(index, 10, 10))
    assert all(torch.equal(together[i], center(images.read(i), 10)) for i in range(5))


def test_images_in_memory_give_the_same_as_decoded_ones(tmp_path):
    stored = write(tmp_path, [(12, 16)] * 5)
    resident = open_data(tmp_path).train.subset([4, 0, 2])
    assert resident.pixels is not None
    for size in (8, 12, 70):
        expected = torch.cat(list(stored.subset([4, 0, 2]).centered(size, 2)))
        assert torch.equal(torch.cat(list(resident.centered(size, 3))), expected)
