"""The minimum size gamma = r N / K that every cluster is asked for, and how far one step moves a dual to get it.

The step is the rule behind ``dual_lr: auto``.

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

    Examples:
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


def check_n_clusters(n_samples: int, n_clusters: int, min_size_ratio: float) -> None:
    """Raise `BoundsError` where ``n_clusters`` clusters with the minimum size r N / K cannot be learned.

    Args:
        n_samples: N.
        n_clusters: K, at least 1; 2 K must not exceed N, or clusters hold fewer than two images each.
        min_size_ratio: r in [0, 1].

    >>> check_n_clusters(100, 10, 0.4)
    >>> check_n_clusters(100, 80, 0.4)
    Traceback (most recent call last):
    coke.errors.BoundsError: n_clusters=80 is too many for 100 images (1.2 each): at most 50
    """
    if n_clusters < 1:
        raise BoundsError(f"n_clusters must be at least 1, got {n_clusters}")
    if 2 * n_clusters > n_samples:
        raise BoundsError(
            f"n_clusters={n_clusters} is too many for {n_samples:,} images ({n_samples / n_clusters:.1f} each): "
            f"at most {n_samples // 2}"
        )
    if not 0 <= min_size_ratio <= 1:
        raise BoundsError(
            f"min_size_ratio={min_size_ratio} cannot hold: {n_clusters} clusters of at least "
            f"{min_size_ratio * n_samples / n_clusters:.1f} of {n_samples:,} images; it must lie in [0, 1]"
        )


def min_size(n_samples: int, n_clusters: int, min_size_ratio: float) -> float:
    """gamma = r N / K, images that every cluster should receive in an epoch.

    >>> min_size(50_000, 200, 0.4)
    100.0
    """
    return min_size_ratio * n_samples / n_clusters
