from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from coke.errors import DataError
from coke.images import open_data

from .builders import encode, picture, write_images


def test_a_flat_folder_has_no_labels(tmp_path):
    write_images(tmp_path, ["b.png", "A.PNG", "c.png"])
    splits = open_data(tmp_path)
    assert splits.train.keys == ["A.PNG", "b.png", "c.png"]
    assert splits.train.labels is None
    assert splits.note.startswith("no labels: no probes")


def test_every_named_format_is_found(tmp_path):
    kinds = {
        "jpg": "JPEG",
        "jpeg": "JPEG",
        "png": "PNG",
        "webp": "WEBP",
        "bmp": "BMP",
        "tif": "TIFF",
        "tiff": "TIFF",
    }
    for suffix, kind in kinds.items():
        (tmp_path / f"x.{suffix}").write_bytes(encode(picture(0), kind))
    assert len(open_data(tmp_path).train) == len(kinds)


def test_class_folders_give_labels_for_probes(tmp_path):
    write_images(tmp_path, ["dog/1.png", "dog/2.png", "cat/1.png"])
    splits = open_data(tmp_path)
    assert splits.train.classes == ["cat", "dog"]
    assert splits.train.labels.tolist() == [0, 1, 1]
    assert "labels are the names of 2 class folders" in splits.note


@pytest.mark.parametrize(
    "names",
    [
        ["2021/01/1.png", "2021/02/2.png", "2022/01/3.png"],
        ["a/1.png", "b/2.png", "3.png"],
        ["only/1.png", "only/2.png"],
        ["a/1.png", "b/1.png", "c/1.png"],
    ],
)
def test_other_nesting_is_read_without_labels(tmp_path, names):
    write_images(tmp_path, names)
    splits = open_data(tmp_path)
    assert splits.train.keys == sorted(names)
    assert splits.train.labels is None


@pytest.mark.parametrize(
    ("train", "query"), [("train", "test"), ("train", "val"), ("Training", "Validation")]
)
def test_split_folders(tmp_path, train, query):
    write_images(tmp_path / train, ["a/1.png", "a/2.png", "b/1.png"])
    write_images(tmp_path / query, ["b/1.png", "b/2.png", "c/1.png"], first_seed=50)
    (tmp_path / "notes.md").write_text("x")
    splits = open_data(tmp_path)
    assert splits.train.keys[0] == f"{train}/a/1.png"
    assert splits.query.classes == ["a", "b", "c"] == splits.bank.classes
    assert splits.query.labels.tolist() == [1, 1, 2]
    assert np.array_equal(splits.query.read(0).permute(1, 2, 0).numpy(), picture(50))
    split = "test" if query == "test" else "val"
    assert splits.note.startswith(f"probes query the {split} split (3 images)")
    assert "classes only in" in splits.note
    assert "notes.md" in splits.note


def test_a_test_folder_without_labels_leaves_the_hold_out(tmp_path):
    write_images(tmp_path / "train", ["a/1.png", "a/2.png", "b/1.png", "b/2.png"])
    write_images(tmp_path / "test", ["1.png", "2.png"])
    splits = open_data(tmp_path)
    assert len(splits.query) == 1
    assert "the test split has no labels" in splits.note


def test_a_lone_train_folder_beside_other_images_may_be_a_class(tmp_path):
    write_images(tmp_path, ["car/1.png", "car/2.png", "plane/1.png", "train/1.png"])
    splits = open_data(tmp_path)
    assert splits.train.classes == ["car", "plane", "train"]
    assert "'train' is read like the folders beside it" in splits.note


def test_a_lone_train_folder_is_the_split(tmp_path):
    write_images(tmp_path, ["train/a/1.png", "train/a/2.png", "train/b/1.png"])
    assert open_data(tmp_path).train.classes == ["a", "b"]


def test_two_folders_for_one_split_are_refused(tmp_path):
    write_images(tmp_path, ["train/1.png", "training/1.png"])
    with pytest.raises(DataError, match="train and training both name the train split"):
        open_data(tmp_path)


def test_other_files_are_counted_and_hidden_ones_skipped(tmp_path):
    write_images(tmp_path, ["1.png", ".thumbnails/1.png"])
    (tmp_path / "._1.png").write_bytes(b"x")
    (tmp_path / "readme.md").write_text("x")
    (tmp_path / "LICENSE").write_text("x")
    splits = open_data(tmp_path)
    assert splits.train.keys == ["1.png"]
    assert "files of other kinds" in splits.note
    assert "1 .md" in splits.note
    assert "1 no suffix" in splits.note


def test_links_are_followed_and_their_loops_cut(tmp_path):
    write_images(tmp_path / "store", ["1.png"])
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "store" / "loop").symlink_to(root, target_is_directory=True)
    assert open_data(root).train.keys == ["linked/1.png"]


@pytest.mark.parametrize(
    ("files", "message"), [([], "it is empty"), (["a.txt", "b.txt"], r"other kinds: 2 \.txt")]
)
def test_a_folder_without_images_is_refused(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=f"no images.*{message}"):
        open_data(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are Unicode")
def test_names_in_another_encoding_are_refused(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "a.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    with pytest.raises(DataError, match=r"b'caf.xe9.png' is not UTF-8: rename what is not"):
        open_data(tmp_path)
