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
        "chance_agreement": 0.01,
        "images": 12_000,
        "prediction_agreement": 0.3,
        "feature_spread": 0.9,
        "effective_rank": 40.0,
    }
    return {**values, **changes}


FIRST = record(loss=None, churn=None, label_agreement=None, chance_agreement=0.0, prediction_agreement=None)
LN_100 = math.log(100)
NOISE = record(label_agreement=0.004, prediction_agreement=0.012, loss=4.6)


def accuracies(*values):
    return [{"kind": "knn", "accuracy": value} for value in values]


def test_the_first_pass_is_clustering():
    verdict = judge([FIRST], [], warmup_over=False)
    assert (verdict.state, verdict.healthy) == ("clustering", True)
    heads = [head(used=97), head(7)]  # the text is of the first
    assert "97 of 100 clusters in use" in judge([{**FIRST, "heads": heads}], [], warmup_over=False).text


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


@pytest.mark.parametrize("loss", [math.nan, math.inf, LN_100 + 3.05])
def test_diverging(loss):
    verdict = judge([FIRST, record(), record(loss=loss)], [], warmup_over=True)
    assert (verdict.state, verdict.healthy) == ("diverging", False)
    assert "lower learning_rate" in verdict.action


@pytest.mark.parametrize(
    ("temperature", "above"),
    [(0.1, 2.5), (0.05, 5.0), (0.5, 0.5)],  # 0.25 / temperature
)
def test_a_guess_costs_more_at_a_low_temperature(temperature, above):
    """The one trained epoch is its own best, so that only ln K counts."""
    for loss, expected in ((LN_100 + above - 0.01, "starting"), (LN_100 + above + 0.01, "diverging")):
        history = [FIRST, record(loss=loss)]
        assert judge(history, [], warmup_over=False, temperature=temperature).state == expected


def test_the_temperature_is_a_tenth_unless_said():
    history = [FIRST, record(loss=LN_100 + 2.51)]
    assert judge(history, [], warmup_over=False).state == "diverging"
    assert judge(history, [], warmup_over=False, temperature=0.09).state == "starting"


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
    ("rank", "kept", "constant"),
    [
        (1.4, 0.9, True),
        (1.6, 0.1, False),  # one line can hold two clusters, as labels that last show
        (1.6, 0.09, True),
        (1.6, None, True),
        (1.99, 0.09, True),
        (2.0, 0.0, False),
        (2.0, None, False),
    ],
)
def test_few_directions_are_constant_unless_labels_last(rank, kept, constant):
    verdict = judge([FIRST, record(effective_rank=rank, label_agreement=kept)], [], warmup_over=False)
    assert (verdict.state == "constant") == constant
    assert verdict.healthy != constant


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
    assert judge(history, [], warmup_over=False).state == "starting"
    assert judge(history[:3], [], warmup_over=True).state == "starting"


def test_labels_that_last_are_no_noise():
    kept = record(label_agreement=0.03, prediction_agreement=0.012, loss=4.6)
    for place in range(3):  # in any of the three epochs
        recent = [NOISE] * 3
        recent[place] = kept
        assert judge([FIRST, *recent], [], warmup_over=True).state == "starting"
    assert judge([FIRST, kept, NOISE, NOISE, NOISE], [], warmup_over=True).state == "noise"  # long ago


def test_predictions_above_chance_do_not_excuse_noise():
    predicted = record(label_agreement=0.004, prediction_agreement=0.03)  # three times chance
    assert judge([FIRST, *[predicted] * 3], [], warmup_over=True).state == "noise"


@pytest.mark.parametrize(
    ("chance", "images", "heads", "bound"),
    [
        (0.25, 300, 1, 0.1),  # 3 sqrt(1/3 / 300) = 3 / 30
        (0.25, 300, 4, 0.05),  # four heads are four times the labels: 3 / 60
        (0.5, 10_000, 1, 0.03),  # 3 sqrt(1 / 10,000)
        (0.01, 50_000, 1, 0.012),  # 3 sqrt(1/99 / 50,000) = 0.0013: the floor
    ],
)
def test_noise_is_what_luck_explains(chance, images, heads, bound):
    changes = {"chance_agreement": chance, "images": images, "heads": [head()] * heads}
    for share, expected in ((0.98, "noise"), (1.02, "starting")):
        lucky = {**NOISE, **changes, "label_agreement": share * bound}
        low = {**NOISE, **changes, "label_agreement": -0.001}
        assert judge([FIRST, low, lucky, low], [], warmup_over=True).state == expected


def test_noise_counts_trained_epochs_with_labels_to_compare():
    second_pass = record(loss=None, label_agreement=0.004, prediction_agreement=None)
    unknown = {**NOISE, "label_agreement": None}
    assert judge([FIRST, second_pass, NOISE, NOISE], [], warmup_over=True).state == "starting"
    assert judge([FIRST, NOISE, NOISE, unknown], [], warmup_over=True).state == "starting"


def test_one_cluster_is_no_noise():
    """K = 1: every label is kept, by chance, and the loss is 0 = ln K."""
    single = record(
        loss=0.0,
        ln_clusters=0.0,
        heads=[head(1, largest_share=1.0)],
        label_agreement=0.0,
        chance_agreement=1.0,
        prediction_agreement=1.0,
    )
    history = [FIRST, single, single, single]
    assert judge(history[:2], [], warmup_over=True).state == "trivial"
    assert judge(history, [], warmup_over=True).state == "trivial"


@pytest.mark.parametrize(
    ("n_trained", "warmup_over", "action"),
    [(1, True, ""), (2, True, ""), (3, True, "train for more epochs"), (5, False, "")],
)
@pytest.mark.parametrize("loss", [LN_100 - 0.01, LN_100, 5.2])
def test_starting_ends_where_the_loss_is_clearly_below_a_guess(n_trained, warmup_over, action, loss):
    """Until the warm-up and three trained epochs are over nothing is advised."""
    high = (
        [record(loss=5.3), *[record(loss=loss)] * (n_trained - 1)]
        if n_trained > 3
        else [record(loss=loss)] * n_trained
    )
    verdict = judge([FIRST, *high], [], warmup_over)
    assert (verdict.state, verdict.healthy, verdict.action) == ("starting", True, action)
    assert f"ln K {LN_100:.2f}" in verdict.text
    below = record(loss=0.89 * LN_100)
    assert judge([FIRST, *high[1:], below], [], warmup_over).state == "learning"


def test_starting_hides_no_failure():
    empty = record(loss=5.0, heads=[head(used=10, smallest=0)])
    assert judge([FIRST, empty], [], warmup_over=False).state == "unbalanced"
    high = [FIRST, record(loss=5.0)]
    assert judge(high, accuracies(0.40, 0.39, 0.37), warmup_over=False).state == "nuisance"
    assert judge([FIRST, record(loss=5.0, feature_spread=0.05)], [], warmup_over=False).state == "constant"


def test_perfect_balance_at_chance_is_not_health():
    even = [head(smallest=100, largest=100, largest_share=0.01)]
    history = [FIRST, *[{**NOISE, "heads": even}] * 3]
    assert judge(history, [], warmup_over=True).state == "noise"


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
    dominated = {**bad, "loss": 3.0}  # one cluster of all images makes features alike: the cause comes first
    assert judge([FIRST, dominated], [], warmup_over=True).state == "collapsing"
    alike = {**dominated, "heads": [head(used=1, smallest=0)]}
    assert judge([FIRST, alike], [], warmup_over=True).state == "constant"
    spread = {**alike, "feature_spread": 0.9}
    assert judge([FIRST, spread], [], warmup_over=True).state == "unbalanced"


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


def test_guessing_is_no_progress_above_a_guess():
    still = [record(loss=loss) for loss in (4.95, 4.93, 4.94, 4.92)]
    verdict = judge([FIRST, *still], [], warmup_over=True)
    assert (verdict.state, verdict.healthy) == ("guessing", False)
    assert "4.92 is no better than a guess (ln K 4.61)" in verdict.text
    assert "raise learning_rate" in verdict.action
    assert judge([FIRST, *still[:3]], [], warmup_over=True).state == "starting"  # too early
    assert judge([FIRST, *still], [], warmup_over=False).state == "starting"
    falling = [record(loss=loss) for loss in (4.95, 4.9, 4.85, 4.8)]
    assert judge([FIRST, *falling], [], warmup_over=True).state == "starting"
    assert judge([FIRST, *still[:3], record(loss=4.5)], [], warmup_over=True).state == "starting"


def test_two_images_are_not_constant_for_being_two():
    assert judge([FIRST, record(images=2, effective_rank=1.0)], [], warmup_over=True).state == "learning"
    assert judge([FIRST, record(images=4, effective_rank=1.0)], [], warmup_over=True).state == "constant"


@pytest.mark.parametrize(("loss", "state"), [(0.86, "starting"), (0.79, "learning")])
def test_hardly_below_a_guess_is_not_learning(loss, state):
    """As of a run that ended at 0.86 beside ln K 0.90 and was called learning."""
    epochs = [FIRST, *(record(loss=loss, ln_clusters=0.90) for _ in range(5))]
    verdict = judge(epochs, [], warmup_over=True)
    assert (verdict.state, verdict.healthy) == (state, True)
    if state == "starting":
        assert "loss 0.86 is hardly below ln K 0.90: too little training to say or to trust" in verdict.text
        assert verdict.action == "train for more epochs"


def test_one_cluster_teaches_nothing():
    alone = [head(1, used=1, largest_share=1.0)]
    verdict = judge([FIRST, record(loss=0.0, ln_clusters=0.0, heads=alone)], [], warmup_over=True)
    assert (verdict.state, verdict.healthy, verdict.action) == ("trivial", False, "raise n_clusters")
    first = {**FIRST, "ln_clusters": 0.0, "heads": alone}
    assert judge([first], [], warmup_over=False).state == "clustering"


def test_features_that_fell_into_few_directions():
    """From 50 of 128 directions to 7; where labels say that it helped all the same, it did."""
    epochs = [{**FIRST, "effective_rank": 50.0}, *(record(effective_rank=7.0) for _ in range(3))]
    verdict = judge(epochs, [], warmup_over=True)
    assert (verdict.state, verdict.healthy) == ("narrow", False)
    assert "effective rank 7, 50 before training" in verdict.text
    assert "objective.decorrelation" in verdict.action
    assert judge(epochs, accuracies(0.30, 0.31), warmup_over=True).state == "narrow"
    assert judge(epochs, accuracies(0.30, 0.40), warmup_over=True).state == "learning"
    assert judge(epochs[:3], [], warmup_over=True).state == "learning"  # two trained epochs say little
    assert judge([epochs[0], *(record() for _ in range(3))], [], warmup_over=True).state == "learning"
