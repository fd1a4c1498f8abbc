"""Crops of the augmented probe: those that training draws, from memory and from files."""

import torch

from coke.evaluation.augmented import random_crops


def crops(images, size, seed=1):
    return random_crops(images, torch.arange(len(images)), size, torch.Generator().manual_seed(seed))


def test_crops_of_a_batch_and_one_by_one_agree_when_enlarging(make_set, make_folder, noise):
    pixels = noise(24, 12)
    batch, single = crops(make_set(pixels), 12), crops(make_folder(list(pixels)), 12).float()
    # at a crop's rim the batched one sees one pixel beyond it, the single one does not; nor is the latter rounded
    assert (batch - single)[:, :, 5:-5, 5:-5].abs().max() < 1.5


def test_one_seed_one_result_in_memory_and_from_files(make_set, make_folder, noise):
    images = [
        noise(1, height, width, seed=height)[0] for height, width in ((20, 30), (9, 50), (40, 11), (8, 8))
    ]
    folder = make_folder(images)
    rows = torch.tensor([2, 0, 3])
    first, again = (random_crops(folder, rows, 8, torch.Generator().manual_seed(1)) for _ in "ab")
    assert first.shape == (3, 3, 8, 8)
    assert torch.equal(first, again)
    assert not torch.equal(first, random_crops(folder, rows, 8, torch.Generator().manual_seed(2)))
    assert 0 <= first.min() <= first.max() <= 255
    resident = make_set(noise(5, 8))
    crops = random_crops(resident, torch.arange(5), 8, torch.Generator().manual_seed(1))
    assert crops.shape == (5, 3, 8, 8)
    assert 0 <= crops.min() <= crops.max() <= 255


def test_shrinking_averages_instead_of_skipping(make_set):
    checks = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255).to(torch.uint8)
    images = make_set(checks.expand(4, 3, 64, 64).contiguous())
    crops = random_crops(images, torch.arange(4), 4, torch.Generator().manual_seed(0))
    assert (crops - 127.5).abs().max() < 30  # single pixels would give 0 or 255
