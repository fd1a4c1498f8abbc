"""What minimum sizes are refused, and that the refusal names a value that is not."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coke.errors import BoundsError
from coke.method.dual_step import check_n_clusters, min_size


@settings(max_examples=80)
@given(st.integers(2, 10**6), st.integers(1, 10**6), st.floats(0, 1))
def test_two_images_a_cluster_are_the_least_and_the_remedy_holds(n_samples, n_clusters, ratio):
    if 2 * n_clusters <= n_samples:
        check_n_clusters(n_samples, n_clusters, ratio)
        return
    with pytest.raises(BoundsError, match=f"n_clusters={n_clusters} is too many") as refusal:
        check_n_clusters(n_samples, n_clusters, ratio)
    at_most = int(re.search(r"at most (\d+)$", str(refusal.value))[1])
    check_n_clusters(n_samples, at_most, ratio)
    assert 2 * (at_most + 1) > n_samples


@settings(max_examples=40)
@given(st.integers(1, 10**6), st.integers(1, 10**4), st.floats(0, 1))
def test_minimum_sizes_sum_to_at_most_all_images(n_samples, n_clusters, ratio):
    assert min_size(n_samples, n_clusters, ratio) * n_clusters == pytest.approx(ratio * n_samples)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, 0, 0.4), "at least 1, got 0"),
        ((100, 10, 1.5), r"min_size_ratio=1.5 cannot hold: 10 clusters of at least 15.0 of 100 images"),
        ((100, 10, -0.1), r"must lie in \[0, 1\]"),
    ],
)
def test_refusals_say_what_came(arguments, message):
    with pytest.raises(BoundsError, match=message):
        check_n_clusters(*arguments)
