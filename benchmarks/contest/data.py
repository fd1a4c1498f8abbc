"""CIFAR-10 for the contest: a pool to pretrain from, held-out training images to tune on, the test split.

The split is the same for every contender and seed. Of the 50,000 training images 5,000 (500 a class) are held
out; nothing is trained on them. The pool's labels serve the probes and the choice of a long-tailed subset.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from coke.images import ImageSet, open_data
from coke.images.splits import hold_out
from coke.images.table import Pixels
from coke.training.batches import generator

COMPRESSED = "compressed again"


@dataclass(frozen=True)
class Data:
    """The three parts, all labelled."""

    pool: ImageSet
    held: ImageSet
    test: ImageSet

    def first(self, n_images: int) -> Data:
        """At most so many images of each part, for a dry run."""
        return self._mapped(lambda part: part.subset(range(min(n_images, len(part)))))

    def compressed_again(self) -> Data:
        """Every image of all parts as JPEG once more (`compress`)."""
        return self._mapped(
            lambda part: replace(
                part,
                source=Pixels(torch.stack([compress(part.read(index)) for index in range(len(part))])),
                rows=torch.arange(len(part)),
            )
        )

    def _mapped(self, change: Callable[[ImageSet], ImageSet]) -> Data:
        return Data(change(self.pool), change(self.held), change(self.test))


def load(path: Path) -> Data:
    """Read and split a folder of CIFAR-10 as parquet."""
    splits = open_data(path, seed=0)
    train, test = splits.train, splits.query
    assert train.labels is not None
    assert test is not None
    held = hold_out(train.labels, seed=0)
    return Data(train.subset((~held).nonzero()[:, 0]), train.subset(held.nonzero()[:, 0]), test)


def compress(pixels: Tensor, quality: int = 50, shift: int = 4) -> Tensor:
    """An image [3, H, W] encoded as JPEG and decoded, on a grid of blocks that starts ``shift`` px before it.

    On the grid of an earlier compression a second one changes little, on one between it loses anew. Of 256
    photographs reduced to 32 px, quality 75 and then these settings each lose the same (squared error 1 : 1.03, both
    together 1.77). What is beyond the border is the image mirrored.
    """
    height, width = pixels.shape[1:]
    right, below = (-(side + shift) % 16 for side in (width, height))
    padded = functional.pad(pixels[None].float(), (shift, right, shift, below), mode="reflect")[0]
    stream = io.BytesIO()
    to_pil_image(padded.to(torch.uint8)).save(stream, "JPEG", quality=quality)
    decoded = pil_to_tensor(Image.open(stream))
    return decoded[:, shift : shift + height, shift : shift + width]


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
