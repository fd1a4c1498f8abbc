"""How far one step moves a dual: the rule behind ``dual_lr: auto``.

One image lowers its cluster's dual by the *hit* h = eta / B; an empty cluster rises by eta r / K a step, that
is by the *climb* r (N / K) h an epoch. Bounds hold while features move when the climb is 2 to 3.5 (cosines
span 2: an empty cluster wins images within an epoch; published ImageNet settings: 2.0 to 3.4), and labels
keep their meaning when the hit is small against the margins between clusters (published: 0.02).
"""

from __future__ import annotations

from coke.errors import BoundsError

CLIMB = 3.3
LARGEST_HIT = 0.03


def auto_dual_lr(
    n_samples: int,
    batch_size: int,
    n_clusters: int,
    min_size_ratio: float,
    *,
    climb: float = CLIMB,
    largest_hit: float = LARGEST_HIT,
) -> float:
    """The dual step eta that climbs by ``climb`` an epoch, unless a single hit would then be too large.

    Args:
        n_samples: N, images an epoch.
        batch_size: B, images a step over all processes.
        n_clusters: K of the head.
        min_size_ratio: r in [0, 1]; for 0 the duals stay at 0 whatever the step.
        climb: how far an empty cluster's dual should rise in one epoch (cosines span 2).
        largest_hit: cap on eta / B, what one image lowers its cluster's dual by.

    Raises:
        BoundsError: a size below 1, or a ratio outside [0, 1].

    Example:
        >>> round(auto_dual_lr(50_000, 128, 150, 0.4), 2)       # trained a small network on CIFAR-10
        3.17
        >>> round(auto_dual_lr(1_281_167, 1024, 3000, 0.4), 1)  # published: 20
        19.8
        >>> round(auto_dual_lr(10_000, 128, 500, 0.4), 2)       # 20 images a cluster: the hit decides
        3.84
    """
    for name, value in (("n_samples", n_samples), ("batch_size", batch_size), ("n_clusters", n_clusters)):
        if value < 1:
            raise BoundsError(f"{name} must be at least 1, got {value}")
    if not 0 <= min_size_ratio <= 1:
        raise BoundsError(f"min_size_ratio must lie in [0, 1], got {min_size_ratio}")
    bound = min_size_ratio * n_samples / n_clusters
    hit = largest_hit if bound == 0 else min(climb / bound, largest_hit)
    return hit * batch_size
