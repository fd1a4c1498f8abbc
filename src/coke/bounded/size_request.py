"""A request for cluster sizes: what it means in numbers, why it cannot hold, and the nearest that can.

`coke.bounded.sizes` is the door to this. Legend: N rows, K clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

COUNT = {"min": "min_size", "max": "max_size"}
RATIO = {"min": "min_size_ratio", "max": "max_size_ratio"}
_RATIO_ROUNDING = 1e-12  # relative: 0.07 of 100 rows are 7, although 0.07 * 100 is 7.000000000000001
_WEIGHT_ROUNDING = 1e-9  # relative: sums of weights are not exact, sums of rows are
_MOST_CLUSTERS = 10**7  # to propose: more are no help, and asking whether they can hold would take memory


@dataclass(frozen=True)
class SizeRequest:
    """Sizes as asked for, each checked by itself.

    Attributes:
        total: N, or the sum of all weights.
        n_clusters: K.
        sizes: of `COUNT` and `RATIO` those that were given: a number, or an array [K] of them.
        unit: whether every row counts for one, so that sizes are whole numbers.
        heaviest: the largest weight; 1 for unit sizes.
        heaviest_row: where it stands.
        n_weighing: rows that weigh something, where that is known.
    """

    total: float
    n_clusters: int
    sizes: dict[str, Any]
    unit: bool = True
    heaviest: float = 1.0
    heaviest_row: int = 0
    n_weighing: int | None = None

    @property
    def content(self) -> str:
        """What is to be put into clusters, in words."""
        return f"{number(self.total)} rows" if self.unit else f"a summed size_weight of {number(self.total)}"

    def name(self, side: str) -> str | None:
        """The argument that bounds the sizes from this side, ``"min"`` or ``"max"``."""
        given = [name for name in (COUNT[side], RATIO[side]) if name in self.sizes]
        return given[0] if given else None

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest size of each cluster, float64 [K] twice, not yet asked if they can hold.

        >>> [bound.tolist() for bound in SizeRequest(10, 3, {"min_size_ratio": 0.5}).bounds()]
        [[2.0, 2.0, 2.0], [10.0, 10.0, 10.0]]
        """
        upper = np.minimum(self._bound("max", self.total), self.total)
        return torch.from_numpy(self._bound("min", 0.0)), torch.from_numpy(upper)

    def _bound(self, side: str, default: float) -> np.ndarray[Any, Any]:
        name = self.name(side)
        value = default if name is None else self.sizes[name]
        if name == RATIO[side]:
            share = self.total / self.n_clusters
            value = value * share
            if self.unit:  # an equal share can always be had, so a ratio never asks for more than that
                value = _whole(value, side)
                value = min(value, math.floor(share)) if side == "min" else max(value, math.ceil(share))
        return np.full(self.n_clusters, value, dtype=np.float64)

    def complaint(self) -> tuple[str, str] | None:
        """The first reason why such sizes cannot hold: what fails and a sentence; None where they can.

        What fails is ``"min ratio"``, ``"max ratio"``, ``"crossed"``, ``"min"`` or ``"max"``.
        """
        for side, wrong, range_ in (("min", np.greater, "lie in [0, 1]"), ("max", np.less, "be at least 1")):
            ratio = self.sizes.get(RATIO[side])
            if ratio is not None and wrong(ratio, 1):
                size = number(ratio * self.total / self.n_clusters)
                word = "least" if side == "min" else "most"
                return f"{side} ratio", (
                    f"{RATIO[side]}={ratio:g} cannot hold: {self.n_clusters:,} clusters of at {word} {size} "
                    f"of {self.content}; it must {range_}"
                )
        lower, upper = self._bound("min", 0.0), self._bound("max", np.inf)
        slack = 0.0 if self.unit else _WEIGHT_ROUNDING * self.total
        crossed = np.flatnonzero(lower > upper + slack)
        if len(crossed):
            return "crossed", self._crossed(crossed, lower, upper)
        if lower.sum() > self.total + slack:
            return "min", self._sum_is_off("min", lower)
        if upper.sum() < self.total - slack:
            return "max", self._sum_is_off("max", upper)
        filled = int((lower > 0).sum())
        if self.n_weighing is not None and filled > self.n_weighing:
            return "min", (
                f"{filled:,} clusters with a minimum above 0 need as many rows with a size_weight above 0, "
                f"there are {self.n_weighing:,}"
            )
        if self.heaviest > upper.max() + slack:
            return "max", (
                f"row {self.heaviest_row:,} has size_weight {number(self.heaviest)} and fits into no cluster: "
                f"the largest {self._call('max')} {number(float(upper.max()))}"
            )
        return None

    def _call(self, side: str) -> str:
        name = self.name(side)
        return "allows" if name is None else f"{name} is" if name == COUNT[side] else f"size {name} allows is"

    def _crossed(self, crossed: np.ndarray[Any, Any], lower: Any, upper: Any) -> str:
        first = int(crossed[0])
        where = "every cluster" if len(crossed) == self.n_clusters else f"cluster {first}"
        more = len(crossed) - 1
        others = "" if len(crossed) in (1, self.n_clusters) else f" (and {more:,} more like it)"
        return (
            f"{where} cannot hold at least {number(lower[first])} ({self.name('min')}) and at most "
            f"{number(upper[first])} ({self.name('max')}){others}"
        )

    def _sum_is_off(self, side: str, bound: np.ndarray[Any, Any]) -> str:
        taken = float(bound.sum())
        off = number(abs(taken - self.total))
        same = bound.min() == bound.max()
        if side == "min":
            sizes = f"at least {number(bound[0])}" if same else "these minimum sizes"
            return (
                f"{self.content} cannot fill {self.n_clusters:,} clusters of {sizes}: "
                f"that takes {number(taken)}, {off} too many"
            )
        sizes = f"at most {number(bound[0])}" if same else "these maximum sizes"
        return (
            f"{self.content} do not fit into {self.n_clusters:,} clusters of {sizes}: "
            f"those hold {number(taken)}, {off} too few"
        )

    def nearest(self, failed: str) -> tuple[dict[str, Any], ...]:
        """Alternatives that can hold, each the arguments to replace; never empty.

        >>> SizeRequest(1000, 20, {"min_size": 60.0}).nearest("min")
        ({'min_size': 50}, {'n_clusters': 16})
        """
        candidates: list[dict[Any, Any]] = []
        if not failed.startswith("max"):
            candidates.append({self.name("min"): self._lowered()})
        if not failed.startswith("min"):
            candidates.append({self.name("max"): self._raised()})
        if failed in ("min", "max"):
            candidates.append({"n_clusters": self._other_n_clusters(failed)})
        kept = [each for each in candidates if self._can_hold(each)]
        if not kept:  # neither side alone would do: both, the maximum first
            free = replace(self, sizes=_without(self.sizes, self.name("min")))
            both = {self.name("max"): free._raised()}
            both[self.name("min")] = self._replaced(both)._lowered()
            kept = [{name: both[name] for name in reversed(both) if name is not None}]
        return tuple(kept)

    def _replaced(self, changes: dict[Any, Any]) -> SizeRequest:
        sizes = {name: value for name, value in changes.items() if name in self.sizes}
        as_arrays = {
            key: np.array(size, float) if isinstance(size, list) else size for key, size in sizes.items()
        }
        return replace(
            self,
            n_clusters=changes.get("n_clusters", self.n_clusters),
            sizes={**self.sizes, **as_arrays},
        )

    def _can_hold(self, changes: dict[Any, Any]) -> bool:
        if None in changes or None in changes.values():
            return False
        return self._replaced(changes).complaint() is None

    def _lowered(self) -> Any:
        """The largest minimum that the total and the maximum allow, in the form it was given."""
        name = self.name("min")
        if name is None:
            return None
        given, upper = self.sizes[name], self._bound("max", self.total)
        share, few = (
            self.total / self.n_clusters,
            self.n_weighing is not None and self._filled() > self.n_weighing,
        )
        if name == RATIO["min"]:
            return 0 if few else self._tidy(min(given, 1.0, float(upper.min()) / share), "min", whole=False)
        if np.ndim(given) == 0:
            return 0 if few else self._tidy(min(float(given), share, float(upper.min())), "min")
        sizes = np.minimum(given, upper)
        if few:
            sizes[np.argsort(-sizes, kind="stable")[self.n_weighing :]] = 0
        if sizes.sum() > self.total:
            sizes = self._scaled(sizes)
        return [self._tidy(float(size), "min") for size in sizes]

    def _raised(self) -> Any:
        """The smallest maximum that the total, the minimum and the heaviest row allow, in the form it was given."""
        name = self.name("max")
        if name is None:
            return None
        given, lower = self.sizes[name], self._bound("min", 0.0)
        share = self.total / self.n_clusters
        if name == RATIO["max"]:
            least = max(1.0, float(given), float(lower.max()) / share, self.heaviest / share)
            return self._tidy(least, "max", whole=False)
        if np.ndim(given) == 0:
            return self._tidy(max(float(given), share, float(lower.max()), self.heaviest), "max")
        sizes = np.maximum(given, lower)
        if sizes.sum() < self.total:
            sizes = self._scaled(sizes if sizes.any() else np.ones_like(sizes))
        if sizes.max() < self.heaviest:
            sizes[int(sizes.argmax())] = self.heaviest
        return [self._tidy(float(size), "max") for size in sizes]

    def _filled(self) -> int:
        return int((self._bound("min", 0.0) > 0).sum())

    def _scaled(self, sizes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """``sizes`` in proportion, with the total as their sum: whole ones by largest remainder."""
        exact = sizes * (self.total / sizes.sum())
        if not self.unit:
            return exact
        whole = np.floor(exact)
        missing = int(self.total - whole.sum())
        whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
        return whole

    def _other_n_clusters(self, failed: str) -> int | None:
        size = self.sizes.get(COUNT[failed])
        if any(np.ndim(value) for value in self.sizes.values()) or not size:
            return None
        n_clusters = self.total / size
        if n_clusters > _MOST_CLUSTERS:
            return None
        if failed == "max":
            return math.ceil(n_clusters)
        return min(math.floor(n_clusters), self.n_weighing or math.floor(n_clusters)) or None

    def _tidy(self, value: float, side: str, whole: bool = True) -> float:
        """Rounded to the safe side: to rows, or for ratios and weights to six digits that a person can type."""
        if value == 0 or not math.isfinite(value):
            return value or 0
        if self.unit and whole:
            return int(_whole(value, side, inwards=False))
        scale = 10.0 ** min(5 - math.floor(math.log10(value)), 300)
        if side == "min":
            tidy = math.floor(value * scale * (1 + _RATIO_ROUNDING)) / scale
        else:
            tidy = math.ceil(value * scale * (1 - _RATIO_ROUNDING)) / scale
        return int(tidy) if tidy == int(tidy) else tidy


def _whole(value: float, side: str, inwards: bool = True) -> float:
    """Rows in a bound: a minimum rounds up and a maximum down, or (not ``inwards``) the other way round."""
    if not math.isfinite(value):
        return value
    up = (side == "min") == inwards
    margin = _RATIO_ROUNDING * abs(value)
    return math.ceil(value - margin) if up else math.floor(value + margin)


def _without(sizes: dict[str, Any], name: str | None) -> dict[str, Any]:
    return {key: value for key, value in sizes.items() if key != name}


def number(value: float) -> str:
    """A size for people: thousands apart, and no more than three decimals.

    >>> number(1200.0), number(0.3333333), number(1e6)
    ('1,200', '0.333', '1,000,000')
    """
    return f"{value:,.3f}".rstrip("0").rstrip(".") if math.isfinite(value) else "any number"
