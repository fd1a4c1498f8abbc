"""What sizes every cluster must and may have, and in words, before any work, if such clusters can exist.

A size is a number of rows, or with ``size_weight`` a sum of the rows' weights. Legend: N rows, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke.errors import BoundsError

Array = np.ndarray[Any, Any]
Numbers = Sequence[float] | Array | Tensor
_RATIO_ROUNDING = 1e-12  # relative: 0.07 of 100 rows are 7, although 0.07 * 100 is 7.000000000000001
_WEIGHT_ROUNDING = 1e-9  # relative: sums of weights are not exact, sums of rows are


@dataclass(frozen=True, eq=False)
class SizeBounds:
    """What every cluster must and may hold: ``lower`` and ``upper``, float64 [K] on the CPU, both inclusive."""

    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class SizeCheck:
    """Whether sizes can hold, why not, and the ``nearest`` that can, for one argument; {} if no single number can."""

    feasible: bool
    text: str
    nearest: dict[str, float] = field(default_factory=dict)
    bounds: SizeBounds | None = field(default=None, repr=False, compare=False)

    def __bool__(self) -> bool:
        return self.feasible

    def __str__(self) -> str:
        return self.text


def check_sizes(
    n_samples: float,
    n_clusters: int,
    *,
    min_size: float | Numbers | None = None,
    max_size: float | Numbers | None = None,
    min_size_ratio: float | None = None,
    max_size_ratio: float | None = None,
    size_weight: Numbers | None = None,
) -> SizeCheck:
    """Whether ``n_samples`` rows can be put into ``n_clusters`` clusters of such sizes; costs no work.

    Args:
        n_samples: N; or, as a float, the sum of all weights where only some of them are at hand.
        n_clusters: K. More clusters than rows are fine here as long as some may be empty.
        min_size: rows that every cluster must hold, one number or one for each cluster.
        max_size: rows that it may hold; infinity for a cluster without a maximum.
        min_size_ratio: in [0, 1], the minimum as a share of N / K, rounded up, never above N / K: 1 is balanced.
        max_size_ratio: at least 1, the maximum as a multiple of N / K, rounded down, never below N / K.
        size_weight: what each row counts for in a size, [N]; then sizes are sums, and nothing is rounded. No row
            is split: a sum that holds for parts of rows may be missed by less than one row's weight.

    Raises:
        BoundsError: an argument that says nothing: a wrong length, NaN, a part of a row, a count and a ratio.

    Examples:
        >>> check = check_sizes(90, 20, min_size=6)
        >>> print(check)
        90 rows cannot fill 20 clusters of at least 6: that takes 120, 30 too many; at most min_size=4
        >>> bool(check), check.nearest
        (False, {'min_size': 4})
    """
    rows = _Rows(n_samples, n_clusters, size_weight)
    lower = rows.bound("min", min_size, min_size_ratio)
    upper = rows.bound("max", max_size, max_size_ratio).clip(max=rows.total)
    fault = rows.fault(lower, upper)
    if fault is None:
        bounds = SizeBounds(torch.from_numpy(np.minimum(lower, upper)), torch.from_numpy(upper))
        text = f"{rows} fit into {n_clusters:,} clusters of {number(lower.min(), upper.max())}"
        return SizeCheck(True, text, bounds=bounds)
    nearest = rows.nearest("min", min_size, min_size_ratio, lower, upper)
    nearest = nearest or rows.nearest("max", max_size, max_size_ratio, lower, upper)
    advice = f"an equal share is {number(rows.share)}"
    for name, value in nearest.items():
        advice = f"at {'most' if name.startswith('min') else 'least'} {name}={value}"
    return SizeCheck(False, f"{fault}; {advice}", nearest)


def resolve_bounds(total: float, n_clusters: int, **asked: Any) -> SizeBounds:
    """The bounds of each cluster as numbers, with the arguments of `check_sizes`; `BoundsError` in its words.

    >>> bounds = resolve_bounds(10, 3, min_size_ratio=1, max_size=[4, 4, 9])
    >>> bounds.lower.tolist(), bounds.upper.tolist()
    ([3.0, 3.0, 3.0], [4.0, 4.0, 9.0])
    """
    check = check_sizes(total, n_clusters, **asked)
    if check.bounds is None:
        raise BoundsError(check.text)
    return check.bounds


def no_bounds(total: float, n_clusters: int) -> SizeBounds:
    """Of clusters that may hold any part of the rows."""
    nothing = torch.zeros(n_clusters, dtype=torch.float64)
    return SizeBounds(nothing, nothing + total)


def number(*sizes: float) -> str:
    """Sizes for people: thousands apart, no more than three decimals, equal ones once.

    >>> number(1200.0), number(0.3333333, 7)
    ('1,200', '0.333 to 7')
    """
    return " to ".join(dict.fromkeys(f"{size:,.3f}".rstrip("0").rstrip(".") for size in sizes))


class _Rows:
    """What is to be put into K clusters; ``whole`` where every row counts for one."""

    def __init__(self, n_samples: Any, n_clusters: Any, size_weight: Any) -> None:
        if not isinstance(n_clusters, Integral) or n_clusters < 1:
            raise BoundsError(f"n_clusters must be a whole number, at least 1, got {n_clusters!r}")
        counted, self.n_clusters, total = isinstance(n_samples, Integral), int(n_clusters), n_samples
        self.whole = counted and size_weight is None
        self.weights, self.n_weighing = np.zeros(1), np.inf  # as far as they are known
        if size_weight is not None:
            n_weights = n_samples if counted else len(size_weight) or 1
            self.weights = _numbers("size_weight", size_weight, n_weights)
        if size_weight is not None and counted:
            total, self.n_weighing = self.weights.sum(), float(np.count_nonzero(self.weights))
        if not isinstance(total, Real) or not 0 < float(total) < np.inf:
            raise BoundsError(f"there must be rows to cluster, of a size_weight above 0, got {total} in all")
        self.total, self.share = float(total), float(total) / self.n_clusters

    def __str__(self) -> str:
        return f"{number(self.total)} rows" if self.whole else f"a summed size_weight of {number(self.total)}"

    def bound(self, side: str, count: Any, ratio: Any) -> Array:
        """The least (``"min"``) or the largest size of each cluster, [K], not yet asked if it can hold."""
        if count is not None and ratio is not None:
            raise BoundsError(f"{side}_size and {side}_size_ratio both bound the same sizes: give only one")
        if ratio is None:
            count = count if count is not None else 0.0 if side == "min" else np.inf
            return _numbers(f"{side}_size", count, self.n_clusters, self.whole)
        size: Array = _numbers(f"{side}_size_ratio", ratio, 1) * self.share
        if self.whole and side == "min":
            size = np.ceil(size * (1 - _RATIO_ROUNDING)).clip(max=np.floor(self.share))
        elif self.whole:
            size = np.floor(size * (1 + _RATIO_ROUNDING)).clip(min=np.ceil(self.share))
        return size.repeat(self.n_clusters)

    def fault(self, lower: Array, upper: Array) -> str | None:
        """The first inequality that bounds [K] break, what is needed and what there is; None if all hold."""
        k, row = (lower - upper).argmax(), self.weights.argmax()
        rules = (
            (lower.sum(), self.total),
            (self.total, upper.sum()),
            (lower[k], upper[k]),
            ((lower > 0).sum(), self.n_weighing),
            (self.weights[row], upper.max()),
        )
        most = 1 if self.whole else 1 + _WEIGHT_ROUNDING
        broken = next((rule for rule, (needed, there) in enumerate(rules) if needed > there * most), None)
        if broken is None:
            return None
        (needed, there), into = rules[broken], f"{self.n_clusters:,} clusters"
        fill = f"{self} cannot fill {into} of at least {number(lower.min(), lower.max())}"
        fit = f"{self} do not fit into {into} of at most {number(upper.min(), upper.max())}"
        light = "{0} clusters with a minimum need as many rows of a size_weight above 0, there are {1}"
        words = (
            fill + ": that takes {0}, {2} too many",
            fit + ": those hold {1}, {2} too few",
            f"cluster {k} cannot hold at least {{0}} and at most {{1}}",
            light,
            f"row {row}: size_weight {{0}}, the largest maximum is {{1}}",
        )
        return words[broken].format(number(needed), number(there), number(needed - there))

    def nearest(self, side: str, count: Any, ratio: Any, lower: Array, upper: Array) -> dict[str, float]:
        """The argument for this side, and the nearest number that can hold in its place; {} if none can."""
        if side == "min":
            size = min(self.share, upper.min()) if self.n_weighing >= self.n_clusters else 0.0
            lower = np.full_like(lower, size := np.floor(size) if self.whole else size)
        else:
            size = max(self.share, lower.max(), self.weights.max())
            upper = np.full_like(upper, size := np.ceil(size) if self.whole else size)
        if np.ndim(count) or self.fault(lower, upper):
            return {}
        name = f"{side}_size"
        if ratio is not None:  # a ratio of 1 is the whole number next to N / K
            name += "_ratio"
            size = 1.0 if self.whole and abs(size - self.share) < 1 else size / self.share
        size = float(f"{size:.13g}")
        return {name: int(size) if size.is_integer() else size}


def _numbers(name: str, value: Any, length: int, whole: bool = False) -> Array:
    """One number or ``length`` of them, as float64 [length]."""
    array = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise BoundsError(f"{name} must be numbers, got {value!r:.80}")
    if array.shape not in ((), (length,)):
        each = f" or one for each of {length:,} {'rows' if name == 'size_weight' else 'clusters'}"
        raise BoundsError(f"{name} must be one number{each * (length > 1)}, got shape {array.shape}")
    for rule, broken in (
        ("be numbers", np.isnan(array)),
        ("not be negative", array < 0),
        ("be finite", np.isinf(array) & (not name.startswith("max"))),
        ("lie in [0, 1]", (array > 1) & (name == "min_size_ratio")),
        ("be at least 1", (array < 1) & (name == "max_size_ratio")),
        (f"be whole rows (or {name}_ratio, a part of N / K)", (array != np.floor(array)) & whole),
    ):
        if broken.any():
            place = f" at position {broken.argmax()}" if array.ndim else ""
            raise BoundsError(f"{name} must {rule}, got {array[broken][0]:g}{place}")
    return np.full(length, array, dtype=np.float64)
