from __future__ import annotations

import pytest

from coke.images import open_data
from coke.images.image_set import ImageSet


@pytest.fixture(scope="session")
def textures() -> ImageSet:
    """200 of the embedded images, with labels."""
    return open_data("textures").train.subset(range(200))
