"""`ConstrainedKMeans`: k-means whose cluster sizes hold, as a scikit-learn estimator.

Legend: N rows, D features, K clusters.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from coke import distributed
from coke.bounded.arguments import bounds_asked, check_parameters, open_rows, open_weights, shared_seed
from coke.bounded.assignment import GAP, Assignment
from coke.bounded.costs import EUCLIDEAN
from coke.bounded.lloyd import Fit, assign_rows, distances, lloyd, nearest_centers, returned_dtype
from coke.bounded.rows import as_weights, look_at
from coke.bounded.seeding import checked_centers, n_starts, starting_centers
from coke.bounded.streaming import Stream
from coke.bounded.sweep import count_labels
from coke.errors import BoundsError
from coke.vectors import Vectors


class ConstrainedKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """K-means with a minimum and a maximum cluster size that hold, and a bound on how far from optimal it is.

    Without sizes it is plain k-means. ``fit`` returns centers and, under them, the cheapest assignment within
    the bounds that it can prove: ``gap_`` says how much cheaper any other could be. Method: the dual of the
    assignment, of K variables, is climbed along Lloyd's iterations; see docs/clustering.md.

    Inside a process group (torchrun) every process passes its own part of the rows.

    Args:
        n_clusters: K.
        min_size, max_size: rows of a cluster, one number or one per cluster; None: no bound.
        min_size_ratio, max_size_ratio: the same relative to N / K: 1 and 1 is balanced.
        metric: ``"euclidean"`` (squared distances, means) or ``"cosine"`` (1 - cosine, directions).
        init: ``"k-means++"``, ``"random"``, centers [K, D], or a function (rows, K, random_state) of a sample.
        n_init: starts, of which the cheapest is kept; ``"auto"``: 10 for ``"random"`` and functions, else 1.
        max_iter: moves of the centers, at most.
        tol: centers have come to rest when their squared moves sum to less than this, times the mean variance.
        random_state: of the sample and the start. The same gives the same labels, bit for bit, on a device.
        warm_start: fit starts from the centers and duals of the fit before, so that clusters keep their number.
        gap: relative gap at which the last assignment is good enough; 0: exact, for small data.
        device: where to compute; None: where a tensor is, else the CPU. Rows are moved block by block.
        block_rows: rows at a time; None: by K and device. It changes no label.
        verbose: whether to print a line for each iteration.
        copy_x, algorithm: taken for the sake of ``sklearn.cluster.KMeans``, without effect: rows never change.

    Attributes:
        labels_: int32 [N], within the bounds.
        cluster_centers_: [K, D], float64 for float64 and integer rows, else float32.
        counts_: int64 [K] rows of each cluster.
        inertia_: sum of (weighted) costs of the labels.
        lower_bound_: no labels within the bounds cost less for these centers.
        gap_: (inertia_ - lower_bound_) / lower_bound_; 0 where they agree to rounding.
        duals_: float64 [K], what the bounds add to (positive) or take from a cluster's draw.
        n_iter_: iterations of the start that was kept.
        n_features_in_: D.

    Arrays are tensors, on the rows' device, where the rows are one.

    Example:
        >>> rows = np.array([[0.0], [0.1], [0.2], [0.3], [9.0]])
        >>> km = ConstrainedKMeans(2, min_size=2, random_state=0).fit(rows)
        >>> sorted(km.counts_.tolist()), km.gap_
        ([2, 3], 0.0)
        >>> bool(km.predict([[8.0]])[0] == km.labels_[4])
        True
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        min_size: Any = None,
        max_size: Any = None,
        min_size_ratio: float | None = None,
        max_size_ratio: float | None = None,
        metric: str = EUCLIDEAN,
        init: Any = "k-means++",
        n_init: int | str = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: Any = None,
        warm_start: bool = False,
        gap: float = GAP,
        device: Any = None,
        block_rows: int | None = None,
        verbose: int = 0,
        copy_x: bool = True,
        algorithm: str = "lloyd",
    ) -> None:
        self.n_clusters = n_clusters
        self.min_size, self.max_size = min_size, max_size
        self.min_size_ratio, self.max_size_ratio = min_size_ratio, max_size_ratio
        self.metric = metric
        self.init, self.n_init, self.max_iter, self.tol = init, n_init, max_iter, tol
        self.random_state, self.warm_start = random_state, warm_start
        self.gap = gap
        self.device, self.block_rows = device, block_rows
        self.verbose, self.copy_x, self.algorithm = verbose, copy_x, algorithm

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, size_weight: Any = None) -> Self:
        """Cluster the rows X [N, D].

        Args:
            X: array, tensor, data frame, memory map, path of .npy or .parquet or a folder of them, or batches
                that can be gone through again: see `open_vectors`.
            y: not used.
            sample_weight: [N], weight of each row in the objective and in the centers.
            size_weight: [N], what each row counts for in its cluster's size. A row cannot be split: sizes may
                miss a bound by up to the largest of these weights.

        Raises:
            BoundsError: sizes that cannot hold, with the nearest that can (`check_sizes`).
            DataError: rows that cannot be used, such as NaN.
            ConfigError: parameters of the wrong kind.
        """
        check_parameters(self)
        vectors = open_rows(self, X, reset=True)
        weights = open_weights(vectors, sample_weight, size_weight)
        n_total = int(distributed.sum_over_processes(torch.tensor(vectors.n_rows)))
        if n_total < self.n_clusters:
            raise BoundsError(
                f"n_samples={n_total} should be >= n_clusters={self.n_clusters}: lower n_clusters"
            )
        bounds = bounds_asked(self, n_total, weights[1])
        random = check_random_state(shared_seed(self.random_state))
        rows = look_at(
            vectors,
            self.n_clusters,
            metric=self.metric,
            sample_weight=weights[0],
            size_weight=weights[1],
            seed=random.randint(2**31),
        )
        best: Fit | None = None
        again = self.warm_start and hasattr(self, "cluster_centers_")
        for _ in range(1 if again else n_starts(self.n_init, self.init)):
            found = lloyd(
                rows,
                self._centers(vectors)
                if again
                else starting_centers(self.init, rows.sample, self.n_clusters, random),
                bounds,
                duals=_host(self.duals_) if again else None,
                max_iter=self.max_iter,
                tolerance=self.tol * rows.sample.variance,
                gap=self.gap,
                block_rows=self.block_rows,
                progress=partial(print, flush=True) if self.verbose else None,
            )
            if best is None or found.assignment.cost < best.assignment.cost:
                best = found
        assert best is not None
        self._keep(best, vectors, weights[0])
        return self

    def predict(self, X: Any) -> Any:
        """The nearest center of each row: int32 [N]. No bounds hold here; see `assign` for those."""
        return self._out(self._nearest(X)[0], X)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Minus the summed cost of every row for its nearest center."""
        return -self._nearest(X, sample_weight)[1]

    def transform(self, X: Any) -> Any:
        """Distance of every row to every center, [N, K]: Euclidean (not squared), or 1 - cosine."""
        check_is_fitted(self)
        vectors = open_rows(self, X, reset=False)
        look_at(vectors, 1, metric=self.metric)
        return self._out(distances(vectors, self._centers(vectors), self.metric), X)

    def assign(
        self,
        X: Any,
        *,
        min_size: Any = None,
        max_size: Any = None,
        min_size_ratio: float | None = None,
        max_size_ratio: float | None = None,
        sample_weight: Any = None,
        size_weight: Any = None,
    ) -> Any:
        """Assign other rows within bounds, which hold on X by itself: int32 [N].

        Without any bound given here, those of the estimator apply to X. Raises as `fit` does.
        """
        return self._out(
            self.assignment(
                X,
                min_size=min_size,
                max_size=max_size,
                min_size_ratio=min_size_ratio,
                max_size_ratio=max_size_ratio,
                sample_weight=sample_weight,
                size_weight=size_weight,
            ).labels,
            X,
        )

    def assignment(
        self, X: Any, *, sample_weight: Any = None, size_weight: Any = None, **sizes: Any
    ) -> Assignment:
        """As `assign`, with sizes, cost, lower bound and gap: `coke.bounded.assignment.Assignment`."""
        check_is_fitted(self)
        vectors = open_rows(self, X, reset=False)
        weights = open_weights(vectors, sample_weight, size_weight)
        n_total = int(distributed.sum_over_processes(torch.tensor(vectors.n_rows)))
        bounds = bounds_asked(self, n_total, weights[1], **sizes)
        rows = look_at(
            vectors, self.n_clusters, metric=self.metric, sample_weight=weights[0], size_weight=weights[1]
        )
        centers, duals = self._centers(vectors), _host(self.duals_)
        return assign_rows(rows, centers, bounds, duals, gap=self.gap, block_rows=self.block_rows)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Take one batch [B, D] of a stream: the online method, with duals kept and ratios as soft bounds.

        After ``fit`` the stream goes on from its centers, duals and counts; else its first batch needs at least K
        rows. ``labels_`` and ``inertia_`` are the batch's; ``counts_`` count all rows, and ``violation_`` says
        which share of them is missing from clusters below their minimum or too many in those above their
        maximum. Sizes given as counts have no meaning in a stream of unknown length.

        Raises:
            BoundsError: ``min_size`` or ``max_size`` is set, or the first batch is too small.
            ConfigError: ``n_clusters`` or ``metric`` is another than when the stream began.
        """
        check_parameters(self)
        first = not hasattr(self, "_stream")
        vectors = open_rows(self, X, reset=first)
        if first:
            self._stream = Stream.begin(self, vectors, check_random_state(shared_seed(self.random_state)))
        else:
            self._stream.follow(self)
        weights = as_weights(sample_weight, "sample_weight", vectors.n_rows, vectors.device)
        labels, cost = self._stream.take(vectors, weights)
        stream = self._stream
        self.cluster_centers_ = self._same(stream.centers.to(returned_dtype(vectors.dtype)), vectors)
        self.counts_ = self._same(torch.from_numpy(stream.counts).long(), vectors)
        self.duals_ = self._same(torch.from_numpy(stream.duals), vectors)
        self.labels_ = self._same(labels, vectors)
        self.inertia_, self.violation_, self.n_steps_ = cost, stream.violation, stream.n_steps
        self._forget("lower_bound_", "gap_", "n_iter_")
        self._n_features_out = self.n_clusters
        return self

    def _keep(self, best: Fit, vectors: Vectors, sample_weight: Tensor | None) -> None:
        """Turn what was found into the fitted attributes."""
        found = best.assignment
        counts = count_labels(found.labels, self.n_clusters)
        n_used = int((counts > 0).sum())
        if n_used < self.n_clusters:
            warnings.warn(
                f"Number of distinct clusters ({n_used}) found smaller than n_clusters ({self.n_clusters}). "
                "Possibly due to duplicate points in X: lower n_clusters, or set min_size=1.",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.labels_ = self._same(found.labels, vectors)
        self.cluster_centers_ = self._same(best.centers.to(returned_dtype(vectors.dtype)), vectors)
        self.counts_ = self._same(counts, vectors)
        self.duals_ = self._same(torch.from_numpy(found.duals), vectors)
        self.inertia_, self.lower_bound_, self.gap_ = found.cost, found.lower_bound, found.gap
        self.n_iter_, self._n_features_out = best.n_iterations, self.n_clusters
        self._weights = counts.double()  # what a stream goes on from
        if sample_weight is not None:
            sums = torch.bincount(found.labels, sample_weight, self.n_clusters)
            self._weights = distributed.sum_over_processes(sums)
        self._forget("_stream", "violation_", "n_steps_")

    def _forget(self, *names: str) -> None:
        """Let go of what has been found in another way, and is no longer true."""
        for name in names:
            self.__dict__.pop(name, None)

    def _nearest(self, X: Any, sample_weight: Any = None) -> tuple[Tensor, float]:
        check_is_fitted(self)
        vectors = open_rows(self, X, reset=False)
        weights, _ = open_weights(vectors, sample_weight, None)
        rows = look_at(vectors, 1, metric=self.metric, sample_weight=weights)
        return nearest_centers(rows, self._centers(vectors), block_rows=self.block_rows)

    def _centers(self, vectors: Vectors) -> Tensor:
        centers = torch.as_tensor(self.cluster_centers_).to(vectors.device)
        return checked_centers(centers, self.n_clusters, vectors.n_features, self.metric, "cluster_centers_")

    def _same(self, values: Tensor, vectors: Vectors) -> Any:
        """A tensor on the rows' device for rows in a tensor, else an array."""
        return values.to(vectors.device) if vectors.kind == "tensor" else values.cpu().numpy()

    def _out(self, values: Tensor, X: Any) -> Any:
        return values if isinstance(X, Tensor) else values.cpu().numpy()


def _host(values: Any) -> np.ndarray[Any, Any]:
    return torch.as_tensor(values).cpu().numpy().astype(np.float64)
