"""Figures by hand, and the verdict on made-up histories: one for each state, and their order."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from coke.training.health import EpochFigures, Verdict, effective_rank, judge

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
    covariance = np.cov(x.T, bias=True)
    spectrum = np.linalg.eigvalsh(covariance)
    shares = spectrum / spectrum.sum()
    assert found["feature_spread"] == pytest.approx(math.sqrt(np.trace(covariance)), rel=1e-4)
    assert found["effective_rank"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-4)

    kept, corrected = [], []
    for head, k in enumerate(HEADS):
        pairs = [(int(a), int(b)) for a, b in zip(old[:50, head], new[:50, head], strict=True)]
        kept.append(sum(a == b for a, b in pairs) / 50)
        chance = sum(
            (sum(a == label for a, _ in pairs) / 50) * (int((new[:, head] == label).sum()) / 60)
            for label in range(k)
        )
        corrected.append((kept[-1] - chance) / (1 - chance))
    assert found["churn"] == pytest.approx(1 - sum(kept) / 2)
    assert found["label_agreement"] == pytest.approx(sum(corrected) / 2)
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


def test_the_slicing_does_not_matter():
    one, other = (summed(*epoch_of(), batch_size=size).summary(0.4) for size in (60, 7))
    assert one["heads"] == other["heads"]
    assert (one["churn"], one["label_agreement"]) == (other["churn"], other["label_agreement"])
    assert one["effective_rank"] == pytest.approx(other["effective_rank"], rel=1e-5)


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


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_effective_rank_counts_equal_directions(rank):
    directions = torch.linalg.qr(torch.randn(10, 10))[0][:, :rank]
    assert effective_rank(directions @ directions.t()) == pytest.approx(rank, rel=1e-4)


def test_effective_rank_of_what_is_not_finite_or_constant():
    assert effective_rank(torch.full((3, 3), torch.nan)) == 0
    assert effective_rank(torch.zeros(3, 3)) == 0
    assert 1 < effective_rank(torch.diag(torch.tensor([1.0, 0.1]))) < 2


# ---------------------------------------------------------------------------------------------- verdicts


def head(n_clusters=100, **changes):
    values = {
        "n_clusters": n_clusters,
        "used": n_clusters,
        "smallest": 40,
        "largest": 300,
        "largest_share": 0.03,
        "bound": 40.0,
        "size_quantiles": [40, 70, 90, 120, 250],
    }
    return {**values, **changes}


def record(**changes):
    values = {
        "loss": 3.0,
        "ln_clusters": math.log(100),
        "heads": [head()],
        "churn": 0.8,
        "label_agreement": 0.2,
        "prediction_agreement": 0.3,
        "feature_spread": 0.9,
        "effective_rank": 40.0,
    }
    return {**values, **changes}


FIRST = record(loss=None, churn=None, label_agreement=None, prediction_agreement=None)
NOISE = record(label_agreement=0.004, prediction_agreement=0.012, loss=4.6)


def accuracies(*values):
    return [{"kind": "knn", "accuracy": value} for value in values]


def test_the_first_pass_is_clustering():
    verdict = judge([FIRST], [], warmup_over=False)
    assert (verdict.state, verdict.healthy) == ("clustering", True)


def test_learning_says_its_figures():
    verdict = judge([FIRST, record()], accuracies(0.30, 0.42), warmup_over=True)
    assert (verdict.state, verdict.healthy, verdict.action) == ("learning", True, "")
    for fact in (
        "loss 3.00 beside ln K 4.61",
        "20 % of labels kept",
        "rank 40",
        "k-NN 42.0 % (untrained 30.0 %)",
    ):
        assert fact in verdict.text


@pytest.mark.parametrize("loss", [math.nan, math.inf, 2 * math.log(100) + 1.1])
def test_diverging(loss):
    verdict = judge([FIRST, record(), record(loss=loss)], [], warmup_over=True)
    assert (verdict.state, verdict.healthy) == ("diverging", False)
    assert "lower learning_rate" in verdict.action


def test_a_loss_that_climbs_far_above_its_best_is_diverging():
    falling = [FIRST, record(loss=0.5), record(loss=5.6)]  # 1.5 x 0.5 + ln 100 = 5.36
    assert judge(falling, [], warmup_over=True).state == "diverging"
    assert judge([FIRST, record(loss=0.5), record(loss=5.2)], [], warmup_over=True).state != "diverging"


@pytest.mark.parametrize(
    "changes",
    [{"feature_spread": 0.05}, {"effective_rank": 1.2}, {"feature_spread": math.nan, "effective_rank": 0.0}],
)
@pytest.mark.parametrize("base", [FIRST, record()])
def test_constant(changes, base):
    verdict = judge([{**base, **changes}], [], warmup_over=False)
    assert (verdict.state, verdict.healthy) == ("constant", False)
    assert "hardly differ" in verdict.text


@pytest.mark.parametrize(
    ("n_clusters", "share", "collapses"),
    [
        (100, 0.26, True),
        (100, 0.24, False),
        (10, 0.5, False),
        (10, 0.8, True),
        (2, 0.85, False),
        (2, 0.95, True),
        (1, 1.0, False),
    ],
)
def test_collapsing_depends_on_the_number_of_clusters(n_clusters, share, collapses):
    heads = [head(), head(n_clusters, largest_share=share)]  # any head counts
    verdict = judge([FIRST, record(heads=heads)], [], warmup_over=True)
    assert (verdict.state == "collapsing") == collapses
    assert verdict.healthy != collapses
    if collapses:
        assert f"one cluster of {n_clusters} holds {100 * share:.0f} %" in verdict.text
        assert "raise dual_lr" in verdict.action


def test_noise_needs_three_epochs_after_the_warm_up():
    history = [FIRST, NOISE, NOISE, NOISE]
    verdict = judge(history, [], warmup_over=True)
    assert (verdict.state, verdict.healthy) == ("noise", False)
    assert "lower dual_lr first" in verdict.action
    assert judge(history, [], warmup_over=False).state == "learning"
    assert judge(history[:3], [], warmup_over=True).state == "learning"


def test_noise_is_neither_labels_that_last_nor_predictions_above_chance():
    kept = record(label_agreement=0.03, prediction_agreement=0.012)
    predicted = record(label_agreement=0.004, prediction_agreement=0.03)  # three times chance
    for last in (kept, predicted):
        assert judge([FIRST, NOISE, NOISE, last], [], warmup_over=True).state == "learning"


def test_perfect_balance_at_chance_is_not_health():
    even = [head(smallest=100, largest=100, largest_share=0.01)]
    history = [FIRST, *[{**NOISE, "heads": even}] * 3]
    assert not judge(history, [], warmup_over=True).healthy


def test_nuisance_is_learning_that_loses_the_labels():
    history = [FIRST, record(), record()]
    verdict = judge(history, accuracies(0.40, 0.39, 0.37), warmup_over=True)
    assert (verdict.state, verdict.healthy) == ("nuisance", False)
    assert "37.0 % is below the untrained network's 40.0 %" in verdict.text
    assert judge(history, accuracies(0.40, 0.30, 0.39), warmup_over=True).healthy  # the last counts
    assert judge(history, accuracies(0.40, 0.30), warmup_over=True).healthy  # early dips are usual
    assert judge(history, [], warmup_over=True).healthy


def test_unbalanced_names_how_many_are_empty():
    heads = [head(), head(used=80, smallest=0)]
    verdict = judge([FIRST, record(heads=heads)], [], warmup_over=True)
    assert (verdict.state, verdict.healthy) == ("unbalanced", False)
    assert "20 of 100 clusters are empty (each should hold 40 images)" in verdict.text
    few = [head(used=95, smallest=0)]
    assert judge([FIRST, record(heads=few)], [], warmup_over=True).healthy
    plain = [head(used=50, smallest=0, bound=0.0)]  # r = 0 asks for nothing
    assert judge([FIRST, record(heads=plain)], [], warmup_over=True).healthy


def test_the_gravest_is_said_first():
    bad = record(loss=math.nan, feature_spread=0.0, heads=[head(largest_share=1.0, used=1, smallest=0)])
    history = [FIRST, bad]
    assert judge(history, [], warmup_over=True).state == "diverging"
    assert judge([FIRST, {**bad, "loss": 3.0}], [], warmup_over=True).state == "constant"
    assert (
        judge([FIRST, {**bad, "loss": 3.0, "feature_spread": 0.9}], [], warmup_over=True).state
        == "collapsing"
    )


def test_every_failure_names_an_action():
    failing = [
        [FIRST, record(loss=math.nan)],
        [FIRST, record(feature_spread=0.0)],
        [FIRST, record(heads=[head(largest_share=1.0)])],
        [FIRST, NOISE, NOISE, NOISE],
        [FIRST, record(heads=[head(used=10, smallest=0)])],
    ]
    for history in failing:
        verdict = judge(history, [], warmup_over=True)
        assert isinstance(verdict, Verdict)
        assert verdict.action
        assert str(verdict) == f"{verdict.state}: {verdict.text}; {verdict.action}"
