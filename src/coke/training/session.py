"""From what was asked to a finished run folder: plan, start or resume, train, write."""

from __future__ import annotations

import copy
import csv
import os
import textwrap
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from rich.console import Console
from safetensors.torch import save
from torch import nn

from coke import distributed
from coke.errors import ConfigError, ResumeError
from coke.run import Run, atomic
from coke.training import checkpoint, outputs, weights
from coke.training.backbone import check_backbone, make_backbone
from coke.training.config import Config, Precision
from coke.training.environment import environment
from coke.training.logbook import Logbook
from coke.training.plan import Plan
from coke.training.trainer import Trainer, seconds_per_epoch


class Session:
    """A plan being carried out: processes started, network built, run folder open.

    Args:
        plan: from `make_plan`.
        run: the folder; None for a dry run, which writes nothing.
        backbone: the user's module; None builds the plan's.
        resume: continue the run in the folder.
        console: where people read; None is silent.
    """

    def __init__(
        self,
        plan: Plan,
        run: Run | None,
        *,
        backbone: nn.Module | None = None,
        resume: bool = False,
        console: Console | None = None,
    ) -> None:
        self.plan, self.run, self.config = plan, run, plan.config
        state = checkpoint.load(run) if resume and run is not None else None
        if run is not None and not resume:
            check_folder(run)
        self.fabric = make_fabric(self.config)
        if run is not None and not resume and distributed.rank() == 0:
            run.clear()
        self.config = self.config.replaced(workers=_workers(self.config, self.fabric.device))
        torch.manual_seed(self.config.seed)
        self.backbone = make_backbone(self.config) if backbone is None else backbone
        n_features = check_backbone(self.backbone, self.config)
        start = self._start_weights() if state is None else []
        changed: list[str] = []
        if state is not None:
            train = plan.splits.train
            changed = checkpoint.check_same(state, self.config, train.fingerprint, len(train))
        self._initial = None if state else copy.deepcopy(self.backbone.state_dict())
        self.logbook = Logbook(run, console, tensorboard=self.config.tensorboard)
        self.trainer = Trainer(self.config, plan.splits, self.backbone, n_features, self.fabric, self.logbook)
        if state is not None:
            self._load(state)
        if run is not None and distributed.rank() == 0:
            self._open_folder(run, state is not None)
        if state is not None and run is not None:
            self._resume(run, changed)
        else:
            for text in [*self._opening_words(), *start]:
                self.logbook.event(text)

    def _opening_words(self) -> list[str]:
        splits, config = self.plan.splits, self.config
        views = f"{len(config.large_views)} clustered view(s) of {config.image_size} px"
        if config.small_views:
            views += f" and {len(config.small_views)} small"
        unreadable = (
            f", {len(splits.train.unreadable)} unreadable left out" if splits.train.unreadable else ""
        )
        precision = _precision(config, self.fabric.device.type)
        computed = "" if precision == "32-true" else f", in {precision}"
        return [
            f"{splits.train.name}: {len(splits.train):,} images{unreadable}; {splits.note}",
            f"recipe {config.recipe}: {config.backbone}, {views}, {config.epochs} epochs "
            f"on {self.fabric.device}{computed}",
            *self.plan.reasons,
        ]

    def _start_weights(self) -> list[str]:
        return [weights.start_from(self.backbone, Path(self.config.init))] if self.config.init else []

    def _open_folder(self, run: Run, resumed: bool) -> None:
        run.write_config(self.config.replaced(workers=self.plan.config.workers).as_dict())
        made_with = environment(self.plan, self.config, self.fabric, resumed)
        if resumed:  # the first start decided: a resumed one finds every figure settled
            made_with["decisions"] = run.environment.get("decisions", made_with["decisions"])
        run.write_json(run.environment_file, made_with)
        self._list_unreadable(run)
        if not resumed:
            tensors = weights.own_tensors(self._initial or {})
            with atomic(run.initial, "wb") as stream:
                stream.write(save(tensors))
        self._initial = None

    def _list_unreadable(self, run: Run) -> None:
        splits = [images for images in (self.plan.splits.train, self.plan.splits.query) if images is not None]
        reasons = {image.key: image.reason for images in splits for image in images.unreadable}
        if reasons:
            with atomic(run.unreadable_file) as stream:
                csv.writer(stream).writerows([("key", "reason"), *reasons.items()])
        else:  # what another start may have left
            run.unreadable_file.unlink(missing_ok=True)

    def _load(self, state: dict[str, Any]) -> None:
        try:
            self.trainer.load_state_dict(state)
        except RuntimeError as error:  # torch's, of a module of the same class with other layers
            why = textwrap.shorten(str(error), 300)
            raise ResumeError(f"the checkpoint does not fit the backbone given: {why}") from error

    def _resume(self, run: Run, changed: list[str]) -> None:
        epoch, step = self.trainer.epoch, self.trainer.step
        if distributed.rank() == 0:
            run.cut_metrics(lambda r: _before(r, epoch, step))
        distributed.barrier()
        self.logbook.reopen()
        self.trainer.monitor.resume(run)
        what = f" ({'; '.join(changed)})" if changed else ""
        self.logbook.event(f"resumed at epoch {epoch}, step {step}{what}", epoch=epoch, step=step)

    def train(self) -> None:
        """Train until the schedule completes, cut to `max_minutes` where that is set."""
        assert self.run is not None
        trainer = self.trainer
        if self.config.max_minutes is not None and trainer.epoch == 0 and trainer.step == 0:
            epochs = self.epochs_in_time()
            if epochs < trainer.learner.schedule.n_epochs:
                asked = f"{self.config.epochs} epochs"
                self.logbook.event(f"max_minutes={self.config.max_minutes:g} allows {epochs} of {asked}")
                trainer.learner.schedule.n_epochs = epochs
        try:
            trainer.fit(self.run)
        finally:
            self.logbook.flush()

    def epochs_in_time(self) -> int:
        """How many epochs `max_minutes` allows. Raises `ConfigError` where not even one of training fits."""
        assert self.config.max_minutes is not None
        seconds = self.measure()
        clustering = self.config.clustering_epochs
        epochs = int(60 * self.config.max_minutes / seconds - clustering / 3) + clustering
        if epochs <= clustering:
            raise ConfigError(
                f"max_minutes={self.config.max_minutes:g} is too short: one epoch takes {seconds / 60:.2f} minutes"
            )
        epochs = min(epochs, self.trainer.learner.schedule.n_epochs)
        return int(distributed.smallest(epochs, self.fabric.device))

    def measure(self) -> float:
        """Seconds of a training epoch, measured on a copy that is thrown away."""
        random = torch.get_rng_state()
        backbone = copy.deepcopy(self.backbone).cpu()
        n_features = check_backbone(backbone, self.config)
        silent = Logbook(None, None, tensorboard=False)
        trial = Trainer(self.config, self.plan.splits, backbone, n_features, self.fabric, silent)
        seconds = seconds_per_epoch(trial)
        torch.set_rng_state(random)
        return seconds

    def write_outputs(self) -> None:
        """Backbone, clusters and assignments, from the first process."""
        if self.run is None or distributed.rank() != 0:
            return
        network, clusterings = self.trainer.learner.network.module, self.trainer.learner.clusterings
        weights.write_backbone(self.run.backbone, network.backbone, self.config)
        images = self.plan.splits.train
        counts = outputs.write_assignments(self.run, network, clusterings, images, self.config)
        outputs.write_clusters(self.run, clusterings, counts)

    def close(self) -> None:
        """Finish the files."""
        self.logbook.close()


def make_fabric(config: Config) -> Fabric:
    """Fabric, launched. Raises `ConfigError` for a device that is not there."""
    accelerator = config.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    under_torchrun = "LOCAL_RANK" in os.environ
    devices: int | str = config.devices
    if devices == "auto":
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if under_torchrun else 1
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")) if under_torchrun else 1,
            strategy=_strategy() if under_torchrun and int(os.environ.get("WORLD_SIZE", "1")) > 1 else "auto",
            precision=_precision(config, accelerator),
        )
        fabric.launch()
    except (RuntimeError, ValueError, ImportError) as error:  # lightning's own for a TPU's missing package
        raise ConfigError(
            f"accelerator={accelerator!r}, devices={devices!r} cannot be had: {error}"
        ) from error
    return fabric


def _strategy() -> DDPStrategy:
    """Batch norm's buffers are alike in all processes on GPUs, and on CPUs the first process's own are written.

    To send them round before each view would change what an earlier view's backward pass needs.
    """
    return DDPStrategy(broadcast_buffers=False)


def _precision(config: Config, device: str) -> Precision:
    """The configuration's; a CPU has no float16 to train in, and takes bfloat16."""
    return "bf16-mixed" if (device, config.precision) == ("cpu", "16-mixed") else config.precision


def _workers(config: Config, device: torch.device) -> int:
    if config.workers is not None:
        return config.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes on this machine
    return max(1, min(16, share - (device.type != "cpu")))


def check_folder(run: Run) -> None:
    """Raise `ResumeError` where a folder holds a run already, `ConfigError` where nothing can be written."""
    if run.latest_checkpoint() is not None or run.backbone.exists():
        raise ResumeError(
            f"{run.path} holds a run already: continue it with --resume, or choose another --out"
        )
    above = next(place for place in (run.path, *run.path.absolute().parents) if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{run.path}: no run folder can be written there, choose another --out")


def _before(record: dict[str, Any], epoch: int, step: int) -> bool:
    """Whether a record was written before the checkpoint at (epoch, step)."""
    if record["kind"] in ("step", "event"):
        return bool((record["epoch"], record["step"]) < (epoch, step))
    return bool(record["epoch"] < epoch)
