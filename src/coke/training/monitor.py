"""The end of an epoch: figures, k-NN where there are labels, the verdict, and their records."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from coke import distributed
from coke.errors import CokeError, DataError
from coke.evaluation import extract, knn_accuracy, to_device
from coke.images import ImageSet, Splits
from coke.run import Run
from coke.training import health
from coke.training.batches import generator
from coke.training.config import Config
from coke.training.logbook import Logbook


class DivergedError(CokeError):
    """The loss is no longer a number: training on would change nothing."""


class Monitor:
    """Keeps the history that a verdict needs, and writes what each epoch adds to it."""

    def __init__(self, config: Config, splits: Splits, logbook: Logbook) -> None:
        self.config, self.logbook = config, logbook
        self.epochs: list[dict[str, Any]] = []
        self.knn: list[dict[str, Any]] = []
        self.bank = self.query = None
        if splits.bank is not None and splits.query is not None:
            self.bank = _at_most(splits.bank, config.knn_images, config.seed)
            self.query = _at_most(splits.query, max(config.knn_images // 5, 1), config.seed)

    def resume(self, run: Run) -> None:
        """Take the history of a run that is continued."""
        self.epochs, self.knn = run.metrics("epoch"), run.metrics("knn")

    def end_epoch(
        self,
        run: Run | None,
        backbone: nn.Module,
        figures: dict[str, Any],
        *,
        epoch: int,
        n_epochs: int,
        warmup_over: bool,
        steps_done: int,
        **times: float,
    ) -> health.Verdict:
        """Record an epoch. Raises `DivergedError` once the loss is not finite."""
        finite = figures["loss"] is None or math.isfinite(figures["loss"])
        after_clustering = epoch - self.config.clustering_epochs + 1
        wanted = (
            after_clustering == 0 or epoch + 1 == n_epochs or after_clustering % self.config.knn_every == 0
        )
        if finite and wanted and after_clustering >= 0:
            try:
                self._measure_knn(backbone, epoch, steps_done)
            except DataError as error:  # labels that k-NN cannot use must not cost the run
                self.logbook.event(f"no k-NN: {error}", step=steps_done, epoch=epoch)
                self.bank = None
        self.epochs.append({**figures, "epoch": epoch})
        verdict = health.judge(self.epochs, self.knn, warmup_over, self.config.objective.temperature)
        record = {"kind": "epoch", "epoch": epoch, **figures, **times, "verdict": asdict(verdict)}
        self.logbook.write(record, step=steps_done)
        self.logbook.epoch_line(record, n_epochs)
        if run is not None and distributed.rank() == 0:
            run.check_there()
            run.write_json(run.verdict_file, asdict(verdict))
        if not verdict.healthy:
            self.logbook.say(f"  {verdict}")
        if not finite:
            raise DivergedError(str(verdict))
        return verdict

    def stop(self, run: Run, n_steps: int, *, epoch: int, step: int) -> DivergedError:
        """The verdict on a run that stopped after so many steps in a row that were not finite, for raising."""
        trained = epoch >= self.config.clustering_epochs
        verdict = health.not_finite(n_steps, epoch, step, self.config.learning_rate if trained else None)
        if distributed.rank() == 0:
            run.write_json(run.verdict_file, asdict(verdict))
        return DivergedError(f"{verdict}; {run.capsule} has the images of that step and the state before it")

    def _measure_knn(self, backbone: nn.Module, epoch: int, steps_done: int) -> None:
        """Accuracy on a fixed sample; the first one, after the clustering pass, is the untrained network's."""
        if self.bank is None or self.query is None or distributed.rank() != 0:
            return
        assert self.bank.labels is not None
        assert self.query.labels is not None
        size = self.config.image_size
        bank = extract(backbone, self.bank, size=size, mean=self.config.mean, std=self.config.std)
        query = extract(backbone, self.query, size=size, mean=self.config.mean, std=self.config.std)
        bank = to_device(bank, next(backbone.parameters(), bank).device)
        accuracy = knn_accuracy(bank, self.bank.labels, query, self.query.labels, k=min(20, len(bank)))
        record = {"kind": "knn", "epoch": epoch, "accuracy": accuracy, "bank": len(bank), "query": len(query)}
        self.knn.append(record)
        self.logbook.write(record, step=steps_done)
        what = "untrained" if len(self.knn) == 1 else f"untrained {100 * self.knn[0]['accuracy']:.1f} %"
        self.logbook.say(
            f"  k-NN {100 * accuracy:.1f} % ({what}; {len(query):,} images asked of {len(bank):,})"
        )


def _at_most(images: ImageSet, n_images: int, seed: int) -> ImageSet:
    if len(images) <= n_images:
        return images
    chosen = torch.randperm(len(images), generator=generator(seed, "k-NN sample"))[:n_images]
    return images.subset(chosen.sort().values)
