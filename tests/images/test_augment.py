"""Each batched operation against torchvision's, image by image."""

import math
from dataclasses import replace

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from coke.images import augment
from coke.images.views import View

from .still_views import STILL, seeded


def pictures(n=6, height=16, width=None):
    """Random, gray, black, white and two-coloured pixels: every case of the colour spaces."""
    images = torch.rand(n, 3, height, width or height, generator=seeded(1))
    images[1] = images[1, :1]
    images[2], images[3] = 0.0, 1.0
    images[4] = images[4].round()
    return images


def drawn(view=STILL, n=6, **values):
    return replace(augment.draw(view, n, seeded()), **values)


def assert_close(found, expected, atol=2e-6):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= atol


# ---------------------------------------------------------------------------------------------- colour

FACTORS = torch.tensor([0.0, 0.3, 0.9, 1.0, 1.2, 1.8])
LUMA = 2e-4  # torchvision's weight of red is 0.2989, ours BT.601's 0.299


@pytest.mark.parametrize(
    ("ours", "theirs", "atol"),
    [
        (augment.adjust_brightness, reference.adjust_brightness, 2e-6),
        (augment.adjust_contrast, reference.adjust_contrast, LUMA),
        (augment.adjust_saturation, reference.adjust_saturation, LUMA),
    ],
)
@pytest.mark.parametrize("shift", range(6))
def test_factors(ours, theirs, atol, shift):
    factors, images = FACTORS.roll(shift), pictures()
    expected = [theirs(image, float(factor)) for image, factor in zip(images, factors, strict=True)]
    assert_close(ours(images, factors[:, None, None, None]), torch.stack(expected), atol)


@pytest.mark.parametrize("shift", range(6))
def test_hue(shift):
    turns = torch.tensor([-0.5, -0.2, 0.0, 0.1, 0.34, 0.5]).roll(shift)
    images = pictures()
    expected = [reference.adjust_hue(image, float(turn)) for image, turn in zip(images, turns, strict=True)]
    assert_close(augment.adjust_hue(images, turns[:, None, None, None]), torch.stack(expected), 1e-5)


@pytest.mark.parametrize(("size", "radius"), [(16, 1), (32, 4)])
def test_blur(size, radius):
    images, sigmas = pictures(height=size), torch.tensor([0.0, 0.05, 0.2, 0.7, 1.3, 2.0])
    expected = [
        image if sigma == 0 else reference.gaussian_blur(image, [2 * radius + 1] * 2, [float(sigma)] * 2)
        for image, sigma in zip(images, sigmas, strict=True)
    ]
    assert_close(augment.blur(images, sigmas, radius), torch.stack(expected))


def test_gray_solarise_and_invert_touch_the_chosen_images_only():
    chosen = torch.tensor([True, False, True, True, True, False])
    images = pictures()
    operations = {
        "gray": (lambda image: reference.rgb_to_grayscale(image, num_output_channels=3), LUMA),
        "solarise": (lambda image: reference.solarize(image, 0.5), 0.0),
        "invert": (reference.invert, 0.0),
    }
    for name, (theirs, atol) in operations.items():
        view = replace(STILL, **{name: 0.5})
        found = augment.colour(images, drawn(view, **{name: chosen}), view)
        expected = torch.stack([theirs(i) if c else i for i, c in zip(images, chosen, strict=True)])
        assert_close(found, expected, atol)
        assert torch.equal(found[~chosen], images[~chosen])


def test_all_colour_steps_in_the_drawn_order():
    view = View(size=64, jitter=(0.4, 0.4, 0.2, 0.1), gray=0.3, blur=0.5, solarise=0.3, invert=0.3)
    images = torch.rand(24, 3, 64, 64, generator=seeded(2))
    draws = augment.draw(view, 24, seeded(3))
    radius = math.ceil(4 * 64 / 224)
    jitters = (
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    )
    expected = []
    for row, image in enumerate(images):
        for which in draws.order:
            image = jitters[which](image, float(draws.jitter[row, which]))
        if draws.gray[row]:
            image = reference.rgb_to_grayscale(image, 3)
        if draws.sigma[row] > 0:
            image = reference.gaussian_blur(image, [2 * radius + 1] * 2, [float(draws.sigma[row])] * 2)
        if draws.solarise[row]:
            image = torch.where((image - 0.5).abs() < 1e-3, torch.nan, reference.solarize(image, 0.5))
        expected.append(reference.invert(image) if draws.invert[row] else image)
    expected, found = torch.stack(expected), augment.colour(images, draws, view)
    decided = ~expected.isnan()  # at the threshold of the solarisation rounding decides
    assert decided.float().mean() > 0.99
    assert (found - expected)[decided].abs().max() < 1e-3
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


def test_colour_leaves_its_input_alone():
    view = View(size=16, jitter=(0.4, 0.4, 0.2, 0.1), gray=1.0, blur=1.0, solarise=1.0, invert=1.0)
    images = pictures()
    before = images.clone()
    augment.colour(images, augment.draw(view, 6, seeded()), view)
    augment.colour(images, drawn(), STILL)
    assert torch.equal(images, before)


@pytest.mark.parametrize("rotation", [0.0, 30.0])
def test_a_gpu_s_way_of_changing_some_images_gives_the_same(monkeypatch, rotation):
    """It computes every change of every image and keeps the chosen ones."""
    view = View(
        size=16, jitter=(0.4, 0.4, 0.2, 0.1), gray=0.5, blur=0.5, solarise=0.5, invert=0.5, rotation=rotation
    )
    images = torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8, generator=seeded(1))
    draws = augment.draw(view, 40, seeded())
    here = augment.colour(augment.orient(images, draws, view), draws, view)
    monkeypatch.setattr(augment, "_change_rows", augment._change_everywhere)
    there = augment.colour(augment.orient(images, draws, view), draws, view)
    # at the threshold of the solarisation rounding decides
    assert ((there - here).abs() < 1e-5).float().mean() > 0.999
    assert (there.flatten(1) != here.flatten(1)).any(dim=1).sum() < 20  # most are the same to the bit


@pytest.mark.parametrize("cached", [1, 2000, 3000, 1 << 30])
def test_parts_that_fit_the_caches_change_nothing(monkeypatch, cached):
    view = View(size=16, jitter=(0.4, 0.4, 0.2, 0.1), gray=0.5, blur=0.5, solarise=0.5, invert=0.5)
    images, draws = pictures(11), augment.draw(view, 11, seeded())
    seen = []

    def change(some, their):
        seen.append(len(some))
        return augment.colour(some, their, view)

    monkeypatch.setattr(augment, "_CACHED", cached)
    found = augment.in_parts(images, draws, change)
    assert seen == {1: [1] * 11, 2000: [2] * 5 + [1], 3000: [3] * 3 + [2]}.get(cached, [11])
    assert_close(found, augment.colour(images, draws, view), 1e-6)


# ---------------------------------------------------------------------------------------------- place

BOXES = torch.tensor(
    [[0, 0, 8, 8], [3, 5, 9, 7], [0, 0, 20, 12], [12, 4, 8, 8], [7, 1, 3, 10], [19, 11, 1, 1]]
).float()


@pytest.mark.parametrize("size", [20, 31])
def test_enlarging_crops_equal_resized_crop(size):
    """Between the centers of the crop's outermost pixels; beyond them ours goes on into the image."""
    images = torch.rand(6, 3, 12, 20, generator=seeded(5))
    found = augment.warp(images, BOXES, drawn(), size)
    for row, (left, top, width, height) in enumerate(BOXES.int().tolist()):
        expected = reference.resized_crop(
            images[row], top, left, height, width, [size, size], antialias=False
        )
        inside_x, inside_y = (math.ceil(size / side / 2 - 0.5) for side in (width, height))
        within = (..., slice(inside_y, size - inside_y or None), slice(inside_x, size - inside_x or None))
        if expected[within].numel():
            assert_close(found[row][within], expected[within], 1e-5)
        if (width, height) == (20, 12):
            assert_close(found[row], expected, 1e-5)


@pytest.mark.parametrize("size", [20, 31])
def test_what_lies_beyond_the_crop_is_the_image(size):
    """A crop that another crop contains shows the same pixels as the part of it."""
    images = torch.rand(1, 3, 40, 40, generator=seeded(5))
    whole = augment.warp(images, torch.tensor([[0.0, 0.0, 40.0, 40.0]]), drawn(n=1), 2 * size)
    part = augment.warp(images, torch.tensor([[20.0, 0.0, 20.0, 20.0]]), drawn(n=1), size)
    assert_close(part[0], whole[0, :, :size, size:], 1e-5)


def test_bytes_become_fractions_and_untouched_images_stay():
    images = torch.randint(256, (6, 3, 16, 16), generator=seeded(), dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 16.0, 16.0]]).expand(6, 4)
    assert_close(augment.warp(images, boxes, drawn(), 16), images / 255, 1e-5)
    assert torch.equal(augment.orient(images, drawn(), STILL), images / 255)


def test_flips_mirror_the_crop():
    images = torch.rand(6, 3, 12, 20, generator=seeded(5))
    flip = torch.tensor([True, False, True, True, False, True])
    plain = augment.warp(images, BOXES, drawn(), 24)
    found = augment.warp(images, BOXES, drawn(flip=flip), 24)
    for row in range(6):
        expected = reference.horizontal_flip(plain[row]) if flip[row] else plain[row]
        assert_close(found[row], expected, 1e-5)
    square = torch.rand(6, 3, 16, 16, generator=seeded(6))
    turned = augment.orient(square, drawn(flip=flip), STILL)
    expected = [reference.horizontal_flip(i) if f else i for i, f in zip(square, flip, strict=True)]
    assert torch.equal(turned, torch.stack(expected))


@pytest.mark.parametrize("quarter", [1, 2, 3, -1])
def test_quarter_turns_move_pixels_whole(quarter):
    images = torch.rand(6, 3, 16, 16, generator=seeded(6))
    draws = drawn(angle=torch.full((6,), quarter * math.pi / 2))
    found = augment.orient(images, draws, replace(STILL, rotation=180.0))
    assert_close(found, torch.rot90(images, quarter, (2, 3)), 1e-5)


def test_turns_equal_torchvision_inside_the_circle():
    images = torch.rand(6, 3, 32, 32, generator=seeded(6))
    angles = torch.tensor([-170.0, -30.0, 5.0, 45.0, 100.0, 179.0])
    found = augment.orient(images, drawn(angle=angles.deg2rad()), replace(STILL, rotation=180.0))
    axis = torch.arange(32) - 15.5
    circle = (axis[:, None] ** 2 + axis**2) < 15**2
    for row, angle in enumerate(angles.tolist()):
        expected = reference.rotate(images[row], angle, reference.InterpolationMode.BILINEAR)
        assert_close(found[row][:, circle], expected[:, circle], 1e-4)


def test_a_turned_picture_is_then_flipped_in_both_paths():
    """Resident images are cropped, turned and flipped at once, decoded ones after the crop: the same picture."""
    images = torch.rand(4, 3, 16, 16, generator=seeded(6))
    flip = torch.tensor([True, False, True, False])
    draws = drawn(n=4, angle=torch.full((4,), math.pi / 2), flip=flip)
    whole = torch.tensor([[0.0, 0.0, 16.0, 16.0]]).expand(4, 4)
    turned = torch.rot90(images, 1, (2, 3))
    expected = torch.where(flip[:, None, None, None], turned.flip(-1), turned)
    assert_close(augment.warp(images, whole, draws, 16), expected, 1e-5)
    assert_close(augment.orient(images, draws, replace(STILL, rotation=180.0)), expected, 1e-5)
