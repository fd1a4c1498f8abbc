"""The minimum size that the method asks of every cluster, gamma = r N / K, and whether it can be learned."""

from __future__ import annotations

from coke.errors import BoundsError


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
