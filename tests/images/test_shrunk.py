"""Copies of large photographs: which are made, what they hold, and that where they are kept changes nothing."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coke.errors import DataError
from coke.images import open_data
from coke.images.augment import crop_boxes, draw
from coke.images.image_set import ImageSet
from coke.images.shrunk import LARGE, in_words, shrink, shrunk_sizes, side_for
from coke.images.views import View

from .builders import encode, picture

SIDE = 40
EXIF = Image.Exif()
EXIF[0x0112] = 6


def scene(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth picture with some detail, as photographs are."""
    small = Image.fromarray(picture(seed, height // 8, width // 8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    """Large and small images in two class folders, some of them turned, and a test split."""
    root = tmp_path_factory.mktemp("photographs")
    sizes = [(160, 240), (240, 160), (320, 320), (79, 120), (80, 120), (30, 30), (400, 200), (88, 1000)]
    for split in ("train", "test"):
        for number, (height, width) in enumerate(sizes):
            place = root / split / f"class {number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = scene(number + 10 * (split == "test"), height, width)
            kind = {2: "PNG", 6: "WEBP"}.get(number, "JPEG")
            turned = {"exif": EXIF} if number in (1, 4) else {}
            options = {"lossless": True} if kind == "WEBP" else {"quality": 92}
            (place / f"{number}.{kind.lower()}").write_bytes(encode(pixels, kind, **options, **turned))
    return root


@pytest.fixture
def splits(folder):
    return open_data(folder)


def pixels_of(images: ImageSet) -> list[torch.Tensor]:
    return [images.read(index) for index in range(len(images))]


def same(left: ImageSet, right: ImageSet) -> bool:
    pairs = zip(pixels_of(left), pixels_of(right), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_which_images_are_large_follows_from_their_size_alone(splits):
    seen = shrink(splits, SIDE)
    for before, after in ((splits.train, seen.train), (splits.query, seen.query)):
        for index, (height, width) in enumerate(before.sizes.tolist()):
            shorter = min(height, width)
            pixels = after.read(index)
            assert list(pixels.shape[1:]) == after.sizes[index].tolist()
            if shorter >= LARGE * SIDE:
                assert min(pixels.shape[1:]) == SIDE
                assert max(pixels.shape[1:]) == round(max(height, width) * SIDE / shorter)
            else:
                assert torch.equal(pixels, before.read(index))
    assert (seen.train.sizes != splits.train.sizes).any(1).sum() == 6


def test_copies_show_what_the_photographs_show(splits, folder):
    """Pillow's own reduction of the whole upright image, by averages, then its cubic, is the oracle."""
    seen = shrink(splits, SIDE).train
    for index, key in enumerate(seen.keys):
        whole = Image.fromarray(splits.train.read(index).permute(1, 2, 0).numpy())
        height, width = seen.sizes[index].tolist()
        expected = np.asarray(whole.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
        error = np.sqrt(((seen.read(index).permute(1, 2, 0).numpy() - expected) ** 2).mean())
        assert error < (1 if key.endswith(("png", "webp")) else 4), key


def test_where_copies_are_kept_changes_nothing(splits, tmp_path):
    anew = shrink(splits, SIDE)
    n_bytes = [3 * int(size) for size in anew.train.sizes.long().prod(1)]
    others = {
        "in memory": shrink(splits, SIDE, memory=1 << 30),
        "some in memory": shrink(splits, SIDE, memory=n_bytes[0] + n_bytes[1]),
        "in a folder": shrink(splits, SIDE, folder=tmp_path / "copies"),
        "there already": shrink(splits, SIDE, folder=tmp_path / "copies"),
    }
    for other in others.values():
        for name in ("train", "bank", "query"):
            one, its = getattr(anew, name), getattr(other, name)
            assert same(one, its)
            assert torch.equal(one.sizes, its.sizes)
            assert torch.equal(pickle.loads(pickle.dumps(its)).read(1), one.read(1))  # workers are sent it
    assert in_words(others["in memory"])[0].startswith("6 large images are seen through copies of 40 px")
    assert in_words(others["in memory"])[0].endswith("MB in memory")
    assert in_words(others["in a folder"])[0].endswith(f"MB in {tmp_path / 'copies'}")
    assert "; 2 of them, 0.0 MB, are kept in memory, the others" in in_words(others["some in memory"])[0]


def test_statistics_and_names_stay_those_of_the_originals(splits):
    seen = shrink(splits, SIDE)
    for name in ("train", "bank", "query"):
        before, after = getattr(splits, name), getattr(seen, name)
        assert np.allclose(before.mean, after.mean, atol=1e-12)
        assert np.allclose(before.std, after.std, atol=1e-12)
        assert before.fingerprint == after.fingerprint
        assert before.keys == after.keys
    some = seen.train.subset([4, 0])
    assert torch.equal(some.read(1), seen.train.read(0))


def test_parts_of_one_set_share_their_copies(folder):
    """Held out of train: what probes learn from and are asked lies in the same memory."""
    splits = open_data(folder / "train")
    seen = shrink(splits, SIDE, memory=1 << 30)
    assert seen.train.source is seen.bank.source is seen.query.source
    assert len(seen.bank) + len(seen.query) == len(seen.train)
    assert same(seen.query, shrink(splits, SIDE).query)


def test_a_folder_is_read_instead_of_the_photographs(folder, tmp_path):
    copied = tmp_path / "photographs"
    copied.mkdir()
    for file in (folder / "train").rglob("*.jpeg"):
        (copied / file.name).write_bytes(file.read_bytes())
    splits = open_data(copied)
    seen = shrink(splits, SIDE, folder=tmp_path / "copies")
    expected = pixels_of(seen.train)
    large = [
        key for key, size in zip(seen.train.keys, splits.train.sizes.tolist(), strict=True) if min(size) >= 80
    ]
    for key in large:
        (copied / key).unlink()
    assert all(torch.equal(*pair) for pair in zip(pixels_of(seen.train), expected, strict=True))
    file = next((tmp_path / "copies").rglob("*.npy"))
    file.write_bytes(file.read_bytes()[:100])  # damaged: made again from the photograph, if it is there
    with pytest.raises(FileNotFoundError):
        pixels_of(seen.train)
    assert len(list((tmp_path / "copies").rglob("*"))) > len(large)


def test_a_damaged_copy_is_made_again(splits, tmp_path):
    seen = shrink(splits, SIDE, folder=tmp_path)
    expected = pixels_of(seen.train)
    for file in tmp_path.rglob("*.npy"):
        whole = file.read_bytes()
        file.write_bytes(whole[:90])
    assert all(torch.equal(*pair) for pair in zip(pixels_of(seen.train), expected, strict=True))
    assert file.read_bytes() == whole
    assert not list(tmp_path.rglob("*.tmp"))


def test_images_in_memory_have_copies_too(tmp_path):
    """Of one size, so that all their pixels are held."""
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(encode(scene(seed, 160, 160)))
    splits = open_data(tmp_path)
    assert splits.train.pixels is not None
    seen = shrink(splits, SIDE).train
    assert seen.sizes.tolist() == [[40, 40]] * 3
    assert same(seen, shrink(open_data(tmp_path, resident_bytes=0), SIDE).train)


def test_where_none_is_large_nothing_changes(splits):
    assert shrink(splits, 201) is splits
    assert in_words(splits) == []


def test_a_photograph_that_is_gone_is_an_error_and_not_another_picture(folder, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(scene(0, 160, 240)))
    (tmp_path / "b.png").write_bytes(encode(scene(1, 160, 200)))
    splits = open_data(tmp_path)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="not an image"):
        shrink(splits, SIDE, memory=1 << 30)


def test_a_tenth_of_a_jpeg_is_decoded_at_an_eighth():
    """At the decoder: what is at least as large as was asked for."""
    from coke.images.decode import decode

    content = encode(scene(0, 960, 1280), "JPEG")
    for at_least, height in ((96, 120), (120, 120), (121, 240), (481, 960), (5000, 960)):
        assert decode(content, at_least=at_least).shape == (3, height, height * 4 // 3)
    turned = encode(scene(0, 960, 1280), "JPEG", exif=EXIF)
    assert decode(turned, at_least=96).shape == (3, 160, 120)
    stream = io.BytesIO()
    Image.fromarray(scene(0, 960, 1280)).save(
        stream, "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]
    )
    assert decode(stream.getvalue(), at_least=96).shape[1] in (120, 960)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(8, 224),
    smallest=st.floats(0.05, 1.0),
    low=st.floats(0.5, 1.0),
    high=st.floats(1.0, 2.0),
    shape=st.tuples(st.integers(200, 5000), st.integers(200, 5000)),
    seed=st.integers(0, 10_000),
)
def test_no_crop_of_a_copy_is_enlarged(size, smallest, low, high, shape, seed):
    """Of crops that fit: at the least share and the most elongated they are as wide as the view, but for rounding."""
    view = View(size=size, crop=(smallest, 1.0), ratio=(low, high))
    large, sizes = shrunk_sizes(torch.tensor([shape], dtype=torch.int32), side_for([view]))
    draws = draw(view, 1, torch.Generator().manual_seed(seed))
    height, width = sizes.float().unbind(1)
    area = draws.area * height * width
    fits = ((area * draws.ratio).sqrt() <= width - 1) & ((area / draws.ratio).sqrt() <= height - 1)
    left, top, box_width, box_height = crop_boxes(draws, height, width)[0].tolist()
    if large and fits.all():
        assert min(box_width, box_height) >= size - 1
    assert left + box_width <= width
    assert top + box_height <= height


def test_the_side_is_that_of_the_most_demanding_view():
    large, small = View(size=224, crop=(0.14, 1.0)), View(size=96, crop=(0.05, 0.14), clusters=False)
    assert side_for([large, small]) == max(side_for([large]), side_for([small])) == 692
    assert side_for([View(size=224, crop=(1.0, 1.0), ratio=(1.0, 1.0))]) == 256  # as k-NN sees it
