"""CIFAR-10 for the contest: a pool to pretrain from, held-out training images to tune on, the test split.

The split is the same for every contender and seed. Of the 50,000 training images 5,000 (500 a class) are held
out; nothing is trained on them. The pool's labels serve the probes and the choice of a long-tailed subset.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from coke.data import ImageSet, open_data
from coke.data.splits import hold_out
from coke.training.batches import generator


@dataclass(frozen=True)
class Data:
    """The three parts, all labelled."""

    pool: ImageSet
    held: ImageSet
    test: ImageSet

    def first(self, n_images: int) -> Data:
        """At most so many images of each part, for a dry run."""
        parts = (self.pool, self.held, self.test)
        return Data(*(part.subset(range(min(n_images, len(part)))) for part in parts))


def load(path: Path) -> Data:
    """Read and split a folder of CIFAR-10 as parquet."""
    splits = open_data(path, seed=0)
    train, test = splits.train, splits.query
    assert train.labels is not None
    assert test is not None
    held = hold_out(train.labels, seed=0)
    return Data(train.subset((~held).nonzero()[:, 0]), train.subset(held.nonzero()[:, 0]), test)


def labels_of(images: ImageSet) -> Tensor:
    """The labels, which every part here has."""
    assert images.labels is not None
    return images.labels


def class_counts(n_classes: int, largest: int, imbalance: float) -> list[int]:
    """Images of each class, from ``largest`` down to ``largest / imbalance`` in equal proportions.

    >>> class_counts(3, 100, 4)
    [100, 50, 25]
    """
    return [round(largest * imbalance ** -(k / (n_classes - 1))) for k in range(n_classes)]


def subset(pool: ImageSet, kind: str, n_images: int | None) -> ImageSet:
    """What is pretrained on: "balanced", or "imbalance-50" (the largest class whole, the smallest a fiftieth).

    ``n_images`` cuts a balanced subset (None: the whole pool); which images are chosen does not depend on a
    run's seed.
    """
    labels = labels_of(pool)
    sizes = torch.bincount(labels)
    n_classes = len(sizes)
    if kind == "balanced":
        if n_images is None:
            return pool
        counts = [n_images // n_classes] * n_classes
    else:
        counts = class_counts(n_classes, int(sizes.min()), float(kind.removeprefix("imbalance-")))
    order = torch.randperm(len(labels), generator=generator("contest", kind))
    chosen = [order[labels[order] == k][: counts[k]] for k in range(n_classes)]
    return pool.subset(torch.cat(chosen).sort().values)
