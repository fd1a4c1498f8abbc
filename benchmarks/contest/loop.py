"""One contender trained and probed, by the same loop and the same protocol as every other.

Protocol, fixed before the first run: features of the backbone (pooled, before any projector) at 32 px, no flips
and no crops, in eval mode with running statistics. Weighted k-NN (20 neighbours, temperature 0.07, centred)
and an L2-regularised logistic regression, whose strength a tenth of the bank chooses. The bank is the pool of 45,000
training images with labels, whatever the contender was trained on. Choices are made on the 5,000 held-out
training images; the test split is looked at once per run and decides nothing.
"""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from coke.evaluation import adapt_batch_norm, extract, knn_accuracy, near, raw_pixels
from coke.evaluation.clusters import cluster_scores, head_scores
from coke.evaluation.probes import linear_probe
from coke.images import ImageSet
from coke.training.auto import resolve
from coke.training.backbone import check_backbone, make_backbone
from coke.training.batches import Batch, Batches
from coke.training.config import Config, chosen
from coke.training.devices import make_fabric
from coke.training.learner import Learner
from coke.training.recipes import find_recipe
from contest.data import COMPRESSED, Data, labels_of, subset
from contest.entries import VIEWS, Entry, Scale
from contest.peers import PEERS, PeerLearner, Supervised
from contest.variants import VARIANTS

Contender = Learner | PeerLearner
_TIMED_STEPS = 24


def configure(entry: Entry, scale: Scale, images: ImageSet, seed: int) -> Config:
    """The entry's configuration; a peer reads optimizer, schedule, views and batch size from it."""
    clusters = entry.method in VARIANTS
    epochs = max(1, round(entry.epochs * scale.epochs)) + clusters
    overrides = {**scale.base, "views": VIEWS[entry.views], "epochs": epochs, "seed": seed, **entry.settings}
    settings = {**find_recipe("cifar10").settings, "recipe": "cifar10", "data": entry.data}
    if not clusters:
        overrides["epochs"] += 1  # a configuration counts the clustering pass, which peers do not run
    return resolve(chosen(settings, overrides), images).config


def make(entry: Entry, config: Config, images: ImageSet, batches: Batches) -> Contender:
    """The contender, ready for its first step."""
    fabric = make_fabric(config)
    backbone = make_backbone(config)
    n_features = check_backbone(backbone, config)
    if entry.method in VARIANTS:
        variant = VARIANTS[entry.method]
        learner: Contender = variant(
            config, backbone, n_features, n_images=len(images), steps_per_epoch=batches.n_steps, fabric=fabric
        )
    else:
        method = PEERS[entry.method]
        options = {"labels": labels_of(images)} if method is Supervised else entry.options
        learner = PeerLearner(
            config,
            method(backbone, n_features, **options),
            steps_per_epoch=batches.n_steps,
            n_epochs=config.epochs - 1,
            fabric=fabric,
        )
    learner.network.train()
    return learner


def make_batches(images: ImageSet, config: Config, device: torch.device) -> Batches:
    """The views of a configuration, made from images that stay on the device."""
    return Batches(
        images,
        [*config.large_views, *config.small_views],
        batch_size=config.batch_size,
        accumulate=1,
        mean=config.mean,
        std=config.std,
        seed=config.seed,
        workers=0,
        device=device,
    )


def epochs_of(
    batches: Batches, config: Config, clusters: bool
) -> Iterator[tuple[int, bool, Iterator[list[Batch]]]]:
    """Each epoch's number, whether it trains, and its steps."""
    for epoch in range(0 if clusters else 1, config.epochs):
        yield epoch, epoch >= config.clustering_epochs, batches.epoch(epoch)


def epochs_in(seconds: float, entry: Entry, config: Config, images: ImageSet, batches: Batches) -> int:
    """How many epochs of training fit, by some steps of a contender that is thrown away.

    Timed as in an epoch, with the device waited for at the ends alone; the first steps compile and warm up.
    """
    learner, device = make(entry, config, images, batches), batches.device
    n_steps = min(_TIMED_STEPS, batches.n_steps)
    n_first = n_steps // 3
    for number, parts in enumerate(itertools.islice(batches.epoch(1), n_steps)):
        if number == n_first:
            began = _seconds(device)
        learner.step(parts, True)
    per_step = (_seconds(device) - began) / (n_steps - n_first)
    return max(1, int(seconds / (per_step * batches.n_steps)))


def run(entry: Entry, scale: Scale, data: Data, seed: int, minutes: float | None = None) -> dict[str, Any]:
    """Train and probe; everything that the tables need. ``minutes`` of training replace the entry's epochs."""
    if entry.data == COMPRESSED:
        data, entry = data.compressed_again(), replace(entry, data="balanced")
    images = subset(data.pool, entry.data, scale.n_images)
    config = configure(entry, scale, images, seed)
    device = _device()
    batches = make_batches(images, config, device)
    if minutes is not None:
        epochs = epochs_in(60 * minutes, entry, config, images, batches) + 1
        config = config.replaced(epochs=epochs)
    torch.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    learner = make(entry, config, images, batches)
    clusters = isinstance(learner, Learner)
    began, wall = _seconds(device), time.perf_counter()
    history = []
    for epoch, train, steps in epochs_of(batches, config, clusters):
        learner.begin_epoch(epoch)
        for parts in steps:
            learner.step(parts, train)
        history.append({"epoch": epoch, **learner.end_epoch()})
    seconds = {"compute": _seconds(device) - began, "wall": time.perf_counter() - wall}
    result = {
        "entry": entry.name,
        "method": entry.method,
        "data": entry.data,
        "seed": seed,
        "scale": scale.name,
        "images": len(images),
        "views_seen": len(images) * (config.epochs - 1) * len(batches.views),
        "seconds": seconds,
        "peak_memory_mib": _peak_memory(device),
        "scores": probe(learner.network.module.backbone, data, config),
        "history": history,
        "config": config.as_dict(),
    }
    if isinstance(learner, Learner):
        heads = head_scores(learner.memory.labels.cpu(), labels_of(images))
        result["heads"] = [
            {"n_clusters": k, **head} for k, head in zip(config.n_clusters, heads, strict=True)
        ]
    return result


def probe(backbone: nn.Module, data: Data, config: Config, *, raw: bool = False) -> dict[str, float]:
    """The scores of a backbone (or of the raw pixels), as shares."""
    size, normal = config.image_size, {"mean": config.mean, "std": config.std}
    parts = (data.pool, data.held, data.test)
    if raw:
        bank, held, test = (raw_pixels(images, size=size, **normal) for images in parts)
    else:
        bank, held, test = (extract(backbone, images, size=size, **normal) for images in parts)
    bank = near(bank, _device())
    bank_labels, held_labels, test_labels = (labels_of(images) for images in parts)
    found: Any = cluster_scores(test, test_labels, seed=0)
    return {
        "held_knn": knn_accuracy(bank, bank_labels, held, held_labels),
        "knn": knn_accuracy(bank, bank_labels, test, test_labels),
        "linear": linear_probe(bank, bank_labels, test, test_labels).accuracy,
        **{key: found[key] for key in ("accuracy", "nmi", "ari")},
    }


def baselines(scale: Scale, data: Data, seed: int) -> dict[str, dict[str, float]]:
    """What raw pixels and the untrained network score, batch statistics adapted to the training images."""
    images = subset(data.pool, "balanced", scale.n_images)
    config = configure(Entry("untrained"), scale, images, seed)
    torch.manual_seed(seed)
    backbone = make_backbone(config).to(_device())
    adapt_batch_norm(backbone, images, size=config.image_size, mean=config.mean, std=config.std)
    scores = {"untrained": probe(backbone, data, config)}
    if seed == 0:  # they do not depend on it
        scores["raw pixels"] = probe(backbone, data, config, raw=True)
    return scores


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _seconds(device: torch.device) -> float:
    """Processor seconds on a CPU, which other work on the machine does not stretch; wall clock on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
