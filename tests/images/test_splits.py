from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coke.images import open_data
from coke.images.splits import hold_out

from .builders import write_images


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.integers(0, 3))
def test_hold_out_is_stratified_and_leaves_each_class_an_image(labels, seed):
    values = torch.tensor(labels)
    held = hold_out(values, seed=seed)
    _, counts = np.unique(values, return_counts=True)
    taken = np.array([int(held[values == value].sum()) for value in np.unique(values)])
    wanted = max(1, round(0.1 * len(labels)))
    assert taken.sum() == min(wanted, (counts - 1).sum())
    assert (taken < counts).all()
    if (counts >= 10).all():
        assert (np.abs(taken - counts * wanted / len(labels)) < 1).all()
    assert torch.equal(held, hold_out(values, seed=seed))


def test_the_same_images_come_in_the_order_that_is_asked_for(tmp_path):
    names = [f"{name}/{i}.png" for name in "ab" for i in range(10)]
    write_images(tmp_path, names)
    shutil.copy(tmp_path / "a" / "1.png", tmp_path / "a" / "copy.png")
    first = open_data(tmp_path)
    order = torch.randperm(21)
    asked = [bytes(row) for row in first.train.hashes[order].numpy()]
    found = open_data(tmp_path, contents=asked)
    assert [bytes(row) for row in found.train.hashes.numpy()] == asked
    assert sorted(found.train.keys) == sorted(first.train.keys)
    assert torch.equal(found.train.labels, first.train.labels[order])
    for others in (asked[1:], [*asked[1:], b"0" * 16]):  # then by their own contents, whatever the order here
        found = open_data(tmp_path, contents=others).train
        assert [bytes(row) for row in found.hashes.numpy()] == sorted(asked)
        assert sorted(found.keys) == sorted(first.train.keys)


def test_hold_out_depends_on_the_seed():
    labels = torch.arange(200) % 4
    assert not torch.equal(hold_out(labels, seed=0), hold_out(labels, seed=1))


def test_pretraining_still_sees_what_is_held_out(tmp_path):
    write_images(tmp_path, [f"{name}/{i}.png" for name in "abc" for i in range(20)])
    splits = open_data(tmp_path, seed=3)
    assert len(splits.train) == 60
    assert len(splits.bank) == 54
    assert len(splits.query) == 6
    assert set(splits.bank.keys).isdisjoint(splits.query.keys)
    assert set(splits.bank.keys) | set(splits.query.keys) == set(splits.train.keys)
    assert torch.bincount(splits.query.labels).tolist() == [2, 2, 2]
    assert "seeded 10% hold-out of the labels (6 images), which pretraining still sees" in splits.note
    assert open_data(tmp_path, seed=3).query.keys == splits.query.keys
    assert open_data(tmp_path, seed=4).query.keys != splits.query.keys


def test_unlabelled_images_are_learned_from_but_not_asked_about(tmp_path):
    write_images(tmp_path, [f"{i:02}.png" for i in range(40)])
    lines = [f"{i:02}.png,{'' if i % 2 else i % 4}" for i in range(40)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    splits = open_data(tmp_path / "list.csv")
    assert len(splits.train) == 40
    assert (splits.train.labels == -1).sum() == 20
    assert len(splits.bank) == 18
    assert len(splits.query) == 2
    assert (splits.bank.labels >= 0).all()


@pytest.mark.parametrize("labelled", ["neither", "only test"])
def test_without_train_labels_there_are_no_probes(tmp_path, labelled):
    write_images(tmp_path / "train", ["1.png", "2.png"])
    write_images(
        tmp_path / "test", ["a/1.png", "a/2.png", "b/1.png"] if labelled == "only test" else ["1.png"]
    )
    splits = open_data(tmp_path)
    assert splits.bank is None
    assert splits.query is None
    assert "no labels: no probes; " in splits.note
    assert ("only the test split has labels" in splits.note) == (labelled == "only test")


def test_one_labelled_image_is_too_few(tmp_path):
    write_images(tmp_path, ["1.png", "2.png"])
    (tmp_path / "list.csv").write_text("path,label\n1.png,3\n2.png,\n")
    splits = open_data(tmp_path / "list.csv")
    assert splits.query is None
    assert "too few labelled images (1)" in splits.note
