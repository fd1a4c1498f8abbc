"""Representations side by side: the scores are those of the single probes; the table shows all of them."""

import json

import pytest
import torch

from coke.errors import DataError
from coke.evaluation.clusters import cluster_scores
from coke.evaluation.evaluate import evaluate_representations, table
from coke.evaluation.probes import knn_accuracy, linear_probe


def problem(n_bank, n_query, n_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n_bank + n_query) % n_classes
    centers = 2 * torch.randn(n_classes, 8, generator=generator)
    good = centers[labels] + torch.randn(len(labels), 8, generator=generator)
    noise = torch.randn(len(labels), 5, generator=generator)
    pairs = {"raw pixels": (noise[:n_bank], noise[n_bank:]), "trained": (good[:n_bank], good[n_bank:])}
    return pairs, labels[:n_bank], labels[n_bank:]


def test_scores_are_those_of_the_probes():
    pairs, bank_labels, query_labels = problem(120, 60)
    found = evaluate_representations(pairs, bank_labels, query_labels, seed=3)
    assert list(found) == ["raw pixels", "trained"]
    for name, (bank, query) in pairs.items():
        probe = linear_probe(bank, bank_labels, query, query_labels, seed=3)
        assert found[name]["knn"] == knn_accuracy(bank, bank_labels, query, query_labels)
        assert (found[name]["linear"], found[name]["weight_decay"]) == (probe.accuracy, probe.weight_decay)
        expected = cluster_scores(bank, bank_labels, seed=3)
        assert {key: found[name][key] for key in expected} == expected
        assert (found[name]["clustered"], found[name]["clustered_images"]) == ("bank", 120)
    assert found["trained"]["knn"] > 0.85 > 0.6 > found["raw pixels"]["knn"]
    assert json.loads(json.dumps(found)) == found


def test_enough_query_images_are_clustered_themselves():
    pairs, bank_labels, query_labels = problem(60, 1000)
    found = evaluate_representations({"trained": pairs["trained"]}, bank_labels, query_labels, linear=False)
    expected = cluster_scores(pairs["trained"][1], query_labels)
    assert {key: found["trained"][key] for key in expected} == expected
    assert (found["trained"]["clustered"], found["trained"]["clustered_images"]) == ("query", 1000)
    assert "linear" not in found["trained"]


def test_the_table_shows_every_score():
    pairs, bank_labels, query_labels = problem(120, 60)
    evaluation = evaluate_representations(pairs, bank_labels, query_labels)
    evaluation["trained"]["linear_augmented"] = 0.5
    head, raw, trained, note = table(evaluation).splitlines()
    assert head.split() == ["k-NN", "linear", "linear,", "augmented", "cluster", "ACC", "NMI", "ARI"]
    assert raw.split()[:2] == ["raw", "pixels"]
    assert raw.split()[4] == "-"
    assert trained.split() == [
        "trained", *(f"{evaluation['trained'][key]:.1%}" for key in
                     ("knn", "linear", "linear_augmented", "accuracy", "nmi", "ari"))
    ]  # fmt: skip
    assert len({len(line) for line in (head, raw, trained)}) == 1
    assert "60 query images" in note
    assert "120 bank images" in note
    assert "3 classes (chance 33.3%)" in note
    assert "120 images of the bank" in note


def test_everything_is_checked_before_anything_is_computed():
    pairs, bank_labels, query_labels = problem(120, 60)
    broken = dict(pairs) | {"untrained": (torch.full((120, 4), float("nan")), torch.zeros(60, 4))}
    with pytest.raises(DataError, match="120 of 120 bank features"):
        evaluate_representations(broken, bank_labels, query_labels)
    with pytest.raises(DataError, match="no representation"):
        evaluate_representations({}, bank_labels, query_labels)
    with pytest.raises(DataError, match="60 query features but 59 labels"):
        evaluate_representations(pairs, bank_labels, query_labels[1:])
