from __future__ import annotations

import datetime
import json
import resource
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coke.errors import CokeError, DataError, UnreadableError
from coke.images import open_data, parquet
from coke.memory import require_memory

from .builders import encode, picture, write_images, write_parquet


def test_a_file_with_class_names(tmp_path):
    write_parquet(tmp_path / "x.parquet", 4, [2, 0, None, -1], names=["ant", "bee", "cow"])
    images = open_data(tmp_path / "x.parquet").train
    assert images.keys == ["row 0", "row 1", "row 2", "row 3"]
    assert images.classes == ["ant", "bee", "cow"]
    assert images.labels.tolist() == [2, 0, -1, -1]
    for index in range(4):
        assert np.array_equal(images.read(index).permute(1, 2, 0).numpy(), picture(index))


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        ([7, 3, 7], ["3", "7"], [1, 0, 1]),
        (pa.array([1, 0, None], pa.uint8()), ["0", "1"], [1, 0, -1]),
        ([True, False, True], ["0", "1"], [1, 0, 1]),
        (["b", "a", None], ["a", "b"], [1, 0, -1]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["a", "b"], [1, 0, 1]),
    ],
)
def test_labels_without_a_schema(tmp_path, labels, classes, numbers):
    write_parquet(tmp_path / "x.parquet", 3, labels)
    images = open_data(tmp_path / "x.parquet").train
    assert images.classes == classes
    assert images.labels.tolist() == numbers


@pytest.mark.parametrize("labels", [None, [None, None], [-1, -1]])
def test_without_labels_there_are_no_probes(tmp_path, labels):
    write_parquet(tmp_path / "x.parquet", 2, labels)
    splits = open_data(tmp_path / "x.parquet")
    assert splits.train.labels is None
    assert "no labels: no probes" in splits.note


@pytest.mark.parametrize(
    "labels",
    [[0.5, 1.0], [[1], [2, 3]], [{"a": 1}, {"a": 2}], [datetime.date(2020, 1, 1)] * 2, [b"x", b"y"]],
    ids=["float", "list", "struct", "date", "bytes"],
)
def test_labels_of_a_wrong_type_are_refused(tmp_path, labels):
    write_parquet(tmp_path / "x.parquet", 2, labels)
    with pytest.raises(DataError, match="label column 'label' must hold whole numbers or names"):
        open_data(tmp_path / "x.parquet")


def test_a_label_outside_the_schema_is_refused(tmp_path):
    write_parquet(tmp_path / "x.parquet", 2, [0, 2], names=["a", "b"])
    with pytest.raises(DataError, match="label 2 is outside the 2 classes"):
        open_data(tmp_path / "x.parquet")


def test_shards_and_splits_of_a_folder(tmp_path):
    for shard in range(2):
        name = f"data/train-{shard:05d}-of-00002.parquet"
        write_parquet(tmp_path / name, 3, [0, 1, 0], names=["a", "b"], first_seed=3 * shard)
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", 2, [1, 0], names=["a", "b"], first_seed=90)
    splits = open_data(tmp_path)
    assert splits.train.labels.tolist() == [0, 1, 0, 0, 1, 0]
    assert np.array_equal(splits.train.read(4).permute(1, 2, 0).numpy(), picture(4))
    assert np.array_equal(splits.query.read(1).permute(1, 2, 0).numpy(), picture(91))
    assert splits.note == "probes query the test split (2 images)"


def test_fingerprint_does_not_depend_on_shards(tmp_path):
    write_parquet(tmp_path / "one/train.parquet", 4)
    for shard in range(2):
        write_parquet(tmp_path / f"two/train-{shard:05d}-of-00002.parquet", 2, first_seed=2 * shard)
    assert open_data(tmp_path / "one").train.fingerprint == open_data(tmp_path / "two").train.fingerprint


def test_missing_shards_are_refused(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00003.parquet", 1)
    write_parquet(tmp_path / "train-00002-of-00003.parquet", 1)
    with pytest.raises(DataError, match="2 of 3 shards are there, 00001 is missing"):
        open_data(tmp_path)


def test_validation_is_asked_where_test_has_no_labels(tmp_path):
    write_parquet(tmp_path / "train.parquet", 3, ["a", "b", "a"])
    write_parquet(tmp_path / "test.parquet", 2, ["", ""])
    write_parquet(tmp_path / "validation.parquet", 2, ["b", "c"])
    splits = open_data(tmp_path)
    assert splits.query.labels.tolist() == [1, 2]
    assert splits.query.classes == ["a", "b", "c"] == splits.bank.classes
    assert splits.note.startswith("probes query the val split (2 images)")


def test_split_folders_and_files_without_a_split(tmp_path):
    write_parquet(tmp_path / "train/0000.parquet", 2)
    write_parquet(tmp_path / "extra/0000.parquet", 5)
    splits = open_data(tmp_path)
    assert len(splits.train) == 2
    assert "their names state no split: extra/0000.parquet" in splits.note


def test_files_without_any_split_are_all_learned_from(tmp_path):
    write_parquet(tmp_path / "0.parquet", 2)
    write_parquet(tmp_path / "1.parquet", 3)
    assert len(open_data(tmp_path).train) == 5


def test_a_folder_without_a_train_split_is_refused(tmp_path):
    write_parquet(tmp_path / "test-00000-of-00001.parquet", 1)
    with pytest.raises(DataError, match="parquet files of test but none of train"):
        open_data(tmp_path)


def test_the_only_column_with_images_is_taken_and_said(tmp_path):
    write_parquet(tmp_path / "x.parquet", 2, [0, 1], column="img", label_column="fine_label")
    splits = open_data(tmp_path / "x.parquet")
    assert "images are taken from column 'img'" in splits.note
    assert "no column 'label' (other columns: fine_label)" in splits.note
    assert open_data(tmp_path / "x.parquet", label_column="fine_label").train.labels.tolist() == [0, 1]


def test_columns_that_are_not_there(tmp_path):
    write_parquet(tmp_path / "x.parquet", 2, [0, 1])
    with pytest.raises(DataError, match=r"no column 'lable'.*did you mean 'label'"):
        open_data(tmp_path / "x.parquet", label_column="lable")
    with pytest.raises(DataError, match=r"no image column 'imag'.*did you mean 'image'"):
        open_data(tmp_path / "x.parquet", image_column="imag")
    with pytest.raises(DataError, match=r"must be struct.*it is int64"):
        open_data(tmp_path / "x.parquet", image_column="label")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "y.parquet")
    with pytest.raises(DataError, match="no image column 'image'; it has text"):
        open_data(tmp_path / "y.parquet")


def test_plain_bytes_and_rows_that_name_a_file(tmp_path):
    pq.write_table(pa.table({"image": [encode(picture(0)), encode(picture(1))]}), tmp_path / "x.parquet")
    assert len(open_data(tmp_path / "x.parquet").train) == 2
    write_images(tmp_path, ["in/9.png"], first_seed=9)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": "in/9.png"}, {"bytes": None, "path": None}, None], kind)
    pq.write_table(pa.table({"image": rows}), tmp_path / "y.parquet")
    images = open_data(tmp_path / "y.parquet", max_unreadable_share=0.7).train
    assert np.array_equal(images.read(0).permute(1, 2, 0).numpy(), picture(9))
    assert [(bad.key, bad.reason) for bad in images.unreadable] == [
        ("row 1", "neither bytes nor a path"),
        ("row 2", "neither bytes nor a path"),
    ]


def test_shards_must_be_alike(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", 2, [0, 1])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", 2, ["a", "b"])
    with pytest.raises(DataError, match="column 'label' is not as in train-00000"):
        open_data(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1 but nothing more"])
def test_what_is_no_parquet_is_refused(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as parquet: "):
        open_data(tmp_path / "x.parquet")


def test_a_damaged_parquet_is_refused(tmp_path):
    write_parquet(tmp_path / "x.parquet", 50, list(range(50)))
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[8:200] = b"\xff" * 192
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(DataError):
        open_data(tmp_path / "x.parquet")


def test_the_memory_needed_is_known_before_reading(tmp_path):
    files = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    for file in files:
        write_parquet(file, 50, list(range(50)))
    stored = 2 * sum(len(encode(picture(i))) for i in range(50))
    assert stored <= parquet.stated_bytes(files) <= 1.5 * stored + 5000


def test_more_than_memory_is_refused():
    with pytest.raises(DataError, match=r"photos: 1000000000.0 GB must stay in memory.*; use fewer"):
        require_memory(10**18, "photos", "use fewer")
    require_memory(1, "photos", "use fewer")


def test_images_and_parquet_in_one_folder_are_ambiguous(tmp_path):
    write_parquet(tmp_path / "x.parquet", 1)
    write_images(tmp_path, ["1.png"])
    with pytest.raises(DataError, match="both images and parquet"):
        open_data(tmp_path)


def test_one_shard_alone_can_be_named(tmp_path):
    write_parquet(tmp_path / "pets" / "train-00000-of-00003.parquet", 2)
    assert open_data(tmp_path / "pets" / "train-00000-of-00003.parquet").train.name == "pets, train"
    with pytest.raises(DataError, match="1 of 3 shards"):
        open_data(tmp_path / "pets")


def test_a_test_split_without_labels_is_not_even_read(tmp_path):
    write_parquet(tmp_path / "train.parquet", 20, [0, 1] * 10)
    pq.write_table(pa.table({"image": [b"broken"] * 3}), tmp_path / "test.parquet")
    splits = open_data(tmp_path)
    assert len(splits.query) == 2
    assert "the test split has no labels and is not used" in splits.note


def test_rows_count_by_their_real_size(tmp_path):
    """A page of 1 MB stands for 1,000 rows of 1 MB, and one of nothing but zeros takes a few bytes in the file."""
    path = tmp_path / "x.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), pa.array([bytes(1 << 20)]))
    pq.write_table(pa.table({"image": column}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 5_000
    assert parquet.stated_bytes([path]) < 2_000_000
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 600_000_000, before[1]))
    try:
        with pytest.raises(
            DataError, match=r"x: its images take more than the 0\.\d GB free: use fewer shards"
        ):
            open_data(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_damaged_and_odd_columns_are_refused(tmp_path):
    path, images = tmp_path / "x.parquet", pa.array([encode(picture(i)) for i in range(4)])
    pq.write_table(pa.Table.from_arrays([images, images], ["image", "image"]), path)
    with pytest.raises(DataError, match="has several columns 'image': rename them"):
        open_data(path)
    large = pa.array([2**63 + 5, 0, 1, 1], pa.uint64())
    features = {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    table = pa.table({"image": images, "label": large})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path
    )
    with pytest.raises(DataError, match="label 9223372036854775813 is outside the 2 classes"):
        open_data(path)
    table = pa.table({"image": images, "label": [0, 1, 0, 1]})
    pq.write_table(table.replace_schema_metadata({"huggingface": "[" * 100_000}), path)
    assert open_data(path).train.classes == ["0", "1"]
    pq.write_table(pa.table({"image": images[:0]}), path)
    with pytest.raises(DataError, match="holds no images: it has no rows"):
        open_data(path)
    paths = pa.array(["a\0b", "/dev/zero", "", None])
    content = pa.StructArray.from_arrays([pa.nulls(4, pa.binary()), paths], ["bytes", "path"])
    pq.write_table(pa.table({"image": content}), path)
    with pytest.raises(UnreadableError, match=r"embedded null byte; row 1: /dev/zero is a device"):
        open_data(path)


def test_a_damaged_statement_of_sizes_does_not_end_the_process(tmp_path):
    """pyarrow 26 aborts where it is asked for a column's metadata and those of its levels are damaged."""
    path = tmp_path / "x.parquet"
    write_parquet(path, 3, ["a", "b", "a"])
    content = path.read_bytes()
    begin = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for place in range(begin, min(begin + 400, len(content))):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with suppress(CokeError):
            assert len(open_data(path, max_unreadable_share=1).train) <= 3
