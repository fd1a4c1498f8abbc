"""Scores against brute force, scikit-learn and their formulas."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from coke.errors import DataError
from coke.evaluation.metrics import (
    adjusted_rand_index,
    cluster_sizes,
    clustering_accuracy,
    contingency,
    normalized_mutual_information,
)

SCORES = [clustering_accuracy, normalized_mutual_information, adjusted_rand_index]
rows = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 3), min_size=n, max_size=n),
        st.lists(st.integers(0, 4), min_size=n, max_size=n),
    )
)


def brute_force_accuracy(labels, clusters):
    """Try every one-to-one assignment of classes to cluster numbers."""
    labels, clusters = np.asarray(labels), np.asarray(clusters)
    slots = range(5)  # as many as there can be clusters, so that a class may also stay unmatched
    return max(np.mean(np.asarray(names)[labels] == clusters) for names in permutations(slots, 4))


@settings(max_examples=40, deadline=None)
@given(rows)
def test_accuracy_is_the_best_over_all_matchings(pair):
    labels, clusters = pair
    assert clustering_accuracy(labels, clusters) == pytest.approx(brute_force_accuracy(labels, clusters))


@settings(max_examples=60, deadline=None)
@given(rows)
def test_information_and_rand_equal_scikit_learn(pair):
    labels, clusters = pair
    expected = reference.normalized_mutual_info_score(labels, clusters)
    assert normalized_mutual_information(labels, clusters) == pytest.approx(expected, abs=1e-9)
    assert adjusted_rand_index(labels, clusters) == pytest.approx(
        reference.adjusted_rand_score(labels, clusters), abs=1e-9
    )


@settings(max_examples=30, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_numbering_and_order_do_not_matter(pair, random):
    labels, clusters = (torch.tensor(side) for side in pair)
    order = list(range(len(labels)))
    random.shuffle(order)
    names = torch.tensor([17, 3, 90, 4, 55])
    for score in SCORES:
        expected = score(labels, clusters)
        assert score(labels[order], names[clusters[order]]) == pytest.approx(expected, abs=1e-12)
        assert score(clusters, labels) == pytest.approx(expected, abs=1e-12)  # all three are symmetric


def test_formulas_by_hand():
    # classes 3 and 1 rows, clusters 2 and 2: table [[2, 1], [0, 1]]
    labels, clusters = [0, 0, 0, 1], [0, 0, 1, 1]
    assert contingency(labels, clusters).tolist() == [[2, 1], [0, 1]]
    mutual = 0.5 * np.log(0.5 / 0.375) + 0.25 * np.log(0.25 / 0.375) + 0.25 * np.log(0.25 / 0.125)
    entropy_labels = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    expected = mutual / ((entropy_labels + np.log(2)) / 2)
    assert normalized_mutual_information(labels, clusters) == pytest.approx(expected)
    # pairs together: in both 1, in classes 3, in clusters 2, of 6
    assert adjusted_rand_index(labels, clusters) == pytest.approx((1 - 1) / (2.5 - 1))
    assert clustering_accuracy(labels, clusters) == 0.75


def test_random_clusters_score_near_chance():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (5000,), generator=generator)
    clusters = torch.randint(10, (5000,), generator=generator)
    assert abs(adjusted_rand_index(labels, clusters)) < 0.005
    assert normalized_mutual_information(labels, clusters) < 0.01
    assert clustering_accuracy(labels, clusters) < 0.14


def test_sizes_count_empty_clusters_too():
    labels = torch.tensor([4, 1, 1, 4, 4], dtype=torch.int16)
    assert cluster_sizes(labels, 6).tolist() == [0, 2, 0, 0, 3, 0]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("labels", "clusters", "message"),
    [
        ([0, 1, 2], [0, 1], "3 labels but 2 clusters"),
        ([0, -1], [0, 1], "labels has 1 of 2 rows below 0"),
        ([0, 1], [-1, -1], "clusters has 2 of 2 rows below 0"),
        ([0.0, 1.0], [0, 1], "whole numbers"),
        ([], [], "whole numbers|no rows"),
        (np.zeros((2, 2), int), [0, 1], "one dimension"),
    ],
)
def test_bad_rows_are_refused_in_words(score, labels, clusters, message):
    with pytest.raises(DataError, match=message):
        score(labels, clusters)


def test_sizes_refuse_a_label_beyond_the_clusters():
    with pytest.raises(DataError, match="label 4 among 4 clusters"):
        cluster_sizes([0, 4], 4)
