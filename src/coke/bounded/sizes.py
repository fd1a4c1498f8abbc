"""Whether clusters of the sizes asked for can exist at all, said in words before any work.

A size is a number of rows, or with ``size_weight`` a sum of the rows' weights. Legend: N rows, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

from coke.bounded.size_request import COUNT, RATIO, SizeRequest, number
from coke.errors import BoundsError

Sizes = float | Sequence[float] | np.ndarray[Any, Any] | Tensor
"""One bound for all clusters, or one for each."""
Weights = Sequence[float] | np.ndarray[Any, Any] | Tensor


@dataclass(frozen=True, eq=False)
class SizeBounds:
    """What every cluster must and may hold: ``lower`` and ``upper``, float64 [K] on the CPU, both inclusive."""

    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class SizeCheck:
    """Whether sizes can hold, as a truth value, and why not, in words.

    Attributes:
        feasible: whether they can.
        text: one sentence; where they cannot, which bound fails, by how much, and what would do.
        nearest: where they cannot, the nearest that can: alternatives, each the arguments to replace.
    """

    feasible: bool
    text: str
    nearest: tuple[dict[str, Any], ...] = ()

    def __bool__(self) -> bool:
        return self.feasible

    def __str__(self) -> str:
        return self.text


def check_sizes(
    n_samples: int,
    n_clusters: int,
    *,
    min_size: Sizes | None = None,
    max_size: Sizes | None = None,
    min_size_ratio: float | None = None,
    max_size_ratio: float | None = None,
    size_weight: Weights | None = None,
) -> SizeCheck:
    """Whether ``n_samples`` rows can be put into ``n_clusters`` clusters of such sizes; costs no work.

    With ``size_weight`` the answer is about sums of weights. Rows cannot be split, so that sums which can
    hold for parts of rows may still be missed by less than the weight of one row.

    Args:
        n_samples: N.
        n_clusters: K. More clusters than rows are fine here as long as some may be empty.
        min_size: rows that every cluster must hold, one number or one for each cluster; None: may be empty.
        max_size: rows that it may hold; infinity for a cluster without a maximum.
        min_size_ratio: in [0, 1], the minimum as a share of N / K, rounded up, though never above what K
            equal clusters can have: 1 is as balanced as rows allow.
        max_size_ratio: at least 1, the maximum as a multiple of N / K, rounded down as carefully.
        size_weight: what each row counts for in a size, [N]; then sizes are sums, and nothing is rounded.

    Raises:
        BoundsError: an argument that says nothing at all: a wrong length, a negative size, NaN, a part of a
            row, or a count and a ratio for the same side.

    >>> check = check_sizes(90, 20, min_size=6)
    >>> print(check)
    90 rows cannot fill 20 clusters of at least 6: that takes 120, 30 too many; at most min_size=4, or n_clusters=15
    >>> bool(check), check.nearest
    (False, ({'min_size': 4}, {'n_clusters': 15}))
    >>> print(check_sizes(1000, 20, min_size=25, max_size_ratio=2))
    1,000 rows fit into 20 clusters of 25 to 100
    """
    asked = {"min_size": min_size, "max_size": max_size}
    asked |= {"min_size_ratio": min_size_ratio, "max_size_ratio": max_size_ratio}
    request = _request(n_samples, n_clusters, asked, size_weight)
    complaint = request.complaint()
    if complaint is not None:
        failed, sentence = complaint
        nearest = request.nearest(failed)
        return SizeCheck(False, f"{sentence}; {_advice(failed, nearest)}", nearest)
    sizes = _between(*request.bounds(), request.total)
    return SizeCheck(True, f"{request.content} fit into {n_clusters:,} clusters {sizes}")


def resolve_bounds(
    total: float,
    n_clusters: int,
    *,
    min_size: Sizes | None = None,
    max_size: Sizes | None = None,
    min_size_ratio: float | None = None,
    max_size_ratio: float | None = None,
    size_weight: Weights | None = None,
) -> SizeBounds:
    """The bounds of each cluster as numbers; the arguments are those of `check_sizes`.

    Args:
        total: N as an int; or, as a float, the sum of all weights where only some of them are at hand.

    Raises:
        BoundsError: sizes that cannot hold, in the words of `check_sizes`.

    >>> bounds = resolve_bounds(10, 3, min_size_ratio=1, max_size=[4, 4, 9])
    >>> bounds.lower.tolist(), bounds.upper.tolist()
    ([3.0, 3.0, 3.0], [4.0, 4.0, 9.0])
    """
    asked = {"min_size": min_size, "max_size": max_size}
    asked |= {"min_size_ratio": min_size_ratio, "max_size_ratio": max_size_ratio}
    request = _request(total, n_clusters, asked, size_weight)
    complaint = request.complaint()
    if complaint is not None:
        failed, sentence = complaint
        raise BoundsError(f"{sentence}; {_advice(failed, request.nearest(failed))}")
    lower, upper = request.bounds()
    return SizeBounds(lower.minimum(upper), upper)


def _request(
    total: float, n_clusters: int, asked: dict[str, Any], size_weight: Weights | None
) -> SizeRequest:
    unit = isinstance(total, Integral) and size_weight is None
    if isinstance(total, bool) or not isinstance(total, Real) or not 0 < total < np.inf:
        raise BoundsError(f"there must be at least 1 row to cluster, got {total!r}")
    if isinstance(n_clusters, bool) or not isinstance(n_clusters, Integral) or n_clusters < 1:
        raise BoundsError(f"n_clusters must be a whole number, at least 1, got {n_clusters!r}")
    given = {name: value for name, value in asked.items() if value is not None}
    for count, ratio in zip(COUNT.values(), RATIO.values(), strict=True):
        if count in given and ratio in given:
            raise BoundsError(f"{count} and {ratio} both bound the same sizes: give one of them")
    sizes = {name: _size(name, value, int(n_clusters), unit) for name, value in given.items()}
    if size_weight is None:
        return SizeRequest(float(total), int(n_clusters), sizes, unit, heaviest=1.0 if unit else 0.0)
    weights = _weights(size_weight, int(total) if isinstance(total, Integral) else None)
    heaviest = int(weights.argmax())
    whole = isinstance(total, Integral)
    return SizeRequest(
        total=float(weights.sum(dtype=np.float64)) if whole else float(total),
        n_clusters=int(n_clusters),
        sizes=sizes,
        unit=False,
        heaviest=float(weights[heaviest]),
        heaviest_row=heaviest,
        n_weighing=int(np.count_nonzero(weights)) if whole else None,
    )


def _numbers(name: str, value: Any) -> np.ndarray[Any, Any]:
    numbers = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if numbers.dtype.kind not in "iuf":
        raise BoundsError(f"{name} must be numbers, got {value!r:.80}")
    if np.isnan(numbers).any():
        raise BoundsError(f"{name} must be numbers, got NaN{_place(np.isnan(numbers))}")
    if (numbers < 0).any():
        raise BoundsError(f"{name} must not be negative, got {numbers.min():g}{_place(numbers < 0)}")
    return numbers


def _place(wrong: np.ndarray[Any, Any]) -> str:
    return f" at position {int(wrong.argmax())}" if wrong.ndim else ""


def _size(name: str, value: Any, n_clusters: int, unit: bool) -> Any:
    sizes = _numbers(name, value).astype(np.float64)
    if name in RATIO.values() and sizes.ndim:
        raise BoundsError(
            f"{name} must be one number, got shape {sizes.shape}: for one a cluster, pass counts"
        )
    if sizes.ndim and sizes.shape != (n_clusters,):
        raise BoundsError(
            f"{name} must be one number or one for each of {n_clusters:,} clusters, got shape {sizes.shape}"
        )
    if name in ("min_size", "min_size_ratio") and np.isinf(sizes).any():
        raise BoundsError(f"{name} must be finite, got infinity{_place(np.isinf(sizes))}")
    part = np.isfinite(sizes) & (sizes != np.floor(sizes))
    if unit and name in COUNT.values() and part.any():
        first = float(sizes[part][0]) if sizes.ndim else float(sizes)
        raise BoundsError(
            f"{name} must be whole rows, got {first:g}{_place(part)}: "
            f"round it, or pass {name}_ratio to bound sizes relative to an equal share"
        )
    return sizes if sizes.ndim else float(sizes)


def _weights(size_weight: Weights, n_samples: int | None) -> np.ndarray[Any, Any]:
    weights = _numbers("size_weight", size_weight)
    if weights.ndim != 1 or n_samples not in (None, len(weights)) or not len(weights):
        rows = "row" if n_samples is None else f"of {n_samples:,} rows"
        raise BoundsError(f"size_weight must be one number for each {rows}, got shape {weights.shape}")
    if np.isinf(weights).any():
        raise BoundsError(f"size_weight must be finite, got infinity{_place(np.isinf(weights))}")
    if n_samples is not None and not weights.any():
        raise BoundsError("size_weight is 0 for every row: there is nothing to bound")
    return weights


def _advice(failed: str, nearest: tuple[dict[str, Any], ...]) -> str:
    """``at most min_size=50, or n_clusters=16``."""
    ways = [" and ".join(f"{name}={_show(value)}" for name, value in way.items()) for way in nearest]
    if len(nearest[0]) > 1 or failed == "crossed":
        return ", or ".join(ways) + " can hold"
    return ("at most " if failed.startswith("min") else "at least ") + ", or ".join(ways)


def _show(value: Any) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"[{value[0]}, {value[1]}, ..., {value[-1]}] (all {len(value):,} in check_sizes(...).nearest)"
    return str(value)


def _between(lower: Tensor, upper: Tensor, total: float) -> str:
    """``of 25 to 100``."""
    low, high = (
        [number(float(end)) for end in lower.aminmax()],
        [number(float(end)) for end in upper.aminmax()],
    )
    if low[0] != low[1] or high[0] != high[1]:
        return f"of at least {' to '.join(dict.fromkeys(low))} and at most {' to '.join(dict.fromkeys(high))}"
    if float(upper[0]) >= total:
        return "of any size" if float(lower[0]) == 0 else f"of at least {low[0]}"
    if float(lower[0]) == 0:
        return f"of at most {high[0]}"
    return f"of exactly {low[0]}" if low == high else f"of {low[0]} to {high[0]}"
