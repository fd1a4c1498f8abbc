"""The verdict on made-up histories: one for each state, and their order."""

import math

import pytest

from coke.training.health import Verdict, judge


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
