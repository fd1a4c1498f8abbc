"""Weighted k-nearest-neighbour classification on frozen features: the probe without anything to tune.

Protocol (Wu et al. 2018, arXiv 1805.01978, with centring): subtract the bank's mean feature from both sides,
normalise to unit length, take the k = 20 bank images with the highest cosine, let each vote for its class
with weight exp(cosine / 0.07). Centring matters: features after a ReLU share a large common direction, which
makes all cosines nearly 1. Legend: Nb bank rows, Nq query rows, F dimensions, k neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from coke.errors import ConfigError, DataError
from coke.evaluation.checks import checked_labels, checked_pair, checked_problem
from coke.evaluation.metrics import Integers

SCORES_AT_ONCE = {"cpu": 1 << 23, "cuda": 1 << 27}  # float32 similarities held at a time: 32 MiB, 512 MiB
GROUP = 64  # bank rows whose maximum is taken together when looking for the nearest


def unit_features(features: Tensor, mean: Tensor | None = None) -> Tensor:
    """Features [N, F] less ``mean`` [F], each row scaled to unit length (a row of zeros stays zero)."""
    return functional.normalize(features if mean is None else features - mean, dim=1)


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k bank rows with the largest inner product: values and indices, both [Nq, k], best first.

    Exact: the k largest of a row lie within the k groups of columns whose maxima are largest, so only those
    groups are sorted. A plain `torch.topk` over a bank of 50,000 costs more than the matrix product itself.
    """
    scores = queries @ bank.T
    groups = len(bank) // GROUP
    if groups <= k:
        best = scores.topk(k, dim=1)
        return best.values, best.indices
    whole = scores[:, : groups * GROUP].view(len(queries), groups, GROUP)
    chosen = whole.amax(dim=2).topk(k, dim=1).indices  # [Nq, k]
    columns = (chosen[:, :, None] * GROUP + torch.arange(GROUP, device=bank.device)).flatten(1)
    rest = torch.arange(groups * GROUP, len(bank), device=bank.device).expand(len(queries), -1)
    columns = torch.cat([columns, rest], dim=1)
    best = scores.gather(1, columns).topk(k, dim=1)
    return best.values, columns.gather(1, best.indices)


def vote(similarities: Tensor, classes: Tensor, n_classes: int, temperature: float) -> Tensor:
    """Each row's class with the largest sum of exp(similarity / temperature): int64 [Nq] from [Nq, k] twice.

    >>> vote(torch.tensor([[0.9, 0.8, 0.8]]), torch.tensor([[0, 1, 1]]), 2, temperature=1.0)
    tensor([1])
    """
    # relative to the nearest neighbour: the same winner, and no overflow at small temperatures
    weights = ((similarities - similarities[:, :1]) / temperature).exp()
    return weights.new_zeros(len(weights), n_classes).scatter_add_(1, classes, weights).argmax(dim=1)


def _predict(
    bank: Tensor, classes: Tensor, query: Tensor, k: int, temperature: float, center: bool
) -> Tensor:
    if not temperature > 0:
        raise ConfigError(f"temperature must be above 0, got {temperature}: 0.07 is customary")
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}: 20 is customary")
    if k > len(bank):
        raise DataError(f"{k} neighbours asked of a bank of {len(bank)} images: lower k or give more images")
    mean = bank.mean(dim=0) if center else None
    bank, n_classes = unit_features(bank, mean), int(classes.max()) + 1
    rows = max(1, SCORES_AT_ONCE.get(bank.device.type, SCORES_AT_ONCE["cpu"]) // len(bank))
    predicted = []
    for block in query.split(rows):
        similarities, indices = nearest(unit_features(block, mean), bank, k)
        predicted.append(vote(similarities, classes[indices], n_classes, temperature))
    return torch.cat(predicted)


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
    bank, query = checked_pair(bank_features, query_features)
    labels = checked_labels(bank_labels, "bank", len(bank)).to(bank.device)
    values, classes = labels.unique(return_inverse=True)
    return values[_predict(bank, classes, query, k, temperature, center)]


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
    predicted = _predict(problem.bank, problem.bank_classes, problem.query, k, temperature, center)
    return float((predicted == problem.query_classes).double().mean())
