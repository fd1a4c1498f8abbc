"""The network's shape, its purity, and what backbones it takes."""

import pytest
import timm
import torch
from torch import nn

import coke.backbones  # noqa: F401 registers coke_*
from coke.errors import ConfigError
from coke.method.network import Network, count_features, pool


class Mean(nn.Module):
    """A backbone of one weight: channel means."""

    def __init__(self, maps=False):
        super().__init__()
        self.weight, self.maps = nn.Parameter(torch.ones(1)), maps

    def forward(self, images):
        return images * self.weight if self.maps else images.mean(dim=(2, 3)) * self.weight


def layers(sequence):
    return [(type(layer).__name__, *getattr(layer, "weight", torch.empty(0)).shape) for layer in sequence]


@pytest.mark.parametrize("name", ["coke_conv5_w16", "coke_resnet18_small"])
def test_the_network_compiles_in_one_piece(name):
    """Dynamo finds one graph for a view with turns and one without; what it compiles them to is not asked."""
    backbone = timm.create_model(name, num_classes=0)
    network = Network(backbone, backbone.num_features, dim=8, predicts_rotation=True)
    compiled = torch.compile(network, backend="eager", fullgraph=True, dynamic=False)
    images = torch.rand(4, 3, 32, 32)
    assert compiled(images, torch.arange(4)).rotation_logits.shape == (4, 4)
    assert compiled(images).rotation_logits is None


def test_heads_are_those_of_the_method():
    """g: two hidden layers of the encoder's width and an output with batch norm; h: one, and without."""
    network = Network(Mean(), n_features=3, dim=5)
    hidden = [("Linear", 3, 3), ("BatchNorm1d", 3), ("ReLU", 0)]
    assert layers(network.projector) == [*hidden, *hidden, ("Linear", 5, 3), ("BatchNorm1d", 5)]
    assert layers(network.predictor) == [
        ("Linear", 3, 5),
        ("BatchNorm1d", 3),
        ("ReLU", 0),
        ("Linear", 5, 3),
    ]
    wide = Network(Mean(), n_features=3, dim=5, hidden=7)
    assert wide.projector[0].weight.shape == (7, 3)
    assert wide.predictor[0].weight.shape == (7, 5)
    assert Network(Mean(), 3).projector[-1].num_features == 128


@pytest.mark.parametrize("maps", [False, True])
def test_outputs_are_unit_vectors_from_projection_to_prediction(maps):
    network = Network(Mean(maps), 3, dim=5, hidden=16)
    images = torch.randn(8, 3, 6, 6)
    projection, prediction, rotation_logits = network(images)
    assert rotation_logits is None
    for vectors in (projection, prediction):
        assert vectors.shape == (8, 5)
        assert torch.allclose(vectors.norm(dim=1), torch.ones(8), atol=1e-5)
    network.eval()
    raw = network.projector(images.mean(dim=(2, 3)))  # h takes g's output as it is, not its direction
    assert torch.allclose(network(images).projection, nn.functional.normalize(raw), atol=1e-6)
    expected = nn.functional.normalize(network.predictor(raw))
    assert torch.allclose(network(images).prediction, expected, atol=1e-6)


def test_outputs_are_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = Network(Mean(), 3, dim=5, predicts_rotation=True)(
            torch.randn(8, 3, 6, 6), torch.arange(8) % 4
        )
    assert {vectors.dtype for vectors in outputs} == {torch.float32}
    assert torch.allclose(outputs.projection.norm(dim=1), torch.ones(8), atol=1e-5)


def test_a_head_for_turns_comes_last_and_leaves_the_others_as_they_were():
    torch.manual_seed(0)
    without = Network(Mean(), 3, dim=5)
    torch.manual_seed(0)
    network = Network(Mean(), 3, dim=5, predicts_rotation=True)
    extra = {name for name in network.state_dict() if name not in without.state_dict()}
    assert extra
    assert all(name.startswith("turner.") for name in extra)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in without.state_dict().items())
    assert network(torch.randn(8, 3, 6, 6), torch.arange(8) % 4).rotation_logits.shape == (8, 4)
    with pytest.raises(ConfigError, match="predicts_rotation=True"):
        without(torch.randn(8, 3, 6, 6), torch.arange(8) % 4)


def test_a_pass_changes_batch_statistics_only():
    network = Network(Mean(), 3, dim=5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.eval()(torch.randn(8, 3, 6, 6))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.train()(torch.randn(8, 3, 6, 6))
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("running" in name or "num_batches" in name for name in changed)


def test_pool():
    maps = torch.randn(2, 3, 4, 5)
    assert torch.allclose(pool(maps), maps.mean(dim=(2, 3)))
    assert pool(maps[..., 0, 0]) is not None
    assert torch.equal(pool(maps[..., 0, 0]), maps[..., 0, 0])


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_features_are_counted_and_the_mode_is_kept(maps, training):
    backbone = Mean(maps).train(training)
    assert count_features(backbone, 8) == 3
    assert backbone.training == training


def test_unfit_backbones_are_refused():
    with pytest.raises(ConfigError, match=r"does not take images of 4 px: .*[Kk]ernel size"):
        count_features(nn.Sequential(nn.Conv2d(3, 4, 7)), 4)
    with pytest.raises(ConfigError, match=r"\[B, F\] or \[B, F, h, w\], this one gave \[2, 5, 2\]"):
        count_features(nn.Sequential(nn.Flatten(2), nn.Linear(16, 2), nn.Conv1d(3, 5, 1)), 4)
    tokens = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    with pytest.raises(ConfigError):
        count_features(nn.Sequential(nn.Flatten(2), tokens), 3)


def test_a_transformer_of_another_image_size_is_refused():
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=1)
    assert count_features(vit, 32) == 192
    with pytest.raises(ConfigError, match="does not take images of 48 px"):
        count_features(vit, 48)
