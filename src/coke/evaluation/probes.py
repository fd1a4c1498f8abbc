"""Probes on frozen features: weighted k nearest neighbours, which has nothing to tune, and a linear layer.

The k-NN protocol (Wu et al. 2018, arXiv 1805.01978, with centring): subtract the bank's mean feature from both
sides, normalise to unit length, take the k = 20 bank images with the highest cosine, let each vote for its class
with weight exp(cosine / 0.07). Centring matters: features after a ReLU share a large common direction, which
makes all cosines nearly 1. The linear probe is multinomial logistic regression, its L2 strength chosen without
the query. Legend: Nb bank rows, Nq query rows, F feature dimensions, C classes, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from coke.errors import ConfigError, DataError
from coke.evaluation.checks import Integers, checked_labels, checked_pair, checked_problem

SCORES_AT_ONCE = {"cpu": 1 << 23, "cuda": 1 << 27}  # float32 similarities held at a time: 32 MiB, 512 MiB
WEIGHT_DECAYS = (1.0, 0.1, 1e-2, 1e-3, 1e-4)  # strong to weak, so that each fit starts from the one before
HELD_OUT = 0.1  # share of the bank on which the strength is chosen


@torch.inference_mode()
def knn_predict(
    bank_features: Tensor,
    bank_labels: Integers,
    query_features: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    center: bool = True,
) -> Tensor:
    """The label that each query's neighbours vote for: int64 [Nq], from features [Nb, F] and [Nq, F].

    Memory is a block of queries times the bank, never [Nq, Nb]. Device: that of the bank. Ties of the vote go
    to the smaller label. Raises `DataError` for rows that do not match, missing labels (-1), NaN, or a bank
    with fewer than k rows; `ConfigError` for k or temperature out of range.

    >>> bank = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> knn_predict(bank, [4, 4, 7], torch.tensor([[0.1, 2.0], [3.0, 0.2]]), k=1)
    tensor([7, 4])
    """
    if not temperature > 0:
        raise ConfigError(f"temperature must be above 0, got {temperature}: 0.07 is customary")
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}: 20 is customary")
    bank, query = checked_pair(bank_features, query_features)
    values, classes = (
        checked_labels(bank_labels, "bank", len(bank)).to(bank.device).unique(return_inverse=True)
    )
    if k > len(bank):
        raise DataError(f"{k} neighbours asked of a bank of {len(bank)} images: lower k or give more images")
    mean = bank.mean(dim=0) if center else bank.new_zeros(bank.shape[1])
    bank = functional.normalize(bank - mean, dim=1)
    rows = max(1, SCORES_AT_ONCE.get(bank.device.type, SCORES_AT_ONCE["cpu"]) // len(bank))
    predicted = []
    for block in query.split(rows):
        best = (functional.normalize(block - mean, dim=1) @ bank.T).topk(k, dim=1)
        # relative to the nearest neighbour: the same winner, and no overflow at small temperatures
        weights = ((best.values - best.values[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(block), len(values)).scatter_add_(1, classes[best.indices], weights)
        predicted.append(votes.argmax(dim=1))
    return values[torch.cat(predicted)]


@torch.inference_mode()
def knn_accuracy(
    bank_features: Tensor,
    bank_labels: Integers,
    query_features: Tensor,
    query_labels: Integers,
    *,
    k: int = 20,
    temperature: float = 0.07,
    center: bool = True,
) -> float:
    """Share of queries whose label `knn_predict` finds, in [0, 1].

    Raises what `knn_predict` does, and `DataError` for a bank of one class or splits without a class in
    common.

    >>> bank = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> knn_accuracy(bank, [0, 0, 1], torch.tensor([[0.1, 2.0], [3.0, 0.2]]), [1, 1], k=1)
    0.5
    """
    problem = checked_problem(bank_features, bank_labels, query_features, query_labels)
    predicted = knn_predict(
        problem.bank, problem.bank_classes, problem.query, k=k, temperature=temperature, center=center
    )
    return float((predicted == problem.query_classes).double().mean())


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A fitted probe and how it did.

    ``accuracy``: share of queries answered right. ``weight_decay``: the strength chosen. ``held_out``:
    accuracy on the held-out tenth of the bank for every strength tried. ``weight`` [C, F] and ``bias`` [C]
    act on the features as given (standardisation folded in); row c stands for the label ``classes[c]``.
    """

    accuracy: float
    weight_decay: float
    held_out: dict[float, float]
    weight: Tensor
    bias: Tensor
    classes: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """The label of each row of features [N, F]: int64 [N]."""
        return self.classes[functional.linear(features.float(), self.weight, self.bias).argmax(dim=1)]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The leading principal directions [F, R] of centred features and the variances [R] along them.

    Features vary far more along some directions than along others, and L-BFGS then needs many iterations;
    measured in units of the objective's own curvature along these directions it needs few.
    """

    directions: Tensor
    variances: Tensor

    def rescale(self, weight: Tensor, weight_decay: float, power: float) -> Tensor:
        """Weight [C, F] times curvature^power, where curvature is about variance / C + weight_decay.

        Outside the leading directions the smallest of their variances is assumed.
        """
        scales = (self.variances / len(weight) + weight_decay) ** power
        inside = weight @ self.directions
        return scales[-1] * weight + (inside * (scales - scales[-1])) @ self.directions.T


def spectrum(features: Tensor, rank: int = 256, passes: int = 2) -> Spectrum:
    """The leading directions of centred features [N, F], by subspace iteration from a fixed random start.

    Exact up to F = rank, approximate above (Halko et al. 2011, arXiv 0909.4061): it only speeds up the fit.
    """
    n_rows, dim = features.shape
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(dim, min(rank, dim), generator=generator).to(features)
    for _ in range(passes):
        basis = torch.linalg.qr(basis)[0]
        basis = features.T @ (features @ basis)
    basis = torch.linalg.qr(basis)[0]
    projected = features @ basis
    variances, rotation = torch.linalg.eigh(projected.T @ projected / n_rows)
    return Spectrum((basis @ rotation).flip(1), variances.flip(0).clamp(min=0))


def fit_logistic(
    features: Tensor,
    classes: Tensor,
    n_classes: int,
    *,
    weight_decay: float,
    leading: Spectrum,
    start: Tensor | None = None,
    max_iterations: int = 200,
    tolerance: float = 1e-4,
) -> Tensor:
    """Minimise mean cross-entropy + weight_decay / 2 |W|^2 by L-BFGS: [C, F + 1], the bias last.

    The bias is not penalised. ``leading`` is the features' `spectrum`: the search runs in coordinates where
    the curvature is about 1, so that what is left to gain is about half the squared gradient. Stops when none
    of its elements exceeds ``tolerance``, or after ``max_iterations``. scikit-learn's ``C`` is
    1 / (N weight_decay).
    """
    n_rows, dim = features.shape
    stretch = n_classes**0.5  # the bias's curvature is about 1 / C
    first = features.new_zeros(n_classes, dim + 1) if start is None else start
    unknown = torch.cat([leading.rescale(first[:, :-1], weight_decay, 0.5), first[:, -1:] / stretch], dim=1)
    optimizer = torch.optim.LBFGS(
        [unknown],
        max_iter=max_iterations,
        max_eval=max_iterations * 2,
        tolerance_grad=tolerance,
        tolerance_change=1e-9,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    rows = torch.arange(n_rows, device=features.device)

    def parameters() -> Tensor:
        weight = leading.rescale(unknown[:, :-1], weight_decay, -0.5)
        return torch.cat([weight, unknown[:, -1:] * stretch], dim=1)

    def objective() -> Tensor:
        # By hand: two passes over the features, and no third copy of the logits for autograd. The shapes are
        # those that matrix products take fast: features.T @ error costs ten times error.T @ features.
        weight, bias = parameters().split([dim, 1], dim=1)
        log_probabilities = functional.linear(features, weight, bias[:, 0]).log_softmax(dim=1)
        loss = -log_probabilities[rows, classes].mean() + weight_decay / 2 * weight.square().sum()
        error = log_probabilities.exp_()
        error[rows, classes] -= 1
        error /= n_rows
        gradient = leading.rescale(error.T @ features + weight_decay * weight, weight_decay, -0.5)
        unknown.grad = torch.cat([gradient, error.sum(0)[:, None] * stretch], dim=1)
        return loss

    optimizer.step(objective)
    return parameters()


def _accuracy(parameters: Tensor, features: Tensor, classes: Tensor) -> float:
    logits = functional.linear(features, parameters[:, :-1], parameters[:, -1])
    return float((logits.argmax(dim=1) == classes).double().mean())


def _choose(
    features: Tensor, classes: Tensor, n_classes: int, weight_decays: Sequence[float], seed: int
) -> tuple[dict[float, float], dict[float, Tensor]]:
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed)).to(features.device)
    n_held_out = max(1, round(HELD_OUT * len(features)))
    held_out, kept = order[:n_held_out], order[n_held_out:]
    kept_features, kept_classes = features[kept], classes[kept]
    accuracies: dict[float, float] = {}
    fits: dict[float, Tensor] = {}
    parameters: Tensor | None = None
    leading = spectrum(kept_features)
    for weight_decay in sorted(weight_decays, reverse=True):
        parameters = fit_logistic(
            kept_features,
            kept_classes,
            n_classes,
            weight_decay=weight_decay,
            leading=leading,
            start=parameters,
        )
        accuracies[weight_decay] = _accuracy(parameters, features[held_out], classes[held_out])
        fits[weight_decay] = parameters
    return accuracies, fits


@torch.no_grad()
def linear_probe(
    bank_features: Tensor,
    bank_labels: Integers,
    query_features: Tensor,
    query_labels: Integers,
    *,
    seed: int = 0,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
) -> LinearProbe:
    """Fit on the bank [Nb, F], score on the query [Nq, F].

    Features are standardised with the bank's mean and deviation (constant dimensions are only centred). The
    L2 strength with the best accuracy on a seeded tenth of the bank is taken (the stronger one on a tie),
    then everything is fitted again on the whole bank. The query plays no part in the fit. Device: the bank
    features'. Raises `DataError` for rows that do not match, missing labels (-1), NaN, one class only, a bank
    of fewer than three rows or splits without a class in common; `ConfigError` for a strength not above 0.
    """
    if not weight_decays or min(weight_decays) <= 0:
        raise ConfigError(f"weight_decays must be numbers above 0, got {tuple(weight_decays)}")
    problem = checked_problem(bank_features, bank_labels, query_features, query_labels)
    if len(problem.bank) < 3:
        raise DataError(
            f"a bank of {len(problem.bank)} images cannot be split to choose the strength: give more"
        )
    mean, std = problem.bank.mean(dim=0), problem.bank.std(dim=0)
    std = torch.where(std > 1e-6 * (mean.abs() + 1e-6), std, torch.ones_like(std))
    bank, n_classes = (problem.bank - mean) / std, len(problem.classes)
    held_out, fits = _choose(bank, problem.bank_classes, n_classes, weight_decays, seed)
    best = max(held_out, key=lambda weight_decay: (held_out[weight_decay], weight_decay))
    parameters = fit_logistic(
        bank, problem.bank_classes, n_classes, weight_decay=best, leading=spectrum(bank), start=fits[best]
    )
    weight = parameters[:, :-1] / std
    return LinearProbe(
        accuracy=_accuracy(parameters, (problem.query - mean) / std, problem.query_classes),
        weight_decay=best,
        held_out=held_out,
        weight=weight,
        bias=parameters[:, -1] - weight @ mean,
        classes=problem.classes,
    )
