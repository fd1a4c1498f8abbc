"""What sizes are refused, and that the refusal names a value that is not."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coke.bounded.sizes import check_sizes, resolve_bounds
from coke.errors import BoundsError


def a_size(n_clusters):
    return st.one_of(
        st.integers(0, 30), st.lists(st.integers(0, 30), min_size=n_clusters, max_size=n_clusters)
    )


@st.composite
def requests(draw, weighted=False):
    """Arguments that say something, feasible or not."""
    n_samples, n_clusters = draw(st.integers(1, 60)), draw(st.integers(1, 12))
    asked = {}
    for side, ratio in (("min", st.floats(0, 1)), ("max", st.floats(1, 3))):
        form = draw(st.sampled_from(["none", "count", "ratio"]))
        if form == "count":
            asked[f"{side}_size"] = draw(a_size(n_clusters))
        elif form == "ratio":
            asked[f"{side}_size_ratio"] = draw(ratio)
    if weighted:
        weight = st.one_of(st.just(0.0), st.floats(0.01, 9.0))
        weights = draw(st.lists(weight, min_size=n_samples, max_size=n_samples))
        asked["size_weight"] = [*weights[:-1], max(weights[-1], 0.5)]
    return n_samples, n_clusters, asked


def can_hold(n_samples, n_clusters, asked):
    """Whole rows into clusters, from counts alone and by a formula that the product does not use."""
    least, most = asked.get("min_size", 0), asked.get("max_size", n_samples)
    least = least if isinstance(least, list) else [least] * n_clusters
    most = most if isinstance(most, list) else [most] * n_clusters
    reachable = {0}
    for low, high in zip(least, most, strict=True):
        reachable = {sum_ + size for sum_ in reachable for size in range(low, min(high, n_samples) + 1)}
    return n_samples in reachable


@settings(max_examples=100, deadline=None)
@given(requests())
def test_feasible_is_what_trying_every_size_says(request):
    n_samples, n_clusters, asked = request
    counts = {name: value for name, value in asked.items() if "ratio" not in name}
    assert bool(check_sizes(n_samples, n_clusters, **counts)) == can_hold(n_samples, n_clusters, counts)


WITHIN = {"min_size_ratio": np.linspace(0, 1, 20), "max_size_ratio": np.linspace(1, 12, 50)}
"""Ratios that say something: none of them can hold where no single number does."""


def further(is_whole, name, value):
    """One step beyond a number that was named: one row, or a ratio or a weight that differs in the fifth digit."""
    outwards = 1 if name.startswith("min") else -1
    if is_whole and "ratio" not in name:
        return value + outwards
    return value + outwards * max(abs(value), 1e-3) * 1e-4


@settings(max_examples=500, deadline=None)
@given(st.one_of(requests(), requests(weighted=True)))
@example((1, 2, {"min_size_ratio": 5e-324, "max_size": [0, 1], "size_weight": [2.0]}))
@example((5, 8, {"min_size_ratio": 0.9, "max_size": [0] + [2] * 7}))
@example((10, 3, {"min_size_ratio": 0.9, "max_size": [2, 9, 9]}))
@example((10, 3, {"max_size_ratio": 1, "min_size": [0, 0, 7]}))
@example((4, 2, {"max_size_ratio": 1.5, "size_weight": [9.0, 0.01, 1.0, 1.0]}))
def test_the_nearest_number_can_hold_the_text_names_it_and_one_step_further_cannot(request):
    n_samples, n_clusters, asked = request
    check = check_sizes(n_samples, n_clusters, **asked)
    assert "nan" not in check.text.lower()
    if check:
        assert check.nearest == {}
        bounds = resolve_bounds(n_samples, n_clusters, **asked)
        assert bool((bounds.lower <= bounds.upper).all())
        return
    with pytest.raises(BoundsError) as refusal:
        resolve_bounds(n_samples, n_clusters, **asked)
    assert str(refusal.value) == check.text
    if not check.nearest:
        for name in asked.keys() - {"size_weight"}:
            if not isinstance(asked[name], list):
                others = WITHIN.get(name, range(61))
                assert not any(
                    check_sizes(n_samples, n_clusters, **{**asked, name: other}) for other in others
                )
        return
    ((name, value),) = check.nearest.items()
    assert name in asked
    assert not isinstance(asked[name], list)
    assert f"{name}={value}" in check.text
    assert check_sizes(n_samples, n_clusters, **{**asked, name: value}), check
    beyond = {**asked, name: further("size_weight" not in asked, name, value)}
    try:
        assert not check_sizes(n_samples, n_clusters, **beyond), (check, beyond)
    except BoundsError:
        assert "ratio" in name or value == 0  # beyond [0, 1], or below 1 or 0


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 10**9), st.integers(1, 10**4), st.floats(0, 1), st.floats(1, 10))
def test_ratios_always_hold_and_ask_for_no_more_than_equal_shares(n_samples, n_clusters, smallest, largest):
    bounds = resolve_bounds(n_samples, n_clusters, min_size_ratio=smallest, max_size_ratio=largest)
    low, high, share = float(bounds.lower[0]), float(bounds.upper[0]), n_samples / n_clusters
    assert low == math.floor(share) or smallest * share <= low * (1 + 1e-9) <= (smallest * share + 1) * (
        1 + 2e-9
    )
    assert high == math.ceil(share) or largest * share >= high * (1 - 1e-9) or high == n_samples
    assert low * n_clusters <= n_samples <= high * n_clusters


@pytest.mark.parametrize(
    ("arguments", "lower", "upper"),
    [
        ((10, 2), [0, 0], [10, 10]),
        ((10, 3, {"min_size_ratio": 1, "max_size_ratio": 1}), [3, 3, 3], [4, 4, 4]),
        ((100, 1, {"min_size_ratio": 0.07}), [7], [100]),
        ((9, 2, {"min_size": torch.tensor([1, 2]), "max_size": np.array([8.0, np.inf])}), [1, 2], [8, 9]),
        ((3, 3, {"min_size": 1}), [1, 1, 1], [3, 3, 3]),
        ((3, 2, {"min_size_ratio": 0.5, "size_weight": [1, 2, 2]}), [1.25, 1.25], [5, 5]),
        ((5.0, 2, {"min_size": 2.5, "max_size": 2.5}), [2.5, 2.5], [2.5, 2.5]),
        ((np.int64(4), np.int64(2), {"max_size": np.int32(2)}), [0, 0], [2, 2]),
        ((5, 8, {"min_size_ratio": 0.4}), [0] * 8, [5] * 8),
    ],
)
def test_bounds_in_numbers(arguments, lower, upper):
    total, n_clusters, *asked = arguments
    bounds = resolve_bounds(total, n_clusters, **(asked[0] if asked else {}))
    assert bounds.lower.dtype == bounds.upper.dtype == torch.float64
    assert (bounds.lower.tolist(), bounds.upper.tolist()) == (lower, upper)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (
            {"n_samples": 1000, "n_clusters": 20, "min_size": 60},
            "1,000 rows cannot fill 20 clusters of at least 60: that takes 1,200, 200 too many; "
            "at most min_size=50",
        ),
        (
            {"n_samples": 1000, "n_clusters": 20, "max_size": 40},
            "1,000 rows do not fit into 20 clusters of at most 40: those hold 800, 200 too few; "
            "at least max_size=50",
        ),
        (
            {"n_samples": 10, "n_clusters": 12, "min_size": 1},
            "10 rows cannot fill 12 clusters of at least 1: that takes 12, 2 too many; at most min_size=0",
        ),
        (
            {"n_samples": 10, "n_clusters": 3, "min_size": [6, 6, 0]},
            "10 rows cannot fill 3 clusters of at least 0 to 6: that takes 12, 2 too many; "
            "an equal share is 3.333",
        ),
        (
            {"n_samples": 10, "n_clusters": 3, "min_size": [1, 4, 4], "max_size": [9, 3, 2]},
            "cluster 2 cannot hold at least 4 and at most 2; an equal share is 3.333",
        ),
        (
            {"n_samples": 100, "n_clusters": 2, "min_size": 60, "max_size": 40},
            "100 rows cannot fill 2 clusters of at least 60: that takes 120, 20 too many; an equal share is 50",
        ),
        (
            {"n_samples": 100, "n_clusters": 10, "min_size_ratio": 0.9, "max_size": [5] + [20] * 9},
            "cluster 0 cannot hold at least 9 and at most 5; at most min_size_ratio=0.5",
        ),
        (
            {"n_samples": 10, "n_clusters": 3, "min_size": [1, 1, 7], "max_size_ratio": 1.5},
            "cluster 2 cannot hold at least 7 and at most 5; at least max_size_ratio=2.1",
        ),
        (
            {"n_samples": 3, "n_clusters": 3, "max_size": 4, "size_weight": [1, 5, 2.5]},
            "row 1: size_weight 5, the largest maximum is 4; at least max_size=5",
        ),
        (
            {"n_samples": 3, "n_clusters": 3, "min_size": 0.5, "size_weight": [1, 0, 2.5]},
            "3 clusters with a minimum need as many rows of a size_weight above 0, there are 2; "
            "at most min_size=0",
        ),
        (
            {"n_samples": 3, "n_clusters": 3, "min_size": 2, "size_weight": [1, 1, 3]},
            "a summed size_weight of 5 cannot fill 3 clusters of at least 2: that takes 6, 1 too many; "
            "at most min_size=1.666666666667",
        ),
    ],
)
def test_what_cannot_hold_is_said_in_words(asked, text):
    check = check_sizes(**asked)
    assert (bool(check), str(check)) == (False, text)


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        ({}, "of 0 to 100"),
        ({"min_size": 5}, "of 5 to 100"),
        ({"max_size": 50}, "of 0 to 50"),
        ({"min_size": 25, "max_size": 25}, "of 25"),
        ({"min_size_ratio": 0.4, "max_size_ratio": 2}, "of 10 to 50"),
        ({"min_size": [1, 2, 3, 4]}, "of 1 to 100"),
    ],
)
def test_what_can_hold_is_said_too(asked, sizes):
    assert str(check_sizes(100, 4, **asked)) == f"100 rows fit into 4 clusters {sizes}"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"min_size": [1, 2]},
            r"min_size must be one number or one for each of 3 clusters, got shape \(2,\)",
        ),
        ({"max_size": [[5, 5, 5]]}, r"max_size must be one number .* got shape \(1, 3\)"),
        ({"min_size": -1}, "min_size must not be negative, got -1"),
        ({"max_size": [9, -2, 9]}, "max_size must not be negative, got -2 at position 1"),
        ({"min_size": [0, 0, float("nan")]}, "min_size must be numbers, got nan at position 2"),
        ({"min_size": 2.5}, "min_size must be whole rows .*min_size_ratio.*, got 2.5"),
        (
            {"max_size": np.array([4, 4.5, 4])},
            "max_size must be whole rows .*max_size_ratio.*, got 4.5 at position 1",
        ),
        ({"min_size": float("inf")}, "min_size must be finite"),
        ({"min_size": "5"}, "min_size must be numbers, got '5'"),
        ({"max_size": [5, None, 5]}, "max_size must be numbers"),
        ({"min_size": True}, "min_size must be numbers, got True"),
        ({"min_size_ratio": -0.1}, "min_size_ratio must not be negative"),
        ({"min_size_ratio": 1.5}, r"min_size_ratio must lie in \[0, 1\], got 1.5"),
        ({"max_size_ratio": 0.5}, "max_size_ratio must be at least 1, got 0.5"),
        ({"min_size_ratio": [0.1, 0.2, 0.3]}, "min_size_ratio must be one number"),
        ({"max_size_ratio": float("nan")}, "max_size_ratio must be numbers, got nan"),
        ({"min_size": 1, "min_size_ratio": 0.5}, "min_size and min_size_ratio both bound the same sizes"),
        ({"max_size": 9, "max_size_ratio": 2}, "max_size and max_size_ratio both bound the same sizes"),
        (
            {"size_weight": [1, 2]},
            r"size_weight must be one number or one for each of 9 rows, got shape \(2,\)",
        ),
        ({"size_weight": [1.0] * 8 + [-1.0]}, "size_weight must not be negative, got -1 at position 8"),
        (
            {"size_weight": [1.0] * 8 + [float("inf")]},
            "size_weight must be finite, got inf at position 8",
        ),
        ({"size_weight": [0] * 9}, "of a size_weight above 0, got 0.0 in all"),
        ({"n_samples": 0}, "there must be rows to cluster, .* got 0 in all"),
        ({"n_clusters": 0}, "n_clusters must be a whole number, at least 1, got 0"),
        ({"n_clusters": 2.5}, "n_clusters must be a whole number, at least 1, got 2.5"),
    ],
)
def test_what_says_nothing_is_refused(asked, message):
    with pytest.raises(BoundsError, match=message):
        check_sizes(**{"n_samples": 9, "n_clusters": 3, **asked})
