"""A run folder from start to end: what is refused, opened, told, continued, and left behind."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save
from torch import nn

from coke import distributed
from coke.atomic import atomic
from coke.errors import ConfigError, ResumeError
from coke.images.shrunk import in_words, shrink, side_for
from coke.images.unreadable import list_unreadable
from coke.memory import memory_share
from coke.model.files import Preprocessing, own_tensors, write_backbone, write_projector
from coke.output import is_writable
from coke.progress import progress_bar
from coke.run import Run
from coke.training import backbone as backbones
from coke.training import checkpoint, outputs
from coke.training.batches import steps_per_epoch
from coke.training.config import Config
from coke.training.continued import carry_over, drift, load_earlier_backbone, read_earlier
from coke.training.continued import in_words as drift_in_words
from coke.training.devices import make_fabric, precision_on, worker_count
from coke.training.environment import environment, gone_on
from coke.training.logbook import Logbook
from coke.training.loop import Training
from coke.training.plan import Plan


def start(
    plan: Plan,
    run: Run | None,
    *,
    backbone: nn.Module | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> Training:
    """Everything checked, processes started, network built, run folder open: ready for `Training.fit`.

    Args:
        plan: from `make_plan`.
        run: the folder; None for a dry run, which writes nothing.
        backbone: the user's module; None builds the plan's.
        resume: continue the run in the folder.
        console: where people read; None is silent.
    """
    state = None
    if resume and run is not None:  # what is damaged is said before any work
        state, _, _ = checkpoint.load(run), run.environment, run.metrics()
    if run is not None and not resume:
        check_folder(run)
    fabric = make_fabric(plan.config)
    if run is not None and not resume and distributed.rank() == 0:
        run.clear()
    config = plan.config.replaced(workers=worker_count(plan.config, fabric.device))
    torch.manual_seed(config.seed)
    backbone = backbones.make_backbone(config) if backbone is None else backbone
    n_features = backbones.check_backbone(backbone, config)
    told, changed, earlier = [], [], None
    if state is not None and run is not None:
        train, free = plan.splits.train, checkpoint.may_change(run, state)
        changed = checkpoint.check_same(state, config, train.fingerprint, len(train), free)
    elif config.continues:
        earlier = read_earlier(Run(config.continues), config)
        load_earlier_backbone(earlier, backbone)
    elif config.init:
        told = [backbones.start_from(backbone, backbones.find_init(config.init))]
    initial = own_tensors(backbone.state_dict()) if state is None else None
    steps = steps_per_epoch(len(plan.splits.train), config.batch_size)
    done = None if state is None else state["epoch"] * steps + state["step"]
    logbook = Logbook(run, console, tensorboard=config.tensorboard, steps_done=done)
    seen = plan.splits
    if config.shrink:
        with progress_bar(console, "shrinking large images") as progress:
            seen = shrink(plan.splits, side_for(config.views), **_kept_in(config), progress=progress)
    training = Training(config, plan.splits, seen, backbone, n_features, fabric, logbook)
    if state is not None:
        _load(training, state)
    elif earlier is not None:
        told = [carry_over(earlier, training.learner, plan.splits.train)]
    if run is not None and distributed.rank() == 0:
        _open_folder(run, plan, training, initial)
    if state is not None and run is not None:
        _continue(run, training, changed)
    else:
        for text in [*_opening_words(plan, training), *in_words(seen), *told]:
            logbook.event(text)
    return training


def _kept_in(config: Config) -> dict[str, Any]:
    """Where smaller copies are kept: ``memory`` or ``folder`` of `shrink`."""
    if config.cache in ("memory", "none"):
        share = memory_share(
            int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        )  # torchrun's processes on this machine
        return {"memory": share if config.cache == "memory" else 0}
    return {"folder": Path(config.cache)}


def check_folder(run: Run) -> None:
    """Raise `ResumeError` where a folder holds a run already, `ConfigError` where nothing can be written."""
    if run.latest_checkpoint() is not None or run.backbone.exists():
        raise ResumeError(
            f"{run.path} holds a run already: continue it with --resume, or choose another --out"
        )
    if not is_writable(run.config_file):
        raise ConfigError(f"{run.path}: no run folder can be written there, choose another --out")


def _load(training: Training, state: dict[str, Any]) -> None:
    try:
        training.load_state_dict(state)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, ResumeError):
            raise
        why = textwrap.shorten(str(error), 300)  # torch's, of a module of the same class with other layers
        raise ResumeError(f"the checkpoint does not fit the backbone given: {why}") from error


def _open_folder(run: Run, plan: Plan, training: Training, initial: dict[str, torch.Tensor] | None) -> None:
    """``initial`` are the weights of a run that begins."""
    run.write_config(training.config.replaced(workers=plan.config.workers).as_dict())
    resumed = initial is None
    made_with = environment(plan, training.config, training.fabric, resumed)
    if resumed:
        made_with = gone_on(run.environment, made_with)
    run.write_json(run.environment_file, made_with)
    list_unreadable(run.unreadable_file, plan.splits.unreadable)
    if initial is not None:
        with atomic(run.initial, "wb") as stream:
            stream.write(save(initial))


def _opening_words(plan: Plan, training: Training) -> list[str]:
    splits, config, device = plan.splits, training.config, training.fabric.device
    views = f"{len(config.large_views)} clustered view(s) of {config.image_size} px"
    if config.small_views:
        views += f" and {len(config.small_views)} small"
    n_unreadable = len(splits.train.unreadable)
    unreadable = f", {n_unreadable} unreadable left out" if n_unreadable else ""
    precision = precision_on(config, device.type)
    computed = "" if precision == "32-true" else f", in {precision}"
    return [
        f"{splits.train.name}: {len(splits.train):,} images{unreadable}; {splits.note}",
        f"recipe {config.recipe}: {config.backbone}, {views}, {config.epochs} epochs on {device}{computed}",
        *plan.reasons,
    ]


def _continue(run: Run, training: Training, changed: list[str]) -> None:
    """The record goes on where the checkpoint stands; what was written after it will be written again."""
    epoch, step = training.epoch, training.step

    def before(record: dict[str, Any]) -> bool:
        then = record.get("epoch", 0), record.get("step", 0)
        return bool(then < (epoch, step) if record["kind"] in ("step", "event") else then[0] < epoch)

    if distributed.rank() == 0:
        run.cut_metrics(before)
    distributed.barrier()
    training.logbook.reopen()
    training.monitor.resume(run)
    what = f" ({'; '.join(changed)})" if changed else ""
    training.logbook.event(f"resumed at epoch {epoch}, step {step}{what}", epoch=epoch, step=step)


def write_outputs(run: Run, training: Training) -> None:
    """Backbone, clusters and assignments, from the first process."""
    if distributed.rank() != 0:
        return
    learner, images = training.learner, training.splits.train
    network = learner.network.module
    config = training.config
    seen = Preprocessing(config.image_size, config.mean, config.std)
    labels = learner.memory.labels
    outputs.write_clustering(
        run, network, learner.clusterings, labels, images, config, seconds=training.elapsed
    )
    write_projector(run.projector, network.projector)
    write_backbone(run.backbone, network.backbone, config.backbone, seen)  # last: with it a run is finished
    if config.continues and Run(config.continues).assignments.is_file():
        found = drift(read_earlier(Run(config.continues), config), run, images)
        run.write_json(run.drift_file, found)
        for text in drift_in_words(found):
            training.logbook.event(text, epoch=training.epoch)


def is_written(run: Run, training: Training) -> bool:
    """Whether the folder holds already what so many epochs leave: a resumption that found nothing to do."""
    files = (run.backbone, run.projector, run.clusters, run.assignments, run.report)
    return run.environment.get("finished_epochs") == training.epoch and all(file.is_file() for file in files)


def mark_written(run: Run, training: Training) -> None:
    """Keep with the run that it is whole."""
    run.write_json(run.environment_file, {**run.environment, "finished_epochs": training.epoch})
