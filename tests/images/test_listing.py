from __future__ import annotations

import numpy as np
import pytest

from coke.errors import DataError
from coke.images import open_data

from .builders import picture, write_images


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, ["in/1.png", "in/2 x.png", "3.png", "4.png"])
    return tmp_path


def write(folder, text, name="list.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_text_file_lists_paths_relative_to_itself(folder):
    path = write(folder, f"3.png\n\n  in/2 x.png  \r\n{folder}/4.png\n", "list.txt")
    images = open_data(path).train
    assert images.keys == ["3.png", "in/2 x.png", f"{folder}/4.png"]
    assert images.labels is None
    for index, seed in enumerate((2, 1, 3)):
        assert np.array_equal(images.read(index).permute(1, 2, 0).numpy(), picture(seed))


@pytest.mark.parametrize("column", ["path", "image", "filename", "file_name"])
def test_tables_with_names_as_labels(folder, column):
    table = write(folder, f'\ufeffid,{column},label\n7,in/1.png,dog\n8,3.png,cat\n9,"in/2 x.png",\n')
    images = open_data(table).train
    assert images.keys == ["in/1.png", "3.png", "in/2 x.png"]
    assert images.classes == ["cat", "dog"]
    assert images.labels.tolist() == [1, 0, -1]


def test_whole_numbers_are_ordered_as_numbers(folder):
    images = open_data(write(folder, "path\tlabel\n3.png\t10\n4.png\t9\n", "list.tsv")).train
    assert images.classes == ["9", "10"]
    assert images.labels.tolist() == [1, 0]


def test_columns_can_be_named(folder):
    table = write(folder, "where,kind\n3.png,a\n4.png,b\n")
    assert open_data(table, image_column="where", label_column="kind").train.classes == ["a", "b"]


def test_a_split_column_is_followed(folder):
    table = write(folder, "path,label,split\n3.png,a,train\n4.png,b,\nin/1.png,b,test\nin/2 x.png,a,val\n")
    splits = open_data(table)
    assert splits.train.keys == ["3.png", "4.png"]
    assert splits.query.keys == ["in/1.png"]
    assert "rows of the val split are not used (1)" in splits.note


def test_a_table_without_labels_says_which_columns_there_are(folder):
    splits = open_data(write(folder, "path,kind\n3.png,a\n4.png,b\n"))
    assert splits.query is None
    assert "no column 'label' (other columns: kind)" in splits.note


def test_missing_files_are_named(folder):
    with pytest.raises(DataError, match=r"1 of 2 images.*gone\.png: no such file"):
        open_data(write(folder, "3.png\ngone.png\n", "list.txt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("path,label\n", "only a header"),
        ("3.png,a\n4.png,b\n", "no column 'path'.*3.png, a"),
        ("path,label\n3.png,0.5\n4.png,1\n", "whole numbers or names, got '0.5'"),
        ("path,label\n3.png,1\n4.png,dog\n", "of one kind.*'1', 'dog'"),
        ("path,label\n3.png\n", "line 2: 1 fields, the header has 2"),
        ("path,label\n3.png,a\n./3.png,a\n", "listed twice, on lines 2 and 3"),
        ("path,label\n,a\n", "line 2: no path"),
        ("path,split\n3.png,holdout\n", "split 'holdout'"),
        ("path,split\n3.png,test\n", "no row of the train split, only of test"),
    ],
)
def test_tables_that_cannot_be_used(folder, text, message):
    with pytest.raises(DataError, match=message):
        open_data(write(folder, text))


def test_a_mistyped_column_is_corrected(folder):
    table = write(folder, "path,species\n3.png,a\n")
    with pytest.raises(DataError, match="did you mean 'species'"):
        open_data(table, label_column="specis")
    with pytest.raises(DataError, match="did you mean 'path'"):
        open_data(table, image_column="pth")


def test_lists_that_cannot_be_used(folder):
    with pytest.raises(DataError, match="lists no images"):
        open_data(write(folder, "\n \n", "list.txt"))
    with pytest.raises(DataError, match="listed twice, on lines 1 and 3"):
        open_data(write(folder, "3.png\n4.png\n3.png", "list.txt"))
    (folder / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        open_data(folder / "bad.txt")
