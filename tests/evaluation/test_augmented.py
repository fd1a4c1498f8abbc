"""The published linear probe learns a real task and leaves the backbone alone."""

import pytest
import torch
from torch import nn

from coke.errors import DataError
from coke.evaluation.augmented import augmented_linear_probe
from coke.images import textures

VIEW = {"size": 16, "mean": (0.5,) * 3, "std": (0.25,) * 3}


def backbone(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()


@pytest.fixture
def colours(make_set):
    """Three classes of textures, each tinted: what a linear layer on a random network can learn."""

    def make(n_images, seed):
        pixels, _ = textures(n_images, size=16, seed=seed)
        labels = torch.arange(n_images) % 3
        tint = 0.3 + 0.7 * nn.functional.one_hot(labels, 3)[:, :, None, None]
        return make_set((pixels.float() * tint).to(torch.uint8), labels)

    return make


def test_it_learns_and_leaves_the_backbone_as_it_was(colours):
    network = backbone()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    accuracy = augmented_linear_probe(
        network, colours(240, 0), colours(90, 1), epochs=20, batch_size=64, **VIEW
    )
    assert accuracy > 0.9  # chance is a third
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_one_seed_one_result(colours):
    bank, query = colours(60, 0), colours(45, 1)

    def probe(seed):
        return augmented_linear_probe(
            backbone(), bank, query, epochs=2, batch_size=25, learning_rate=0.05, seed=seed, **VIEW
        )

    assert probe(0) == probe(0)
    assert len({probe(seed) for seed in range(6)}) > 1


def test_it_leaves_the_global_random_state_alone(colours):
    bank = colours(30, 0)
    network = backbone()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    augmented_linear_probe(network, bank, bank, epochs=1, **VIEW)
    assert torch.equal(torch.rand(3), expected)


def test_files_of_several_sizes_can_be_a_bank(make_folder, noise):
    labels = torch.tensor([0, 1] * 6)
    images = [noise(1, 10 + row, 30 - row, seed=row)[0] // (1 + 3 * (row % 2)) for row in range(12)]
    folder = make_folder(images, labels)
    accuracy = augmented_linear_probe(backbone(), folder, folder, epochs=20, batch_size=6, **VIEW)
    assert accuracy > 0.9


def test_bad_input_is_refused_before_the_backbone_runs(colours, make_set, noise):
    class Never(nn.Module):
        def forward(self, images):
            raise AssertionError("the backbone ran")

    bank = colours(30, 0)
    unlabelled = make_set(noise(6, 16))
    partly = make_set(noise(6, 16), torch.tensor([0, 1, -1, 0, 1, 0]))
    single = make_set(noise(6, 16), torch.zeros(6, dtype=torch.long))
    for first, second, message in (
        (unlabelled, bank, "has no labels"),
        (bank, unlabelled, "has no labels"),
        (partly, bank, "1 of 6 rows below 0"),
        (single, bank, "all 6 bank labels are 0"),
    ):
        with pytest.raises(DataError, match=message):
            augmented_linear_probe(Never(), first, second, **VIEW)
