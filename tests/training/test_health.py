"""Figures of an epoch by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from coke.training.health import EpochFigures, effective_rank

HEADS = (4, 6)
CPU = torch.device("cpu")


def epoch_of(n_images=60, dim=5, seed=0, known=50):
    """Features, last epoch's labels (unknown for the last images) and this epoch's, partly kept."""
    generator = torch.Generator().manual_seed(seed)
    features = normalize(torch.randn(n_images, dim, generator=generator) + torch.tensor([1.0, 0, 0, 0, 0]))
    new = torch.stack([torch.randint(k, (n_images,), generator=generator) for k in HEADS], dim=1)
    old = new.clone()
    changed = torch.rand(n_images, 2, generator=generator) < 0.5
    for head, k in enumerate(HEADS):
        old[changed[:, head], head] = torch.randint(k, (int(changed[:, head].sum()),), generator=generator)
    old[known:] = -1
    return features, old, new


def summed(features, old, new, batch_size=16):
    figures = EpochFigures(HEADS, features.shape[1], CPU)
    for rows in torch.arange(len(features)).split(batch_size):
        figures.add_labels(features[rows], old[rows], new[rows])
    return figures


def test_figures_by_hand():
    features, old, new = epoch_of()
    figures = summed(features, old, new)
    for loss, agreement in ((2.0, 0.5), (4.0, 0.25)):
        figures.add_loss(torch.tensor(loss), torch.tensor(agreement))
    found = figures.summary(min_size_ratio=0.4)

    x = features.double().numpy()
    between = np.zeros((5, 5))
    for step in np.split(x, [16, 32, 48]):
        drift = step.mean(axis=0) - x.mean(axis=0)
        between += len(step) / 60 * np.outer(drift, drift)
    covariance = np.cov(x.T, bias=True) - between  # law of total covariance: within = total - between
    spectrum = np.linalg.eigvalsh(covariance)
    shares = spectrum / spectrum.sum()
    assert found["feature_spread"] == pytest.approx(math.sqrt(np.trace(covariance)), rel=1e-4)
    assert found["effective_rank"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-4)

    kept, chances, corrected = [], [], []
    for head, k in enumerate(HEADS):
        pairs = [(int(a), int(b)) for a, b in zip(old[:50, head], new[:50, head], strict=True)]
        kept.append(sum(a == b for a, b in pairs) / 50)
        chance = sum(
            (sum(a == label for a, _ in pairs) / 50) * (int((new[:, head] == label).sum()) / 60)
            for label in range(k)
        )
        chances.append(chance)
        corrected.append((kept[-1] - chance) / (1 - chance))
    assert found["churn"] == pytest.approx(1 - sum(kept) / 2)
    assert found["label_agreement"] == pytest.approx(sum(corrected) / 2)
    assert found["chance_agreement"] == pytest.approx(sum(chances) / 2)
    assert found["images"] == 60
    assert found["loss"] == 3.0
    assert found["prediction_agreement"] == 0.375
    assert found["ln_clusters"] == pytest.approx((math.log(4) + math.log(6)) / 2)
    for head, k in enumerate(HEADS):
        counts = np.bincount(new[:, head].numpy(), minlength=k)
        figures_of_head = found["heads"][head]
        assert figures_of_head["n_clusters"] == k
        assert figures_of_head["used"] == (counts > 0).sum()
        assert (figures_of_head["smallest"], figures_of_head["largest"]) == (counts.min(), counts.max())
        assert figures_of_head["largest_share"] == pytest.approx(counts.max() / 60)
        assert figures_of_head["bound"] == pytest.approx(0.4 * 60 / k)
        expected = np.quantile(counts, [0.05, 0.25, 0.5, 0.75, 0.95])
        assert figures_of_head["size_quantiles"] == pytest.approx(expected.tolist(), rel=1e-5)


def test_the_slicing_does_not_matter_to_labels():
    one, other = (summed(*epoch_of(), batch_size=size).summary(0.4) for size in (60, 7))
    assert one["heads"] == other["heads"]
    for key in ("churn", "label_agreement", "chance_agreement", "images"):
        assert one[key] == other[key]


def test_drift_between_steps_is_no_spread():
    """Features that are the same for all images of a step but move from step to step tell no images apart."""
    generator = torch.Generator().manual_seed(0)
    directions = normalize(torch.randn(20, 5, generator=generator))
    labels = torch.zeros(8, 2, dtype=torch.int64)
    figures = EpochFigures(HEADS, 5, CPU)
    for direction in directions:
        figures.add_labels(direction.expand(8, 5), labels, labels)
    found = figures.summary(0.4)
    assert found["feature_spread"] < 1e-6
    assert found["effective_rank"] == 0


def test_spread_within_steps_is_seen_below_a_drift():
    """Steps of two rows, +- 0.1 on the first axis: covariance diag(0.01, 0, ...) wherever the steps lie."""
    labels = torch.zeros(2, 2, dtype=torch.int64)
    figures = EpochFigures(HEADS, 5, CPU)
    for step in range(10):
        features = torch.zeros(2, 5)
        features[:, 1] = step / 10
        features[:, 0] = torch.tensor([0.1, -0.1])
        figures.add_labels(features, labels, labels)
    found = figures.summary(0.4)
    assert found["feature_spread"] == pytest.approx(0.1, rel=1e-5)
    assert found["effective_rank"] == pytest.approx(1.0, abs=1e-4)


def test_labels_at_random_agree_by_chance_alone():
    """However unequal the clusters: kept labels are many, beyond chance none."""
    generator = torch.Generator().manual_seed(0)
    share = torch.tensor([0.85, 0.05, 0.05, 0.05])
    old, new = (torch.multinomial(share, 20_000, True, generator=generator)[:, None] for _ in range(2))
    figures = EpochFigures((4,), 2, CPU)
    figures.add_labels(torch.zeros(20_000, 2), old, new)
    found = figures.summary(0.4)
    assert 1 - found["churn"] > 0.7
    assert abs(found["label_agreement"]) < 0.03
    assert found["chance_agreement"] == pytest.approx(0.85**2 + 3 * 0.05**2, abs=0.02)
    assert found["images"] == 20_000


def test_luck_is_as_wide_as_the_verdict_takes_it():
    """Labels drawn evenly from 5 clusters, 400 images: sigma = sqrt(c / (1 - c) / n) = sqrt(0.25 / 400) = 0.025."""
    generator = torch.Generator().manual_seed(0)
    agreements = []
    for _ in range(300):
        old, new = (torch.randint(5, (400, 1), generator=generator) for _ in range(2))
        figures = EpochFigures((5,), 2, CPU)
        figures.add_labels(torch.zeros(400, 2), old, new)
        agreements.append(figures.summary(0.4)["label_agreement"])
    assert abs(np.mean(agreements)) < 0.005  # standard error 0.0014
    assert np.std(agreements) == pytest.approx(0.025, rel=0.15)


def test_a_single_cluster_is_kept_by_chance_alone():
    figures = EpochFigures((1,), 2, CPU)
    labels = torch.zeros(9, 1, dtype=torch.int64)
    figures.add_labels(torch.zeros(9, 2), labels, labels)
    found = figures.summary(0.4)
    assert (found["churn"], found["chance_agreement"], found["ln_clusters"]) == (0.0, 1.0, 0.0)
    assert found["label_agreement"] == pytest.approx(0.0, abs=1e-6)


def test_all_labels_kept_is_full_agreement():
    figures = EpochFigures((3,), 2, CPU)
    labels = torch.arange(9)[:, None] % 3
    figures.add_labels(torch.zeros(9, 2), labels, labels)
    found = figures.summary(0.4)
    assert (found["churn"], found["label_agreement"]) == (0.0, pytest.approx(1.0))


def test_a_clustering_pass_has_no_loss_and_nothing_to_compare():
    features, old, new = epoch_of(known=0)
    found = summed(features, old, new).summary(0.4)
    for key in ("loss", "churn", "label_agreement", "prediction_agreement"):
        assert found[key] is None
    assert (found["chance_agreement"], found["images"]) == (0.0, 60)
    assert found["heads"][0]["used"] == 4


def test_shares_of_a_step_are_weighed():
    figures = EpochFigures((4,), 2, CPU)
    figures.add_loss(torch.tensor(1.0), torch.tensor(1.0), share=0.25)
    figures.add_loss(torch.tensor(2.0), torch.tensor(0.0), share=0.75)
    found = figures.summary(0.4)
    assert found["loss"] == pytest.approx(1.75)
    assert found["prediction_agreement"] == pytest.approx(0.25)


def test_a_saved_sum_goes_on(tmp_path):
    features, old, new = epoch_of()
    whole, one, other = (
        summed(features, old, new),
        summed(features[:32], old[:32], new[:32]),
        EpochFigures(HEADS, 5, CPU),
    )
    torch.save(one.state_dict(), tmp_path / "sums.pt")
    other.load_state_dict(torch.load(tmp_path / "sums.pt", weights_only=True))
    for rows in torch.arange(32, 60).split(16):
        other.add_labels(features[rows], old[rows], new[rows])
    assert other.summary(0.4) == whole.summary(0.4)


def test_sums_of_other_processes_go_on_in_one():
    """What a checkpoint of two processes holds: a sum of each, of which one process takes all."""
    figures = EpochFigures((4,), 2, CPU)
    state = figures.state_dict()
    assert state["loss"].shape == (1,)
    state |= {"loss": torch.tensor([3.0, 5.0]), "agreement": torch.tensor([1.0, 0.0]), "steps": torch.ones(2)}
    figures.load_state_dict(state)
    found = figures.summary(0.4)
    assert found["loss"] == 4.0
    assert found["prediction_agreement"] == 0.5


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_effective_rank_counts_equal_directions(rank):
    directions = torch.linalg.qr(torch.randn(10, 10))[0][:, :rank]
    assert effective_rank(directions @ directions.t()) == pytest.approx(rank, rel=1e-4)


def test_effective_rank_of_what_is_not_finite_or_constant():
    assert effective_rank(torch.full((3, 3), torch.nan)) == 0
    assert effective_rank(torch.zeros(3, 3)) == 0
    assert 1 < effective_rank(torch.diag(torch.tensor([1.0, 0.1]))) < 2
