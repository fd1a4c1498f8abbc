"""What is drawn for a view: boxes inside any image, distributions as asked, and all of it from the seed."""

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coke.images import augment
from coke.images.views import View

from .still_views import STILL, seeded


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
