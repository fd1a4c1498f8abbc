"""Small pictures: bounded, neither enlarged nor cut, and the same picture."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from coke.errors import DataError
from coke.explore.thumbnails import LONGER, SHORTER, thumbnail, thumbnails
from coke.images import Rows


@pytest.mark.parametrize(
    ("width", "height", "wanted"),
    [
        (32, 32, (32, 32)),
        (500, 375, (128, 96)),
        (375, 500, (96, 128)),
        (4000, 100, (384, 10)),
        (3000, 1, (384, 1)),
    ],
)
def test_sides_are_bounded_and_keep_their_ratio(width: int, height: int, wanted: tuple[int, int]) -> None:
    picture = Image.open(io.BytesIO(thumbnail(torch.zeros(3, height, width, dtype=torch.uint8))))
    assert picture.size == wanted
    assert picture.format == "JPEG"
    assert min(picture.size) <= SHORTER
    assert max(picture.size) <= LONGER


def test_it_is_the_same_picture() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).repeat_interleave(2).expand(3, 300, 512)
    shown = np.asarray(Image.open(io.BytesIO(thumbnail(ramp))).convert("RGB"), float)
    wanted = np.linspace(0, 255, shown.shape[1])
    assert np.abs(shown - wanted[None, :, None]).max() < 8


class Source:
    """Image ``row`` is grey of that level; every seventh cannot be read."""

    def load(self, row: int) -> torch.Tensor:
        if row % 7 == 3:
            raise DataError(f"no {row}")
        return torch.full((3, 8, 8), row % 256, dtype=torch.uint8)


def test_they_come_in_order_with_reasons_in_the_gaps() -> None:
    found = list(thumbnails(Rows("grey", [""] * 600, Source()), range(5, 600)))
    assert len(found) == 595
    for row, one in enumerate(found, 5):
        if row % 7 == 3:
            assert one == f"no {row}"
        else:
            assert isinstance(one, bytes)
            assert abs(np.asarray(Image.open(io.BytesIO(one)), float).mean() - row % 256) < 3
