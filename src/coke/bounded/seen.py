"""What is known of pairs from earlier sweeps, so that a sweep looks again only where something may have changed.

Clusters are put into small groups of neighbours, and for each row and group the least reduced cost that was seen is
kept. When center k moves by D_k and its price by P_k, the reduced cost of a row x in cluster b, with d = |x - m_b|,
changes by

    |D_k|^2 - 2 (x - m_k) D_k - P_k  >=  |D_k|^2 - 2 (m_b - m_k) D_k - P_k - 2 d |D_k|

so that the least of a group falls by no more than the least of this over its clusters. As in Yinyang k-means (Ding and
others, ICML 2015), with prices, and with a center as a place from which all other moves are told.

Legend: N rows, D features, K clusters, G groups.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from coke.bounded.kernels import GROUP, Array, Known

_MOST_BYTES = 2**28  # so that a million rows and a thousand clusters stay within 1 GiB beyond the rows
_FEWEST_CLUSTERS, _FEWEST_ROWS = (
    8 * GROUP,
    8,
)  # rows for each cluster: what is known has to be told of each pair of them


Errors = tuple[float, float, float, float]


class Seen:
    """Kept from sweep to sweep over the same N rows, on the CPU.

    Args:
        n_rows: N.
        centers: float64 [K, D], which say who is near whom.

    Attributes:
        order: int32 [8 G], see `coke.bounded.kernels.Groups`.
        base, above: float32 [N] and uint16 [N, G], see `coke.bounded.kernels.Known`.
    """

    def __init__(self, n_rows: int, centers: Tensor) -> None:
        self.order = grouped(centers.numpy())
        self.base = np.empty(n_rows, np.float32)  # the first sweep fills them
        self.above = np.empty((n_rows, len(self.order) // GROUP), np.uint16)
        self._errors: Errors = (0.0, 0.0, 0.0, 0.0)
        self._own: Array | None = None
        self._centers: Array | None = None
        self._level = np.zeros(len(centers))

    @staticmethod
    def helps(n_rows: int, n_clusters: int) -> bool:
        """Whether these are so many that looking again in part is worth what it takes to know where."""
        return (
            n_clusters >= _FEWEST_CLUSTERS
            and n_rows >= _FEWEST_ROWS * n_clusters
            and n_rows * n_clusters * 2 <= _MOST_BYTES * GROUP
        )

    def turn(
        self, centers: Tensor, level: Array, scale: float, errors: Errors
    ) -> tuple[Known | None, Errors]:
        """What is known under these (shifted) centers [K, D] and prices [K]; None before the first sweep.

        scale: of a squared distance in the cost. errors: see `coke.bounded.costs.DistanceCosts.errors`; returned as
        large as those of all sweeps so far, since what is known comes from any of them.
        """
        self._errors = tuple(map(max, errors, self._errors))  # type: ignore[assignment]
        now, former, own = centers.numpy(), self._centers, self._own
        fallen = self._level - level
        self._centers, self._level = now, level
        if former is None or own is None:
            return None, self._errors
        present = self.order >= 0
        clusters = self.order[present]
        stride, fall = np.zeros(len(self.order)), np.full((len(now), len(self.order)), np.inf, np.float32)
        if now is former:
            fall[:, present] = fallen[clusters]
        else:
            step = now - former
            length = np.linalg.norm(step, axis=1)
            stride[present] = 2 * scale * length[clusters]
            change = fallen + scale * (length**2 + 2 * (former * step).sum(1))
            # by torch: after a product NumPy's threads wait at full speed, in the way of the sweep
            product = (torch.from_numpy(former) @ torch.from_numpy(step).t()).numpy()
            fall[:, present] = (change - (2 * scale) * product)[:, clusters]
        fall = fall.reshape(len(now), GROUP, -1).min(1)
        widest = stride.reshape(GROUP, -1).max(0).astype(np.float32)
        fallen_least = fall - np.abs(fall) * np.float32(2.0**-21)
        distance = np.sqrt(own / scale).astype(np.float32)
        return Known(self.base, self.above, fallen_least, widest, distance), self._errors

    def keep(self, own: Array) -> None:
        """What each row costs, float64 [N], under the centers of the last sweep; it may still be written to."""
        self._own = own


def grouped(centers: Array) -> Array:
    """Centers [K, D] in groups of neighbours: int32 [8 G], the cluster of column place * G + group, or -1 for none.

    Halves of halves, each along the line between two centers far from each other.

    >>> grouped(np.arange(12.0)[:, None]).reshape(GROUP, -1).T.tolist()
    [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, -1, -1, -1, -1]]
    """
    groups, parts = [], [np.arange(len(centers))]
    while parts:
        part = parts.pop()
        if len(part) <= GROUP:
            groups.append(part)
            continue
        some = centers[part]
        one = some[np.square(some - some.mean(0)).sum(1).argmax()]
        other = some[np.square(some - one).sum(1).argmax()]
        along = np.argsort((torch.from_numpy(some) @ torch.from_numpy(other - one)).numpy(), kind="stable")
        half = (len(part) // GROUP + 1) // 2 * GROUP
        parts += [part[along[half:]], part[along[:half]]]
    order = np.full((GROUP, len(groups)), -1, np.int32)
    for group, part in enumerate(groups):
        order[: len(part), group] = part
    return order.ravel()


def ungrouped(n_clusters: int) -> Array:
    """As `grouped`, in any order."""
    n_groups = -(-n_clusters // GROUP)
    order = np.full(GROUP * n_groups, -1, np.int32)
    order[:n_clusters] = np.arange(n_clusters)
    return order
