from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from coke.errors import DataError
from coke.images import find_rows, open_data
from coke.memory import available_memory

from .builders import write_images, write_parquet

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10"


def test_a_mistyped_path_is_corrected(tmp_path):
    write_images(tmp_path / "photos", ["1.png"])
    with pytest.raises(DataError, match=r"no such file or folder: .*fotos.*did you mean '.*photos'"):
        open_data(tmp_path / "fotos")
    with pytest.raises(DataError, match=f"{tmp_path} is the part of it that exists"):
        open_data(tmp_path / "a" / "b")


def test_a_mistyped_name_is_corrected():
    with pytest.raises(DataError, match="did you mean 'textures'"):
        open_data("texture")


def test_one_image_is_no_data_set(tmp_path):
    write_images(tmp_path, ["1.png"])
    with pytest.raises(DataError, match=r"\.png is no list of images"):
        open_data(tmp_path / "1.png")


def test_progress_counts_all_splits(tmp_path):
    write_parquet(tmp_path / "train.parquet", 100, [0, 1] * 50)
    write_parquet(tmp_path / "test.parquet", 30, [0] * 30)
    seen: list[tuple[int, int]] = []
    open_data(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (130, 130)


def test_the_rows_of_every_split_are_found_without_decoding(tmp_path):
    write_images(tmp_path / "val", ["c/1.png"])
    write_images(tmp_path / "test", ["a/1.png", "a/2.png", "b/1.png"])
    write_images(tmp_path / "train", ["a/1.png", "b/1.png", "b/2.png"])
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"no image")
    rows = find_rows(tmp_path)
    assert [part.name for part in rows] == [f"{tmp_path.name}, {split}" for split in ("train", "test", "val")]
    assert [part.keys[0] for part in rows] == ["train/a/1.png", "test/a/1.png", "val/c/1.png"]
    assert [part.classes for part in rows] == [["a", "b"], ["a", "b"], None]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(DataError, match="max_unreadable_share"):
        open_data("textures", max_unreadable_share=share)


def test_free_memory_is_a_positive_number_of_bytes():
    free = available_memory()
    assert free is None or 1 << 20 < free < 1 << 50


def test_opening_does_not_load_torchvision():
    program = (
        "import sys, coke.images; coke.images.open_data('textures'); print('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="shared/data/cifar10 is not there")
def test_cifar10_test_split_has_the_known_statistics():
    images = open_data(CIFAR10 / "test-00000-of-00001.parquet").train
    assert len(images) == 10_000
    assert images.pixels.shape == (10_000, 3, 32, 32)
    assert images.classes[:2] == ["airplane", "automobile"]
    assert images.labels.bincount().tolist() == [1000] * 10
    assert images.mean == pytest.approx((0.494, 0.485, 0.450), abs=0.005)
    assert images.std == pytest.approx((0.247, 0.243, 0.262), abs=0.005)


@pytest.mark.parametrize("column", ["label_column", "image_column"])
def test_columns_are_asked_of_tables_only(tmp_path, column):
    write_images(tmp_path, ["a.png", "b.png"])
    for data in (tmp_path, "textures"):
        with pytest.raises(DataError, match="has no columns: image_column and label_column are of parquet"):
            open_data(data, **{column: "x"})
