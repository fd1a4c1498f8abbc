"""The scan and the set it makes, against numpy over all pixels."""

from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coke.errors import DataError, UnreadableError
from coke.images import open_data
from coke.images.scan import scan
from coke.images.table import Pixels, Rows

from .builders import encode, picture, write_images, write_parquet

SIZES = [(6, 8), (9, 5), (1, 1), (30, 4)]


@pytest.fixture(autouse=True, params=["in threads", "here"])
def _where(request, monkeypatch):
    """Large images are decoded in threads, small ones are not: each test asks both."""
    monkeypatch.setattr("coke.images.scan._SMALL", 0 if request.param == "in threads" else 1 << 40)


@pytest.fixture
def mixed(tmp_path):
    for seed, (height, width) in enumerate(SIZES):
        (tmp_path / f"{seed}.png").write_bytes(encode(picture(seed, height, width)))
    return tmp_path


def _moments(seeds):
    """Mean and deviation [3] of images that count the same each, whatever their sizes, by numpy."""
    images = [picture(seed, *SIZES[seed]).reshape(-1, 3) / 255 for seed in seeds]
    mean = np.mean([image.mean(0) for image in images], axis=0)
    return mean, np.sqrt(np.mean([((image - mean) ** 2).mean(0) for image in images], axis=0))


def test_every_image_counts_the_same_for_mean_and_deviation(mixed):
    images = open_data(mixed).train
    mean, deviation = _moments(range(4))
    assert np.allclose(images.mean, mean, atol=1e-12)
    assert np.allclose(images.std, deviation, atol=1e-12)
    assert images.sizes.tolist() == [list(size) for size in SIZES]
    assert images.sizes.dtype == torch.int32


def test_mean_and_deviation_of_one_size_are_those_of_all_pixels(tmp_path):
    write_images(tmp_path, [f"{i}.png" for i in range(7)])
    images = open_data(tmp_path).train
    pixels = np.concatenate([picture(seed).reshape(-1, 3) for seed in range(7)]) / 255
    assert np.allclose(images.mean, pixels.mean(0), atol=1e-12)
    assert np.allclose(images.std, pixels.std(0), atol=1e-12)


def test_subsets_measure_their_own_pixels(mixed):
    part = open_data(mixed).train.subset([3, 1])
    mean, deviation = _moments([3, 1])
    assert np.allclose(part.mean, mean, atol=1e-12)
    assert np.allclose(part.std, deviation, atol=1e-12)
    assert part.keys == ["3.png", "1.png"]
    assert np.array_equal(part.read(1).permute(1, 2, 0).numpy(), picture(1, *SIZES[1]))


def test_exact_copies_are_counted_and_named(tmp_path):
    write_images(tmp_path, [f"{i}.png" for i in range(5)])
    assert "copies" not in open_data(tmp_path).note
    shutil.copy(tmp_path / "0.png", tmp_path / "7.png")
    shutil.copy(tmp_path / "0.png", tmp_path / "8.png")
    splits = open_data(tmp_path)
    assert splits.train.n_duplicates == 2
    assert splits.note.endswith("exact copies of other images to learn from: 2")
    assert len(splits.train) == 7


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 300), st.integers(0, 5))
def test_any_number_of_rows_is_scanned_in_order(count, seed):
    pixels = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, 2, 3), dtype=np.uint8))
    done: list[tuple[int, int]] = []
    images = scan(
        Rows("r", [f"row {i}" for i in range(count)], Pixels(pixels)),
        progress=lambda *counted: done.append(counted),
    )
    assert torch.equal(images.pixels, pixels)
    assert done[-1] == (count, count)
    assert done == sorted(done)


def test_images_of_one_size_stay_in_memory_if_they_fit(tmp_path):
    write_images(tmp_path, [f"{i:03}.png" for i in range(70)])
    needed = 70 * 3 * 6 * 8
    fits = open_data(tmp_path, resident_bytes=needed).train
    tight = open_data(tmp_path, resident_bytes=needed - 1).train
    assert fits.pixels is not None
    assert fits.pixels.shape == (70, 3, 6, 8)
    assert tight.pixels is None
    assert fits.fingerprint == tight.fingerprint
    assert all(torch.equal(fits.read(i), tight.read(i)) for i in range(70))


def test_one_image_of_another_size_keeps_all_out_of_memory(tmp_path):
    write_images(tmp_path, [f"{i:03}.png" for i in range(70)])
    (tmp_path / "999.png").write_bytes(encode(picture(0, 6, 9)))
    assert open_data(tmp_path).train.pixels is None


def test_pixels_of_subsets_are_views_where_they_can_be(tmp_path):
    write_images(tmp_path, [f"{i}.png" for i in range(9)])
    images = open_data(tmp_path).train
    assert images.subset(range(2, 6)).pixels.data_ptr() == images.pixels[2].data_ptr()
    assert torch.equal(images.subset([5, 0, 5]).pixels, images.pixels[[5, 0, 5]])
    assert torch.equal(images.subset([5, 0, 7]).subset([2, 1]).pixels, images.pixels[[7, 0]])
    assert len(images.subset([])) == 0


def test_fingerprint_depends_on_content_and_not_on_the_place(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b" / "c"
    write_images(first, ["1.png", "2.png", "3.png"])
    shutil.copytree(first, second)
    before = open_data(first).train
    assert open_data(second).train.fingerprint == before.fingerprint
    assert before.subset([0, 2]).fingerprint != before.fingerprint
    (second / "2.png").write_bytes(encode(picture(77)))
    assert open_data(second).train.fingerprint != before.fingerprint


def test_unreadable_images_are_listed_and_left_out(tmp_path):
    write_images(tmp_path, [f"{i:03}.png" for i in range(130)])
    (tmp_path / "007.png").write_bytes(encode(picture(7))[:60])
    (tmp_path / "070.png").write_bytes(b"no image")
    images = open_data(tmp_path, max_unreadable_share=0.02).train
    assert [bad.key for bad in images.unreadable] == ["007.png", "070.png"]
    assert all(bad.reason for bad in images.unreadable)
    assert len(images) == 128
    assert {"007.png", "070.png"}.isdisjoint(images.keys)
    readable = [i for i in range(130) if i not in (7, 70)]
    assert np.array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), np.stack([picture(i) for i in readable]))


def test_too_many_unreadable_images_are_refused_by_name(tmp_path):
    write_images(tmp_path, [f"{i:03}.png" for i in range(50)])
    for name in ("013.png", "014.png"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2 of 50 images.*4\.0%, allowed 1\.0%.*013\.png: not an image"):
        open_data(tmp_path)


def test_the_whole_list_comes_with_the_error(tmp_path):
    """Of both splits, though the first alone is refused and only five are in the sentence."""
    for split, count in (("train", 20), ("test", 11)):
        write_images(tmp_path / split, [f"{name}/{i:02}.png" for name in "ab" for i in range(count)])
    for bad in [*(f"train/a/{i:02}.png" for i in range(9)), "test/b/03.png"]:
        (tmp_path / bad).write_bytes(b"no image")
    with pytest.raises(UnreadableError, match=r"9 of 40 images.*and 4 more") as refused:
        open_data(tmp_path)
    keys = [key for key, _ in refused.value.unreadable]
    assert keys == [*(f"train/a/{i:02}.png" for i in range(9)), "test/b/03.png"]


def test_images_that_are_too_large_are_unreadable(tmp_path):
    write_images(tmp_path, [f"{i:02}.png" for i in range(10)])
    (tmp_path / "large.png").write_bytes(encode(picture(0, 6, 9)))
    ((key, reason),) = open_data(tmp_path, max_image_pixels=48).unreadable
    assert key == "large.png"
    assert reason.startswith("9 x 6 px are 54 pixels, more than max_image_pixels=48")
    assert len(open_data(tmp_path, max_image_pixels=54).train) == 11
    shrunk_since = open_data(tmp_path, max_image_pixels=54, resident_bytes=0).train
    (tmp_path / "00.png").write_bytes(encode(picture(0, 10, 9)))
    with pytest.raises(DataError, match="max_image_pixels=54"):  # also of later reads
        shrunk_since.read(0)


def test_rows_of_two_splits_are_told_apart(tmp_path):
    """Both are called "row 3": neither hides the other in the list."""
    for split, seed in (("train", 0), ("test", 50)):
        write_parquet(tmp_path / f"{split}.parquet", 20, [0, 1] * 10, first_seed=seed)
        table = pq.read_table(tmp_path / f"{split}.parquet")
        content = table["image"].to_pylist()
        content[3] = {"bytes": b"no image", "path": "3.png"}
        table = table.set_column(0, "image", pa.array(content, table["image"].type))
        pq.write_table(table, tmp_path / f"{split}.parquet")
    assert [key for key, _ in open_data(tmp_path).unreadable] == ["train/row 3", "test/row 3"]


@pytest.mark.parametrize(("count", "share", "taken"), [(10, 0.01, True), (9, 0.01, False), (50, 0.0, False)])
def test_one_unreadable_image_of_ten_is_never_too_many_unless_none_may_be(tmp_path, count, share, taken):
    write_images(tmp_path, [f"{i:03}.png" for i in range(count)])
    (tmp_path / "003.png").write_bytes(b"no image")
    if taken:
        images = open_data(tmp_path, max_unreadable_share=share).train
        assert len(images) == count - 1
        assert [bad.key for bad in images.unreadable] == ["003.png"]
    else:
        with pytest.raises(DataError, match=f"1 of {count} images cannot be read"):
            open_data(tmp_path, max_unreadable_share=share)


def test_a_split_without_one_readable_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 images cannot be read"):
        open_data(tmp_path, max_unreadable_share=1.0)


@pytest.mark.parametrize("resident_bytes", [0, 2 << 30])
def test_sets_survive_pickling(tmp_path, resident_bytes):
    write_images(tmp_path, ["x/1.png", "x/2.png", "y/3.png"])
    images = open_data(tmp_path, resident_bytes=resident_bytes).train
    again = pickle.loads(pickle.dumps(images))
    assert again.keys == images.keys
    assert again.fingerprint == images.fingerprint
    assert torch.equal(again.labels, images.labels)
    assert all(torch.equal(again.read(i), images.read(i)) for i in range(3))


def test_reading_from_many_threads_gives_the_same(tmp_path):
    write_images(tmp_path, [f"{i:02}.png" for i in range(20)])
    images = open_data(tmp_path, resident_bytes=0).train
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(images.read, list(range(20)) * 5))
    assert all(np.array_equal(read[i].permute(1, 2, 0).numpy(), picture(i % 20)) for i in range(100))
