"""Small copies are turned as NumPy turns them, by numbers that are each image's own, and can be told apart."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from coke.method.network import Network, rotated
from tiny_runs import Tiny


@pytest.mark.parametrize("side", [8, 9])
def test_each_image_is_turned_by_its_own_number_of_quarters(side):
    images = torch.rand(6, 3, side, side)
    turns = torch.tensor([3, 0, 2, 1, 1, 0])
    copies = rotated(images, turns)
    assert copies.is_contiguous(memory_format=torch.channels_last)
    half = side // 2
    for image, quarters, copy in zip(images.numpy(), turns.tolist(), copies.numpy(), strict=True):
        small = image[:, : 2 * half, : 2 * half].reshape(3, half, 2, half, 2).mean(axis=(2, 4))
        np.testing.assert_allclose(copy, np.rot90(small, quarters, axes=(1, 2)), rtol=1e-5)


def test_a_network_learns_to_tell_them():
    """Images that are bright at the top."""
    torch.manual_seed(0)
    network = Network(Tiny(), 16, dim=8, predicts_rotation=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    images = torch.linspace(1, 0, 16)[:, None].expand(64, 3, 16, 16) + 0.3 * torch.randn(64, 3, 16, 16)
    for _ in range(40):
        turns = torch.randint(4, (64,))
        logits = network(images, turns).rotation_logits
        optimizer.zero_grad()
        cross_entropy(logits, turns).backward()
        optimizer.step()
    assert (logits.argmax(dim=1) == turns).float().mean() > 0.9
