"""A real torchvision data set, its files written here: nothing is downloaded."""

from __future__ import annotations

import pickle
import struct

import numpy as np
import pytest

from coke.errors import DataError
from coke.images import open_data

from .builders import write_images


def write_mnist(root, n_train=12, n_test=4):
    """The idx files of MNIST, as torchvision looks for them."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    written = {}
    for prefix, count in (("train", n_train), ("t10k", n_test)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, count) + labels.tobytes()
        )
        written[prefix] = images
    return written


@pytest.mark.parametrize("name", ["MNIST", "mnist"])
def test_images_labels_and_splits(tmp_path, name):
    written = write_mnist(tmp_path)
    splits = open_data(f"{name}:{tmp_path}")
    assert splits.note == "probes query the test split (4 images)"
    assert splits.train.pixels.shape == (12, 3, 28, 28)
    assert np.array_equal(splits.train.pixels[:, 1].numpy(), written["train"])
    assert np.array_equal(splits.query.pixels[:, 2].numpy(), written["t10k"])
    assert splits.train.labels.tolist() == [*range(10), 0, 1]
    assert splits.train.classes[:2] == ["0 - zero", "1 - one"]
    assert splits.query.classes == splits.train.classes


def test_sets_that_are_not_in_memory_survive_pickling(tmp_path):
    written = write_mnist(tmp_path)
    images = pickle.loads(pickle.dumps(open_data(f"MNIST:{tmp_path}", resident_bytes=0).train))
    assert images.pixels is None
    assert np.array_equal(images.read(5)[0].numpy(), written["train"][5])


def test_a_set_without_splits_is_learned_from_whole(tmp_path):
    write_images(tmp_path, ["cat/1.png", "cat/2.png", "dog/1.png"])
    splits = open_data(f"ImageFolder:{tmp_path}")
    assert splits.train.classes == ["cat", "dog"]
    assert splits.train.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ["MNIST", "STL10", "CIFAR10"])
def test_files_that_are_not_there_are_never_downloaded(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name} cannot be opened in .*coke downloads nothing"):
        open_data(f"{name}:{tmp_path}")
    assert list(tmp_path.rglob("*.gz")) == []


def test_unknown_names_are_corrected(tmp_path):
    with pytest.raises(DataError, match=r"no data set 'CIFAR11'.*did you mean 'CIFAR10"):
        open_data(f"CIFAR11:{tmp_path}")


def test_sets_that_need_more_than_a_root_are_refused(tmp_path):
    with pytest.raises(DataError, match="needs root, split, not only a root"):
        open_data(f"EMNIST:{tmp_path}")
