"""``--dry-run``: what would happen, from the images as they are and a few measured steps, without a run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from coke.images.shrunk import in_words, shrunk_sizes, side_for
from coke.method.dual_step import min_size
from coke.method.labels import SLOTS, smallest_integer_type
from coke.run import Run
from coke.training.plan import Plan, default_folder, make_plan
from coke.training.session import start


def describe(
    data: str | None,
    recipe: str | None,
    overrides: Mapping[str, Any],
    out: str | os.PathLike[str] | None = None,
) -> Iterator[str]:
    """Lines of text: images, splits, decisions, memory, measured time, feasibility."""
    plan = make_plan(data, recipe, overrides)
    config, train = plan.config, plan.splits.train
    run = Run(out if out is not None else default_folder(data, recipe))
    heights, widths = train.sizes.unbind(1)
    large = config.shrink and bool(shrunk_sizes(train.sizes, side_for(config.views))[0].any())
    decoded = "decoded anew each epoch" + (", but for copies of large ones" if large else "")
    yield f"images: {len(train):,} readable, {len(train.unreadable)} unreadable ({train.name})"
    yield (
        f"sizes: {int(widths.min())} x {int(heights.min())} to {int(widths.max())} x {int(heights.max())} px; "
        + ("held in memory" if train.pixels is not None else decoded)
    )
    yield f"splits: {plan.splits.note}"
    yield (
        f"recipe {config.recipe}, backbone {config.backbone}, {len(config.large_views)} clustered view(s) of "
        + (f"{config.image_size} px, {len(config.small_views)} small")
    )
    yield from (f"because: {reason}" for reason in plan.reasons)
    yield from _bounds(plan)
    yield from _memory(plan)
    training = start(plan, None)
    yield from in_words(training.seen)
    yield training.forecast(training.limit_time() or training.measure())
    yield f"run folder: {run.path}" + (" (holds a run already)" if run.metrics_file.exists() else "")


def _bounds(plan: Plan) -> Iterator[str]:
    config, n_images = plan.config, len(plan.splits.train)
    for n_clusters, dual_lr in zip(config.n_clusters, config.dual_lr, strict=True):
        bound = min_size(n_images, n_clusters, config.min_size_ratio)
        climb = dual_lr / config.batch_size * bound
        reach = (
            "reaches an empty cluster within an epoch"
            if climb >= 2
            else f"reaches an empty cluster in {2 / max(climb, 1e-9):.1f} epochs"
        )
        yield (
            f"K = {n_clusters}: {n_images / n_clusters:.0f} images a cluster, at least {bound:.0f} wanted: feasible; "
            f"dual step {dual_lr:g} {reach} (a cosine spans 2)"
        )


def _memory(plan: Plan) -> Iterator[str]:
    config, train = plan.config, plan.splits.train
    clusters = sum(config.n_clusters)
    label = smallest_integer_type(max(config.n_clusters)).itemsize
    labels = len(train) * len(config.n_clusters) * label
    if config.averaging_share > 0:
        labels += len(train) * len(config.n_clusters) * SLOTS * (label + 2)
    logits = 4 * clusters * config.batch_size * (len(config.large_views) + len(config.small_views))
    pixels = 0 if train.pixels is None else train.pixels.numel()
    yield (
        f"memory beside network and optimizer: images {_mebibytes(pixels)}, labels {_mebibytes(labels)}, "
        f"centers {_mebibytes(8 * clusters * config.dim)}, logits {_mebibytes(logits)}"
        " a step; no features are kept"
    )


def _mebibytes(n_bytes: float) -> str:
    return f"{n_bytes / 2**20:.1f} MiB"
