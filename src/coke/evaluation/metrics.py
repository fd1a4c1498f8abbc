"""How well clusters agree with labels: Hungarian accuracy, mutual information, adjusted Rand; and sizes.

All scores are computed in float64 from the contingency table, so they neither depend on the order of the rows
nor on how classes and clusters are numbered. Legend: N rows, C classes, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke.errors import DataError

Integers = Tensor | np.ndarray[Any, Any] | Sequence[int]


def whole_numbers(values: Integers, name: str) -> Tensor:
    """``values`` as an int64 tensor [N] on its own device.

    Raises `DataError` for floats, for anything but one dimension, for no rows, and for negative numbers: -1
    means "no label" or "unassigned" elsewhere in coke, and such rows are to be left out by the caller,
    knowingly.

    >>> whole_numbers([3, 1], "labels")
    tensor([3, 1])
    """
    numbers = torch.as_tensor(values)
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise DataError(f"{name} must be whole numbers, got {numbers.dtype}: pass class or cluster indices")
    if numbers.ndim != 1:
        raise DataError(
            f"{name} must have one dimension, got shape {tuple(numbers.shape)}: pass one number a row"
        )
    if len(numbers) == 0:
        raise DataError(f"{name} has no rows: there is nothing to score")
    negative = int((numbers < 0).sum())
    if negative:
        raise DataError(
            f"{name} has {negative} of {len(numbers)} rows below 0 (-1: a row without one): leave those out"
        )
    return numbers.long()


def contingency(labels: Integers, clusters: Integers) -> Tensor:
    """How many rows of each class are in each cluster: int64 [classes present, clusters present], on the CPU.

    Raises `DataError` for what `whole_numbers` refuses and where the numbers of rows differ.

    >>> contingency([0, 0, 7], [5, 5, 2])
    tensor([[0, 2],
            [1, 0]])
    """
    classes = whole_numbers(labels, "labels").cpu()
    groups = whole_numbers(clusters, "clusters").cpu()
    if len(classes) != len(groups):
        raise DataError(f"{len(classes)} labels but {len(groups)} clusters: both need one entry for each row")
    class_names, row = classes.unique(return_inverse=True)
    group_names, column = groups.unique(return_inverse=True)
    cells = torch.bincount(row * len(group_names) + column, minlength=len(class_names) * len(group_names))
    return cells.view(len(class_names), len(group_names))


def cluster_sizes(labels: Integers, n_clusters: int) -> Tensor:
    """Number of rows in each of ``n_clusters`` clusters: int64 [K], empty clusters included.

    Raises `DataError` for a label outside 0 .. K-1.

    >>> cluster_sizes([0, 2, 2], 4).tolist()
    [1, 0, 2, 0]
    """
    clusters = whole_numbers(labels, "labels")
    largest = int(clusters.max())
    if largest >= n_clusters:
        raise DataError(
            f"label {largest} among {n_clusters} clusters (0 .. {n_clusters - 1}): raise n_clusters"
        )
    return torch.bincount(clusters, minlength=n_clusters)


def clustering_accuracy(labels: Integers, clusters: Integers) -> float:
    """ACC: share of rows right under the best one-to-one matching of clusters to classes (Hungarian).

    With more clusters than classes the unmatched clusters' rows count as wrong; with fewer, the unmatched
    classes' rows do.

    >>> clustering_accuracy([0, 0, 1, 1], [4, 4, 9, 4])
    0.75
    """
    from scipy.optimize import linear_sum_assignment  # half of the import time, and only needed here

    counts = contingency(labels, clusters).numpy()
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / counts.sum())


def normalized_mutual_information(labels: Integers, clusters: Integers) -> float:
    """NMI: mutual information over the mean of both entropies (scikit-learn's default), in [0, 1].

    One class and one cluster agree perfectly (1); one of them alone says nothing about the other (0).

    >>> round(normalized_mutual_information([0, 0, 1, 1], [1, 1, 0, 0]), 6)
    1.0
    """
    counts = contingency(labels, clusters).double()
    joint = counts / counts.sum()
    of_class, of_cluster = joint.sum(1), joint.sum(0)
    if len(of_class) == 1 and len(of_cluster) == 1:
        return 1.0
    expected = of_class[:, None] * of_cluster[None, :]
    mutual = torch.xlogy(joint, joint / expected).sum()
    entropies = -torch.xlogy(of_class, of_class).sum() - torch.xlogy(of_cluster, of_cluster).sum()
    return float((2 * mutual / entropies).clamp(0, 1))


def adjusted_rand_index(labels: Integers, clusters: Integers) -> float:
    """ARI: agreement over pairs of rows, corrected for chance: 1 identical, 0 chance, below 0 worse.

    Hubert and Arabie's form: (pairs together in both - expected) / (mean of both - expected).

    >>> adjusted_rand_index([0, 0, 1, 1], [0, 0, 1, 1])
    1.0
    """
    counts = contingency(labels, clusters).double()

    def pairs(sizes: Tensor) -> float:
        return float((sizes * (sizes - 1) / 2).sum())

    in_both, in_class, in_cluster = pairs(counts), pairs(counts.sum(1)), pairs(counts.sum(0))
    total = pairs(counts.sum().view(1))
    if in_class == in_cluster and in_class in (0.0, total):  # all rows alone, or all together, in both
        return 1.0
    expected = in_class * in_cluster / total
    return (in_both - expected) / ((in_class + in_cluster) / 2 - expected)
