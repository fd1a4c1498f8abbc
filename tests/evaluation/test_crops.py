"""Crops by grid sampling and one by one are the same crops."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coke.evaluation.augmented import crop_batch, crop_one, random_boxes, random_crops


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 1000))
def test_boxes_lie_inside_their_images(height, width, seed):
    sizes = torch.tensor([[height, width]] * 50)
    boxes = random_boxes(sizes, torch.Generator().manual_seed(seed))
    assert bool((boxes[:, :2] >= 0).all())
    assert bool((boxes[:, 2:] >= 1).all())
    assert bool((boxes[:, :2] + boxes[:, 2:] <= sizes + 1e-3).all())


def test_areas_and_aspects_are_those_asked_for():
    boxes = random_boxes(torch.full((20_000, 2), 100), torch.Generator().manual_seed(0))
    share, aspect = boxes[:, 2:].prod(dim=1) / 10_000, boxes[:, 3] / boxes[:, 2]
    assert 0.0799 <= share.min() < 0.09
    assert 0.95 < share.max() <= 1
    assert abs(share.mean() - 0.53) < 0.02  # (0.08 + 1) / 2, less what clipping costs
    assert 0.7499 <= aspect.min() < 0.76
    assert 1.32 < aspect.max() < 1.3334
    middle = boxes[:, :2] + boxes[:, 2:] / 2
    assert torch.allclose(middle.mean(dim=0), torch.tensor(50.0), atol=0.5)


def test_the_whole_image_comes_back_unchanged_or_mirrored(noise):
    pixels = noise(2, 8)
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]] * 2)
    found = crop_batch(pixels, boxes, torch.tensor([False, True]), 8)
    assert torch.allclose(found[0], pixels[0].float(), atol=1e-3)
    assert torch.allclose(found[1], pixels[1].flip(-1).float(), atol=1e-3)
    assert torch.equal(crop_one(pixels[1], boxes[1], True, 8), pixels[1].flip(-1).float())


def test_batched_and_single_crops_agree_when_enlarging(noise):
    pixels = noise(6, 12)
    boxes = torch.tensor(
        [[1.0, 2, 6, 5], [0, 0, 12, 9], [3, 3, 4, 4], [0, 6, 8, 6], [5, 5, 7, 7], [2, 0, 3, 12]]
    )
    flips = torch.tensor([True, False] * 3)
    found = crop_batch(pixels, boxes, flips, 12)
    for row in range(6):
        single = crop_one(pixels[row], boxes[row], bool(flips[row]), 12)
        # at a crop's rim the batched one sees one pixel beyond it, the single one does not
        assert torch.allclose(found[row][:, 3:-3, 3:-3], single[:, 3:-3, 3:-3], atol=0.05)


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
