"""Scores against brute force and their formulas."""

import math
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coke.errors import DataError
from coke.evaluation.clusters import agreement

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
    assert agreement(labels, clusters)["accuracy"] == pytest.approx(brute_force_accuracy(labels, clusters))


def brute_force_information(labels, clusters):
    """Mutual information over the mean of both entropies, summed row by row."""

    def information(first, second):
        pairs, n_rows = list(zip(first, second, strict=True)), len(first)
        return (
            sum(math.log(n_rows * pairs.count((a, b)) / (first.count(a) * second.count(b))) for a, b in pairs)
            / n_rows
        )

    entropies = information(labels, labels) + information(clusters, clusters)
    return 2 * information(labels, clusters) / entropies if entropies else 1.0


def brute_force_rand(labels, clusters):
    """The agreement over all pairs of rows, looked at one by one, less what chance gives."""
    pairs = list(combinations(range(len(labels)), 2))
    together = [labels[a] == labels[b] for a, b in pairs]
    grouped = [clusters[a] == clusters[b] for a, b in pairs]
    expected = sum(together) * sum(grouped) / max(len(pairs), 1)
    best = (sum(together) + sum(grouped)) / 2
    if best == expected:
        return 1.0
    both = sum(a and b for a, b in zip(together, grouped, strict=True))
    return (both - expected) / (best - expected)


@settings(max_examples=60, deadline=None)
@given(rows)
def test_information_and_rand_equal_their_definitions(pair):
    scores = agreement(*pair)
    assert scores["nmi"] == pytest.approx(brute_force_information(*pair), abs=1e-9)
    assert scores["ari"] == pytest.approx(brute_force_rand(*pair), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_numbering_and_order_do_not_matter(pair, random):
    labels, clusters = (torch.tensor(side) for side in pair)
    order = list(range(len(labels)))
    random.shuffle(order)
    names = torch.tensor([17, 3, 90, 4, 55])
    expected = pytest.approx(agreement(labels, clusters), abs=1e-12)
    assert agreement(labels[order], names[clusters[order]]) == expected
    assert agreement(clusters, labels) == expected  # all three are symmetric


def test_formulas_by_hand():
    # classes 3 and 1 rows, clusters 2 and 2: table [[2, 1], [0, 1]]
    labels, clusters = [0, 0, 0, 1], [0, 0, 1, 1]
    mutual = 0.5 * np.log(0.5 / 0.375) + 0.25 * np.log(0.25 / 0.375) + 0.25 * np.log(0.25 / 0.125)
    entropy_labels = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    expected = mutual / ((entropy_labels + np.log(2)) / 2)
    assert agreement(labels, clusters)["nmi"] == pytest.approx(expected)
    # pairs together: in both 1, in classes 3, in clusters 2, of 6
    assert agreement(labels, clusters)["ari"] == pytest.approx((1 - 1) / (2.5 - 1))
    assert agreement(labels, clusters)["accuracy"] == 0.75


def test_random_clusters_score_near_chance():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (5000,), generator=generator)
    clusters = torch.randint(10, (5000,), generator=generator)
    assert abs(agreement(labels, clusters)["ari"]) < 0.005
    assert agreement(labels, clusters)["nmi"] < 0.01
    assert agreement(labels, clusters)["accuracy"] < 0.14


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
def test_bad_rows_are_refused_in_words(labels, clusters, message):
    with pytest.raises(DataError, match=message):
        agreement(labels, clusters)
