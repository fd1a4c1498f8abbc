"""What a caller hands to `ConstrainedKMeans`, checked before any work: parameters, rows, weights, sizes.

In a process group an error of one process is one of all, so that none waits for one that has given up.

Legend: N rows, D features, K clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data
from torch import Tensor

from coke import distributed
from coke.bounded.costs import COSINE, EUCLIDEAN
from coke.bounded.rows import as_weights
from coke.bounded.sizes import SizeBounds, resolve_bounds
from coke.errors import ConfigError, DataError, did_you_mean
from coke.vectors import Vectors, open_vectors

if TYPE_CHECKING:
    from coke.bounded.estimator import ConstrainedKMeans

METRICS = (EUCLIDEAN, COSINE)
SIZES = ("min_size", "max_size", "min_size_ratio", "max_size_ratio")


def check_parameters(estimator: ConstrainedKMeans) -> None:
    """Raise `ConfigError` for parameters of the wrong kind."""
    for name in ("n_clusters", "max_iter"):
        value = getattr(estimator, name)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
    for name, known in (("metric", METRICS), ("algorithm", ("lloyd", "elkan"))):
        value = getattr(estimator, name)
        if value not in known:
            hint = did_you_mean(str(value), known)
            raise ConfigError(f"{name}={value!r} is unknown{hint}: use {' or '.join(map(repr, known))}")
    n_init = estimator.n_init
    if n_init != "auto" and (
        isinstance(n_init, bool) or not isinstance(n_init, int | np.integer) or n_init < 1
    ):
        raise ConfigError(f"n_init must be 'auto' or a whole number of at least 1, got {n_init!r}")
    for name in ("tol", "gap"):
        value = getattr(estimator, name)
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not value >= 0:
            raise ConfigError(f"{name} must be a number and not negative, got {value!r}")
    block_rows = estimator.block_rows
    if block_rows is not None and (
        isinstance(block_rows, bool) or not isinstance(block_rows, int | np.integer) or block_rows < 1
    ):
        raise ConfigError(f"block_rows must be a whole number of at least 1, or None, got {block_rows!r}")


def open_rows(estimator: ConstrainedKMeans, X: Any, *, reset: bool) -> Vectors:
    """X as `Vectors` whose number and names of features fit the estimator; a fit (``reset``) sets them."""
    error: Exception | None = None
    vectors = None
    try:
        vectors = open_vectors(X, device=estimator.device)
        if hasattr(X, "shape"):
            validate_data(estimator, X=X, reset=reset, skip_check_array=True)
        elif reset:
            estimator.n_features_in_ = vectors.n_features
        elif vectors.n_features != estimator.n_features_in_:
            raise DataError(
                f"X has {vectors.n_features} features, but {type(estimator).__name__} is expecting "
                f"{estimator.n_features_in_} features as input"
            )
    except (ValueError, TypeError, OSError) as raised:
        error = raised
    distributed.fail_together(error)
    assert vectors is not None
    narrowest, widest = distributed.smallest(vectors.n_features), distributed.largest(vectors.n_features)
    if narrowest != widest:
        raise DataError(f"processes hold rows of {narrowest:.0f} to {widest:.0f} features: they must agree")
    return vectors


def open_weights(
    vectors: Vectors, sample_weight: Any, size_weight: Any
) -> tuple[Tensor | None, Tensor | None]:
    """Both kinds of weights as float64 [N] beside the rows, or None."""
    error: Exception | None = None
    found: list[Tensor | None] = []
    try:
        for name, values in (("sample_weight", sample_weight), ("size_weight", size_weight)):
            found.append(as_weights(values, name, vectors.n_rows, vectors.device))
    except (ValueError, TypeError) as raised:
        error = raised
    distributed.fail_together(error)
    return found[0], found[1]


def bounds_asked(
    estimator: ConstrainedKMeans, n_total: int, size_weight: Tensor | None, **sizes: Any
) -> SizeBounds:
    """What every cluster must and may hold: by ``sizes`` given to a call, else by the estimator's."""
    asked = {name: value for name, value in sizes.items() if value is not None}
    asked = asked or {name: getattr(estimator, name) for name in SIZES}
    if size_weight is None:
        return resolve_bounds(n_total, estimator.n_clusters, **asked)
    total = float(distributed.sum_over_processes(size_weight.sum()[None]))
    return resolve_bounds(total, estimator.n_clusters, size_weight=size_weight.cpu().numpy(), **asked)


def shared_seed(random_state: Any) -> int:
    """A number that the first process draws from its random state, so that all start alike, however many."""
    own = check_random_state(random_state).randint(2**31) if distributed.rank() == 0 else 0
    return int(distributed.sum_over_processes(torch.tensor(own)))
