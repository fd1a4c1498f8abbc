"""Each batched operation against torchvision's, image by image; and what is drawn, by its distribution."""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from coke.training import augment
from coke.training.views import View

STILL = View(
    size=16,
    crop=(1.0, 1.0),
    ratio=(1.0, 1.0),
    flip=0.0,
    jitter=(0.0, 0.0, 0.0, 0.0),
    gray=0.0,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


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


# ---------------------------------------------------------------------------------------------- draws


@settings(max_examples=150)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 700), st.integers(1, 700)), min_size=1, max_size=20),
    crop=st.tuples(st.floats(1e-4, 1), st.floats(1e-4, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.1, 8), st.floats(0.1, 8)).map(sorted),
    seed=st.integers(0, 1000),
)
def test_boxes_stay_inside_any_image(sizes, crop, ratio, seed):
    view = View(crop=tuple(crop), ratio=tuple(ratio))
    heights, widths = torch.tensor(sizes).float().unbind(1)
    boxes = augment.crop_boxes(augment.draw(view, len(sizes), seeded(seed)), heights, widths)
    left, top, width, height = boxes.unbind(1)
    assert torch.equal(boxes, boxes.round())
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (width >= 1).all()
    assert (height >= 1).all()
    assert (left + width <= widths).all()
    assert (top + height <= heights).all()


def test_boxes_have_the_asked_areas_ratios_and_places():
    n, side = 20_000, torch.tensor(1000.0)
    view = View(crop=(0.2, 0.5), ratio=(0.5, 2.0))
    boxes = augment.crop_boxes(augment.draw(view, n, seeded()), side.expand(n), side.expand(n))
    left, top, width, height = boxes.unbind(1)
    share, ratio = width * height / 1e6, (width / height).log()
    quantiles = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])

    def spread(values, low, high):
        return (torch.quantile((values - low) / (high - low), quantiles) - quantiles).abs().max()

    assert spread(share, 0.2, 0.5) < 0.02  # all such boxes fit: uniform
    assert spread(ratio, math.log(0.5), math.log(2)) < 0.02
    assert spread(left / (1000 - width), 0, 1) < 0.02
    assert spread(top / (1000 - height), 0, 1) < 0.02


def test_every_place_is_as_likely_as_any_other():
    view, side = View(crop=(0.25, 0.25), ratio=(1.0, 1.0)), torch.full((6000,), 4.0)
    boxes = augment.crop_boxes(augment.draw(view, 6000, seeded()), side, side)
    assert boxes[:, 2:].unique(dim=0).tolist() == [[2, 2]]
    places, counts = boxes[:, :2].unique(dim=0, return_counts=True)
    assert places.tolist() == [[x, y] for x in (0, 1, 2) for y in (0, 1, 2)]
    assert (counts / 6000 - 1 / 9).abs().max() < 0.02


def test_a_crop_of_all_is_the_image():
    sizes = torch.full((50,), 33.0)
    boxes = augment.crop_boxes(augment.draw(STILL, 50, seeded()), sizes, sizes)
    assert boxes.unique(dim=0).tolist() == [[0, 0, 33, 33]]


def test_a_crop_that_fits_no_image_becomes_the_largest_of_its_shape():
    view = View(crop=(0.9, 1.0), ratio=(1.0, 1.0))
    heights, widths = torch.full((50,), 10.0), torch.full((50,), 200.0)
    boxes = augment.crop_boxes(augment.draw(view, 50, seeded()), heights, widths)
    assert boxes[:, 2:].unique(dim=0).tolist() == [[10, 10]]


def test_draws_follow_from_the_generator_alone():
    view = View(blur=0.5, rotation=30.0, invert=0.5, solarise=0.5)
    one, same, other = (augment.draw(view, 40, seeded(seed)) for seed in (1, 1, 2))
    torch.rand(3)
    for field in fields(one):
        a, b, c = (getattr(draws, field.name) for draws in (one, same, other))
        if isinstance(a, Tensor):
            assert torch.equal(a, b), field.name
            assert not torch.equal(a, c), field.name
        else:
            assert a == b


def test_rows_are_the_rows():
    draws = augment.draw(View(), 10, seeded())
    for rows in (slice(2, 5), torch.tensor([2, 3, 4])):
        part = draws.rows(rows)
        assert part.order == draws.order
        assert torch.equal(part.jitter, draws.jitter[2:5])
        assert torch.equal(part.flip, draws.flip[2:5])


def test_probabilities_and_ranges_are_as_asked():
    view = View(
        size=112,
        flip=0.3,
        rotation=90.0,
        jitter=(0.8, 0.4, 1.5, 0.2),
        jitter_probability=0.6,
        gray=0.1,
        blur=0.7,
        solarise=0.2,
        invert=0.4,
    )
    draws = augment.draw(view, 20_000, seeded())
    for name in ("flip", "gray", "solarise", "invert"):
        assert getattr(draws, name).float().mean() == pytest.approx(getattr(view, name), abs=0.015)
    jittered = draws.jitter[:, 3] != 0
    assert jittered.float().mean() == pytest.approx(0.6, abs=0.015)
    assert torch.equal(
        draws.jitter[~jittered], torch.tensor([[1.0, 1.0, 1.0, 0.0]]).expand(int((~jittered).sum()), 4)
    )
    low, high = draws.jitter.amin(0).tolist(), draws.jitter.amax(0).tolist()
    assert low == pytest.approx([0.2, 0.6, 0.0, -0.2], abs=0.01)
    assert high == pytest.approx([1.8, 1.4, 2.5, 0.2], abs=0.01)
    blurred = draws.sigma[draws.sigma > 0]
    assert len(blurred) / 20_000 == pytest.approx(0.7, abs=0.015)
    assert float(blurred.min()) == pytest.approx(0.05, abs=0.005)  # 0.1 px at 224 px
    assert float(blurred.max()) == pytest.approx(1.0, abs=0.005)
    assert draws.angle.abs().max() <= math.pi / 2
    orders = {augment.draw(view, 1, seeded(seed)).order for seed in range(200)}
    assert len(orders) == 24
