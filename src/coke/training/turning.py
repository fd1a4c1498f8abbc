"""Quarter turns, a companion of the loss on little data: by how many was a small copy of the view turned?

Labels of the first epochs say little (a random network made them); how an image was turned is certain from the
first step on. Rotation as a task: arXiv 1803.07728; beside another loss and at half of the size: arXiv 2111.00899.
Not for images that have no upright.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

QUARTERS = 4


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """Copies of half the side, each turned left by its own number of quarters.

    Args:
        images: [B, 3, S, S].
        turns: int64 [B], 0 ... 3.

    Returns:
        [B, 3, S // 2, S // 2], channels last in memory.

    >>> image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    >>> turned(image.expand(2, 3, 4, 4), torch.tensor([0, 1]))[:, 0].tolist()
    [[[1.0, 2.0], [3.0, 4.0]], [[2.0, 4.0], [1.0, 3.0]]]
    """
    copies = avg_pool2d(images, 2)
    ways = torch.stack([copies.rot90(quarters, (2, 3)) for quarters in range(QUARTERS)])
    chosen = ways[turns, torch.arange(len(turns), device=turns.device)]
    return chosen.contiguous(memory_format=torch.channels_last)
