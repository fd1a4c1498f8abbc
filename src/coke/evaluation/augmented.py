"""The published linear probe: a linear layer trained on freshly cropped images through the frozen backbone.

Settings of the paper's ImageNet probe (CoKe, arXiv 2105.11527): 90 epochs, batch 1024, SGD with momentum 0.9,
learning rate 0.2 to 0.4 decayed to 0 by a cosine, weight decay 1e-6; random resized crop (area 0.08 to 1) and
flip in training, the centre in testing. It costs ``epochs`` passes of the backbone over the bank;
`linear_probe` on extracted features costs one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.nn import functional

from coke.data.images import ImageSet
from coke.data.memory import usable_cpus
from coke.errors import ConfigError, DataError
from coke.evaluation.checks import checked_problem
from coke.evaluation.crops import random_crops
from coke.evaluation.features import Device, Progress, evaluating, extract, normalised, pooled


def _labels(images: ImageSet) -> Tensor:
    if images.labels is None:
        raise DataError(f"{images.name} has no labels: a linear probe needs a labelled bank and query")
    return images.labels


def _check_settings(epochs: int, batch_size: int, learning_rate: float) -> None:
    if epochs < 1 or batch_size < 1 or not learning_rate > 0:
        raise ConfigError(
            f"epochs and batch_size must be at least 1 and learning_rate above 0, "
            f"got {epochs}, {batch_size} and {learning_rate}"
        )


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
    progress: Progress | None = None,
) -> float:
    """Accuracy on the query, in [0, 1], of a linear layer trained on augmented bank images.

    The backbone stays in eval mode and gets no gradient; its modes and device are restored. The layer starts
    at 0; the last batch of an epoch may be short. The result depends on ``seed`` (order, crops, flips) alone,
    up to the rounding of the device. ``progress(done, all)`` counts epochs. Raises `DataError` for missing
    labels, one class only or splits without a class in common, `ConfigError` for settings out of range, all
    before training.
    """
    _check_settings(epochs, batch_size, learning_rate)
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
        for epoch in range(epochs):
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
            if progress is not None:
                progress(epoch + 1, epochs)
        with torch.no_grad():
            predicted = functional.linear(query_features.to(there), weight, bias).argmax(dim=1).cpu()
    return float((predicted == problem.query_classes).double().mean())
