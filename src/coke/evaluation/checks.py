"""What every score demands of features and labels before it starts to compute.

Legend: Nb bank rows (a probe learns from them), Nq query rows (it is asked about them), F feature dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from coke.errors import DataError

Integers = Tensor | np.ndarray[Any, Any] | Sequence[int]


def whole_numbers(values: Integers, name: str) -> Tensor:
    """``values`` as an int64 tensor [N] on its own device.

    Raises `DataError` for anything else, and for negative numbers: -1 means "no label" or "unassigned" elsewhere in
    coke, and such rows are to be left out by the caller, knowingly.

    >>> whole_numbers([3, 1], "labels")
    tensor([3, 1])
    """
    numbers = torch.as_tensor(values)
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise DataError(f"{name} must be whole numbers, got {numbers.dtype}: pass class or cluster indices")
    if numbers.ndim != 1 or len(numbers) == 0:
        shape = tuple(numbers.shape)
        raise DataError(
            f"{name} must have one dimension and any rows, got shape {shape}: pass one number a row"
        )
    if negative := int((numbers < 0).sum()):
        share = f"{negative} of {len(numbers)} rows below 0"
        raise DataError(f"{name} has {share} (-1: a row without one): leave those out")
    return numbers.long()


def checked_features(features: Tensor, name: str) -> Tensor:
    """Features as float32 [N, F]; raises `DataError` for another shape, no rows, NaN or infinity."""
    shape = tuple(features.shape)
    if features.ndim != 2:
        raise DataError(f"{name} features must be [rows, dimensions], got {shape}: flatten them")
    if features.numel() == 0:
        raise DataError(f"{name} features are empty, shape {shape}: a probe needs rows to look at")
    features = features.float()
    if n_bad := int((~torch.isfinite(features).all(dim=1)).sum()):
        raise DataError(
            f"{n_bad} of {len(features)} {name} features hold NaN or infinity: "
            "the network has diverged, or its input was not finite"
        )
    return features


def checked_labels(labels: Integers, name: str, n_rows: int) -> Tensor:
    """Labels as int64 [N]; raises `DataError` where they do not match the rows, or any row has none (-1)."""
    checked = whole_numbers(labels, f"{name} labels")
    if len(checked) != n_rows:
        came = f"{n_rows} {name} features but {len(checked)} labels"
        raise DataError(f"{came}: both need one entry for each image")
    return checked


class Problem(NamedTuple):
    """A checked classification problem, all on the bank features' device.

    Classes are numbered 0 .. C-1 in the order of ``classes`` (the label values of the bank). A query label
    that the bank does not have is -1: no probe can predict it, so it counts as wrong.
    """

    bank: Tensor
    bank_classes: Tensor
    query: Tensor
    query_classes: Tensor
    classes: Tensor


def checked_problem(
    bank_features: Tensor, bank_labels: Integers, query_features: Tensor, query_labels: Integers
) -> Problem:
    """Check both sides and number the bank's classes.

    Raises `DataError` for what `checked_features` and `checked_labels` refuse, for sides of different width,
    for a bank of one class only (every answer would be right), and where no query label occurs in the bank.
    """
    bank = checked_features(bank_features, "bank")
    query = checked_features(query_features, "query").to(bank.device)
    if bank.shape[1] != query.shape[1]:
        raise DataError(
            f"bank features have {bank.shape[1]} dimensions but query features {query.shape[1]}: "
            "extract both with the same backbone and size"
        )
    labels = checked_labels(bank_labels, "bank", len(bank)).to(bank.device)
    asked = checked_labels(query_labels, "query", len(query)).to(bank.device)
    classes, bank_classes = labels.unique(return_inverse=True)
    if len(classes) < 2:
        only = f"all {len(bank)} bank labels are {int(classes[0])}"
        raise DataError(f"{only}: a probe needs two classes or more")
    known = torch.isin(asked, classes)
    if not bool(known.any()):
        raise DataError(
            f"none of the {len(query)} query labels occurs among the bank's {len(classes)} classes: "
            "the two splits number their classes differently"
        )
    numbered = torch.searchsorted(classes, asked).masked_fill(~known, -1)
    return Problem(bank, bank_classes, query, numbered, classes)
