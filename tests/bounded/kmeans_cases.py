"""Rows to cluster, their costs by definition, and what must be true of every fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from oracles import Problem

from coke import ConstrainedKMeans
from coke.bounded.sizes import resolve_bounds


def blobs(n_rows: int = 300, n_features: int = 3, n_groups: int = 6, seed: int = 0) -> np.ndarray:
    """Float64 rows around a few centers, in groups of sizes 1/rank: some too small, some too large for most bounds."""
    random = np.random.default_rng(seed)
    share = 1 / np.arange(1, n_groups + 1)
    centers = random.normal(size=(n_groups, n_features)) * 3 + 1
    group = random.choice(n_groups, n_rows, p=share / share.sum())
    return centers[group] + random.normal(size=(n_rows, n_features))


def costs_of(rows: Any, centers: Any, metric: str = "euclidean") -> np.ndarray:
    """Float64 [N, K]: squared distances, or 1 - cosine."""
    rows, centers = np.asarray(rows, np.float64), np.asarray(centers, np.float64)
    if metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        centers = centers / np.linalg.norm(centers, axis=1, keepdims=True)
        return ((rows[:, None] - centers[None]) ** 2).sum(-1) / 2
    return ((rows[:, None] - centers[None]) ** 2).sum(-1)


def problem_of(km: ConstrainedKMeans, rows: Any, sample_weight: Any = None, **sizes: Any) -> Problem:
    """The assignment problem under a fit's centers, for sizes given here or else to the estimator."""
    names = ("min_size", "max_size", "min_size_ratio", "max_size_ratio")
    asked = sizes or {name: getattr(km, name) for name in names}
    costs = costs_of(rows, km.cluster_centers_, km.metric)
    if sample_weight is not None:
        costs = costs * np.asarray(sample_weight, np.float64)[:, None]
    bounds = resolve_bounds(len(costs), km.n_clusters, **asked)
    return Problem(costs, bounds.lower.numpy(), bounds.upper.numpy())


def check_fit(km: ConstrainedKMeans, rows: Any, sample_weight: Any = None) -> Problem:
    """Sizes hold and are counted, labels cost what is said, nothing is NaN; the problem, for further questions."""
    problem, labels = problem_of(km, rows, sample_weight), np.asarray(km.labels_)
    assert labels.dtype == np.int32
    assert labels.shape == (len(rows),)
    assert np.isfinite(np.asarray(km.cluster_centers_)).all()
    assert problem.excess(labels) <= 0
    assert problem.sizes(labels).tolist() == np.asarray(km.counts_).tolist()
    rounding = 1e-14 * len(rows) if km.metric == "cosine" else 1e-30
    assert abs(km.inertia_ - problem.cost(labels)) <= 1e-6 * problem.cost(labels) + rounding
    assert km.gap_ >= 0
    return problem
