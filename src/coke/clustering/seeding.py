"""Centers to start k-means from: k-means++ or random rows of the sample, given ones, or a function's.

Legend: S rows of the sample, D features, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke.clustering.costs import COSINE, unit_rows
from coke.clustering.sample import Sample
from coke.errors import ConfigError, DataError, did_you_mean

INITS = ("k-means++", "random")
Init = str | Any | Callable[..., Any]


def starting_centers(init: Init, sample: Sample, n_clusters: int, random: np.random.RandomState) -> Tensor:
    """Float64 [K, D] on the sample's device.

    init: ``"k-means++"`` (Arthur and Vassilvitskii 2007, as scikit-learn does it), ``"random"``, an array [K, D],
    or a function of (rows [S, D], K, random_state) that returns one.

    Raises:
        ConfigError: an unknown name.
        DataError: centers of another shape, or that are not finite.
    """
    rows = sample.rows
    if isinstance(init, str):
        if init not in INITS:
            raise ConfigError(
                f"init={init!r} is unknown{did_you_mean(init, INITS)}: use {' or '.join(map(repr, INITS))}, "
                "an array [K, D], or a function"
            )
        weights = None if sample.sample_weight is None else sample.sample_weight.cpu().numpy()
        if init == "random":
            share = None if weights is None else weights / weights.sum()
            drawn = random.choice(len(rows), n_clusters, replace=False, p=share)
        else:
            from sklearn.cluster import kmeans_plusplus

            drawn = kmeans_plusplus(
                rows.cpu().numpy(), n_clusters, sample_weight=weights, random_state=random
            )[1]
        return rows[torch.from_numpy(np.asarray(drawn)).to(rows.device)].clone()
    if callable(init):
        init = init(rows.cpu().numpy(), n_clusters, random_state=random)
    centers = init if isinstance(init, Tensor) else torch.as_tensor(np.asarray(init, dtype=np.float64))
    return checked_centers(centers.to(rows.device), n_clusters, rows.shape[1], sample.metric, "init")


def checked_centers(centers: Tensor, n_clusters: int, n_features: int, metric: str, name: str) -> Tensor:
    """Given centers as float64 [K, D], of unit length for cosine.

    Raises `DataError` for another shape, NaN or infinity, or a center without direction.
    """
    if tuple(centers.shape) != (n_clusters, n_features):
        raise DataError(
            f"The shape of the initial centers {tuple(centers.shape)} ({name}) does not match: "
            f"n_clusters={n_clusters} of {n_features} features are needed"
        )
    centers = centers.detach().double()
    if not bool(torch.isfinite(centers).all()):
        raise DataError(
            f"{name} holds NaN or infinity (inf) in row {int((~torch.isfinite(centers)).any(1).nonzero()[0])}"
        )
    if metric != COSINE:
        return centers.clone()
    if bool((centers == 0).all(1).any()):
        raise DataError(
            f"{name} holds a center of zeros, which has no direction: leave it out for metric='cosine'"
        )
    return unit_rows(centers)
