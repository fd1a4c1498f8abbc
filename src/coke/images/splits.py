"""Which images are learned from, and which labels probes learn from and are asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coke.errors import printable
from coke.images.image_set import ImageSet

HOLD_OUT = 0.1
"""The share of the labels that probes are asked about where there is no test split with labels."""


@dataclass(frozen=True, eq=False)
class Splits:
    """What pretraining sees (train), what probes learn from (bank) and what they are asked about (query).

    bank and query are None together: without labels there are no probes. note says in words what was done.
    """

    train: ImageSet
    bank: ImageSet | None
    query: ImageSet | None
    note: str

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """Keys and reasons of all images that were left out."""
        sets = [images for images in (self.train, self.query) if images is not None]
        found = dict.fromkeys(
            bad for images in sets for bad in images.unreadable
        )  # query may be a part of train
        return [(bad.key, bad.reason) for bad in found]


def make_splits(
    train: ImageSet,
    query: ImageSet | None = None,
    *,
    query_split: str = "test",
    seed: int = 0,
    remarks: tuple[str, ...] = (),
) -> Splits:
    """Choose bank and query: the labelled images of ``query`` if it has any, else a seeded hold-out of train.

    Pretraining always sees all of ``train``, as images without labels.
    """
    labelled = _labelled(train)
    if len(labelled) == 0:
        return Splits(train, None, None, _note("no labels: no probes", remarks))
    assert train.labels is not None
    if query is not None and len(_labelled(query)):
        asked = _only(query, _labelled(query))
        words = f"probes query the {query_split} split ({len(asked):,} images)"
        return Splits(train, _only(train, labelled), asked, _note(words, remarks))
    held = hold_out(train.labels[labelled], seed=seed)
    if not held.any():
        words = f"too few labelled images ({len(labelled)}) to hold any out: no probes"
        return Splits(train, None, None, _note(words, remarks))
    words = (
        f"probes query a seeded {HOLD_OUT:.0%} hold-out of the labels ({int(held.sum()):,} images), "
        "which pretraining still sees as images"
    )
    bank, asked = train.subset(labelled[~held]), train.subset(labelled[held])
    return Splits(train, bank, asked, _note(words, remarks))


def in_order(images: ImageSet, contents: Sequence[bytes] | None) -> ImageSet:
    """Images in the order of ``contents`` (hashes) where they are the same ones, else by their own; None: as they came.

    What is held out goes by the order, so that a list of the same images in another order would be asked about
    others.
    """
    if contents is None:
        return images
    here = images.hashes.contiguous().numpy().view("V16")[:, 0]
    there = np.array(list(contents), "V16")
    from_here, to_there = np.argsort(here, kind="stable"), np.argsort(there, kind="stable")
    if not np.array_equal(here[from_here], there[to_there]):
        return images.subset(torch.from_numpy(from_here))
    order = np.empty(len(images), np.int64)
    order[to_there] = from_here
    return images.subset(torch.from_numpy(order))


def hold_out(labels: Tensor, *, share: float = HOLD_OUT, seed: int = 0) -> Tensor:
    """Which of ``labels`` (int64 [N]) to hold out: bool [N], ``share`` of them, at least one, by the seed.

    Every class gives its share up to rounding (largest remainders, ties by the seed) and keeps at least one
    image.

    >>> hold_out(torch.arange(40) % 2, seed=1).reshape(-1, 2).sum(0).tolist()
    [2, 2]
    """
    random = np.random.default_rng(seed)
    values = labels.numpy()
    _, classes, counts = np.unique(values, return_inverse=True, return_counts=True)
    wanted = max(1, round(share * len(values)))
    quota = counts * (wanted / max(len(values), 1))
    held = np.minimum(np.floor(quota).astype(np.int64), counts - 1)
    by_remainder = np.lexsort((random.permutation(len(counts)), -(quota - np.floor(quota))))
    while held.sum() < wanted and (held < counts - 1).any():
        for index in by_remainder:
            if held.sum() < wanted and held[index] < counts[index] - 1:
                held[index] += 1
    order = np.lexsort((random.permutation(len(values)), classes))  # by class, at random within each
    place_in_class = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    mask = np.zeros(len(values), dtype=bool)
    mask[order[place_in_class < np.repeat(held, counts)]] = True
    return torch.from_numpy(mask)


def _labelled(images: ImageSet) -> Tensor:
    if images.labels is None:
        return torch.zeros(0, dtype=torch.int64)
    return torch.nonzero(images.labels >= 0)[:, 0]


def _only(images: ImageSet, indices: Tensor) -> ImageSet:
    return images if len(indices) == len(images) else images.subset(indices)


def _note(words: str, remarks: tuple[str, ...]) -> str:
    return printable("; ".join((words, *remarks)))
