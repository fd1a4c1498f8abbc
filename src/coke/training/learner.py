"""The method, one step at a time: read labels, assign, learn, update the clusters, write labels.

The label memory and the clusterings live outside the network and its DDP wrapper: every process holds the same
ones and updates them from the same gathered rows. The network is pure.
Shapes: b this process's rows, B all rows of the batch, D dimension, H heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from coke import distributed
from coke.method import LabelMemory, OnlineConstrainedKMeans
from coke.method.network import Network, Output
from coke.method.objective import Target
from coke.training.batch_norm import over_processes
from coke.training.batches import Batch
from coke.training.config import Config
from coke.training.health import OWN_ROWS, EpochFigures
from coke.training.schedule import Schedule, make_optimizer, set_learning_rate

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Learner:
    """Network, optimizer, clusterings and labels: all that a step reads and changes.

    Args:
        config: the configuration.
        backbone: f, on the host; ``n_features`` its width F.
        n_images: N.
        steps_per_epoch: of the schedule.
        fabric: launched.

    Attributes:
        clusterings: one `OnlineConstrainedKMeans` per head.
        memory: the `LabelMemory` of all heads.
        schedule: of the learning rate.
        figures: sums of the epoch for its record.
    """

    def __init__(
        self,
        config: Config,
        backbone: nn.Module,
        n_features: int,
        *,
        n_images: int,
        steps_per_epoch: int,
        fabric: Fabric,
    ) -> None:
        self.config, self.fabric, self.device = config, fabric, fabric.device
        predicts_rotation = config.objective.rotation > 0
        network: nn.Module = Network(backbone, n_features, config.dim, config.hidden, predicts_rotation)
        network = over_processes(network, self.device).to(memory_format=torch.channels_last)
        if config.compile:  # in place: the weights keep their names; batches have two sizes, views few kinds
            network.compile(dynamic=False)
        self.network, self.optimizer = fabric.setup(network, make_optimizer(network, config))
        self.clusterings = [
            OnlineConstrainedKMeans(
                n_clusters,
                config.dim,
                config.min_size_ratio,
                dual_lr,
                count_carry=config.count_carry,
            ).to(self.device)
            for n_clusters, dual_lr in zip(config.n_clusters, config.dual_lr, strict=True)
        ]
        self.memory = LabelMemory(n_images, config.n_clusters).to(self.device)
        self.schedule = Schedule(
            config.learning_rate,
            config.epochs,
            config.clustering_epochs,
            config.warmup_epochs,
            steps_per_epoch,
        )
        self.figures = EpochFigures(config.n_clusters, config.dim, self.device)
        self._sound = torch.ones((), device=self.device)  # 0 from the first step on that was not
        self._n_sound = torch.zeros((), device=self.device)

    def step(self, parts: list[Batch], train: bool) -> Tensor:
        """One batch, in parts that are all assigned under the state from before; returns the clusters' loss [].

        Without ``train`` it is a clustering pass: no loss (0), no backward, large views only.
        """
        ids = torch.cat([part.all_ids for part in parts]).to(self.device, non_blocking=True)
        old_labels = self.memory.read(ids)
        loss = torch.zeros((), device=self.device)
        features, labels = [], []
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            with torch.set_grad_enabled(train), self.fabric.no_backward_sync(self.network, not last):
                large, small = self._forward(part, train)
                mean = torch.stack([output.projection.detach() for output in large]).mean(dim=0)
                assigned = torch.stack([clustering.assign(mean) for clustering in self.clusterings], dim=1)
                if train:  # the mean over all rows: DDP takes the mean over processes
                    share = len(part.ids) * distributed.world_size() / len(ids)
                    loss += share * self._learn(part, large, small, share)
            features.append(distributed.gather_rows(mean, len(part.all_ids)))
            labels.append(distributed.gather_rows(assigned, len(part.all_ids)))
        if train:
            self._optimizer_step()
        self._update_clusters(ids, torch.cat(features), old_labels, torch.cat(labels))
        self._count_sound(loss)
        return loss

    def _forward(self, part: Batch, train: bool) -> tuple[list[Output], list[Output]]:
        n_large = len(self.config.large_views)
        first, *others = (
            view.contiguous(memory_format=torch.channels_last)
            for view in (part.views if train else part.views[:n_large])
        )
        turns = part.turns if train and self.config.objective.rotation > 0 else None
        outputs = [self.network(first, turns), *map(self.network, others)]
        return outputs[:n_large], outputs[n_large:]

    def _learn(self, part: Batch, large: list[Output], small: list[Output], share: float) -> Tensor:
        """The gradient of predicting last epoch's labels; the clusters' loss, detached."""
        frozen = [clustering.frozen_centers for clustering in self.clusterings]
        n_rows = len(part.all_ids)
        loss = self.config.objective(
            large, small, self._target(part), frozen, lambda own: distributed.gather_to_learn(own, n_rows)
        )
        self.fabric.backward(loss.value * share)
        self.figures.add_loss(loss.clusters, loss.agreement, share)
        return loss.clusters

    def _target(self, part: Batch) -> Target:
        ids = part.ids.to(self.device, non_blocking=True)
        target = self.config.objective.target(*self.memory.read_average(ids), self.memory.averaging)
        return target._replace(turns=part.turns)

    def _optimizer_step(self) -> None:
        set_learning_rate(self.optimizer, self.schedule.learning_rate)
        if self.config.clip_norm is not None:
            # whether gradients are finite is seen in the epoch's loss: to ask here would stall a GPU
            norm = self.config.clip_norm
            self.fabric.clip_gradients(self.network, self.optimizer, max_norm=norm, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.advance()

    def _update_clusters(self, ids: Tensor, features: Tensor, old_labels: Tensor, labels: Tensor) -> None:
        for clustering, head in zip(self.clusterings, labels.unbind(1), strict=True):
            clustering.update(features, head)
        self.memory.write(ids, labels)
        self.figures.add_labels(features, old_labels, labels)

    @torch.no_grad()
    def _count_sound(self, loss: Tensor) -> None:
        """Whether the step left finite numbers, without asking: a norm above 1.8e19 is none in float32 either."""
        network, optimizer = self.network.module, self.optimizer.state.values()
        state = [*network.parameters(), *network.buffers()]
        state += [value for of_one in optimizer for value in of_one.values() if isinstance(value, Tensor)]
        state += [clustering.centers for clustering in self.clusterings]
        norm = get_total_norm([value for value in state if value.is_floating_point() and value.dim()])
        self._sound *= torch.isfinite(norm + loss)
        self._n_sound += self._sound

    def sound_steps(self) -> int:
        """How many steps since the last call were sound, up to the first that was not: waits for the device."""
        count = int(self._n_sound)
        self._sound.fill_(1)
        self._n_sound.zero_()
        return count

    def begin_epoch(self, epoch: int) -> bool:
        """Enter stage 2 where the epoch belongs to it; True where it is the first that does."""
        averages = self.schedule.averages(epoch, self.config.averaging_share)
        first = averages and not self.memory.averaging
        if averages:
            self.memory.begin_averaging()
            for clustering in self.clusterings:
                clustering.begin_averaging()
        return first

    def end_epoch(self) -> dict[str, Any]:
        """Freeze the epoch's centers; the epoch's figures."""
        for clustering in self.clusterings:
            clustering.end_epoch()
            distributed.broadcast_state(clustering)
        for name in OWN_ROWS:
            self.figures.sums[name] = distributed.sum_over_processes(self.figures.sums[name])
        figures = self.figures.summary(self.config.min_size_ratio)
        self.figures = EpochFigures(self.config.n_clusters, self.config.dim, self.device)
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, numbers and text: everything that the next step depends on. Every process has to ask."""
        cuda = self.device.type == "cuda"
        return {
            "network": self.network.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "clusterings": [clustering.state_dict() for clustering in self.clusterings],
            "memory": self.memory.state_dict(),
            "schedule": self.schedule.state_dict(),
            "figures": self.figures.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if cuda else None},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a checkpoint's state back; the number of epochs is the caller's to set."""
        self.network.module.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        for clustering, saved in zip(self.clusterings, state["clusterings"], strict=True):
            clustering.load_state_dict(saved)
        self.memory.load_state_dict(state["memory"])
        self.schedule.load_state_dict(state["schedule"])
        self.figures.load_state_dict(state["figures"])
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda" and state["random"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["random"]["cuda"])
