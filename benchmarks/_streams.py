"""Random streams of images with fixed centers, and ways to assign them on the way: what online_theory.py runs.

`Runs` is coke.OnlineConstrainedKMeans without its center step, for many streams and step rules at a time, so that
a million steps of one image are a million small numpy operations (tests/test_online_theory.py compares the two
step by step). Duals are float64 here: over a million steps float32 adds a rounding error of its own.

Shapes: S streams, G groups (a step rule with a ratio), K clusters, B batch, T images of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DATA = ("balanced", "long-tailed")
DIM, NOISE, TAIL = 32, 1.5, 100.0  # noise: cosine 0.55 to the own center; tail: commonest over rarest cluster
CHUNK = 3840  # images drawn at once: 30 batches of 128
SCALE = 1.0  # c of the rules c / sqrt(N) and c / sqrt(t)
PUBLISHED_HIT = 0.02
STATE = ("duals", "counts", "value", "regret_bound")
RULES = ("c/sqrt(N)", "c/sqrt(t)", "0.02", "0.02 falling", "eta = c/sqrt(N)")
FALLING = RULES[1], RULES[3]


@dataclass(frozen=True)
class Stream:
    """Unit vectors around K random unit centers, drawn chunk by chunk; any chunk can be drawn again.

    Clusters are equally likely ("balanced"), or their probabilities fall exponentially by `TAIL` ("long-tailed").
    """

    n_clusters: int
    data: str
    seed: int

    def centers(self) -> NDArray[np.float32]:
        """[K, D], the same for both kinds of data."""
        centers = np.random.default_rng([self.seed, self.n_clusters]).standard_normal((self.n_clusters, DIM))
        return (centers / np.linalg.norm(centers, axis=1, keepdims=True)).astype(np.float32)

    def chunk(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Cosines [T, K] to the centers, and the clusters [T] that the images were drawn from."""
        centers = self.centers()
        kind = DATA.index(self.data)
        generator = np.random.default_rng([self.seed, self.n_clusters, 1 + kind, index])
        shares = TAIL ** -np.linspace(0, kind, self.n_clusters)
        sources = generator.choice(self.n_clusters, CHUNK, p=shares / shares.sum())
        images = generator.standard_normal((CHUNK, DIM), dtype=np.float32)
        images *= NOISE / np.sqrt(DIM)
        images += centers[sources]
        images /= np.linalg.norm(images, axis=1, keepdims=True)
        return images @ centers.T, sources

    def scores(self, n_images: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The first N images: cosines [N, K] and sources [N]."""
        cosines = np.empty((n_images, self.n_clusters), np.float32)
        sources = np.empty(n_images, np.int64)
        for start in range(0, n_images, CHUNK):
            part = slice(start, min(start + CHUNK, n_images))
            cosines[part], sources[part] = (x[: part.stop - start] for x in self.chunk(start // CHUNK))
        return cosines, sources


@dataclass(frozen=True)
class Group:
    """One setting of the online method: step rule, ratio r, and the length of the stream it is meant for."""

    rule: str
    ratio: float
    n_images: int

    def hit(self, seen: Array, batch: int) -> Array:
        """h = eta / B, what one image lowers its cluster's dual by; ``seen`` counts this batch's images too."""
        if self.rule == "c/sqrt(t)":
            return SCALE / np.sqrt(seen)
        if self.rule == "0.02 falling":  # 0.02 at first, then about c / sqrt(t)
            return SCALE / np.sqrt((SCALE / PUBLISHED_HIT) ** 2 + seen - batch)
        length = np.sqrt(self.n_images)
        constant = {
            "c/sqrt(N)": SCALE / length,
            "eta = c/sqrt(N)": SCALE / length / batch,
            "0.02": PUBLISHED_HIT,
        }
        return np.full_like(seen, constant[self.rule], dtype=np.float64)


@dataclass
class Runs:
    """The state of S x G online runs, each over its stream's images in the same order."""

    groups: Sequence[Group]
    batch: int
    duals: Array  # [S, G, K]
    counts: Array  # [S, G, K] images received
    value: Array  # [S, G] sum of cosines to the assigned centers
    regret_bound: Array  # [S, G] half the sum of h |m - r B / K|^2
    seen: int = 0

    @classmethod
    def start(cls, groups: Sequence[Group], batch: int, n_streams: int, n_clusters: int) -> Runs:
        """Duals at zero, nothing seen."""
        shape = (n_streams, len(groups), n_clusters)
        flat = shape[:2]
        return cls(groups, batch, np.zeros(shape), np.zeros(shape), np.zeros(flat), np.zeros(flat))

    def keep(self, groups: Sequence[Group]) -> Runs:
        """A copy with some of the groups."""
        chosen = [self.groups.index(group) for group in groups]
        arrays = {name: getattr(self, name)[:, chosen].copy() for name in STATE}
        return replace(self, groups=groups, **arrays)

    def take(self, cosines: Array) -> NDArray[np.intp]:
        """Assign the next T images of every stream, cosines [S, T, K], batch by batch; labels [S, G, T].

        The last batch may be short. It counts as a full one, as in the class: eta stays, so its hits are larger.
        """
        n_images = cosines.shape[1]
        labels = np.empty((*self.value.shape, n_images), np.intp)
        if self.batch == 1:
            self._singles(cosines, labels)
        else:
            for start in range(0, n_images, self.batch):
                part = slice(start, start + self.batch)
                labels[:, :, part] = self._batch(cosines[:, part])
        for stream, group in np.ndindex(*self.value.shape):
            own = labels[stream, group]
            self.counts[stream, group] += np.bincount(own, minlength=self.counts.shape[2])
            self.value[stream, group] += cosines[stream, np.arange(n_images), own].sum()
        return labels

    def _batch(self, cosines: Array) -> NDArray[np.intp]:
        """One batch, the paper's rule: assign all of it with the old duals, then move the duals."""
        n_streams, n_groups, n_clusters = self.duals.shape
        size = cosines.shape[1]
        labels = (self.duals[:, :, None] + cosines[:, None]).argmax(axis=-1)
        row = np.arange(n_streams * n_groups).reshape(n_streams, n_groups, 1) * n_clusters
        received = np.bincount((row + labels).ravel(), minlength=self.duals.size).reshape(self.duals.shape)
        seen = np.array([self.seen + self.batch])
        hits = np.array([group.hit(seen, self.batch)[0] for group in self.groups]) * (self.batch / size)
        excess = received - self._ratios()[:, None] * size / n_clusters
        self.duals -= hits[:, None] * excess
        np.maximum(self.duals, self._floor()[:, None], out=self.duals)
        self.regret_bound += hits / 2 * (excess**2).sum(axis=-1)
        self.seen += size
        return labels

    def _singles(self, cosines: Array, labels: NDArray[np.intp]) -> None:
        """The same with batches of one image: only the one cluster that was hit can reach the floor."""
        n_streams, n_groups, n_clusters = self.duals.shape
        n_images = cosines.shape[1]
        seen = self.seen + 1.0 + np.arange(n_images)
        hits = np.stack([group.hit(seen, 1) for group in self.groups], axis=1)  # [T, G]
        rises = (hits * self._ratios() / n_clusters)[:, :, None]
        floor, flat = self._floor(), self.duals.reshape(-1)
        row = np.arange(n_streams * n_groups).reshape(n_streams, n_groups) * n_clusters
        raised, place, hit = np.empty_like(self.duals), np.empty_like(row), np.empty(row.shape)
        chosen = np.empty((n_images, n_streams, n_groups), np.intp)
        by_image = np.ascontiguousarray(cosines.swapaxes(0, 1))[:, :, None]
        for image in range(n_images):
            np.add(self.duals, by_image[image], out=raised)
            raised.argmax(axis=-1, out=chosen[image])
            np.add(self.duals, rises[image], out=self.duals)
            np.add(row, chosen[image], out=place)
            np.take(flat, place, out=hit)
            np.subtract(hit, hits[image], out=hit)
            np.maximum(hit, floor, out=hit)
            np.put(flat, place, hit)
        labels[:] = np.moveaxis(chosen, 0, -1)
        length = 1 + self._ratios() * (self._ratios() - 2) / n_clusters  # |m - r / K|^2 of one image
        self.regret_bound += hits.sum(axis=0) / 2 * length
        self.seen += n_images

    def _ratios(self) -> Array:
        return np.array([group.ratio for group in self.groups])

    def _floor(self) -> Array:
        """Duals are clamped at zero unless sizes are to be equal."""
        return np.where(self._ratios() < 1, 0.0, -np.inf)


class Window:
    """Equal sizes within the last 4,096 images, as SwAV does it: Sinkhorn at epsilon 0.05, 3 iterations."""

    SIZE, EPSILON, BATCH = 4096, 0.05, 128

    def __init__(self, n_clusters: int, iterations: int = 3) -> None:
        self.weights = np.empty((self.SIZE, n_clusters), np.float32)
        self.iterations = iterations
        self.filled = self.next = 0

    def assign(self, cosines: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Labels [B] of a batch [B, K], and the soft assignment [B, K] that they are the largest entries of."""
        fresh = np.exp(cosines / self.EPSILON)
        self.weights[(self.next + np.arange(len(fresh))) % self.SIZE] = fresh
        self.next = (self.next + len(fresh)) % self.SIZE
        self.filled = min(self.filled + len(fresh), self.SIZE)
        weights = self.weights[: self.filled]
        share = np.float32(self.filled / weights.shape[1])
        column_scale = share / weights.sum(axis=0)
        for _ in range(self.iterations - 1):
            row_scale = 1 / (weights @ column_scale)
            column_scale = share / (row_scale @ weights)
        soft = fresh * column_scale
        soft /= soft.sum(axis=1, keepdims=True)
        return soft.argmax(axis=1), soft

    def run(
        self, cosines: NDArray[np.float32], sizes: Sequence[int]
    ) -> tuple[NDArray[np.intp], dict[int, Array]]:
        """Labels [N] of a stream [N, K] in batches, and the summed soft assignment [K] after each of the sizes."""
        labels, mass = np.empty(len(cosines), np.intp), np.zeros(cosines.shape[1])
        soft_sizes = {}
        for start in range(0, len(cosines), self.BATCH):
            part = slice(start, start + self.BATCH)
            labels[part], soft = self.assign(cosines[part])
            for size in sizes:
                if start < size <= start + self.BATCH:
                    soft_sizes[size] = mass + soft[: size - start].sum(axis=0)
            mass += soft.sum(axis=0)
        return labels, soft_sizes
