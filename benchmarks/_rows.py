"""Rows to cluster: real vectors where they lie beside the checkout, mixtures and normal rows from a seed.

Every `Rows` takes how many rows it may return at most, and gives float32 [N, D], the same each time.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Rows = Callable[[int], Array]
FOLDER = Path(os.environ.get("COKE_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SEED_ROWS = 32_000  # that k-means++ sees
SMALL_REAL = ("iris", "wine", "wine standardised", "breast_cancer", "digits", "diabetes", "linnerud exercise")
SMALL_REAL += ("linnerud physiology", "china colours", "china patches", "flower colours", "flower patches")


class AbsentError(Exception):
    """Data that this machine does not have."""


def _path(name: str) -> Path:
    if not (FOLDER / name).is_file():
        raise AbsentError(f"{FOLDER / name} is not there (COKE_SHARED_DATA names another folder)")
    return FOLDER / name


def words(n: int) -> Array:
    """Embeddings of words of six languages, [at most 193,642, 128]."""
    return np.load(_path("words/vectors.npy"), mmap_mode="r")[:n].astype(np.float32)


def cifar(n: int) -> Array:
    """Pixels of CIFAR-10 as their principal components, [at most 50,000, 64]."""
    import pyarrow.parquet
    from PIL import Image
    from sklearn.decomposition import PCA

    table = pyarrow.parquet.read_table(_path("cifar10/train-00000-of-00001.parquet"), columns=["image"])
    images = [Image.open(io.BytesIO(image["bytes"])) for image in table["image"][:n].to_pylist()]
    pixels = np.stack([np.asarray(image.convert("RGB"), np.float32).ravel() for image in images])
    return PCA(64, svd_solver="randomized", random_state=0).fit_transform(pixels / 255)


def drawn(draw: Callable[[np.random.Generator, int], Array]) -> Rows:
    """Rows of a function of a generator and N."""
    return lambda n: draw(np.random.default_rng(0), n).astype(np.float32, copy=False)


def normal(n_features: int) -> Rows:
    """Standard normal rows: without structure, and so the easiest to keep within sizes."""
    return drawn(lambda random, n: random.standard_normal((n, n_features), dtype=np.float32))


def mixture(n: int, n_components: int = 500, n_features: int = 128) -> Array:
    """Normal rows around normal centers, component j from 1 drawn with a probability proportional to 1 / j."""
    return grouped(n, n_components, n_features)[0]


def grouped(n: int, n_components: int, n_features: int = 128) -> tuple[Array, Array]:
    """A `mixture`, and of each row its component, from 0."""
    random, share = np.random.default_rng(0), 1 / np.arange(1, n_components + 1)
    centers = random.standard_normal((n_components, n_features), dtype=np.float32)
    rows, component = np.empty((n, n_features), dtype=np.float32), np.empty(n, dtype=np.int64)
    for first in range(0, n, 2**16):
        block = rows[first : first + 2**16]
        own = component[first : first + 2**16] = random.choice(
            n_components, len(block), p=share / share.sum()
        )
        random.standard_normal(out=block, dtype=np.float32)
        block += centers[own]
    return rows, component


def small_real(name: str, n: int) -> Array:
    """A data set that comes with scikit-learn; of its two photographs colours, or patches of 8 x 8 pixels."""
    from sklearn import datasets

    kind, _, what = name.partition(" ")
    if what in ("colours", "patches"):
        image = datasets.load_sample_image(f"{kind}.jpg")[:424]
        patches = image.reshape(53, 8, 80, 8, 3).swapaxes(1, 2).reshape(-1, 192)
        found = image.reshape(-1, 3)[::100] if what == "colours" else patches[::4]
    else:
        bunch = getattr(datasets, f"load_{kind}")()
        found = bunch.target if what == "physiology" else bunch.data
        found = (found - found.mean(0)) / found.std(0) if what == "standardised" else found
    return found[:n].astype(np.float32)


def starting_centers(rows: Array, n_clusters: int) -> Array:
    """K-means++ on at most `SEED_ROWS` rows, float32 [K, D]; on one thread, as many small products only wait."""
    import threadpoolctl
    from sklearn.cluster import kmeans_plusplus

    n = min(len(rows), SEED_ROWS)
    chosen = np.sort(np.random.default_rng(0).choice(len(rows), n, replace=False))
    with threadpoolctl.threadpool_limits(1):
        return kmeans_plusplus(rows[chosen], n_clusters, random_state=0)[0]
