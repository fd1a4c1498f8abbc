from __future__ import annotations

import pytest

from coke.data import open_data
from coke.data.images import ImageSet


@pytest.fixture(scope="session")
def textures() -> ImageSet:
    """200 of the embedded images, with labels."""
    return open_data("textures").train.subset(range(200))
