"""Centers to start k-means from: k-means++ or random rows of the sample, given ones, or a function's.

Legend: S rows of the sample, D features, K clusters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke.bounded.costs import COSINE, unit_rows
from coke.bounded.sample import Sample
from coke.errors import ConfigError, DataError, did_you_mean

_LEAST_ROWS, _ROWS_PER_CLUSTER = 2**12, 32  # of the sample that k-means++ draws from
_MOST_WORK = 2**36  # multiplications that k-means++ may take for its extra draws
INITS = ("k-means++", "random")
Init = str | Any | Callable[..., Any]


def starting_centers(init: Init, sample: Sample, n_clusters: int, random: np.random.RandomState) -> Tensor:
    """Float64 [K, D] on the sample's device.

    init: ``"k-means++"`` (see `spread_rows`), ``"random"``, an array [K, D],
    or a function of (rows [S, D], K, random_state) that returns one.

    Raises:
        ConfigError: an unknown name.
        DataError: centers of another shape, or that are not finite.
    """
    rows = sample.rows.double()
    if isinstance(init, str):
        if init not in INITS:
            raise ConfigError(
                f"init={init!r} is unknown{did_you_mean(init, INITS)}: use {' or '.join(map(repr, INITS))}, "
                "an array [K, D], or a function"
            )
        weights = torch.ones_like(rows[:, 0]) if sample.sample_weight is None else sample.sample_weight
        if init == "random":
            share = (weights / weights.sum()).cpu().numpy()
            n_weighing = int(np.count_nonzero(share))
            drawn = random.choice(len(rows), min(n_clusters, n_weighing), replace=False, p=share)
            if n_weighing < n_clusters:
                rest = random.permutation(np.flatnonzero(share == 0))
                drawn = np.concatenate([drawn, rest[: n_clusters - n_weighing]])
            return rows[torch.from_numpy(drawn).to(rows.device)].clone()
        step = max(1, len(rows) // max(_LEAST_ROWS, _ROWS_PER_CLUSTER * n_clusters))
        return rows[::step][spread_rows(rows[::step], n_clusters, weights[::step], random)].clone()
    if callable(init):
        init = init(rows.cpu().numpy(), n_clusters, random_state=random)
    centers = init if isinstance(init, Tensor) else torch.as_tensor(np.asarray(init, dtype=np.float64))
    return checked_centers(centers.to(rows.device), n_clusters, rows.shape[1], sample.metric, "init")


def n_starts(n_init: int | str, init: Init) -> int:
    """How many starts: of given centers one, of those drawn at random ten, where nothing else is said.

    >>> n_starts("auto", "random"), n_starts("auto", "k-means++"), n_starts(1, [[0.0]])
    (10, 1, 1)
    """
    if not isinstance(init, str) and not callable(init):
        if n_init not in ("auto", 1):
            warnings.warn(
                f"Explicit initial center position passed: performing only one init instead of n_init={n_init}.",
                RuntimeWarning,
                stacklevel=3,
            )
        return 1
    if n_init == "auto":
        return 1 if init == "k-means++" else 10
    return int(n_init)


def spread_rows(rows: Tensor, n_clusters: int, weights: Tensor, random: np.random.RandomState) -> Tensor:
    """Indices [K] of rows [S, D] that lie far apart: greedy k-means++ (Arthur and Vassilvitskii 2007).

    Each next row is drawn with probability proportional to its weighted squared distance to the nearest one
    drawn so far, the best of 2 + ln K draws (of one where that would take long). All on the rows' device.

    >>> rows = torch.tensor([[0.0], [0.1], [9.0], [9.1]])
    >>> chosen = spread_rows(rows, 2, torch.ones(4), np.random.RandomState(0))
    >>> sorted(rows[chosen].round()[:, 0].tolist())
    [0.0, 9.0]
    """
    rows = (rows - rows.mean(0)).float()
    weights = weights.float()
    squares = rows.square().sum(1)
    n_trials = 2 + int(np.log(n_clusters))
    if rows.numel() * n_clusters * n_trials > _MOST_WORK:
        n_trials = 1
    draws = torch.from_numpy(random.uniform(size=(n_clusters, n_trials))).to(rows.device)
    chosen = torch.searchsorted(weights.double().cumsum(0), draws[0, :1] * weights.double().sum())
    nearest = torch.full_like(squares, torch.inf)
    for turn in range(n_clusters):
        if turn:
            reach = (nearest * weights).double().cumsum(0)
            drawn = torch.searchsorted(reach, draws[turn] * reach[-1]).clamp_(max=len(rows) - 1)
        else:
            drawn = chosen.clamp(max=len(rows) - 1)
        distance = (
            torch.addmm(squares[:, None], rows, rows[drawn].t(), alpha=-2).add_(squares[drawn]).clamp_(min=0)
        )
        distance = torch.minimum(distance, nearest[:, None])
        best = (weights @ distance).argmin()
        nearest = distance[:, best].contiguous()
        chosen = torch.cat([chosen, drawn[best][None]]) if turn else drawn
    return chosen


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
