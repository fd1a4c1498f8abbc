from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from coke.errors import DataError
from coke.images import open_data, textures
from coke.images.textures import CLASSES


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 45), st.integers(1, 30), st.integers(0, 9), st.floats(0, 1))
def test_shapes_and_balance(n_images, size, seed, difficulty):
    images, labels = textures(n_images, size, seed, difficulty)
    assert images.shape == (n_images, 3, size, size)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    counts = torch.bincount(labels, minlength=len(CLASSES))
    assert counts.max() - counts.min() <= 1
    again = textures(n_images, size, seed, difficulty)
    assert torch.equal(images, again[0])
    assert torch.equal(labels, again[1])


def test_seeds_differ():
    assert not torch.equal(textures(50, seed=0)[0], textures(50, seed=1)[0])


def test_colour_and_brightness_carry_no_class():
    images, labels = textures(2000)
    ratios = images.double().mean((2, 3)) / images.double().mean((1, 2, 3), keepdim=True)[:, :, 0, 0]
    assert ratios.std(0).max() < 0.01
    for channel_mean in images.double().mean((1, 2, 3)).split(1):
        assert 40 < float(channel_mean) < 215
    by_class = torch.stack([images[labels == number].double().mean() for number in range(len(CLASSES))])
    assert by_class.std() < 6


def vote_of_neighbours(bank, bank_labels, query, query_labels):
    """The accuracy of 20 weighted nearest neighbours by cosine."""
    mean = bank.mean(0)
    bank, query = functional.normalize(bank - mean), functional.normalize(query - mean)
    cosine, index = (query @ bank.T).topk(20)
    votes = torch.zeros(len(query), len(CLASSES)).scatter_add_(1, bank_labels[index], (cosine / 0.07).exp())
    return float((votes.argmax(1) == query_labels).double().mean())


def test_the_class_is_in_local_structure_and_not_in_raw_pixels():
    (bank, bank_labels), (query, query_labels) = textures(3000, seed=0), textures(500, seed=1)

    def spectrum(images):  # what is left of local structure when its position is forgotten
        grey = images[:, 0].float() - images[:, 0].float().mean((1, 2), keepdim=True)
        return torch.fft.rfft2(grey).abs().log1p().flatten(1)

    raw = vote_of_neighbours(bank.float().flatten(1), bank_labels, query.float().flatten(1), query_labels)
    local = vote_of_neighbours(spectrum(bank), bank_labels, spectrum(query), query_labels)
    assert raw < 0.4
    assert local > raw + 0.15


def test_the_embedded_default_is_fixed():
    splits = open_data("textures", seed=5)
    images, labels = textures(5000, seed=0)
    assert torch.equal(splits.train.pixels, images)
    assert torch.equal(splits.train.labels, labels)
    assert len(splits.query) == 1000
    assert splits.train.classes == list(CLASSES)
    assert np.allclose(splits.train.mean, images.double().mean((0, 2, 3)) / 255)


@pytest.mark.parametrize("arguments", [(0,), (5, 0), (5, 24, 0, 1.5), (5, 24, 0, float("nan"))])
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(DataError, match="textures need"):
        textures(*arguments)
