"""The published linear probe: a linear layer trained on freshly cropped images through the frozen backbone.

Settings of the paper's ImageNet probe (CoKe, arXiv 2105.11527): 90 epochs, batch 1024, SGD with momentum 0.9,
learning rate 0.2 to 0.4 decayed to 0 by a cosine, weight decay 1e-6; random resized crop (area 0.08 to 1) and
flip in training, the centre in testing. It costs ``epochs`` passes of the backbone over the bank;
`linear_probe` on extracted features costs one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.nn import functional

from coke.errors import DataError
from coke.evaluation.checks import checked_features, checked_problem
from coke.evaluation.features import Device, evaluating, extract, normalised, pooled
from coke.images.augment import crop_boxes, draw, warp
from coke.images.image_set import ImageSet
from coke.images.views import View
from coke.memory import usable_cpus


def random_crops(
    images: ImageSet,
    rows: Tensor,
    size: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    threads: Executor | None = None,
) -> Tensor:
    """Images of these rows [B], cropped as in training, resized and flipped: [B, 3, size, size], values 0 ... 255.

    All boxes come from ``generator`` (CPU), so one seed gives one result on every device. Images in memory that are
    not larger than ``size`` are cropped as one batch on ``device``, others one by one, on ``threads`` if given.
    """
    from torchvision.transforms.v2.functional import resized_crop

    view = View(size, crop=(0.08, 1.0), flip=0.5, jitter_probability=0, gray=0)
    drawn = draw(view, len(rows), generator)
    boxes = crop_boxes(drawn, *images.sizes[rows].float().unbind(1))
    if images.pixels is not None and max(images.pixels.shape[-2:]) <= size:
        return 255 * warp(
            images.pixels[rows].to(device), boxes.to(device), drawn.to(torch.device(device)), size
        )

    def one(place: int) -> Tensor:
        left, top, width, height = boxes[place].int().tolist()
        pixels = images.read(int(rows[place]))
        crop = resized_crop(pixels, top, left, height, width, [size, size], antialias=True)
        return crop.flip(-1) if drawn.flip[place] else crop

    return torch.stack(list((threads.map if threads else map)(one, range(len(rows))))).to(device)


def augmented_linear_probe(
    backbone: nn.Module,
    bank: ImageSet,
    query: ImageSet,
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    epochs: int = 90,
    batch_size: int = 1024,
    learning_rate: float = 0.3,
    device: Device = None,
    seed: int = 0,
) -> float:
    """Accuracy on the query, in [0, 1], of a linear layer trained on augmented bank images.

    The backbone stays in eval mode and gets no gradient; its modes and device are restored. The layer starts
    at 0; the last batch of an epoch may be short. The result depends on ``seed`` (order, crops, flips) alone,
    up to the rounding of the device. Raises `DataError` for missing labels, one class only or splits without a
    class in common, before training.
    """
    for images in (bank, query):
        if images.labels is None:
            raise DataError(f"{images.name} has no labels: a linear probe needs a labelled bank and query")
    assert bank.labels is not None
    assert query.labels is not None
    unseen = (
        torch.zeros(len(bank), 1),
        torch.zeros(len(query), 1),
    )  # labels are checked before the backbone runs
    problem = checked_problem(unseen[0], bank.labels, unseen[1], query.labels)
    asked = checked_features(extract(backbone, query, size=size, mean=mean, std=std, device=device), "query")
    generator = torch.Generator().manual_seed(seed)
    steps, step = epochs * math.ceil(len(bank) / batch_size), 0
    with evaluating(backbone, device) as there, ThreadPoolExecutor(usable_cpus()) as threads:
        targets = problem.bank_classes.to(there)
        # plain tensors: nn.Linear would draw its start from the global random state, which is the trainer's
        weight = torch.zeros(len(problem.classes), asked.shape[1], device=there, requires_grad=True)
        bias = torch.zeros(len(problem.classes), device=there, requires_grad=True)
        optimizer = torch.optim.SGD([weight, bias], lr=learning_rate, momentum=0.9, weight_decay=1e-6)
        for _ in range(epochs):
            for rows in torch.randperm(len(bank), generator=generator).split(batch_size):
                optimizer.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
                crops = random_crops(bank, rows, size, generator, there, threads)
                with torch.no_grad():
                    features = pooled(backbone(normalised(crops, mean, std)))
                logits = functional.linear(features, weight, bias)
                optimizer.zero_grad(set_to_none=True)
                functional.cross_entropy(logits, targets[rows.to(there)]).backward()
                optimizer.step()
                step += 1
        with torch.no_grad():
            predicted = functional.linear(asked.to(there), weight, bias).argmax(dim=1).cpu()
    return float((predicted == problem.query_classes).double().mean())
