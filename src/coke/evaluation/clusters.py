"""How well clusters agree with labels: of k-means on a representation, or a run's own heads.

No score depends on the order of the rows or on how classes and clusters are numbered. Legend: N rows.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from coke.errors import DataError
from coke.evaluation.checks import Integers, checked_features, checked_labels, whole_numbers


def agreement(labels: Integers, clusters: Integers) -> dict[str, float]:
    """Scores of clusters [N] against labels [N], from their contingency table.

    ``accuracy``: share of rows right under the best one-to-one matching of clusters to classes; rows of what
    stays unmatched count as wrong. ``nmi``: mutual information over the mean of both entropies. ``ari``:
    agreement over pairs of rows corrected for chance, which may be negative. Raises `DataError` for what
    `whole_numbers` refuses and where the numbers of rows differ.

    >>> agreement([0, 0, 1, 1], [4, 4, 9, 4])["accuracy"]
    0.75
    """
    # a second of import that k-NN during training does not need
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    classes = whole_numbers(labels, "labels").cpu().numpy()
    groups = whole_numbers(clusters, "clusters").cpu().numpy()
    if len(classes) != len(groups):
        raise DataError(f"{len(classes)} labels but {len(groups)} clusters: both need one entry for each row")
    counts = contingency_matrix(classes, groups)
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return {
        "accuracy": float(matched / len(classes)),
        "nmi": float(normalized_mutual_info_score(classes, groups)),
        "ari": float(adjusted_rand_score(classes, groups)),
    }


def cluster_scores(
    features: Tensor, labels: Integers, *, n_init: int = 10, seed: int = 0
) -> dict[str, float]:
    """Cluster features [N, F] with k-means and compare with labels [N].

    Features are centred on their mean and normalised to unit length, as for k-NN; k is the number of classes; the best
    of ``n_init`` seeded starts (k-means++) by the k-means objective counts, never by the labels. Raises `DataError`
    for rows that do not match, missing labels, NaN, and one class only.
    """
    from sklearn.cluster import KMeans

    checked = checked_features(features, "clustered")
    classes = checked_labels(labels, "clustered", len(checked))
    n_classes = len(classes.unique())
    if n_classes < 2:
        only = f"all {len(checked)} labels are {int(classes[0])}"
        raise DataError(f"{only}: clusters need two classes to compare with")
    points = functional.normalize(checked - checked.mean(dim=0), dim=1).cpu().numpy()
    return agreement(classes, KMeans(n_classes, n_init=n_init, random_state=seed).fit(points).labels_)


def head_scores(assignments: Tensor, labels: Integers) -> list[dict[str, Any]]:
    """A run's own clusters against labels, head by head: from assignments [N, H] and labels [N].

    ``used`` is how many clusters of the ``head`` hold a labelled image.

    Read NMI across heads of different K with care: it grows with K; ACC means something where K is about the
    number of classes. Raises `DataError` for rows that do not match, unassigned (-1) or unlabelled (-1)
    images: leave those rows out before.

    >>> import torch
    >>> head_scores(torch.tensor([[0, 5], [0, 6], [1, 7], [1, 8]]), [3, 3, 9, 9])[1]["used"]
    4
    """
    if assignments.ndim != 2 or assignments.shape[1] == 0:
        raise DataError(f"assignments must be [images, heads], got {tuple(assignments.shape)}")
    return [
        {**agreement(labels, clusters), "head": head, "used": len(clusters.unique())}
        for head, clusters in enumerate(assignments.unbind(dim=1))
    ]
