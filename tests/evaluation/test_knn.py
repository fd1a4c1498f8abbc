"""k-NN against a plain loop in float64, and its properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coke.errors import ConfigError, DataError
from coke.evaluation import probes
from coke.evaluation.probes import knn_accuracy, knn_predict


def brute_force(bank, labels, query, k, temperature):
    """One query at a time, in float64, with numpy."""
    bank, labels, query = (np.asarray(array, dtype=float) for array in (bank, labels, query))
    mean = bank.mean(axis=0)
    bank, query = bank - mean, query - mean
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    predicted = []
    for row in query / np.linalg.norm(query, axis=1, keepdims=True):
        cosines = bank @ row
        neighbours = np.argsort(-cosines)[:k]
        votes = {}
        for index in neighbours:
            votes[labels[index]] = votes.get(labels[index], 0.0) + np.exp(cosines[index] / temperature)
        predicted.append(max(votes, key=votes.get))
    return torch.tensor(predicted).long()


def problem(n_bank, n_query, dim, n_classes, seed):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(n_classes, dim, generator=generator)
    labels = torch.randint(n_classes, (n_bank + n_query,), generator=generator)
    features = centers[labels] + torch.randn(n_bank + n_query, dim, generator=generator) + 3
    return features[:n_bank], labels[:n_bank], features[n_bank:], labels[n_bank:]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(21, 90),
    st.integers(1, 20),
    st.sampled_from([0.07, 1.0]),
    st.integers(0, 10_000),
)
def test_predictions_equal_a_plain_loop(n_bank, k, temperature, seed):
    bank, labels, query, asked = problem(n_bank, 15, 6, 4, seed)
    expected = brute_force(bank, labels, query, k, temperature)
    assert torch.equal(knn_predict(bank, labels, query, k=k, temperature=temperature), expected)
    if (expected == asked).any():  # whatever numbers the classes have
        found = knn_accuracy(bank, labels * 3 + 2, query, asked * 3 + 2, k=k, temperature=temperature)
        assert found == pytest.approx(float((expected == asked).double().mean()))


def test_a_large_bank_equals_a_plain_loop():
    bank, labels, query, _ = problem(64 * 30 + 17, 40, 8, 5, seed=1)
    assert torch.equal(knn_predict(bank, labels, query, k=20), brute_force(bank, labels, query, 20, 0.07))


def test_blocks_change_nothing(monkeypatch):
    bank, labels, query, asked = problem(200, 50, 8, 4, seed=3)
    whole = knn_predict(bank, labels, query)
    monkeypatch.setitem(probes.SCORES_AT_ONCE, "cpu", 7 * 200)
    assert torch.equal(knn_predict(bank, labels, query), whole)
    assert knn_accuracy(bank, labels, query, asked) == pytest.approx(float((whole == asked).float().mean()))


def test_a_common_direction_is_removed_by_centring():
    bank, labels, query, asked = problem(400, 200, 16, 4, seed=4)
    plain = knn_accuracy(bank, labels, query, asked)
    assert plain > 0.9
    assert knn_accuracy(bank + 1000, labels, query + 1000, asked) == pytest.approx(plain, abs=0.02)


def test_small_temperature_becomes_the_nearest_neighbour():
    bank, labels, query, _ = problem(100, 30, 6, 3, seed=5)
    assert torch.equal(
        knn_predict(bank, labels, query, temperature=1e-4), knn_predict(bank, labels, query, k=1)
    )


def test_a_tied_vote_goes_to_the_smaller_label():
    bank, query = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([[2.0, 1.0]])
    for labels in ([7, 4, 9, 9], [4, 7, 9, 9]):
        assert knn_accuracy(bank, labels, query, [4], k=2) == 1


def test_a_query_class_the_bank_lacks_counts_as_wrong():
    bank, labels, query, asked = problem(100, 40, 6, 3, seed=6)
    asked = asked.clone()
    asked[:10] = 9
    right = (knn_predict(bank, labels, query) == asked).float().mean()
    assert knn_accuracy(bank, labels, query, asked) == pytest.approx(float(right))
    assert right <= 0.75


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bank_labels": torch.zeros(29, dtype=torch.long)}, "30 bank features but 29 labels"),
        ({"query_labels": torch.zeros(3, dtype=torch.long)}, "10 query features but 3 labels"),
        ({"query_features": torch.ones(10, 5)}, "4 dimensions but query features 5"),
        (
            {"bank_features": torch.zeros(0, 4), "bank_labels": torch.zeros(0).long()},
            "bank features are empty",
        ),
        ({"bank_features": torch.ones(30)}, r"\[rows, dimensions\]"),
        ({"bank_labels": torch.arange(30) - 1}, "1 of 30 rows below 0"),
        ({"bank_labels": torch.full((30,), 3)}, "all 30 bank labels are 3"),
        ({"query_labels": torch.full((10,), 8)}, "none of the 10 query labels"),
        ({"query_features": torch.full((10, 4), float("nan"))}, "10 of 10 query features hold NaN"),
        ({"k": 31}, "31 neighbours asked of a bank of 30"),
    ],
)
def test_bad_input_is_refused_in_words(change, message):
    given = {
        "bank_features": torch.randn(30, 4, generator=torch.Generator().manual_seed(0)),
        "bank_labels": torch.arange(30) % 3,
        "query_features": torch.ones(10, 4),
        "query_labels": torch.arange(10) % 3,
    }
    with pytest.raises(DataError, match=message):
        knn_accuracy(**(given | change))


@pytest.mark.parametrize("setting", [{"k": 0}, {"temperature": 0.0}, {"temperature": float("nan")}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match="must be"):
        knn_predict(torch.eye(3), torch.arange(3), torch.eye(3), **({"k": 1} | setting))
