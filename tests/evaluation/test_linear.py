"""The linear probe against scikit-learn's logistic regression."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from coke.errors import ConfigError, DataError
from coke.evaluation.probes import fit_logistic, linear_probe, spectrum


def problem(n_rows, dim, n_classes, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(n_classes, dim, generator=generator)
    labels = torch.randint(n_classes, (n_rows,), generator=generator)
    return centers[labels] + spread * torch.randn(n_rows, dim, generator=generator), labels


@pytest.mark.parametrize("weight_decay", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("rank", [3, 8])
def test_fit_equals_scikit_learn(weight_decay, rank):
    features, labels = problem(400, 8, 3, spread=2.0)
    found = fit_logistic(
        features, labels, 3, weight_decay=weight_decay, leading=spectrum(features, rank=rank), tolerance=1e-6
    )
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
    predicted = probe.predict(features[query])
    assert float((predicted == labels[query]).double().mean()) == pytest.approx(probe.accuracy, abs=0.004)


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
    assert torch.equal(other.weight, probe.weight)


def test_same_seed_same_probe():
    features, labels = problem(300, 10, 3, spread=3.0)
    first, second = (
        linear_probe(features[:200], labels[:200], features[200:], labels[200:], seed=5) for _ in "ab"
    )
    assert torch.equal(first.weight, second.weight)
    assert first.accuracy == second.accuracy


def test_constant_dimensions_and_label_values_are_harmless():
    features, labels = problem(300, 6, 3, spread=0.3)
    features[:, 2] = 7.0
    probe = linear_probe(features[:200], labels[:200] * 10 + 5, features[200:], labels[200:] * 10 + 5)
    assert probe.accuracy > 0.95
    assert probe.classes.tolist() == [5, 15, 25]
    assert torch.isfinite(probe.weight).all()


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


def test_spectrum_is_that_of_the_covariance():
    features = torch.randn(500, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(1, -1, 40)
    features -= features.mean(dim=0)
    variances, directions = torch.linalg.eigh(features.T @ features / 500)
    whole, leading = spectrum(features), spectrum(features, rank=10, passes=4)
    assert torch.allclose(whole.variances, variances.flip(0), rtol=1e-3, atol=1e-4)
    assert torch.allclose(leading.variances[:6], variances.flip(0)[:6], rtol=0.02)
    overlap = (leading.directions[:, 0] * directions[:, -1]).sum().abs()
    assert overlap > 0.99
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    there = leading.rescale(weight, 0.01, 0.5)
    assert torch.allclose(leading.rescale(there, 0.01, -0.5), weight, atol=1e-3)
