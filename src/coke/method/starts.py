"""Centers to start from that lie far apart among the features, instead of random directions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from coke.errors import BoundsError


def spread_centers(features: Tensor, n_clusters: int, seed: int = 0) -> Tensor:
    """K features drawn by k-means++ (Arthur and Vassilvitskii 2007), as unit vectors: [N, D] -> [K, D].

    For `OnlineConstrainedKMeans(centers=...)`. Raises `BoundsError` for fewer features than centers.

    >>> centers = spread_centers(torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), 2)
    >>> sorted(centers.tolist())
    [[0.0, 1.0], [1.0, 0.0]]
    """
    if n_clusters > len(features):
        raise BoundsError(f"{n_clusters} centers need at least as many features, there are {len(features)}")
    from sklearn.cluster import kmeans_plusplus

    unit = normalize(features.detach().float())
    chosen = kmeans_plusplus(unit.cpu().numpy(), n_clusters, random_state=seed)[1]
    return unit[torch.from_numpy(chosen).to(unit.device).long()]
