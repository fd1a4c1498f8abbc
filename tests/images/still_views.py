"""A view that changes nothing, and a seeded generator, for the tests of augmentation and of what is drawn for it."""

import torch

from coke.images.views import View

STILL = View(
    size=16,
    crop=(1.0, 1.0),
    ratio=(1.0, 1.0),
    flip=0.0,
    jitter=(0.0, 0.0, 0.0, 0.0),
    gray=0.0,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)
