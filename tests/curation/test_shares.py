"""Even shares: they add up, nobody gives more than there is, and nobody who could give more gives less."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coke.curation.shares import even_shares, shares_by_level


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.data())
def test_shares_are_as_even_as_sizes_allow(sizes: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(sizes)))
    shares = even_shares(np.array(sizes), total, np.random.default_rng(0))
    assert shares.sum() == total
    assert (shares >= 0).all()
    assert (shares <= sizes).all()
    could_give_more = shares[shares < sizes]
    assert len(could_give_more) == 0 or shares.max() - could_give_more.min() <= 1


@given(st.integers(0, 5), st.data())
def test_levels_share_from_the_top(seed: int, data: st.DataObject) -> None:
    random = np.random.default_rng(seed)
    sizes, groups = random.integers(0, 20, 30), random.integers(0, 4, 30)
    total = data.draw(st.integers(0, int(sizes.sum())))
    shares = shares_by_level(sizes, [groups], total, np.random.default_rng(0))
    assert shares.sum() == total
    assert (shares <= sizes).all()
    of_groups, capacity = (np.bincount(groups, weights=each, minlength=4) for each in (shares, sizes))
    open_ones = of_groups[of_groups < capacity]
    assert len(open_ones) == 0 or of_groups.max() - open_ones.min() <= 1


def test_the_seed_decides_who_gives_one_more() -> None:
    sizes = np.full(50, 9)
    first, again, other = (even_shares(sizes, 75, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
