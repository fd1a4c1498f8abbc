"""The rule for the dual step, by its two promises, and on a stream."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from coke.errors import BoundsError
from coke.method import OnlineConstrainedKMeans, auto_dual_lr


@settings(max_examples=80)
@given(
    st.integers(1, 10**7), st.integers(1, 4096), st.integers(1, 10**4), st.floats(0.01, 1), st.floats(0.1, 5)
)
def test_either_the_climb_is_as_asked_or_the_hit_is_at_its_cap(
    n_samples, batch_size, n_clusters, ratio, climb
):
    eta = auto_dual_lr(n_samples, batch_size, n_clusters, ratio, climb=climb, largest_hit=0.03)
    hit = eta / batch_size
    climbed = ratio * n_samples / n_clusters * hit  # method section 7: r (N / K) h an epoch
    assert hit <= 0.03 * (1 + 1e-12)
    assert climbed <= climb * (1 + 1e-12)
    assert climbed == pytest.approx(climb) or hit == pytest.approx(0.03)


def test_settings_that_are_known_to_work():
    # Published on ImageNet: eta 20 for K 3000 (climb 3.4); trials on CIFAR-10: eta 3.7 for K 150 and 200.
    assert auto_dual_lr(1_281_167, 1024, 3000, 0.4) == pytest.approx(20, rel=0.05)
    assert auto_dual_lr(50_000, 128, 200, 0.4) == pytest.approx(3.7, rel=0.15)


def test_without_a_minimum_the_cap_decides():
    assert auto_dual_lr(1000, 100, 10, 0.0, largest_hit=0.02) == pytest.approx(2.0)


def test_a_forgotten_cluster_climbs_as_promised():
    features = normalize(torch.randn(400, 8))
    eta = auto_dual_lr(400, 20, 4, 0.5, climb=1.0)
    clustering = OnlineConstrainedKMeans(4, 8, 0.5, eta)
    for batch in features.split(20):
        clustering.update(batch, torch.zeros(20, dtype=torch.int64))  # none for the other three
    assert clustering.duals[1:].tolist() == pytest.approx([1.0] * 3, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 1, 0.4), "n_samples must be at least 1, got 0"),
        ((1, 0, 1, 0.4), "batch_size must be at least 1, got 0"),
        ((1, 1, 0, 0.4), "n_clusters must be at least 1, got 0"),
        ((1, 1, 1, 1.1), r"\[0, 1\], got 1.1"),
    ],
)
def test_bad_sizes_are_refused(arguments, message):
    with pytest.raises(BoundsError, match=message):
        auto_dual_lr(*arguments)
