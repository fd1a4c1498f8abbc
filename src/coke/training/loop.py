"""A run from its first epoch to its last, read from top to bottom: batch, step, record, checkpoint.

    Training.fit             epochs, until the schedule completes
    Training.run_epoch        steps: `Batches` in, `Learner.step`, `Logbook` out
    Training._is_sound          every so many steps: what is not finite is taken back (`Guard`)
    Training._end_epoch        figures, k-NN and verdict (`Monitor`), epochs that still fit into `max_minutes`
    Training._save_or_stop     between two steps: a checkpoint where it is due, the end where a signal came

Lightning Fabric (devices, precision, processes) comes in launched: see `devices`.
"""

from __future__ import annotations

import copy
import itertools
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from coke import distributed
from coke.errors import ConfigError, ResumeError
from coke.images import Splits
from coke.interrupt import Interrupt
from coke.run import Run
from coke.training import checkpoint
from coke.training.batches import Batches
from coke.training.config import Config
from coke.training.guard import IN_A_ROW, Guard
from coke.training.learner import Learner
from coke.training.logbook import Logbook
from coke.training.monitor import Monitor
from coke.training.schedule import FEW_EPOCHS, TimeLimit, faster, too_short

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_TRIAL = 12  # steps that tell how long an epoch takes; the first third compiles and warms up


class Stopped(Exception):
    """The run was asked to stop; its checkpoint is written."""

    def __init__(self, signal_number: int, epoch: int, step: int) -> None:
        super().__init__(f"stopped at epoch {epoch}, step {step}; --resume continues exactly there")
        self.signal_number = signal_number


class Training:
    """A run under way: where it stands, its learner, and the batches that the learner is fed.

    Args:
        config: the configuration.
        splits: the images; only ``splits.train`` is trained on.
        seen: the same as training looks at them, for crops and k-NN: large ones shrunk (`coke.images.shrunk`).
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
        seen: Splits,
        backbone: nn.Module,
        n_features: int,
        fabric: Fabric,
        logbook: Logbook,
    ) -> None:
        self.config, self.splits, self.seen = config, splits, seen
        self.fabric, self.logbook = fabric, logbook
        self.batches = Batches(
            seen.train,
            [*config.large_views, *config.small_views],
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            mean=config.mean,
            std=config.std,
            seed=config.seed,
            workers=config.workers or 0,
            device=fabric.device,
        )
        n_images, n_steps = len(splits.train), self.batches.n_steps
        self.learner = Learner(
            config, backbone, n_features, n_images=n_images, steps_per_epoch=n_steps, fabric=fabric
        )
        self.schedule = self.learner.schedule
        self.guard = Guard(self.learner)
        self.monitor = Monitor(config, seen, logbook)
        self.epoch, self.step, self.elapsed = 0, 0, 0.0
        self._time_limit = None if config.max_minutes is None else TimeLimit(config.max_minutes)
        self._planned = False  # whether the schedule has the epochs that fit into the time
        self._started = self._saved = time.monotonic()

    def fit(self, run: Run) -> None:
        """Train until the schedule completes. Raises `Stopped` after a signal, with a checkpoint written."""
        self.limit_time()
        if self.elapsed > 0:
            self.logbook.event(self.left(), epoch=self.epoch, step=self.step)
        self._started, self._saved = time.monotonic() - self.elapsed, time.monotonic()
        self.learner.network.train()
        try:
            with Interrupt() as interrupt, distributed.naming_the_lost(self._place):
                while self.epoch < self.schedule.n_epochs:
                    self.run_epoch(run, interrupt)
        finally:
            self.logbook.flush()

    def _place(self) -> str:
        return f" at epoch {self.epoch}, step {self.step}"

    def run_epoch(self, run: Run, interrupt: Interrupt) -> None:
        """The steps of an epoch that are left, and its end. Raises `Stopped` after a signal."""
        if self.learner.begin_epoch(self.epoch):
            text = f"epoch {self.epoch}: from here on centers and labels are averaged (stage 2)"
            self.logbook.event(text, epoch=self.epoch)
        train, n_steps = self.epoch >= self.config.clustering_epochs, self.batches.n_steps
        began, waited, first_step, place = time.monotonic(), 0.0, self.step, -1
        self.guard.begin(first_step)
        with self.logbook.epoch_bar(self.epoch, self.schedule.n_epochs, n_steps, first_step) as advance:
            while self.step < n_steps:
                if place != self.step:  # at first, and where steps were taken back
                    batches = self.batches.epoch(self.epoch, self.step)
                asked = time.monotonic()
                parts = next(batches)
                waited += time.monotonic() - asked
                loss = self.learner.step(parts, train)
                self.step = place = self.step + 1
                record = (self.step - 1) % self.config.log_every == 0
                look = record or self.step == n_steps or self.guard.wants_a_look(self.step)
                if look and not self._is_sound(run):
                    continue
                advance(self._record_step(loss) if train and record else None)
                if self.step < n_steps:
                    self._save_or_stop(run, interrupt)
        seconds = time.monotonic() - began
        images = len(self.splits.train) * (n_steps - first_step) / n_steps
        self._end_epoch(run, seconds=seconds, data_wait=waited / seconds, images_per_second=images / seconds)
        self._save_or_stop(run, interrupt)

    def _is_sound(self, run: Run) -> bool:
        """Whether all steps up to here left finite numbers; if not, goes back to where to go on.

        Raises `DivergedError`, with a capsule written, once so many in a row did not.
        """
        before, skipped = self.step, self.guard.skipped
        self.step = self.guard.look(before)
        if self.guard.skipped == skipped:  # all are sound, or some are done again
            return self.step == before
        epoch, step = self.epoch, self.step - 1
        text = f"epoch {epoch}, step {step}: numbers were not finite, the step is skipped"
        self.logbook.event(f"{text} ({self.guard.skipped:,} in all)", epoch=epoch, step=step)
        if self.guard.in_a_row >= min(IN_A_ROW, self.batches.n_steps):
            keys = [self.splits.train.keys[number] for number in self.batches.order(epoch)[step].tolist()]
            if distributed.rank() == 0:
                state = {**self._state(self.guard.state), "keys": keys}
                checkpoint.write(run.capsule, state, epoch=epoch, step=step)
            raise self.monitor.stop(run, self.guard.in_a_row, epoch=epoch, step=step)
        return False

    def _record_step(self, loss: Tensor) -> float | None:
        """The loss over all processes, every so many steps: to ask oftener would stall a GPU."""
        value = float(distributed.sum_over_processes(loss)) / distributed.world_size()
        rate = self.learner.optimizer.param_groups[0]["lr"]
        where = {"epoch": self.epoch, "step": self.step - 1}
        record = {"kind": "step", **where, "loss": value, "learning_rate": rate}
        self.logbook.write(record, step=self._steps_done())
        return value

    def _end_epoch(self, run: Run, **times: float) -> None:
        self.monitor.end_epoch(
            run,
            self.learner.network.module.backbone,
            self.learner.end_epoch(),
            epoch=self.epoch,
            n_epochs=self.schedule.n_epochs,
            warmup_over=self.schedule.trained_steps >= self.schedule.warmup_steps,
            steps_done=self._steps_done(),
            learning_rate=self.schedule.learning_rate,
            skipped=self.guard.skipped,
            **times,
        )
        trained, before = self.epoch >= self.config.clustering_epochs, self.elapsed
        self.epoch, self.step = self.epoch + 1, 0
        self.elapsed = time.monotonic() - self._started
        if self._time_limit is not None and trained:
            self._time_limit.add(times["seconds"], self.elapsed - before)
            self._fit_into_time(self._time_limit)
        elif self._time_limit is None and self.epoch == self.config.clustering_epochs + 1:
            self.logbook.event(self.forecast(times["seconds"]), epoch=self.epoch - 1)

    def _save_or_stop(self, run: Run, interrupt: Interrupt) -> None:
        device = self.fabric.device
        if device.type == "cuda" and distributed.world_size() > 1 and self.step % self.config.log_every:
            return  # to ask the others, the host would wait for the device after every step
        stop = distributed.any_process(interrupt.signal is not None, device)
        ended = self.step == 0
        finished = self.epoch >= self.schedule.n_epochs
        late = time.monotonic() - self._saved > 60 * self.config.checkpoint_minutes
        late = distributed.any_process(late, device)  # clocks differ, and all must meet in `save`
        due = late or (ended and self.epoch % self.config.checkpoint_epochs == 0)
        if not ended and (stop or due) and not self._is_sound(run):
            return
        if stop or finished or (due and self.guard.in_a_row == 0):
            self.save(run)
        if stop and not finished:
            raise Stopped(interrupt.signal or 0, self.epoch, self.step)

    def _steps_done(self) -> int:
        return self.epoch * self.batches.n_steps + self.step

    def limit_time(self) -> float | None:
        """Where `max_minutes` is set: time a trial, and plan as many epochs as it says that fit.

        Returns the seconds of an epoch of training.

        Raises `ConfigError` where not even one epoch of training fits into a new run's minutes.
        """
        if self._time_limit is None or self.epoch >= self.schedule.n_epochs:
            return None
        seconds = self.measure()
        if (
            FEW_EPOCHS * seconds > 60 * self._time_limit.minutes
        ):  # a moment of a busy machine shall not decide
            seconds = min(seconds, self.measure(), self.measure())
        self._time_limit.add(seconds, seconds)
        if not self._planned:
            self._fit_into_time(self._time_limit)
        if self.elapsed == 0:
            if self.schedule.n_epochs <= self.config.clustering_epochs:
                raise ConfigError(too_short(self.config, seconds))
            self.logbook.event(self.forecast(seconds))
        return seconds

    def forecast(self, seconds: float) -> str:
        """How long the run takes by the seconds of one epoch of training."""
        epochs, threads = self.schedule.n_epochs, torch.get_num_threads()
        total = seconds * (epochs - self.config.clustering_epochs * 2 / 3)
        return (
            f"time: {seconds:.1f} s per epoch measured on {self.fabric.device} ({threads} threads), "
            f"{epochs} epochs in about {total / 60:.1f} minutes, probes not counted"
        )

    def left(self) -> str:
        """What a resumed run has still to do, and how to have it do more."""
        asked, planned = self.config.epochs, self.schedule.n_epochs
        if self.epoch < planned:
            return f"{planned - self.epoch} of {planned} epochs are left"
        if planned < asked and self._time_limit is not None:
            spent = f"max_minutes={self._time_limit.minutes:g} is spent after {self.epoch} of {asked} epochs"
            return f"nothing is left to do: {spent}; more minutes go on"
        return f"nothing is left to do: all {self.epoch} epochs are done; more of them, as epochs={2 * asked}, go on"

    def _fit_into_time(self, limit: TimeLimit) -> None:
        clustering = max(0, self.config.clustering_epochs - self.epoch)
        begun = 1 if self.step > 0 and clustering == 0 else 0  # what was begun is ended
        left = max(begun, limit.epochs_left(self.elapsed, clustering))
        planned = int(distributed.smallest(self.epoch + clustering + left, self.fabric.device))
        planned = min(planned, self.config.epochs)
        before = self.schedule.n_epochs
        if limit.worth_a_change(before, planned, self.epoch):
            text = f"max_minutes={limit.minutes:g} allows {planned} of {self.config.epochs} epochs"
            text += f", not {before}" if before < self.config.epochs else ""
            if self.elapsed == 0 and planned < min(FEW_EPOCHS, self.config.epochs):
                text += f": too few to learn much; more fit with {faster(self.config)}"
            self.logbook.event(text, epoch=self.epoch, step=self.step)
            self.schedule.n_epochs = planned

    def measure(self) -> float:
        """Seconds of a training epoch, by a few steps, after which everything is put back as it was.

        The host waits for the device at the ends alone, as in an epoch. Raises `ConfigError` where the loss is not
        finite from the start.
        """
        before = copy.deepcopy(self.learner.state_dict())
        self.learner.network.train()
        n_steps = min(_TRIAL, self.batches.n_steps)
        total = torch.zeros((), device=self.fabric.device)
        epoch = self.batches.epoch(self.config.clustering_epochs)
        try:
            began = time.monotonic()
            for number, parts in enumerate(itertools.islice(epoch, n_steps), 1):
                total += self.learner.step(parts, train=True)
                if number == n_steps // 3:
                    total.item()
                    began = time.monotonic()
            if distributed.smallest(self.learner.sound_steps(), self.fabric.device) < n_steps:
                raise ConfigError(
                    "the loss is not finite in the first steps: lower "
                    f"learning_rate={self.config.learning_rate:g}, or check the images and "
                    f"precision={self.config.precision}"
                )
            seconds = time.monotonic() - began
        finally:
            self.learner.load_state_dict(before)
        return seconds / (n_steps - n_steps // 3) * self.batches.n_steps

    def save(self, run: Run) -> None:
        """Write a checkpoint of everything that the next step depends on."""
        self.elapsed, self._saved = time.monotonic() - self._started, time.monotonic()
        state = self._state(self.learner.state_dict())
        if distributed.rank() == 0:
            run.check_there()
            checkpoint.save(run, state, epoch=self.epoch, step=self.step)
        distributed.barrier()

    def _state(self, learned: dict[str, Any]) -> dict[str, Any]:
        train = self.splits.train
        return {
            **learned,
            "guard": self.guard.state_dict(),
            "processes": distributed.world_size(),
            "steps_per_epoch": self.batches.n_steps,
            "config": self.config.as_dict(),
            "data": {"fingerprint": train.fingerprint, "n_images": len(train)},
            "elapsed": self.elapsed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint (see `checkpoint.load` and `checkpoint.check_same`).

        Where other epochs or minutes are asked than the run's, its schedule is laid out anew. Raises `ResumeError` for
        fewer epochs than are done.
        """
        done = state["epoch"] + (state["step"] > 0)
        if self.config.epochs < done:
            raise ResumeError(
                f"epochs={self.config.epochs} is fewer than the {done} that are done or begun: "
                f"leave it out, or end the run there with epochs={done}"
            )
        self.learner.load_state_dict(state)
        self.guard.load_state_dict(state.get("guard", self.guard.state_dict()))  # none in older ones
        self.epoch, self.step, self.elapsed = state["epoch"], state["step"], state["elapsed"]
        if all(getattr(self.config, key) == state["config"][key] for key in ("epochs", "max_minutes")):
            self.schedule.n_epochs, self._planned = int(state["schedule"]["n_epochs"]), True
        else:
            self.schedule.start_over(self.config.epochs)
