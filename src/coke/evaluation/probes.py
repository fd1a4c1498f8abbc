"""Probes on frozen features: weighted k nearest neighbours, which has nothing to tune, and a linear layer.

The k-NN protocol (Wu et al. 2018, arXiv 1805.01978, with centring): subtract the bank's mean feature from both
sides, normalise to unit length, take the k = 20 bank images with the highest cosine, let each vote for its class
with weight exp(cosine / 0.07). Centring matters: features after a ReLU share a large common direction, which
makes all cosines nearly 1. The linear probe is multinomial logistic regression, its L2 strength chosen without
the query. Legend: Nb bank rows, Nq query rows, F feature dimensions, C classes, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from coke.errors import ConfigError, DataError
from coke.evaluation.checks import Integers, checked_problem

SCORES_AT_ONCE = {"cpu": 1 << 23, "cuda": 1 << 27}  # float32 similarities held at a time: 32 MiB, 512 MiB
WEIGHT_DECAYS = (1.0, 0.1, 1e-2, 1e-3, 1e-4)
HELD_OUT = 0.1  # share of the bank on which the strength is chosen


@torch.inference_mode()
def knn_predict(
    bank: Tensor, bank_classes: Tensor, query: Tensor, *, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """The class 0 ... C-1 that each query's neighbours vote for: int64 [Nq], from features [Nb, F] and [Nq, F].

    Memory is a block of queries times the bank, never [Nq, Nb]. Ties of the vote go to the lower class. Raises
    `DataError` for a bank with fewer than k rows, `ConfigError` for k or temperature out of range.

    >>> bank = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> knn_predict(bank, torch.tensor([0, 0, 1]), torch.tensor([[0.1, 2.0], [3.0, 0.2]]), k=1)
    tensor([1, 0])
    """
    if not temperature > 0:
        raise ConfigError(f"temperature must be above 0, got {temperature}: 0.07 is customary")
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}: 20 is customary")
    if k > len(bank):
        raise DataError(f"{k} neighbours asked of a bank of {len(bank)} images: lower k or give more images")
    mean, n_classes = bank.mean(dim=0), int(bank_classes.max()) + 1
    unit = functional.normalize(bank - mean, dim=1)
    predicted = []
    for block in query.split(max(1, SCORES_AT_ONCE["cuda" if bank.is_cuda else "cpu"] // len(bank))):
        best = (functional.normalize(block - mean, dim=1) @ unit.T).topk(k, dim=1)
        # relative to the nearest neighbour: the same winner, and no overflow at small temperatures
        weights = ((best.values - best.values[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(block), n_classes).scatter_add_(1, bank_classes[best.indices], weights)
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted)


def knn_accuracy(
    bank_features: Tensor,
    bank_labels: Integers,
    query_features: Tensor,
    query_labels: Integers,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of queries whose label `knn_predict` finds, in [0, 1]. Device: that of the bank.

    Raises what `knn_predict` and `checked_problem` do.

    >>> bank = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> knn_accuracy(bank, [0, 0, 1], torch.tensor([[0.1, 2.0], [3.0, 0.2]]), [1, 1], k=1)
    0.5
    """
    problem = checked_problem(bank_features, bank_labels, query_features, query_labels)
    found = knn_predict(problem.bank, problem.bank_classes, problem.query, k=k, temperature=temperature)
    return float((found == problem.query_classes).double().mean())


class LinearProbe(NamedTuple):
    """How a linear probe did."""

    accuracy: float  # share of queries answered right
    weight_decay: float  # the strength chosen
    held_out: dict[float, float]  # of every strength tried the accuracy on the held-out tenth of the bank
    parameters: Tensor  # [C, F + 1], of standardised features, the bias last


def fit_logistic(
    features: Tensor,
    classes: Tensor,
    n_classes: int,
    moments: Tensor,
    *,
    weight_decay: float,
    start: Tensor | None = None,
    tolerance: float = 1e-4,
) -> Tensor:
    """Minimise mean cross-entropy + weight_decay / 2 |W|^2 by L-BFGS: [C, F + 1], the bias last.

    The bias is not penalised. ``moments`` [F, F] are the features' second moments. Features vary far more along some
    directions than along others, so the search runs in coordinates where the curvature, about moments / C +
    weight_decay, is 1: what is left to gain is then about half the squared gradient. It stops where none of its
    elements exceeds ``tolerance``. scikit-learn's ``C`` is 1 / (N weight_decay).
    """
    dim, stretch = features.shape[1], n_classes**0.5  # the bias's curvature is about 1 / C
    curvature = moments.double() / n_classes
    curvature.diagonal().add_(weight_decay)
    for _ in range(5):
        factor, failed = torch.linalg.cholesky_ex(curvature)
        if not failed:
            break
        curvature.diagonal().mul_(1.1)  # rounding left it indefinite: whatever is near the curvature will do
    factor = factor.to(features)
    first = features.new_zeros(n_classes, dim + 1) if start is None else start
    unknown = torch.cat([first[:, :-1] @ factor, first[:, -1:] / stretch], dim=1)
    optimizer = torch.optim.LBFGS(
        [unknown],
        max_iter=200,
        max_eval=400,
        tolerance_grad=tolerance,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    rows = torch.arange(len(features), device=features.device)

    def parameters() -> Tensor:
        weight = torch.linalg.solve_triangular(factor, unknown[:, :-1], upper=False, left=False)
        return torch.cat([weight, unknown[:, -1:] * stretch], dim=1)

    def objective() -> Tensor:
        # By hand: two passes over the features, and no third copy of the logits for autograd. The shapes are
        # those that matrix products take fast: features.T @ error costs ten times error.T @ features.
        weight, bias = parameters().split([dim, 1], dim=1)
        log_probabilities = functional.linear(features, weight, bias[:, 0]).log_softmax(dim=1)
        loss = -log_probabilities[rows, classes].mean() + weight_decay / 2 * weight.square().sum()
        error = log_probabilities.exp_()
        error[rows, classes] -= 1
        error /= len(features)
        gradient = error.T @ features + weight_decay * weight
        gradient = torch.linalg.solve_triangular(factor.T, gradient, upper=True, left=False)
        unknown.grad = torch.cat([gradient, error.sum(0)[:, None] * stretch], dim=1)
        return loss

    optimizer.step(objective)
    return parameters()


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
    features'. Raises `DataError` for what `checked_problem` refuses and a bank of fewer than three rows;
    `ConfigError` for a strength not above 0.
    """
    if not weight_decays or min(weight_decays) <= 0:
        raise ConfigError(f"weight_decays must be numbers above 0, got {tuple(weight_decays)}")
    problem = checked_problem(bank_features, bank_labels, query_features, query_labels)
    n_rows, n_classes, classes = len(problem.bank), len(problem.classes), problem.bank_classes
    if n_rows < 3:
        raise DataError(f"a bank of {n_rows} images cannot be split to choose the strength: give more")
    mean, std = problem.bank.mean(dim=0), problem.bank.std(dim=0)
    std = torch.where(std > 1e-6 * (mean.abs() + 1e-6), std, torch.ones_like(std))
    bank = (problem.bank - mean) / std
    moments = (
        bank.T @ bank / n_rows
    )  # of the whole bank, also for its larger part: they only speed up the fit

    def accuracy(parameters: Tensor, features: Tensor, asked: Tensor) -> float:
        logits = functional.linear(features, parameters[:, :-1], parameters[:, -1])
        return float((logits.argmax(dim=1) == asked).double().mean())

    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed)).to(bank.device)
    n_held_out = max(1, round(HELD_OUT * n_rows))
    held, kept = order[:n_held_out], order[n_held_out:]
    kept_bank, kept_classes = bank[kept], classes[kept]
    held_out, fits, fitted = {}, {}, None
    for weight_decay in sorted(
        weight_decays, reverse=True
    ):  # each fit starts from that of the next stronger one
        fitted = fit_logistic(
            kept_bank, kept_classes, n_classes, moments, weight_decay=weight_decay, start=fitted
        )
        held_out[weight_decay] = accuracy(fitted, bank[held], classes[held])
        fits[weight_decay] = fitted
    best = max(held_out, key=lambda weight_decay: (held_out[weight_decay], weight_decay))
    fitted = fit_logistic(bank, classes, n_classes, moments, weight_decay=best, start=fits[best])
    found = accuracy(fitted, (problem.query - mean) / std, problem.query_classes)
    return LinearProbe(found, best, held_out, fitted)
