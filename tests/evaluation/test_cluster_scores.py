"""Cluster scores of representations and heads."""

import pytest
import torch

from coke.errors import DataError
from coke.evaluation.clusters import cluster_scores, head_scores


def blobs(n_rows=300, n_classes=4, spread=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n_rows) % n_classes
    centers = torch.nn.functional.normalize(torch.randn(n_classes, 12, generator=generator))
    return centers[labels] + spread * torch.randn(n_rows, 12, generator=generator), labels


def test_separated_classes_are_found_and_numbering_is_free():
    features, labels = blobs()
    for given in (labels, 100 - labels):
        assert cluster_scores(features, given) == {"accuracy": 1.0, "nmi": 1.0, "ari": 1.0}


def test_scale_and_offset_of_the_features_do_not_matter():
    features, labels = blobs(spread=0.6)
    first, second = cluster_scores(features, labels), cluster_scores(features * 50 + 7, labels)
    assert first["accuracy"] == pytest.approx(second["accuracy"], abs=0.02)
    assert 0.4 < first["accuracy"] < 1


def test_noise_scores_near_chance_and_seeds_repeat():
    features = torch.randn(800, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(800) % 5
    scores = cluster_scores(features, labels, n_init=2, seed=3)
    assert scores == cluster_scores(features, labels, n_init=2, seed=3)
    assert scores["accuracy"] < 0.3
    assert abs(scores["ari"]) < 0.03


def test_heads_are_scored_one_by_one():
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    perfect, constant = torch.tensor([5, 5, 3, 3, 4, 4]), torch.zeros(6, dtype=torch.long)
    first, second = head_scores(torch.stack([perfect, constant], dim=1), labels)
    assert (first["head"], first["used"], first["accuracy"], first["nmi"]) == (0, 3, 1.0, 1.0)
    assert (second["head"], second["used"], second["nmi"], second["ari"]) == (1, 1, 0.0, 0.0)
    assert second["accuracy"] == pytest.approx(1 / 3)


def test_bad_input_is_refused():
    features, labels = blobs(20)
    with pytest.raises(DataError, match="all 20 labels are 2"):
        cluster_scores(features, torch.full((20,), 2))
    with pytest.raises(DataError, match="below 0"):
        cluster_scores(features, labels - 1)
    with pytest.raises(DataError, match="20 clustered features but 19 labels"):
        cluster_scores(features, labels[1:])
    with pytest.raises(DataError, match=r"\[images, heads\]"):
        head_scores(labels, labels)
    with pytest.raises(DataError, match="clusters has 20 of 20 rows below 0"):
        head_scores(torch.full((20, 1), -1), labels)
