"""What a clustering came to, in a few aligned lines."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from coke.bounded.sizes import SizeBounds, number


def aligned(lines: Iterable[tuple[str, str]]) -> str:
    """Names in one column, what is said of them in another.

    >>> print(aligned([("gap", "0"), ("inertia", "12.5")]))
    gap      0
    inertia  12.5
    """
    lines = list(lines)
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines)


def size_lines(counts: Tensor, bounds: SizeBounds) -> list[tuple[str, str]]:
    """Sizes [K] beside their bounds, and whether these hold.

    >>> from coke.bounded.sizes import resolve_bounds
    >>> print(aligned(size_lines(torch.tensor([20, 30, 50]), resolve_bounds(100, 3, min_size=20))))
    sizes   smallest 20  median 30  largest 50
    bounds  at least 20, and they hold
    >>> print(aligned(size_lines(torch.tensor([20, 30, 50]), resolve_bounds(100, 3, max_size=[20, 20, 60]))))
    sizes   smallest 20  median 30  largest 50
    bounds  at most 20 ... 60, broken in 1 of 3 clusters
    """
    sizes = counts.cpu().double()
    figures = [("smallest", sizes.min()), ("median", sizes.quantile(0.5)), ("largest", sizes.max())]
    lines = [("sizes", "  ".join(f"{name} {number(float(size))}" for name, size in figures))]
    asked = []
    if bool((bounds.lower > 0).any()):
        asked.append(f"at least {_range(bounds.lower)}")
    if bool((bounds.upper < sizes.sum()).any()):
        asked.append(f"at most {_range(bounds.upper)}")
    if not asked:
        return [*lines, ("bounds", "none")]
    n_broken = int(((sizes < bounds.lower) | (sizes > bounds.upper)).sum())
    verdict = f"broken in {n_broken:,} of {len(sizes):,} clusters" if n_broken else "and they hold"
    return [*lines, ("bounds", f"{', '.join(asked)}, {verdict}")]


def gap_line(gap: float) -> tuple[str, str]:
    """How far from the optimum the labels can be.

    >>> gap_line(2.5e-7)
    ('gap', '2.5e-07: no labels within the bounds cost less by more than this share, for these centers')
    >>> gap_line(0.0)
    ('gap', '0: no labels within the bounds cost less, for these centers')
    """
    if gap == 0:
        return "gap", "0: no labels within the bounds cost less, for these centers"
    if gap == float("inf"):
        return "gap", "unknown: the lower bound is 0"
    return (
        "gap",
        f"{gap:.1e}: no labels within the bounds cost less by more than this share, for these centers",
    )


def _range(bound: Tensor) -> str:
    ends = dict.fromkeys(number(float(end)) for end in torch.aminmax(bound))
    return " ... ".join(ends)
