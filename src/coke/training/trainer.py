"""The loop over epochs: batches into the learner, figures out of it, checkpoints, time and signals.

Lightning Fabric (devices, precision, processes) comes in launched: see `session`.
"""

from __future__ import annotations

import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from coke import distributed
from coke.errors import ConfigError
from coke.images import Splits
from coke.run import Run
from coke.training import checkpoint
from coke.training.batches import Batches
from coke.training.config import Config
from coke.training.interrupt import Interrupt
from coke.training.learner import Learner
from coke.training.logbook import Logbook
from coke.training.monitor import Monitor

if TYPE_CHECKING:
    from lightning_fabric import Fabric


_COARSE = 2  # epochs left from which on a slow first epoch is taken at its word


class Stopped(Exception):
    """The run was asked to stop; its checkpoint is written."""

    def __init__(self, signal_number: int, epoch: int, step: int) -> None:
        super().__init__(f"stopped at epoch {epoch}, step {step}; --resume continues exactly there")
        self.signal_number = signal_number


class Trainer:
    """A learner, the batches it is fed, and where the run stands.

    Args:
        config: the configuration.
        splits: the images; only ``splits.train`` is trained on.
        backbone: f, on the host; ``n_features`` its width.
        fabric: launched.
        logbook: where figures go.

    Attributes:
        epoch, step: what comes next.
        elapsed: seconds of training, over all resumptions.
    """

    def __init__(
        self,
        config: Config,
        splits: Splits,
        backbone: nn.Module,
        n_features: int,
        fabric: Fabric,
        logbook: Logbook,
    ) -> None:
        self.config, self.splits, self.logbook = config, splits, logbook
        self.batches = Batches(
            splits.train,
            [*config.large_views, *config.small_views],
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            mean=config.mean,
            std=config.std,
            seed=config.seed,
            workers=config.workers or 0,
            device=fabric.device,
        )
        self.learner = Learner(
            config,
            backbone,
            n_features,
            n_images=len(splits.train),
            steps_per_epoch=self.batches.n_steps,
            fabric=fabric,
        )
        self.monitor = Monitor(config, splits, logbook)
        self.epoch, self.step = 0, 0
        self.elapsed = 0.0
        self._timed: list[tuple[float, float]] = []  # of epochs that this process trained: their steps, all
        self._started = self._saved = time.monotonic()

    def fit(self, run: Run) -> None:
        """Train until the schedule completes. Raises `Stopped` after a signal, with a checkpoint written."""
        self._started, self._saved = time.monotonic() - self.elapsed, time.monotonic()
        self.learner.network.train()
        with Interrupt() as interrupt:
            while self.epoch < self.learner.schedule.n_epochs:
                self._run_epoch(run, interrupt)

    def _run_epoch(self, run: Run, interrupt: Interrupt) -> None:
        if self.learner.begin_epoch(self.epoch):
            text = f"epoch {self.epoch}: from here on centers and labels are averaged (stage 2)"
            self.logbook.event(text, epoch=self.epoch)
        train = self.epoch >= self.config.clustering_epochs
        began, waited, first_step = time.monotonic(), 0.0, self.step
        steps = self.batches.epoch(self.epoch, self.step)
        n_epochs = self.learner.schedule.n_epochs
        with self.logbook.epoch_bar(self.epoch, n_epochs, self.batches.n_steps, self.step) as advance:
            while self.step < self.batches.n_steps:
                asked = time.monotonic()
                parts = next(steps)
                waited += time.monotonic() - asked
                advance(self._log_step(self.learner.step(parts, train), train))
                self.step += 1
                if self.step < self.batches.n_steps:
                    self._stop_or_save(run, interrupt)
        seconds = time.monotonic() - began
        n_images = len(self.splits.train) * (self.batches.n_steps - first_step) / self.batches.n_steps
        self._end_epoch(
            run, seconds=seconds, data_wait=waited / seconds, images_per_second=n_images / seconds
        )
        self._stop_or_save(run, interrupt)

    def _stop_or_save(self, run: Run, interrupt: Interrupt) -> None:
        """Between two steps: save where it is due, and stop where a signal came to any process."""
        device = self.learner.device
        if device.type == "cuda" and distributed.world_size() > 1 and self.step % self.config.log_every:
            return  # to ask the others, the host would wait for the device after every step
        stop = distributed.any_process(interrupt.signal is not None, device)
        ended = self.step == 0
        finished = self.epoch >= self.learner.schedule.n_epochs
        late = time.monotonic() - self._saved > 60 * self.config.checkpoint_minutes
        late = distributed.any_process(late, device)  # clocks differ, and all must meet in `save`
        if stop or finished or late or (ended and self.epoch % self.config.checkpoint_epochs == 0):
            self.save(run)
        if stop and not finished:
            raise Stopped(interrupt.signal or 0, self.epoch, self.step)

    def _log_step(self, loss: Tensor, train: bool) -> float | None:
        if not train or self.step % self.config.log_every:
            return None
        value = float(distributed.sum_over_processes(loss)) / distributed.world_size()
        rate = self.learner.optimizer.param_groups[0]["lr"]
        where = {"epoch": self.epoch, "step": self.step}
        self.logbook.write(
            {"kind": "step", **where, "loss": value, "learning_rate": rate}, step=self._steps_done()
        )
        return value

    def _end_epoch(self, run: Run, **times: float) -> None:
        schedule = self.learner.schedule
        self.monitor.end_epoch(
            run,
            self.learner.network.module.backbone,
            self.learner.end_epoch(),
            epoch=self.epoch,
            n_epochs=schedule.n_epochs,
            warmup_over=schedule.trained_steps >= schedule.warmup_steps,
            steps_done=self._steps_done(),
            learning_rate=schedule.learning_rate,
            **times,
        )
        trained, began = self.epoch >= self.config.clustering_epochs, self.elapsed
        self.epoch, self.step = self.epoch + 1, 0
        self.elapsed = time.monotonic() - self._started
        if trained:
            self._timed.append((times["seconds"], self.elapsed - began))
        self._fit_into_time()

    def _fit_into_time(self) -> None:
        """Another number of epochs where by those behind `max_minutes` would pass early or late.

        The first epoch of a process compiles and warms up: it counts only while there is no other.
        """
        schedule, trained = self.learner.schedule, self.epoch - self.config.clustering_epochs
        if self.config.max_minutes is None or trained < 1:
            return
        if self._timed:
            per_epoch = _expected(self._timed[1:] or self._timed)
        else:  # resumed just now
            per_epoch = self.elapsed / (trained + self.config.clustering_epochs / 3)
        left = max(0, int((60 * self.config.max_minutes - self.elapsed) / per_epoch))
        planned = int(distributed.smallest(self.epoch + left, self.learner.device))
        planned = min(planned, self.config.epochs)
        if len(self._timed) == 1 and planned > self.epoch + _COARSE:
            return
        if planned < schedule.n_epochs or (self._timed[1:] and planned > 1.1 * schedule.n_epochs):
            text = f"max_minutes={self.config.max_minutes:g} allows {planned} epochs, not {schedule.n_epochs}"
            self.logbook.event(text, epoch=self.epoch - 1, step=self.batches.n_steps)
            schedule.n_epochs = planned

    def _steps_done(self) -> int:
        return self.epoch * self.batches.n_steps + self.step

    def save(self, run: Run) -> None:
        """Write a checkpoint of everything that the next step depends on."""
        self.elapsed, self._saved = time.monotonic() - self._started, time.monotonic()
        state = self.state_dict()
        if distributed.rank() == 0:
            checkpoint.save(run, state, epoch=self.epoch, step=self.step)
        distributed.barrier()

    def state_dict(self) -> dict[str, Any]:
        """The learner's state, what it belongs to, and the time it took."""
        train = self.splits.train
        return {
            **self.learner.state_dict(),
            "config": self.config.as_dict(),
            "data": {"fingerprint": train.fingerprint, "n_images": len(train)},
            "elapsed": self.elapsed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint (see `checkpoint.load` and `checkpoint.check_same`)."""
        self.learner.load_state_dict(state)
        self.epoch, self.step, self.elapsed = state["epoch"], state["step"], state["elapsed"]
        if all(getattr(self.config, key) == state["config"][key] for key in ("epochs", "max_minutes")):
            self.learner.schedule.n_epochs = int(state["schedule"]["n_epochs"])
        else:
            self.learner.schedule.start_over(self.config.epochs)
            if self.step == 0:  # within an epoch its end comes first
                self._fit_into_time()


def _expected(timed: list[tuple[float, float]]) -> float:
    """Seconds of an epoch to come, from those behind: (of its steps, with probes and records) each.

    The mean; but steps half as slow again as the fastest epoch's say that the machine has become slower.

    >>> _expected([(1.0, 1.0), (1.0, 2.0)]), _expected([(1.0, 1.0), (3.0, 3.0)])
    (1.5, 3.0)
    """
    steps = [seconds for seconds, _ in timed]
    beside = statistics.fmean(whole - seconds for seconds, whole in timed)
    return beside + (steps[-1] if steps[-1] > 1.5 * min(steps) else statistics.fmean(steps))


def seconds_per_epoch(trainer: Trainer, most_steps: int = 12) -> float:
    """Measured time of one training epoch, from a few steps of a trainer that is thrown away afterwards.

    The host waits for the device at the ends alone, as in an epoch. Raises `ConfigError` where the loss is not finite
    from the start.
    """
    trainer.learner.network.train()
    n_steps = min(most_steps, trainer.batches.n_steps)
    n_first = n_steps // 3  # they compile and warm up
    total = torch.zeros((), device=trainer.learner.device)
    began = time.monotonic()
    for number, parts in enumerate(
        itertools.islice(trainer.batches.epoch(trainer.config.clustering_epochs), n_steps)
    ):
        total += trainer.learner.step(parts, train=True)
        if number + 1 == n_first:
            total.item()
            began = time.monotonic()
    if not torch.isfinite(total):
        raise ConfigError(
            f"the loss is not finite in the first steps: lower learning_rate={trainer.config.learning_rate:g}, "
            f"or check the images and precision={trainer.config.precision}"
        )
    return (time.monotonic() - began) / (n_steps - n_first) * trainer.batches.n_steps
