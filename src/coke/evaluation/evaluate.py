"""Representations side by side: the same probes on each, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from coke.errors import DataError
from coke.evaluation.checks import Integers, checked_problem
from coke.evaluation.clusters import cluster_scores
from coke.evaluation.probes import knn_accuracy, linear_probe

ENOUGH_TO_CLUSTER = 1000
COLUMNS = {
    "knn": "k-NN",
    "linear": "linear",
    "linear_augmented": "linear, augmented",
    "accuracy": "cluster ACC",
    "nmi": "NMI",
    "ari": "ARI",
}

Evaluation = dict[str, dict[str, Any]]


def evaluate_representations(
    representations: Mapping[str, tuple[Tensor, Tensor]],
    bank_labels: Integers,
    query_labels: Integers,
    *,
    linear: bool = True,
    seed: int = 0,
) -> Evaluation:
    """Score each representation, a pair of features (bank [Nb, F], query [Nq, F]), by the same procedure.

    Per representation: ``knn`` (`knn_accuracy` with ``k`` = 20, or all of a smaller bank), ``linear``
    (`linear_probe`) with ``weight_decay``, the L2 strength it chose, and ``accuracy``, ``nmi``, ``ari``
    (`cluster_scores`) of k-means on the query images where there are at least 1,000 of them, else on the bank:
    ``clustered`` says which ("query" or "bank") and ``clustered_images`` how many; ``bank_images``,
    ``query_images`` and ``n_classes`` count what was compared. Shares are in [0, 1]. Everything is JSON.
    Raises `DataError` for no representation and for what the probes refuse, all of them before any computes.
    """
    if not representations:
        raise DataError("no representation to evaluate: give at least one name with bank and query features")
    problems = {
        name: checked_problem(bank, bank_labels, query, query_labels)
        for name, (bank, query) in representations.items()
    }
    evaluation: Evaluation = {}
    for name, problem in problems.items():
        bank, query = problem.bank, problem.query
        k = min(20, len(bank))
        scores: dict[str, Any] = {"knn": knn_accuracy(bank, bank_labels, query, query_labels, k=k), "k": k}
        if linear:
            probe = linear_probe(bank, bank_labels, query, query_labels, seed=seed)
            scores |= {"linear": probe.accuracy, "weight_decay": probe.weight_decay}
        # a query of one class, say an ordered sample, has nothing to compare clusters with
        ask_query = len(query) >= ENOUGH_TO_CLUSTER and len(torch.as_tensor(query_labels).unique()) > 1
        clustered, labels = (query, query_labels) if ask_query else (bank, bank_labels)
        scores |= cluster_scores(clustered, labels, seed=seed)
        scores |= {
            "clustered": "query" if ask_query else "bank",
            "clustered_images": len(clustered),
            "bank_images": len(bank),
            "query_images": len(query),
            "n_classes": len(problem.classes),
        }
        evaluation[name] = scores
    return evaluation


def table(evaluation: Mapping[str, Mapping[str, Any]]) -> str:
    """The scores as text, one representation a row, percentages with one decimal, and a line on the protocol.

    A score that a representation does not have is shown as "-"; a column that none has is left out.

    >>> print(table({"raw pixels": {"knn": 0.472}, "trained": {"knn": 0.5, "nmi": 0.25}}))
                 k-NN   NMI
    raw pixels  47.2%     -
    trained     50.0% 25.0%
    """
    columns = [key for key in COLUMNS if any(key in scores for scores in evaluation.values())]
    rows = [["", *(COLUMNS[key] for key in columns)]]
    for name, scores in evaluation.items():
        rows.append([name, *(f"{scores[key]:.1%}" if key in scores else "-" for key in columns)])
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for name, *cells in rows:
        shown = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append(" ".join([name.ljust(first + 1), *shown]).rstrip())
    said = next((scores for scores in evaluation.values() if "clustered" in scores), None)
    if said is not None:
        lines.append(
            f"{said['query_images']:,} query images asked of {said['bank_images']:,} bank images, "
            f"{said['n_classes']} classes (chance {1 / said['n_classes']:.1%}); k-means (k = classes, best of 10 "
            f"starts) on the {said['clustered_images']:,} images of the {said['clustered']}"
        )
    return "\n".join(lines)
