"""Every image once an epoch; the same tensors whoever makes them, wherever one begins."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coke.images.augment import crop_boxes
from coke.images.scan import scan
from coke.images.table import Files, Pixels, Rows
from coke.images.views import View
from coke.training.batches import Batches, generator

VIEWS = [
    View(size=12, crop=(0.3, 1.0), blur=0.5, rotation=20.0),
    View(size=8, crop=(0.05, 0.4), clusters=False),
]
PLAIN = View(size=12, crop=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=(0, 0, 0, 0), gray=0.0)


def pixels(n, height=12, width=12, seed=0):
    shape = (n, 3, height, width)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def in_memory(n, **shape):
    return scan(Rows("made", [f"row {i}" for i in range(n)], Pixels(pixels(n, **shape))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirteen PNG files of several sizes: decoded at each read."""
    root = tmp_path_factory.mktemp("images")
    keys = [f"{index}.png" for index in range(13)]
    for index, key in enumerate(keys):
        image = pixels(1, 10 + index % 4, 14 + index % 3, seed=index)[0]
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / key)
    return scan(Rows("files", keys, Files(root, keys)), resident_bytes=0)


def make(images, views=VIEWS, **changes):
    settings = {"batch_size": 4, "accumulate": 1, "seed": 0, "workers": 0, "device": torch.device("cpu")}
    statistics = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    return Batches(images, views, **{**settings, **statistics, **changes})


def assert_same(one, other):
    """Two sequences of steps."""
    assert len(one) == len(other)
    for parts, others in zip(one, other, strict=True):
        assert len(parts) == len(others)
        for part, match in zip(parts, others, strict=True):
            assert torch.equal(part.ids, match.ids)
            assert torch.equal(part.all_ids, match.all_ids)
            assert all(torch.equal(a, b) for a, b in zip(part.views, match.views, strict=True))
            assert torch.equal(part.turns, match.turns)


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(3, 70), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_is_a_partition_into_even_batches(n_images, batch_size, seed, epoch):
    batches = make(in_memory(n_images), batch_size=batch_size, seed=seed)
    order = batches.order(epoch)
    assert len(order) == batches.n_steps == -(-n_images // batch_size)
    sizes = [len(ids) for ids in order]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert torch.cat(order).sort().values.tolist() == list(range(n_images))


@pytest.mark.parametrize("n_images", [2, 3, 5, 9])
def test_no_batch_is_of_one_image(n_images):
    """Batch norm needs two: an odd number of images in pairs makes one batch of three."""
    order = make(in_memory(n_images), batch_size=2).order(0)
    assert min(len(ids) for ids in order) >= 2
    assert torch.cat(order).sort().values.tolist() == list(range(n_images))


def test_epochs_and_seeds_differ_in_order():
    images = in_memory(40)
    orders = [
        torch.cat(make(images, seed=seed).order(epoch)).tolist() for seed in range(2) for epoch in range(3)
    ]
    assert len({tuple(order) for order in orders}) == 6


@pytest.mark.parametrize("path", ["resident", "decoded"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_epoch_can_begin_anywhere(folder, path, accumulate):
    batches = make(in_memory(13) if path == "resident" else folder, accumulate=accumulate)
    assert batches.resident == (path == "resident")
    whole = list(batches.epoch(2))
    assert [sum(len(part.ids) for part in parts) for parts in whole] == [4, 3, 3, 3]
    assert_same(whole, list(batches.epoch(2)))
    for first in range(batches.n_steps + 1):
        assert_same(whole[first:], list(batches.epoch(2, first)))
    other = list(batches.epoch(3))
    assert not torch.equal(whole[0][0].views[0], other[0][0].views[0])


def test_workers_change_nothing(folder):
    alone, helped = make(folder), make(folder, workers=2)
    whole = list(alone.epoch(1))
    assert_same(whole, list(helped.epoch(1)))
    assert_same(whole[2:], list(helped.epoch(1, 2)))


@pytest.mark.parametrize("path", ["resident", "decoded"])
def test_the_global_random_state_is_neither_used_nor_moved(folder, path):
    """A backbone with dropout draws from it: a run resumed within an epoch must find it as it was."""
    batches = make(in_memory(13) if path == "resident" else folder)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = list(batches.epoch(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_same(one, list(batches.epoch(1)))


@pytest.mark.parametrize("path", ["resident", "decoded"])
@pytest.mark.parametrize("accumulate", [2, 3, 100])
def test_parts_put_together_are_the_whole(folder, path, accumulate):
    images = in_memory(13) if path == "resident" else folder
    whole = list(make(images, batch_size=7).epoch(0))
    parts = list(make(images, batch_size=7, accumulate=accumulate).epoch(0))
    for (batch,), pieces in zip(whole, parts, strict=True):
        assert len(pieces) == min(accumulate, len(batch.ids) // 2)  # batch norm needs two images
        assert min(len(piece.ids) for piece in pieces) >= 2
        assert torch.equal(torch.cat([piece.ids for piece in pieces]), batch.ids)
        assert torch.equal(torch.cat([piece.all_ids for piece in pieces]), batch.all_ids)
        for index, view in enumerate(batch.views):
            put_together = torch.cat([piece.views[index] for piece in pieces])
            assert torch.allclose(put_together, view, atol=1e-6)


def test_pixels_are_those_of_the_images_normalised():
    images = in_memory(13)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    for (batch,) in make(images, [PLAIN]).epoch(0):
        expected = (images.pixels[batch.ids] / 255 - mean) / std
        assert torch.allclose(batch.views[0], expected, atol=1e-5)


def test_decoded_pixels_are_the_antialiased_crop(folder):
    from torchvision.transforms.v2.functional import resized_crop

    view = View(size=6, crop=(0.2, 1.0), flip=0.0, jitter=(0, 0, 0, 0), gray=0.0)
    batches = make(folder, [view], mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    for step, (batch,) in enumerate(batches.epoch(0)):
        draws = batches.drawn(0, step, 0, batch.all_ids).draws[0]
        boxes = crop_boxes(draws, *folder.sizes[batch.ids].float().unbind(1)).int().tolist()
        for row, (left, top, width, height) in enumerate(boxes):
            image = folder.read(int(batch.ids[row]))
            expected = resized_crop(image, top, left, height, width, [6, 6], antialias=True)
            assert torch.equal(batch.views[0][row], expected / 255)


def test_crops_that_shrink_much_are_antialiased_even_from_memory():
    """A checkerboard shrunk four times is gray; without antialiasing it is not."""
    board = (torch.arange(48)[:, None] + torch.arange(48)) % 2 * 255
    images = scan(
        Rows("board", list("abcd"), Pixels(board.to(torch.uint8).expand(4, 3, 48, 48).contiguous()))
    )
    batches = make(images, [PLAIN], mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    assert not batches.resident
    ((batch,),) = batches.epoch(0)
    assert batch.views[0][:, :, 1:-1, 1:-1].abs().max() < 0.02


def test_views_have_random_numbers_of_their_own():
    view = View(size=12, crop=(0.3, 0.9))
    (first, *_) = make(in_memory(13), [view, view]).epoch(0)
    one, other = first[0].views
    assert one.shape == other.shape == (4, 3, 12, 12)
    assert not torch.isclose(one, other).flatten(1).all(dim=1).any()


@pytest.fixture
def process():
    """Become one of several processes, as far as numbers go: a group without any communication."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def become(rank, count):
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", rank=rank, world_size=count, store=FakeStore())

    yield become
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "sizes"), [(9, 1, [7, 6]), (13, 2, [7, 6]), (9, 2, [7, 6])]
)
def test_two_processes_together_make_the_batch_of_one(process, batch_size, accumulate, sizes):
    """Each makes its own rows with the same random numbers; 7 in two parts might leave it fewer than two."""
    images = in_memory(13)
    whole = [parts[0] for parts in make(images, batch_size=batch_size).epoch(1)]
    halves = []
    for rank in range(2):
        process(rank, 2)
        batches = make(images, batch_size=batch_size, accumulate=accumulate)
        halves.append([part for parts in batches.epoch(1) for part in parts])
    assert [len(part.all_ids) for part in halves[0]] == sizes
    ids, views = [], []
    for one, other in zip(*halves, strict=True):
        assert torch.equal(torch.cat([one.ids, other.ids]), one.all_ids)
        assert torch.equal(one.all_ids, other.all_ids)
        ids.append(one.all_ids)
        views.append(torch.cat([one.views[0], other.views[0]]))
    assert torch.equal(torch.cat(ids), torch.cat([batch.ids for batch in whole]))
    assert torch.allclose(torch.cat(views), torch.cat([batch.views[0] for batch in whole]), atol=1e-6)


def test_generators_depend_on_the_key_alone():
    draws = {
        torch.rand(1, generator=generator(*key)).item() for key in ((0, "a"), (0, "b"), (1, "a"), (0, "a"))
    }
    assert len(draws) == 3
    assert torch.rand(1, generator=generator(3, "view", 1, 2, 0)).item() == pytest.approx(
        torch.rand(1, generator=generator(3, "view", 1, 2, 0)).item(), abs=0
    )
