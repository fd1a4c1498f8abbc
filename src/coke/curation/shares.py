"""How many of M each cluster gives: even shares, small clusters whole, from the coarsest level down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def even_shares(sizes: Array, total: int, random: np.random.Generator) -> Array:
    """What each of K clusters gives of ``total``, at most its size: int64 [K], as even as that allows.

    Water that fills vessels: what small clusters cannot give is shared by the others. Shares of clusters that can
    give more differ by one at most; who gives one more is drawn.

    >>> even_shares(np.array([2, 100, 0, 50]), 12, np.random.default_rng(0)).tolist()
    [2, 5, 0, 5]
    """
    sizes = np.asarray(sizes, np.int64)
    assert 0 <= total <= sizes.sum()
    ordered = np.sort(sizes)
    filled = ordered.cumsum() + ordered * np.arange(len(sizes) - 1, -1, -1)  # in all, up to each one's brim
    full = int(np.searchsorted(filled, total, side="right"))  # vessels that are filled whole
    if full == len(sizes):
        return sizes.copy()
    level, more = divmod(int(total - ordered[:full].sum()), len(sizes) - full)
    shares = np.minimum(sizes, level)
    shares[random.permutation(np.flatnonzero(sizes > level))[:more]] += 1
    return shares


def shares_by_level(sizes: Array, levels: Sequence[Array], total: int, random: np.random.Generator) -> Array:
    """`even_shares` among the groups of the coarsest level, then among what each is made of: int64 [K].

    Args:
        sizes: [K] of the finest clusters.
        levels: of each level, from the finest up, the group of each of its clusters: [K] -> K1 groups, [K1] -> ...
            Empty: shares among the K clusters at once.

    >>> shares_by_level(np.array([9, 9, 9]), [np.array([0, 0, 1])], 6, np.random.default_rng(0)).tolist()
    [2, 1, 3]
    """
    if not levels:
        return even_shares(sizes, total, random)
    groups = levels[0]
    above = np.bincount(groups, weights=sizes).astype(np.int64)
    shares, found = shares_by_level(above, levels[1:], total, random), np.zeros(len(sizes), np.int64)
    for group, share in enumerate(shares.tolist()):
        members = np.flatnonzero(groups == group)
        found[members] = even_shares(sizes[members], share, random)
    return found
