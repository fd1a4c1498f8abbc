"""Data to cluster: standard normal rows, and Gaussian mixtures whose components have long-tailed sizes.

A mixture's centers are standard normal, its rows lie around them with a given standard deviation, and component
number j (from 1) is drawn with a probability proportional to 1 / j. Everything follows from the seed and is made
block by block, so that a file may be larger than memory.

Legend: N rows, D features, K clusters, J components, b rows of a block.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
BLOCK = 2**16
SEED_ROWS = 32_000


@dataclass(frozen=True)
class Data:
    """A distribution of rows.

    Attributes:
        n_components: J; 0: standard normal rows, without clusters.
        noise: standard deviation of a row around its component's center, in every feature.
    """

    n_components: int = 0
    noise: float = 1.0

    @property
    def words(self) -> str:
        """What results call it.

        >>> Data(100, 0.5).words
        '100 Gaussians, sizes as 1 / rank, noise 0.5 of the spread of their centers'
        """
        if not self.n_components:
            return "standard normal"
        return f"{self.n_components} Gaussians, sizes as 1 / rank, noise {self.noise:g} of the spread of their centers"

    def blocks(self, n_rows: int, n_features: int, seed: int = 0) -> Iterator[Array]:
        """Rows as float32 [b, D], block by block."""
        random = np.random.default_rng(seed)
        if self.n_components:
            share = 1 / np.arange(1, self.n_components + 1)
            centers = random.standard_normal((self.n_components, n_features), dtype=np.float32)
        for first in range(0, n_rows, BLOCK):
            n = min(BLOCK, n_rows - first)
            if not self.n_components:
                yield random.standard_normal((n, n_features), dtype=np.float32)
                continue
            component = random.choice(self.n_components, n, p=share / share.sum())
            rows = random.standard_normal((n, n_features), dtype=np.float32)
            rows *= np.float32(self.noise)
            rows += centers[component]
            yield rows

    def rows(self, n_rows: int, n_features: int, seed: int = 0) -> Array:
        """All rows in memory, float32 [N, D]."""
        rows = np.empty((n_rows, n_features), dtype=np.float32)
        first = 0
        for block in self.blocks(n_rows, n_features, seed):
            rows[first : first + len(block)] = block
            first += len(block)
        return rows

    def write(self, path: Path, n_rows: int, n_features: int, dtype: str = "float16", seed: int = 0) -> None:
        """All rows as a .npy file, on the disk when this returns."""
        import torch

        kept = getattr(torch, dtype)  # numpy rounds to float16 several times slower
        with open(path, "wb") as file:
            head = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (n_rows, n_features)}
            np.lib.format.write_array_header_1_0(file, head)
            for block in self.blocks(n_rows, n_features, seed):
                file.write(torch.from_numpy(block).to(kept).numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())


def starting_centers(rows: Array, n_clusters: int, seed: int = 0) -> Array:
    """K-means++ on `SEED_ROWS` rows drawn at random: float32 [K, D].

    One thread: its many small products wait for each other endlessly where another process has one of the cores.
    """
    import threadpoolctl
    from sklearn.cluster import kmeans_plusplus

    n = min(len(rows), SEED_ROWS)
    drawn = np.sort(np.random.default_rng(seed).choice(len(rows), n, replace=False))
    sample = np.asarray(rows[drawn], dtype=np.float32)
    with threadpoolctl.threadpool_limits(1):
        return kmeans_plusplus(sample, n_clusters, random_state=seed)[0]
