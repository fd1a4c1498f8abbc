"""The linear probe against scikit-learn's logistic regression."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from coke.errors import ConfigError, DataError
from coke.evaluation.probes import fit_logistic, linear_probe


def problem(n_rows, dim, n_classes, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(n_classes, dim, generator=generator)
    labels = torch.randint(n_classes, (n_rows,), generator=generator)
    return centers[labels] + spread * torch.randn(n_rows, dim, generator=generator), labels


@pytest.mark.parametrize("weight_decay", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("moments", [torch.eye(8), None])
def test_fit_equals_scikit_learn(weight_decay, moments):
    features, labels = problem(400, 8, 3, spread=2.0)
    moments = (
        features.T @ features / 400 if moments is None else moments
    )  # wrong ones cost time, not exactness
    found = fit_logistic(features, labels, 3, moments, weight_decay=weight_decay, tolerance=1e-6)
    expected = LogisticRegression(C=1 / (400 * weight_decay), tol=1e-8, max_iter=5000).fit(
        features.double().numpy(), labels.numpy()
    )
    assert torch.allclose(found[:, :-1].double(), torch.from_numpy(expected.coef_), atol=2e-3)
    bias = found[:, -1].double() - found[:, -1].double().mean()  # only differences of biases matter
    intercept = torch.from_numpy(expected.intercept_)
    assert torch.allclose(bias, intercept - intercept.mean(), atol=2e-3)


def test_probe_does_as_well_as_scikit_learn_at_its_strength():
    features, labels = problem(1500, 20, 5, spread=2.5)
    features = features * torch.logspace(-3, 3, 20) + 50  # units and offsets must not matter
    bank, query = slice(0, 1000), slice(1000, 1500)
    probe = linear_probe(features[bank], labels[bank], features[query], labels[query])
    standard = (features - features[bank].mean(0)) / features[bank].std(0)
    expected = LogisticRegression(C=1 / (1000 * probe.weight_decay), max_iter=5000).fit(
        standard[bank].numpy(), labels[bank].numpy()
    )
    assert probe.accuracy == pytest.approx(
        expected.score(standard[query].numpy(), labels[query].numpy()), abs=0.006
    )


def test_strength_is_chosen_on_the_bank_alone():
    features, labels = problem(
        120, 100, 2, spread=6.0, seed=2
    )  # more noise than rows: needs a strong penalty
    bank, query = slice(0, 80), slice(80, 120)
    probe = linear_probe(features[bank], labels[bank], features[query], labels[query], seed=1)
    best = max(probe.held_out.values())
    assert probe.held_out[probe.weight_decay] == best
    assert probe.weight_decay == max(decay for decay, score in probe.held_out.items() if score == best)
    other = linear_probe(features[bank], labels[bank], -features[query], labels[query], seed=1)
    assert other.held_out == probe.held_out
    assert torch.equal(other.parameters, probe.parameters)


def test_same_seed_same_probe():
    features, labels = problem(300, 10, 3, spread=3.0)
    first, second = (
        linear_probe(features[:200], labels[:200], features[200:], labels[200:], seed=5) for _ in "ab"
    )
    assert torch.equal(first.parameters, second.parameters)
    assert first.accuracy == second.accuracy


def test_constant_dimensions_and_label_values_are_harmless():
    features, labels = problem(300, 6, 3, spread=0.3)
    features[:, 2] = 7.0
    probe = linear_probe(features[:200], labels[:200] * 10 + 5, features[200:], labels[200:] * 10 + 5)
    assert probe.accuracy > 0.95
    assert torch.isfinite(probe.parameters).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1] * 20, "all 20 bank labels are 1"),
        ([0] * 19 + [-1], "1 of 20 rows below 0"),
        ([0, 1], "20 bank features"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        linear_probe(torch.randn(20, 3), labels, torch.randn(4, 3), [0, 1, 0, 1])


def test_a_strength_of_zero_is_refused():
    with pytest.raises(ConfigError, match="above 0"):
        linear_probe(torch.randn(4, 3), [0, 1, 0, 1], torch.randn(2, 3), [0, 1], weight_decays=(0.0, 1.0))


def test_a_bank_of_two_cannot_be_split():
    with pytest.raises(DataError, match="bank of 2 images"):
        linear_probe(torch.randn(2, 3), [0, 1], torch.randn(2, 3), [0, 1])


def test_directions_of_very_different_spread_are_fitted_to_the_optimum():
    features, labels = problem(300, 40, 3, spread=1.0)
    features = features @ torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(1)))[0]
    features = features * torch.logspace(2, -2, 40)
    weight, bias = fit_logistic(
        features, labels, 3, features.T @ features / 300, weight_decay=1e-4, tolerance=1e-6
    ).split([40, 1], dim=1)
    error = (features @ weight.T + bias[:, 0]).softmax(dim=1) - torch.nn.functional.one_hot(labels, 3)
    gradient = error.T @ features / 300 + 1e-4 * weight
    assert gradient.abs().max() < 1e-3  # of features up to 100


def test_moments_that_rounding_left_indefinite_are_no_obstacle():
    features, labels = problem(200, 1, 2, spread=0.1)
    twice = features.expand(200, 2)
    indefinite = torch.tensor([[1.0, 1.001], [1.001, 1.0]])
    found = fit_logistic(twice, labels, 2, indefinite, weight_decay=1e-4, tolerance=1e-6)
    expected = LogisticRegression(C=1 / (200 * 1e-4), tol=1e-8, max_iter=5000).fit(twice, labels)
    assert torch.isfinite(found).all()
    assert ((twice @ found[:, :-1].T + found[:, -1]).argmax(1).numpy() == expected.predict(twice)).all()
