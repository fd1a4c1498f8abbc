"""Starting centers that lie far apart."""

import pytest
import torch
from torch.nn.functional import normalize

from coke.errors import BoundsError
from coke.method import spread_centers


@pytest.mark.parametrize("seed", range(5))
def test_every_group_gets_a_center_where_random_directions_share_one(seed):
    directions = torch.eye(8)
    features = (
        normalize(directions.repeat_interleave(25, 0) + 0.02 * torch.randn(200, 8)) * 3
    )  # length is no matter
    centers = spread_centers(features, 8, seed)
    assert torch.allclose(centers.norm(dim=1), torch.ones(8))
    assert sorted((centers @ directions.t()).argmax(dim=1).tolist()) == list(range(8))
    distances = torch.cdist(centers, normalize(features))
    assert (distances.amin(dim=1) < 1e-3).all()  # each is one of the features


def test_the_seed_decides():
    features = torch.randn(100, 6)
    assert torch.equal(spread_centers(features, 5, 1), spread_centers(features, 5, 1))
    assert not torch.equal(spread_centers(features, 5, 1), spread_centers(features, 5, 2))


def test_too_few_features_are_refused():
    with pytest.raises(BoundsError, match="4 centers need at least as many features, there are 3"):
        spread_centers(torch.eye(3), 4)
