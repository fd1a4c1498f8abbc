"""Scores of clusters against labels: k-means on a representation, and a run's own heads."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from coke.errors import ConfigError, DataError
from coke.evaluation.checks import checked_features, checked_labels
from coke.evaluation.knn import unit_features
from coke.evaluation.metrics import (
    Integers,
    adjusted_rand_index,
    clustering_accuracy,
    normalized_mutual_information,
)


class ClusterScores(TypedDict):
    """Agreement of clusters with labels, all in [0, 1] but the adjusted Rand index, which may be negative."""

    accuracy: float
    nmi: float
    ari: float


class HeadScores(ClusterScores):
    """One head's agreement; ``used`` is how many of its clusters hold a labelled image."""

    head: int
    used: int


def agreement(labels: Integers, clusters: Integers) -> ClusterScores:
    """Hungarian accuracy, normalised mutual information and adjusted Rand index at once.

    >>> agreement([0, 0, 1, 1], [1, 1, 0, 0])["accuracy"]
    1.0
    """
    return ClusterScores(
        accuracy=clustering_accuracy(labels, clusters),
        nmi=normalized_mutual_information(labels, clusters),
        ari=adjusted_rand_index(labels, clusters),
    )


def cluster_scores(
    features: Tensor, labels: Integers, *, n_clusters: int | None = None, n_init: int = 10, seed: int = 0
) -> ClusterScores:
    """Cluster features [N, F] with k-means and compare with labels [N].

    Features are centred on their mean and normalised to unit length, as for k-NN; k is the number of classes
    unless given; the best of ``n_init`` seeded starts (k-means++) by the k-means objective counts, never by
    the labels. The same procedure serves every representation. Raises `DataError` for rows that do not match,
    missing labels, NaN, one class only, or fewer images than clusters; `ConfigError` for fewer than one
    start.
    """
    from sklearn.cluster import KMeans  # a second of import that k-NN during training does not need

    checked = checked_features(features, "clustered")
    classes = checked_labels(labels, "clustered", len(checked))
    found = len(classes.unique())
    if found < 2:
        raise DataError(
            f"all {len(checked)} labels are {int(classes[0])}: clusters need two classes to compare with"
        )
    wanted = found if n_clusters is None else n_clusters
    if wanted < 1 or n_init < 1:
        raise ConfigError(f"n_clusters and n_init must be at least 1, got {wanted} and {n_init}")
    if wanted > len(checked):
        raise DataError(f"{wanted} clusters asked of {len(checked)} images: lower n_clusters")
    points = unit_features(checked, checked.mean(dim=0)).cpu().numpy()
    found_clusters = KMeans(n_clusters=wanted, n_init=n_init, random_state=seed).fit(points).labels_
    return agreement(classes, torch.as_tensor(found_clusters))


def head_scores(assignments: Tensor, labels: Integers) -> list[HeadScores]:
    """A run's own clusters against labels, head by head: from assignments [N, H] and labels [N].

    Read NMI across heads of different K with care: it grows with K; ACC means something where K is about the
    number of classes. Raises `DataError` for rows that do not match, unassigned (-1) or unlabelled (-1)
    images: leave those rows out before.

    >>> head_scores(torch.tensor([[0, 5], [0, 6], [1, 7], [1, 8]]), [3, 3, 9, 9])[1]["used"]
    4
    """
    if assignments.ndim != 2 or assignments.shape[1] == 0:
        raise DataError(f"assignments must be [images, heads], got {tuple(assignments.shape)}")
    scores = []
    for head, clusters in enumerate(assignments.unbind(dim=1)):
        scores.append(HeadScores(**agreement(labels, clusters), head=head, used=len(clusters.unique())))
    return scores
