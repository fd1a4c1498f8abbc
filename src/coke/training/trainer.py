"""The training loop. One step reads labels, assigns, updates the clusters, writes labels, and learns.

Devices, precision and processes are Lightning Fabric's business, which is imported here and nowhere else.
The label memory and the clusterings live outside the network and its DDP wrapper: every process holds the same
ones and updates them from the same gathered rows.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from coke import distributed
from coke.clustering import LabelMemory, OnlineConstrainedKMeans
from coke.data import Splits
from coke.errors import ConfigError
from coke.run import Run
from coke.training import checkpoint, health
from coke.training.batches import Batch, Batches
from coke.training.config import Config
from coke.training.interrupt import Interrupt
from coke.training.logbook import Logbook
from coke.training.monitor import Monitor
from coke.training.network import Network, Output
from coke.training.optim import Schedule, make_optimizer, set_learning_rate


class Stopped(Exception):  # noqa: N818 not an error: the user asked for it
    """The run was asked to stop; its checkpoint is written."""

    def __init__(self, signal_number: int, epoch: int, step: int) -> None:
        super().__init__(f"stopped at epoch {epoch}, step {step}; --resume continues exactly there")
        self.signal_number = signal_number


class Trainer:
    """All the state of a run, and the loop over it.

    Args:
        config: without any ``auto`` left.
        splits: the images; only ``splits.train`` is trained on.
        backbone: f, on the host.
        n_features: F of the backbone.
        fabric: launched.
        logbook: where figures go.
    """

    def __init__(
        self, config: Config, splits: Splits, backbone: nn.Module, n_features: int, fabric: Fabric, logbook: Logbook
    ) -> None:
        assert not isinstance(config.n_clusters, str)
        assert isinstance(config.dual_lr, tuple)
        assert isinstance(config.epochs, int)
        assert isinstance(config.batch_size, int)
        self.config, self.splits, self.fabric, self.logbook = config, splits, fabric, logbook
        network = Network(backbone, n_features, config.dim, config.hidden)
        if distributed.world_size() > 1:
            if fabric.device.type == "cuda":
                network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        if fabric.device.type == "cuda" or config.image_size >= 16:
            network = network.to(memory_format=torch.channels_last)
        optimizer = make_optimizer(network, config)
        self.network, self.optimizer = fabric.setup(network, optimizer)
        self.clusterings = nn.ModuleList(
            OnlineConstrainedKMeans(
                n_clusters,
                config.dim,
                config.min_size_ratio,
                dual_lr,
                count_carry=config.count_carry,
            )
            for n_clusters, dual_lr in zip(config.n_clusters, config.dual_lr, strict=True)
        ).to(fabric.device)
        self.memory = LabelMemory(len(splits.train), config.n_clusters, config.label_slots).to(fabric.device)
        self.batches = make_batches(config, splits, fabric.device)
        self.schedule = Schedule(
            float(config.learning_rate),
            config.epochs,
            config.clustering_epochs,
            config.warmup_epochs,
            self.batches.n_steps,
        )
        if config.dual_decay_epochs is not None:
            for clustering in self.clusterings:
                clustering.dual_decay_updates = config.dual_decay_epochs * self.batches.n_steps
        self.figures = self._new_figures()
        self.monitor = Monitor(config, splits, logbook)
        self.epoch, self.step = 0, 0  # what comes next
        self.elapsed = 0.0

    # -- the method ------------------------------------------------------------------------------------------

    def train_step(self, parts: list[Batch], train: bool) -> tuple[Tensor, Tensor]:
        """One step: read labels, assign, learn; then update the clusters and write labels.

        A step that is handed out in parts assigns all of them under the state from before the step.
        """
        loss_sum, agreement_sum = torch.zeros((), device=self.fabric.device), torch.zeros((), device=self.fabric.device)
        features, old_labels, new_labels = [], [], []
        n_rows = sum(len(part.all_ids) for part in parts)
        for index, part in enumerate(parts):
            ids = part.ids.to(self.fabric.device, non_blocking=True)
            old_labels.append(self.memory.read(ids))
            target = self._target(ids)
            with torch.set_grad_enabled(train), self.fabric.no_backward_sync(self.network, index < len(parts) - 1):
                large, small = self._forward(part, train)
                mean = torch.stack([output.projection.detach() for output in large]).mean(dim=0)
                features.append(distributed.gather_rows(mean, len(part.all_ids)))
                labels = torch.stack([clustering.assign(mean) for clustering in self.clusterings], dim=1)
                new_labels.append(distributed.gather_rows(labels, len(part.all_ids)))
                if train:
                    loss = self.config.objective(large, small, target, self._frozen_centers())
                    share = len(part.ids) * distributed.world_size() / n_rows  # DDP averages over processes
                    self.fabric.backward(loss.value * share)
                    loss_sum += loss.value.detach() * share
                    agreement_sum += loss.agreement * share
        if train:
            self._optimizer_step()
        self._update(parts, torch.cat(features), torch.cat(old_labels), torch.cat(new_labels))
        return loss_sum, agreement_sum

    def _forward(self, part: Batch, train: bool) -> tuple[list[Output], list[Output]]:
        n_large = len(self.config.large_views)
        wanted = part.views if train else part.views[:n_large]  # the clustering pass needs the large ones only
        outputs = [self.network(view.contiguous(memory_format=torch.channels_last)) for view in wanted]
        return outputs[:n_large], outputs[n_large:]

    def _target(self, ids: Tensor) -> Any:
        return self.config.objective.target(*self.memory.read_average(ids), averaging=self.memory.averaging)

    def _frozen_centers(self) -> list[Tensor]:
        return [clustering.frozen_centers for clustering in self.clusterings]

    def _optimizer_step(self) -> None:
        set_learning_rate(self.optimizer, self.schedule.learning_rate)
        if self.config.clip_norm is not None:
            self.fabric.clip_gradients(self.network, self.optimizer, max_norm=self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.advance()

    def _update(self, parts: list[Batch], features: Tensor, own_old: Tensor, labels: Tensor) -> None:
        all_ids = torch.cat([part.all_ids for part in parts]).to(self.fabric.device, non_blocking=True)
        old = self.memory.read(all_ids) if distributed.world_size() > 1 else own_old
        for clustering, head in zip(self.clusterings, labels.unbind(1), strict=True):
            clustering.update(features, head)
        self.memory.write(all_ids, labels)
        self.figures.add_labels(features, old, labels)

    # -- the loop --------------------------------------------------------------------------------------------

    def fit(self, run: Run) -> None:
        """Train until the schedule completes. Raises `Stopped` after a signal, with a checkpoint written."""
        self.network.train()
        with Interrupt() as interrupt:
            started = time.monotonic() - self.elapsed
            last_saved = time.monotonic()
            while self.epoch < self.schedule.n_epochs:
                last_saved = self._run_epoch(run, interrupt, started, last_saved)
            self.elapsed = time.monotonic() - started

    def _run_epoch(self, run: Run, interrupt: Interrupt, started: float, last_saved: float) -> float:
        self._begin_epoch()
        train = self.epoch >= self.config.clustering_epochs
        began, waited, first_step = time.monotonic(), 0.0, self.step
        steps = self.batches.epoch(self.epoch, self.step)
        with self.logbook.epoch_bar(self.epoch, self.schedule.n_epochs, self.batches.n_steps, self.step) as advance:
            while self.step < self.batches.n_steps:
                asked = time.monotonic()
                parts = next(steps)
                waited += time.monotonic() - asked
                advance(self._log_step(*self.train_step(parts, train), train))
                self.step += 1
                stop = distributed.any_process(interrupt.signal is not None, self.fabric.device)
                due = time.monotonic() - last_saved > 60 * self.config.checkpoint_minutes
                if (stop or due) and self.step < self.batches.n_steps:
                    self.elapsed, last_saved = time.monotonic() - started, time.monotonic()
                    self.save(run)
                if stop and self.step < self.batches.n_steps:
                    raise Stopped(interrupt.signal or 0, self.epoch, self.step)
        seconds = time.monotonic() - began
        n_images = len(self.splits.train) * (self.batches.n_steps - first_step) / self.batches.n_steps
        self._end_epoch(run, seconds=seconds, data_wait=waited / seconds, images_per_second=n_images / seconds)
        self.elapsed = time.monotonic() - started
        self._fit_into_time()
        finished = self.epoch >= self.schedule.n_epochs
        if stop or finished or self.epoch % self.config.checkpoint_epochs == 0:
            self.save(run)
            last_saved = time.monotonic()
        if stop and not finished:
            raise Stopped(interrupt.signal or 0, self.epoch, self.step)
        return last_saved

    def _begin_epoch(self) -> None:
        if self.step == 0 and self.schedule.averages(self.epoch, self.config.averaging_share):
            if not self.memory.averaging:
                text = f"epoch {self.epoch}: from here on centers and labels are averaged (stage 2)"
                self.logbook.event(text, step=self._steps_done(), epoch=self.epoch)
            self.memory.begin_averaging()
            for clustering in self.clusterings:
                clustering.begin_averaging()

    def _log_step(self, loss: Tensor, agreement: Tensor, train: bool) -> float | None:
        if not train:
            return None
        self.figures.add_loss(loss, agreement)
        if self.step % self.config.log_every:
            return None
        value = float(distributed.sum_over_processes(loss)) / distributed.world_size()
        rate = self.optimizer.param_groups[0]["lr"]
        record = {"kind": "step", "epoch": self.epoch, "step": self.step, "loss": value, "learning_rate": rate}
        self.logbook.write(record, step=self._steps_done())
        return value

    def _end_epoch(self, run: Run, **times: float) -> None:
        for clustering in self.clusterings:
            clustering.end_epoch()
            distributed.broadcast_state(clustering)
        self.monitor.end_epoch(
            run,
            self.network.module.backbone,
            self.figures.summary(self.config.min_size_ratio),
            epoch=self.epoch,
            n_epochs=self.schedule.n_epochs,
            warmup_over=self.schedule.trained_steps >= self.schedule.warmup_steps,
            steps_done=self._steps_done(),
            learning_rate=self.schedule.learning_rate,
            **times,
        )
        self.figures = self._new_figures()
        self.epoch, self.step = self.epoch + 1, 0

    def _fit_into_time(self) -> None:
        """Fewer epochs where `max_minutes` would pass before the schedule completes."""
        done = self.epoch - self.config.clustering_epochs
        if self.config.max_minutes is None or done < 1:
            return
        per_epoch = self.elapsed / (done + self.config.clustering_epochs / 3)
        left = int((60 * self.config.max_minutes - self.elapsed) / per_epoch)
        planned = min(self.schedule.n_epochs, self.epoch + max(left, 0))
        planned = int(distributed.smallest(planned, self.fabric.device))
        if planned < self.schedule.n_epochs:
            text = (
                f"{self.schedule.n_epochs} epochs would take longer than max_minutes="
                f"{self.config.max_minutes:g}: {planned} now"
            )
            self.logbook.event(text, step=self._steps_done(), epoch=self.epoch)
            self.schedule.n_epochs = planned

    def _steps_done(self) -> int:
        return self.epoch * self.batches.n_steps + self.step

    def _new_figures(self) -> health.EpochFigures:
        assert not isinstance(self.config.n_clusters, str)
        return health.EpochFigures(self.config.n_clusters, self.config.dim, self.fabric.device)

    # -- stopping and resuming -------------------------------------------------------------------------------

    def save(self, run: Run) -> None:
        """Write a checkpoint of everything that the next step depends on."""
        if distributed.rank() == 0:
            checkpoint.save(run, self.state_dict(), epoch=self.epoch, step=self.step, keep=self.config.keep_checkpoints)
        distributed.barrier()

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, numbers and text."""
        cuda = self.fabric.device.type == "cuda"
        return {
            "config": self.config.as_dict(),
            "data": {"fingerprint": self.splits.train.fingerprint, "n_images": len(self.splits.train)},
            "network": self.network.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "clusterings": self.clusterings.state_dict(),
            "memory": self.memory.state_dict(),
            "schedule": self.schedule.state_dict(),
            "figures": self.figures.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if cuda else None},
            "elapsed": self.elapsed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint (see `checkpoint.load` and `checkpoint.check_same`)."""
        self.network.module.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        self.clusterings.load_state_dict(state["clusterings"])
        self.memory.load_state_dict(state["memory"])
        self.schedule.load_state_dict(state["schedule"])
        if self.config.epochs == state["config"]["epochs"]:  # else as asked now
            self.schedule.n_epochs = int(state["schedule"]["n_epochs"])
        self.figures.load_state_dict(state["figures"])
        self.epoch, self.step, self.elapsed = state["epoch"], state["step"], state["elapsed"]
        torch.set_rng_state(state["random"]["cpu"])
        if self.fabric.device.type == "cuda" and state["random"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["random"]["cuda"])


def make_batches(config: Config, splits: Splits, device: torch.device) -> Batches:
    """The batches of a configuration."""
    assert isinstance(config.batch_size, int)
    assert isinstance(config.workers, int)
    assert not isinstance(config.mean, str)
    assert not isinstance(config.std, str)
    return Batches(
        splits.train,
        [*config.large_views, *config.small_views],
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        mean=config.mean,
        std=config.std,
        seed=config.seed,
        workers=config.workers,
        device=device,
    )


def seconds_per_epoch(trainer: Trainer, most_steps: int = 12) -> float:
    """Measured time of one training epoch, from a few steps of a trainer that is thrown away afterwards.

    Raises `ConfigError` where not even one step fits (out of memory is passed on as it is).
    """
    trainer.network.train()
    steps = trainer.batches.epoch(trainer.config.clustering_epochs)
    times = []
    for _ in range(min(most_steps, trainer.batches.n_steps)):
        began = time.monotonic()
        loss, _ = trainer.train_step(next(steps), train=True)
        if not torch.isfinite(loss):
            raise ConfigError("the loss is not finite in the first steps: check the images and the precision")
        times.append(time.monotonic() - began)
    settled = sorted(times[len(times) // 3 :])
    return settled[len(settled) // 2] * trainer.batches.n_steps

