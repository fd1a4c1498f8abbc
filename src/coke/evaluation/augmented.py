"""The published linear probe: a linear layer trained on freshly cropped images through the frozen backbone.

Settings of the paper's ImageNet probe (CoKe, arXiv 2105.11527): 90 epochs, batch 1024, SGD with momentum 0.9,
learning rate 0.2 to 0.4 decayed to 0 by a cosine, weight decay 1e-6; random resized crop (area 0.08 to 1) and
flip in training, the centre in testing. It costs ``epochs`` passes of the backbone over the bank;
`linear_probe` on extracted features costs one.

Legend: B images, (h, w) an image's size in pixels, size the side of what comes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.nn import functional

from coke.errors import ConfigError, DataError
from coke.evaluation.checks import checked_problem
from coke.evaluation.features import Device, evaluating, extract, normalised, pooled
from coke.images.augment import resample
from coke.images.image_set import ImageSet
from coke.memory import usable_cpus

AREA = (0.08, 1.0)  # of the image, uniform
ASPECT = (3 / 4, 4 / 3)  # width over height, log-uniform


def random_boxes(sizes: Tensor, generator: torch.Generator) -> Tensor:
    """A box for each image of sizes [B, 2] (height, width): float32 [B, 4], top, left, height, width.

    Not training's `crop_boxes`, which are whole pixels and draw ten times as much: this probe's scores hang on them.

    Area and aspect are those of the customary random resized crop; a box that would be higher or wider than
    its image is clipped to it (the custom there is to draw again).

    >>> boxes = random_boxes(torch.tensor([[32, 48]]), torch.Generator().manual_seed(0))
    >>> bool((boxes[:, :2] + boxes[:, 2:] <= torch.tensor([32, 48])).all())
    True
    """
    draws = torch.rand(len(sizes), 4, generator=generator)
    image = sizes.float()
    area = image.prod(dim=1) * (AREA[0] + (AREA[1] - AREA[0]) * draws[:, 0])
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    aspect = (low + (high - low) * draws[:, 1]).exp()
    box = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], dim=1).clamp(min=1)
    box = torch.minimum(box, image)
    return torch.cat([(image - box) * draws[:, 2:], box], dim=1)


def crop_batch(pixels: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Boxes [B, 4] of images [B, 3, H, W], resized bilinearly: float32 [B, 3, size, size], same device.

    ``flips`` bool [B] mirrors left and right. Meant for enlarging: where a box is larger than ``size`` pixels
    are skipped instead of averaged (`crop_one` averages).
    """
    boxes, flips = boxes.to(pixels.device), flips.to(pixels.device)
    return resample(pixels.float(), boxes[:, [1, 0, 3, 2]], flips, torch.zeros_like(boxes[:, 0]), size)


def crop_one(image: Tensor, box: Tensor, flip: bool, size: int) -> Tensor:
    """One box [4], rounded to pixels, of an image [3, h, w], antialiased: float32 [3, size, size]."""
    height, width = (max(1, round(side)) for side in box[2:].tolist())
    top = min(round(float(box[0])), image.shape[1] - height)
    left = min(round(float(box[1])), image.shape[2] - width)
    cut = image[None, :, top : top + height, left : left + width].float()
    resized = functional.interpolate(cut, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return (resized.flip(-1) if flip else resized)[0]


def random_crops(
    images: ImageSet,
    indices: Tensor,
    size: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    threads: Executor | None = None,
) -> Tensor:
    """Randomly cropped, resized and flipped images [B] of a set: float32 [B, 3, size, size], values 0 .. 255.

    All boxes come from ``generator`` (CPU), so one seed gives one result on every device. Images in memory
    that are not larger than ``size`` are cropped as one batch on ``device``, others one by one, on
    ``threads`` if given.
    """
    sizes = images.sizes[indices]
    boxes = random_boxes(sizes, generator)
    flips = torch.rand(len(indices), generator=generator) < 0.5
    if images.pixels is not None and max(images.pixels.shape[-2:]) <= size:
        return crop_batch(images.pixels[indices].to(device), boxes, flips, size)

    def one(row: int) -> Tensor:
        return crop_one(images.read(int(indices[row])), boxes[row], bool(flips[row]), size)

    rows = range(len(indices))
    return torch.stack(list(threads.map(one, rows) if threads else map(one, rows))).to(device)


def _labels(images: ImageSet) -> Tensor:
    if images.labels is None:
        raise DataError(f"{images.name} has no labels: a linear probe needs a labelled bank and query")
    return images.labels


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
    momentum: float = 0.9,
    weight_decay: float = 1e-6,
    device: Device = None,
    seed: int = 0,
) -> float:
    """Accuracy on the query, in [0, 1], of a linear layer trained on augmented bank images.

    The backbone stays in eval mode and gets no gradient; its modes and device are restored. The layer starts
    at 0; the last batch of an epoch may be short. The result depends on ``seed`` (order, crops, flips) alone,
    up to the rounding of the device. Raises `DataError` for missing labels, one class only or splits without a
    class in common, `ConfigError` for settings out of range, all before training.
    """
    if epochs < 1 or batch_size < 1 or not learning_rate > 0:
        raise ConfigError(
            f"epochs and batch_size must be at least 1 and learning_rate above 0, "
            f"got {epochs}, {batch_size} and {learning_rate}"
        )
    bank_labels, query_labels = _labels(bank), _labels(query)
    # the labels are checked on stand-in features, before the backbone has run at all
    checked_problem(torch.zeros(len(bank), 1), bank_labels, torch.zeros(len(query), 1), query_labels)
    generator = torch.Generator().manual_seed(seed)
    query_features = extract(backbone, query, size=size, mean=mean, std=std, device=device)
    problem = checked_problem(
        torch.zeros(len(bank), query_features.shape[1]), bank_labels, query_features, query_labels
    )
    steps = epochs * -(-len(bank) // batch_size)
    with evaluating(backbone, device) as there, ThreadPoolExecutor(usable_cpus()) as threads:
        targets = problem.bank_classes.to(there)
        # plain tensors: nn.Linear would draw its start from the global random state, which is the trainer's
        weight = torch.zeros(len(problem.classes), query_features.shape[1], device=there, requires_grad=True)
        bias = torch.zeros(len(problem.classes), device=there, requires_grad=True)
        optimizer = torch.optim.SGD(
            [weight, bias], lr=learning_rate, momentum=momentum, weight_decay=weight_decay
        )
        step = 0
        for _ in range(epochs):
            for rows in torch.randperm(len(bank), generator=generator).split(batch_size):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
                crops = random_crops(bank, rows, size, generator, there, threads)
                with torch.no_grad():
                    features = pooled(backbone(normalised(crops, mean, std)))
                loss = functional.cross_entropy(
                    functional.linear(features, weight, bias), targets[rows.to(there)]
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                step += 1
        with torch.no_grad():
            predicted = functional.linear(query_features.to(there), weight, bias).argmax(dim=1).cpu()
    return float((predicted == problem.query_classes).double().mean())
