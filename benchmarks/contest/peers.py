"""The field's methods on the same backbone, views, optimizer and schedule; their losses are lightly's.

Heads follow the papers, with hidden layers as wide as the backbone's features where a paper has 2,048 for a
ResNet-50. Supervised training stands among them as the ceiling.
Shapes: B batch, F backbone features, D = 128.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from coke.training.batches import Batch
from coke.training.config import Config
from coke.training.schedule import Schedule, make_optimizer, set_learning_rate

if TYPE_CHECKING:
    from lightning_fabric import Fabric

DIM = 128


def _mlp(*widths: int, last_norm: bool = False) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=not last_norm))
    return nn.Sequential(*layers, *([nn.BatchNorm1d(widths[-1])] if last_norm else []))


class Method(nn.Module):
    """A backbone with a head, and the loss of a step: ``criterion`` of both views' projections, or a method's own."""

    projector: nn.Module
    criterion: nn.Module

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, views: Sequence[Tensor]) -> Any:
        """What the loss is made of; each view is a pass of its own."""
        return [self.projector(self.backbone(view)) for view in views]

    def loss(self, outputs: Any, ids: Tensor) -> Tensor:
        """From what ``forward`` gave, in float32."""
        return self.criterion(*outputs)

    def after_step(self, progress: float) -> None:
        """Once per optimizer step; progress runs from 0 to 1."""


class SimCLR(Method):
    """Two views against the rest of the batch (arXiv 2002.05709)."""

    def __init__(self, backbone: nn.Module, n_features: int, temperature: float = 0.2) -> None:
        super().__init__(backbone)
        from lightly.loss import NTXentLoss

        self.projector = _mlp(n_features, n_features, DIM)
        self.criterion = NTXentLoss(temperature)


class MoCo(Method):
    """A query against a key of a slow copy, with a queue of keys (v2, arXiv 2003.04297)."""

    def __init__(
        self,
        backbone: nn.Module,
        n_features: int,
        temperature: float = 0.2,
        momentum: float = 0.99,
        queue: int = 4096,
    ) -> None:
        super().__init__(backbone)
        from lightly.loss import NTXentLoss

        self.projector = _mlp(n_features, n_features, DIM)
        self.slow = _slow_copy(nn.Sequential(backbone, self.projector))
        self.momentum = momentum
        self.criterion = NTXentLoss(temperature, memory_bank_size=(queue, DIM))

    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():  # shuffled, so that batch norm does not tell a query's key from the others
            order = torch.randperm(len(views[1]), device=views[1].device)
            key = self.slow(views[1][order])[order.argsort()]
        return [self.projector(self.backbone(views[0])), key]

    def after_step(self, progress: float) -> None:
        _follow(self.slow, nn.Sequential(self.backbone, self.projector), self.momentum)


class BYOL(Method):
    """Each view predicts the other's slow projection (arXiv 2006.07733)."""

    def __init__(self, backbone: nn.Module, n_features: int, momentum: float = 0.99) -> None:
        super().__init__(backbone)
        self.projector = _mlp(n_features, 4 * n_features, DIM)
        self.predictor = _mlp(DIM, 4 * n_features, DIM)
        self.slow = _slow_copy(nn.Sequential(backbone, self.projector))
        self.momentum = momentum

    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            targets = [self.slow(view) for view in views]
        return [*(self.predictor(self.projector(self.backbone(view))) for view in views), *targets]

    def loss(self, outputs: Any, ids: Tensor) -> Tensor:
        from lightly.loss import NegativeCosineSimilarity

        first, second, first_target, second_target = outputs
        distance = NegativeCosineSimilarity()
        return distance(first, second_target) + distance(second, first_target)

    def after_step(self, progress: float) -> None:
        momentum = 1 - (1 - self.momentum) * (math.cos(math.pi * progress) + 1) / 2
        _follow(self.slow, nn.Sequential(self.backbone, self.projector), momentum)


class BarlowTwins(Method):
    """Decorrelated features of two views (arXiv 2103.03230)."""

    def __init__(self, backbone: nn.Module, n_features: int, trade_off: float = 0.005) -> None:
        super().__init__(backbone)
        from lightly.loss import BarlowTwinsLoss

        width = 4 * n_features
        self.projector = _mlp(n_features, width, width, width)
        self.criterion = BarlowTwinsLoss(lambda_param=trade_off)


class SwAV(Method):
    """Swapped prediction of balanced codes (arXiv 2006.09882), with its queue from a third of training on."""

    def __init__(
        self, backbone: nn.Module, n_features: int, prototypes: int = 512, queue: int = 3840
    ) -> None:
        super().__init__(backbone)
        from lightly.loss import SwaVLoss

        self.projector = _mlp(n_features, n_features, DIM)
        self.prototypes = nn.Linear(DIM, prototypes, bias=False)
        self.criterion = SwaVLoss()
        self.size, self.queues, self.progress = queue, [torch.zeros(0, DIM)] * 2, 0.0

    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        return [normalize(self.projector(self.backbone(view)).float()) for view in views]

    def loss(self, outputs: Any, ids: Tensor) -> Tensor:
        with torch.no_grad():
            self.prototypes.weight.copy_(normalize(self.prototypes.weight))
        queued = [queue.to(outputs[0].device) for queue in self.queues]
        use_queue = self.progress > 0.3 and len(queued[0]) >= self.size
        loss = self.criterion(
            [self.prototypes(output) for output in outputs],
            [],
            [self.prototypes(queue) for queue in queued] if use_queue else None,
        )
        self.queues = [
            torch.cat([output.detach(), queue])[: self.size]
            for output, queue in zip(outputs, queued, strict=True)
        ]
        return loss.squeeze()

    def after_step(self, progress: float) -> None:
        self.progress = progress


class Supervised(Method):
    """The ceiling: cross-entropy on the labels."""

    def __init__(self, backbone: nn.Module, n_features: int, labels: Tensor) -> None:
        super().__init__(backbone)
        self.register_buffer("labels", labels)
        self.classifier = nn.Linear(n_features, int(labels.max()) + 1)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.backbone(views[0]))

    def loss(self, outputs: Any, ids: Tensor) -> Tensor:
        return cross_entropy(outputs, self.labels[ids])


PEERS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "byol": BYOL,
    "barlow": BarlowTwins,
    "swav": SwAV,
    "supervised": Supervised,
}


class PeerLearner:
    """A method with coke's optimizer and schedule, spoken to as `coke.training.learner.Learner` is."""

    def __init__(
        self, config: Config, method: Method, *, steps_per_epoch: int, n_epochs: int, fabric: Fabric
    ) -> None:
        method = method.to(memory_format=torch.channels_last)
        if config.compile:
            method.compile(dynamic=False)
        self.fabric, self.total = fabric, n_epochs * steps_per_epoch
        self.network, self.optimizer = fabric.setup(method, make_optimizer(method, config))
        self.schedule = Schedule(config.learning_rate, n_epochs, 0, config.warmup_epochs, steps_per_epoch)
        self.losses: list[Tensor] = []

    def begin_epoch(self, epoch: int) -> None:
        """Nothing to prepare."""

    def step(self, parts: list[Batch], train: bool) -> Tensor:
        """One batch; ``train`` is always asked of a peer."""
        (part,) = parts
        views = [view.contiguous(memory_format=torch.channels_last) for view in part.views]
        loss = self.network.module.loss(self.network(views), part.ids.to(self.fabric.device))
        self.fabric.backward(loss)
        set_learning_rate(self.optimizer, self.schedule.learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.advance()
        self.network.module.after_step(self.schedule.trained_steps / self.total)
        self.losses.append(loss.detach())
        return loss.detach()

    def end_epoch(self) -> dict[str, Any]:
        """The mean loss."""
        mean = float(torch.stack(self.losses).mean())
        self.losses = []
        return {"loss": mean}


def _slow_copy(module: nn.Module) -> nn.Module:
    copied = copy.deepcopy(module)
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    return copied


@torch.no_grad()
def _follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    for kept, current in zip(slow.parameters(), fast.parameters(), strict=True):
        kept.lerp_(current, 1 - momentum)
