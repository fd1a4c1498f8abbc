"""An epoch as batches of views: every image once, in an order and with random numbers that follow from the seed.

Nothing here has a state: batch s of epoch e is a function of (seed, e, s), whatever came before, whoever
decodes, and however many processes share it. That is what makes a resumed run equal to an uninterrupted one.
Shapes: N images, B batch, S side of a view in px.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from coke import distributed
from coke.images import ImageSet
from coke.images.augment import Draw, colour, crop_boxes, draw, in_parts, orient, warp
from coke.images.views import View
from coke.interrupt import HANGUP
from coke.method.network import QUARTERS

_MILD_SHRINK = 1.25  # crops up to this many times the view's side need no antialiasing


def generator(*key: object) -> torch.Generator:
    """A random generator that depends on the key alone.

    >>> first, again = (torch.rand(1, generator=generator(0, "order", 3)) for _ in range(2))
    >>> bool(first == again)
    True
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def steps_per_epoch(n_images: int, batch_size: int) -> int:
    """Batches of an epoch: fewer, of more images, where a process would get less than two, as batch norm needs."""
    return max(1, min(-(-n_images // batch_size), n_images // (2 * distributed.world_size())))


@dataclass(frozen=True)
class Batch:
    """This process's share of a batch."""

    ids: Tensor  # [b] numbers of the images, on the host
    all_ids: Tensor  # [B] of all processes, in rank order
    views: list[Tensor]  # float [b, 3, S, S] each, normalised
    turns: Tensor  # [b] quarters 0 ... 3 that a copy of each image is turned by (`coke.method.network`)


class Batches:
    """Batches of one data set, with the views of a configuration.

    An epoch's N images are cut into ceil(N / B) batches whose sizes differ by at most one, so that no batch is
    short and every process has the same number of steps.

    Args:
        images: what to train on.
        views: one `View` per view of a step.
        batch_size: B over all processes.
        accumulate: parts that a batch is handed out in.
        mean, std: per channel, of pixels in 0 ... 1.
        workers: processes that decode and crop; 0 does it here. Images held in memory need none.
    """

    def __init__(
        self,
        images: ImageSet,
        views: list[View],
        *,
        batch_size: int,
        accumulate: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        seed: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self.images, self.views, self.seed = images, views, seed
        self.accumulate, self.workers, self.device = accumulate, workers, device
        self.rank, self.world_size = distributed.rank(), distributed.world_size()  # workers cannot ask
        self.n_steps = steps_per_epoch(len(images), batch_size)
        self.mean = torch.tensor(mean, device=device)[:, None, None]
        self.std = torch.tensor(std, device=device)[:, None, None]
        self.sizes = images.sizes.float()
        self.resident = images.pixels is not None and all(self._enlarges(view) for view in views)
        self.pixels = images.pixels.to(device) if self.resident and images.pixels is not None else None

    def _enlarges(self, view: View) -> bool:
        return float(self.sizes[0].max()) * view.crop[1] ** 0.5 <= _MILD_SHRINK * view.size

    def order(self, epoch: int) -> list[Tensor]:
        """The images of each step of an epoch."""
        permutation = torch.randperm(len(self.images), generator=generator(self.seed, "order", epoch))
        return list(permutation.tensor_split(self.n_steps))

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """The steps of an epoch from ``first_step`` on, each as ``accumulate`` parts."""
        order = self.order(epoch)
        steps = range(first_step, self.n_steps)
        n_parts = [self._count_parts(len(order[step])) for step in steps]
        jobs = [(step, part) for step, count in zip(steps, n_parts, strict=True) for part in range(count)]
        made = (self._warped if self.resident else self._decoded)(epoch, order, jobs)
        for count in n_parts:
            yield [next(made) for _ in range(count)]

    def drawn(self, epoch: int, step: int, part: int, ids: Tensor) -> _Drawn:
        """What one part of a step is made of: ids [B] of the step -> ids and random numbers of this process."""
        rows = torch.arange(len(ids)).tensor_split(self._count_parts(len(ids)))[part]
        own = rows[distributed.shard(len(rows), self.rank, self.world_size)]
        keys = [("view", epoch, step, index) for index in range(len(self.views))]
        draws = [
            draw(view, len(ids), generator(self.seed, *key)).rows(own)
            for view, key in zip(self.views, keys, strict=True)
        ]
        turns = torch.randint(QUARTERS, (len(ids),), generator=generator(self.seed, "turns", epoch, step))
        return _Drawn(ids[own], ids[rows], draws, turns[own])

    def _count_parts(self, n_images: int) -> int:
        """Parts of a step: no more than leave two images, which batch norm needs, to each process."""
        return max(1, min(self.accumulate, n_images // (2 * self.world_size)))

    def _warped(self, epoch: int, order: list[Tensor], jobs: list[tuple[int, int]]) -> Iterator[Batch]:
        for step, part in jobs:
            drawn = self.drawn(epoch, step, part, order[step])
            views = [self._warp(drawn, index) for index in range(len(self.views))]
            yield Batch(drawn.ids, drawn.all_ids, views, drawn.turns.to(self.device, non_blocking=True))

    def _decoded(self, epoch: int, order: list[Tensor], jobs: list[tuple[int, int]]) -> Iterator[Batch]:
        loader = DataLoader(
            _Crops(self, epoch, order, jobs),
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=_ignore_interrupts,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if self.workers else None,
            # its own seed: drawn from the global state, once per start, it would shift a resumed run's dropout
            generator=generator(self.seed, "loader", epoch),
        )
        for (step, part), crops in zip(jobs, loader, strict=True):
            drawn = self.drawn(epoch, step, part, order[step])  # again: cheaper than sending it
            views = []
            for crop, draws, view in zip(crops, drawn.draws, self.views, strict=True):
                pixels = crop.to(self.device, non_blocking=True)
                views.append(in_parts(pixels, draws.to(self.device), partial(self._finish, view=view)))
            yield Batch(drawn.ids, drawn.all_ids, views, drawn.turns.to(self.device, non_blocking=True))

    def _warp(self, drawn: _Drawn, index: int) -> Tensor:
        assert self.pixels is not None
        view, draws = self.views[index], drawn.draws[index]
        boxes = crop_boxes(draws, *self.sizes[drawn.ids].unbind(1)).to(self.device, non_blocking=True)
        on_device = draws.to(self.device)
        pixels = self.pixels.index_select(0, drawn.ids.to(self.device, non_blocking=True))
        warped = warp(pixels, boxes, on_device, view.size)
        return in_parts(warped, on_device, partial(self._normalised, view=view))

    def _finish(self, crops: Tensor, draws: Draw, view: View) -> Tensor:
        return self._normalised(orient(crops, draws, view), draws, view)

    def _normalised(self, images: Tensor, draws: Draw, view: View) -> Tensor:
        return (colour(images, draws, view) - self.mean).div_(self.std)


@dataclass(frozen=True)
class _Drawn:
    ids: Tensor
    all_ids: Tensor
    draws: list[Draw]
    turns: Tensor


class _Crops(Dataset[list[Tensor]]):
    """Decoded and cropped views of each part, uint8: what workers do. Antialiased, per image."""

    def __init__(
        self, batches: Batches, epoch: int, order: list[Tensor], jobs: list[tuple[int, int]]
    ) -> None:
        self.batches, self.epoch, self.order, self.jobs = batches, epoch, order, jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> list[Tensor]:
        from torchvision.transforms.v2.functional import resized_crop

        step, part = self.jobs[index]
        images, views = self.batches.images, self.batches.views
        drawn = self.batches.drawn(self.epoch, step, part, self.order[step])
        sizes = self.batches.sizes[drawn.ids]
        boxes = [crop_boxes(draws, *sizes.unbind(1)).int().tolist() for draws in drawn.draws]
        crops: list[list[Tensor]] = [[] for _ in views]
        for row, image_id in enumerate(drawn.ids.tolist()):
            pixels = images.read(image_id)
            for which, view in enumerate(views):
                left, top, width, height = boxes[which][row]
                side = [view.size, view.size]
                crops[which].append(resized_crop(pixels, top, left, height, width, side, antialias=True))
        return [torch.stack(crop) for crop in crops]


def _ignore_interrupts(worker: int) -> None:
    """These reach every process of a terminal or job; the trainer alone decides what they mean."""
    for number in filter(None, (signal.SIGINT, signal.SIGTERM, HANGUP)):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
