"""Ticks, axes, lines and bars."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coke.report.markup import Markup
from coke.report.svg import Axis, Line, bar_chart, line_chart, ticks

numbers = st.floats(-1e6, 1e6, allow_nan=False)


@given(numbers, numbers, st.integers(2, 8))
@settings(max_examples=100, deadline=None)
def test_ticks_cover_the_range_evenly(one, other, count):
    low, high = sorted((one, other))
    if high - low <= 1e-9 * max(abs(low), abs(high)) + 1e-12:
        return
    found = ticks(low, high, count)
    span = high - low
    assert found[0] <= low + span * 1e-6
    assert found[-1] >= high - span * 1e-6
    steps = np.diff(found)
    assert np.allclose(steps, steps[0], rtol=1e-3)
    assert 2 <= len(found) <= count + 3


@given(st.lists(st.floats(0, 1e30), min_size=1, max_size=20), st.booleans())
@settings(max_examples=50, deadline=None)
def test_an_axis_places_values_in_order_and_inside(values, logarithmic):
    axis = Axis.over(values, zero=True, logarithmic=logarithmic)
    places = [axis.place(value) for value in sorted(values)]
    assert all(-1e-6 <= place <= 1 + 1e-6 for place in places)
    assert all(first <= second for first, second in pairwise(places))


def heights(chart: Markup, class_: str) -> list[float]:
    path = re.search(rf'<g class="{class_}">.*?d="M([^"]*)"', chart)
    assert path
    return [float(point.split()[1]) for point in path[1].split("L")]


def test_a_line_goes_up_where_values_go_up():
    chart = line_chart([Line("a", [0, 1, 2], [1.0, 3.0, 2.0])], title="t", x_label="x", y_label="y")
    first, second, third = heights(chart, "line tone-0")
    assert second < third < first  # down the screen is up


def test_a_gap_breaks_the_line():
    line = Line("a", list(range(7)), [1.0, 2.0, None, 3.0, None, 5.0, 6.0])
    chart = line_chart([line], title="t", x_label="x", y_label="y")
    assert chart.count("<path") == 2
    assert chart.count('class="target"') == 5
    assert "nan" not in chart.lower()


def test_bars_below_the_bound_are_marked():
    chart = bar_chart([9, 5, 3, 0], title="t", x_label="x", y_label="y", bound=4.5, share=4.25)
    assert chart.count('class="short"') == 2
    assert chart.count("<rect") == 4
    dense = bar_chart(range(3000, 0, -1), title="t", x_label="x", y_label="y", bound=10)
    assert dense.count("<path") == 2
    assert len(dense) < 150_000
