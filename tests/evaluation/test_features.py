"""Features do not depend on how they are batched; batch statistics equal those computed by hand."""

import pytest
import torch
from torch import nn

from coke.errors import ConfigError, DataError
from coke.evaluation.features import adapt_batch_norm, extract, normalised, raw_pixels

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
VIEW = {"size": 8, "mean": MEAN, "std": STD}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5)
    )


def test_normalisation_by_hand(noise):
    images = noise(3, 4)
    expected = (images.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.allclose(normalised(images, MEAN, STD).double(), expected, atol=1e-6)
    with pytest.raises(ConfigError, match="std must be above 0"):
        normalised(images, MEAN, (0.1, 0.0, 0.1))


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_batch_size_changes_nothing(make_set, noise, batch_size):
    images, backbone = make_set(noise(23, 8)), network()
    found = extract(backbone, images, batch_size=batch_size, **VIEW)
    with torch.no_grad():
        whole = backbone.eval()(normalised(images.pixels, MEAN, STD)).mean(dim=(2, 3))
    assert found.shape == (23, 5)
    assert torch.allclose(found, whole, atol=1e-6)


def test_modes_and_weights_are_as_before(make_set, noise):
    backbone = network().train()
    backbone[1].eval()  # somebody froze this one
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    extract(backbone, make_set(noise(6, 8)), **VIEW)
    assert [layer.training for layer in backbone] == [True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_modes_come_back_after_an_error(make_set, noise):
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(7, 2)).train()
    with pytest.raises(RuntimeError):
        extract(backbone, make_set(noise(2, 8)), **VIEW)
    assert backbone.training


def test_features_can_be_trained_on(make_set, noise):
    features = extract(network(), make_set(noise(6, 8)), **VIEW)
    layer = nn.Linear(5, 1)
    layer(features).sum().backward()
    assert layer.weight.grad is not None


def test_timm_backbone_gives_its_pooled_features(make_set, noise):
    import timm

    backbone = timm.create_model("resnet10t", num_classes=0)
    images = make_set(noise(3, 32))
    found = extract(backbone, images, size=32, mean=MEAN, std=STD, batch_size=2)
    assert found.shape == (3, backbone.num_features)
    assert backbone.training


def test_outputs_and_sets_that_cannot_be_used(make_set, noise):
    class Pair(nn.Module):
        def forward(self, images):
            return images, images

    images = make_set(noise(4, 8))
    with pytest.raises(DataError, match="returned tuple"):
        extract(Pair(), images, **VIEW)
    with pytest.raises(DataError, match=r"returned \(4, 3, 64\)"):
        extract(nn.Flatten(2), images, **VIEW)


def test_raw_pixels_are_the_normalised_images(make_set, noise):
    images = make_set(noise(5, 8))
    found = raw_pixels(images, batch_size=2, **VIEW)
    assert torch.equal(found, normalised(images.pixels, MEAN, STD).flatten(1))


@pytest.mark.parametrize("batch_size", [16, 7, 5, 3])
def test_adapted_statistics_equal_those_by_hand(make_set, noise, batch_size):
    pixels = (noise(16, 8).float() * torch.linspace(0.3, 1, 16).view(-1, 1, 1, 1)).to(torch.uint8)
    backbone = network().eval()
    weights = {name: value.clone() for name, value in backbone.named_parameters()}
    adapt_batch_norm(backbone, make_set(pixels), batch_size=batch_size, **VIEW)
    with torch.no_grad():
        first = backbone[0](normalised(pixels, MEAN, STD)).double()
    assert torch.allclose(backbone[1].running_mean.double(), first.mean(dim=(0, 2, 3)), atol=1e-5)
    assert all(torch.equal(value, weights[name]) for name, value in backbone.named_parameters())
    assert backbone[1].momentum == backbone[4].momentum == 0.1
    assert not any(layer.training for layer in backbone)
    if batch_size == 16:  # one batch: the variance is exact, in deeper layers too
        assert torch.allclose(backbone[1].running_var.double(), first.var(dim=(0, 2, 3)), atol=1e-5)
        with torch.no_grad():
            ready = backbone[3](backbone[2](nn.functional.batch_norm(
                first.float(), None, None, backbone[1].weight, backbone[1].bias, training=True
            ))).double()  # fmt: skip
        assert torch.allclose(backbone[4].running_mean.double(), ready.mean(dim=(0, 2, 3)), atol=1e-5)
        assert torch.allclose(backbone[4].running_var.double(), ready.var(dim=(0, 2, 3)), atol=1e-5)


def test_adapting_starts_afresh_and_repeats(make_set, noise):
    images, backbone = make_set(noise(16, 8)), network()
    backbone[1].running_mean.fill_(100.0)
    adapt_batch_norm(backbone, images, batch_size=4, **VIEW)
    first = backbone[1].running_mean.clone()
    adapt_batch_norm(backbone, images, batch_size=4, **VIEW)
    assert torch.equal(backbone[1].running_mean, first)
    assert first.abs().max() < 10


@pytest.mark.parametrize("n_images", [3, 9, 17])
def test_no_batch_of_one_image(make_set, noise, n_images):
    """Batch norm over single values refuses a batch of one: 9 images must not become 8 and 1."""
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4))
    for batch_size in (2, 8):
        adapt_batch_norm(backbone, make_set(noise(n_images, 8)), batch_size=batch_size, **VIEW)
    with pytest.raises(DataError, match="at least two"):
        adapt_batch_norm(backbone, make_set(noise(1, 8)), **VIEW)


def test_dropout_stays_off_while_adapting(make_set, noise):
    images = make_set(noise(8, 8))
    backbone = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3))
    adapt_batch_norm(backbone, images, **VIEW)
    expected = normalised(images.pixels, MEAN, STD).mean(dim=(0, 2, 3))
    assert torch.allclose(backbone[1].running_mean, expected, atol=1e-5)
