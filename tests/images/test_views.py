"""What a view may be."""

import math

import pytest

from coke.errors import ConfigError
from coke.images.views import View


def test_the_defaults_are_a_clustered_view():
    view = View()
    assert view.clusters
    assert view.count == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 3}, "views.size must be at least 4 px, got 3"),
        ({"crop": (0.0, 1.0)}, r"views.crop must be \[smallest, largest\]"),
        ({"crop": (0.5, 0.2)}, "views.crop"),
        ({"crop": (0.5, 1.1)}, "views.crop"),
        ({"ratio": (0.0, 1.0)}, "views.ratio"),
        ({"ratio": (2.0, 1.0)}, "views.ratio"),
        ({"flip": 1.5}, "views.flip is a probability, got 1.5"),
        ({"gray": -0.1}, "views.gray is a probability"),
        ({"blur": math.nan}, "views.blur is a probability"),
        ({"solarise": 2.0}, "views.solarise is a probability"),
        ({"invert": -1.0}, "views.invert is a probability"),
        ({"jitter_probability": 1.01}, "views.jitter_probability is a probability"),
        ({"jitter": (0.1, 0.1, 0.1)}, "views.jitter is"),
        ({"jitter": (0.1, 0.1, 0.1, 0.6)}, "hue <= 0.5"),
        ({"jitter": (-0.1, 0.1, 0.1, 0.1)}, "views.jitter is"),
        ({"rotation": 181.0}, r"views.rotation must lie in 0 \.\.\. 180 degrees, got 181"),
        ({"count": 0}, "views.count must be at least 1, got 0"),
    ],
)
def test_bad_views_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        View(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 4},
        {"crop": (1.0, 1.0)},
        {"ratio": (1.0, 1.0)},
        {"jitter": (0.0, 2.0, 0.0, 0.5)},
        {"rotation": 180.0},
        {"flip": 0.0, "gray": 1.0},
    ],
)
def test_extremes_are_allowed(changes):
    view = View(**changes)
    assert all(getattr(view, name) == value for name, value in changes.items())
