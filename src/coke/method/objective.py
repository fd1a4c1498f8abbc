"""The loss (method section 3): every view predicts its image's cluster, in every head.

With frozen centers P of one head, logits are <., P> / temperature. Each view v is asked for

    label_weight * CE(v, label of last epoch) + (1 - label_weight) * CE(v, mean soft assignment of the other
    large views)

by both branches (prediction and projection, weighted), averaged over views of its kind and over heads. One
view, two views and multi-crop are this one rule: with a single large view there is no other, so the label
has all the weight; small views count as one kind and are compared with all large ones.
Shapes: B batch, D dimension, H heads, K clusters of a head, S label slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from coke.errors import ConfigError
from coke.method.kmeans import argmax_rows
from coke.method.network import Output

LARGE_VIEW_SHARE = 0.5  # of the loss, where there are small views, which have the rest
AVERAGE_TEMPERATURE = (
    0.5  # softens averaged labels: q proportional to exp(share / this), of those borne in stage 2
)


@dataclass(frozen=True)
class Objective:
    """The weights of the loss. Published: one view (0.1, -, 1.0), two views (0.05, 0.2, 0.5), method section 3.

    The auxiliary losses are 0 there. On little data the published loss's projection falls into a few dimensions, which
    decorrelation (`redundancy`) prevents; how an image was turned is certain from the first
    step on (`coke.method.network.rotated`).
    """

    temperature: float = 0.1  # divides cosines
    label_weight: float = 1.0  # alpha, the label's share beside the other views' soft assignments
    prediction_share: float = 1.0  # the prediction branch's share, the projection branch has the rest
    decorrelation: float = 0.0  # weight of the large views' redundant dimensions, an auxiliary loss
    rotation: float = 0.0  # weight of rotation prediction, an auxiliary loss

    def __post_init__(self) -> None:
        for name in ("label_weight", "prediction_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"objective.{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("decorrelation", "rotation"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"objective.{name} must not be negative, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ConfigError(f"objective.temperature must be positive, got {self.temperature}")

    def target(self, labels: Tensor, shares: Tensor, averaging: bool) -> Target:
        """What `LabelMemory.read_average` gives, [B, H, S], made a target: the last label, or the average."""
        if not averaging:
            return Target(labels[..., :1], shares[..., :1])
        # exp(share / t) over the labels borne, up to a factor; softmax over so few slots costs ten times this
        weights = ((shares - 1) / AVERAGE_TEMPERATURE).exp_().mul_(shares > 0)
        return Target(labels, weights / weights.sum(dim=-1, keepdim=True).clamp_(min=1e-30))

    def __call__(
        self,
        large: Sequence[Output],
        small: Sequence[Output],
        target: Target,
        centers: Sequence[Tensor],
        gather: Callable[[Tensor], Tensor] = lambda own: own,
    ) -> Loss:
        """The loss of one batch.

        Args:
            large: outputs of the views that are clustered, at least one.
            small: outputs of the views that only predict.
            target: each image's label or labels; images without one are left out of the mean.
            centers: frozen centers of each head, [K, D].
            gather: gives all processes' rows for this one's, where others share the batch.
        """
        classify = _Classifier(centers, self.temperature)
        needs_projection = self.prediction_share < 1 or self.label_weight < 1
        projected = [classify(output.projection) for output in large] if needs_projection else []
        soft = [[head.detach().exp() for head in view] for view in projected] if self.label_weight < 1 else []
        losses, agreements = [], []
        for index, output in enumerate([*large, *small]):
            is_large = index < len(large)
            others = soft[:index] + soft[index + 1 :] if is_large else soft
            branches = []
            if self.prediction_share > 0:
                branches.append((self.prediction_share, classify(output.prediction)))
            if self.prediction_share < 1:
                projection = projected[index] if is_large else classify(output.projection)
                branches.append((1 - self.prediction_share, projection))
            asked = [share * self._ask(branch, others, target) for share, branch in branches]
            losses.append(torch.stack(asked).sum())
            if is_large:
                agreements.append(_agreement(branches[0][1], target))
        loss = torch.stack(losses[: len(large)]).mean()
        if small:
            cheap = torch.stack(losses[len(large) :]).mean()
            loss = LARGE_VIEW_SHARE * loss + (1 - LARGE_VIEW_SHARE) * cheap
        total = loss
        if self.decorrelation > 0:
            penalties = [redundancy(gather(output.projection)) for output in large]
            total = total + self.decorrelation * torch.stack(penalties).mean()
        if self.rotation > 0:
            logits, turns = large[0].rotation_logits, target.turns
            if logits is None or turns is None:
                raise ConfigError(
                    "rotation > 0 needs the first output's rotation_logits and the target's turns"
                )
            total = total + self.rotation * cross_entropy(logits, turns)
        return Loss(total, loss.detach(), torch.stack(agreements).mean())

    def _ask(self, branch: list[Tensor], others: list[list[Tensor]], target: Target) -> Tensor:
        """Cross entropy of one branch of one view against label and other views, averaged over heads."""
        total = branch[0].new_zeros(())
        for head, log_probabilities in enumerate(branch):
            labels, weights = target.labels[:, head], target.weights[:, head]
            loss = -(weights * log_probabilities.gather(1, labels.clamp(min=0))).sum(dim=1)
            if others:
                expected = torch.stack([other[head] for other in others]).mean(dim=0)
                consistency = -(expected * log_probabilities).sum(dim=1)
                loss = self.label_weight * loss + (1 - self.label_weight) * consistency
            assigned = labels[:, 0] >= 0
            total = total + (loss * assigned).sum() / assigned.sum().clamp(min=1)
        return total / len(branch)


def redundancy(projection: Tensor) -> Tensor:
    """Squared correlations between the dimensions of a batch [B, D], summed over pairs and divided by D.

    0 for dimensions that say different things, D - 1 for dimensions that all say the same; a batch of B
    independent random rows gives about D / B. The covariance term of VICReg (arXiv 2105.04906, section 4.1) on
    standardised dimensions, of one view.

    >>> same, opposite = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    >>> [round(float(redundancy(torch.stack(pair, dim=1))), 2) for pair in ((same, same), (same, opposite))]
    [1.0, 0.0]
    """
    centred = projection - projection.mean(dim=0)
    scaled = centred / torch.linalg.vector_norm(centred, dim=0).clamp_min(1e-6)
    with torch.autocast(projection.device.type, enabled=False):
        correlation = scaled.t() @ scaled
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / projection.shape[1]


class Target(NamedTuple):
    """What an image's views should predict; weights of an image sum to 1, or to 0 where it has no label."""

    labels: Tensor  # int64 [B, H, S], -1 in empty slots
    weights: Tensor  # float32 [B, H, S]
    turns: Tensor | None = None  # int64 [B], by how many quarters the first view's small copy was turned


class Loss(NamedTuple):
    """What is minimised, the clusters' part of it, and how often the large views' prediction is the label."""

    value: Tensor  # []
    clusters: Tensor  # [], detached: cross entropy alone, what ln K is compared with
    agreement: Tensor  # [], share of images, mean over heads and large views


class _Classifier:
    """All heads' log-probabilities from one product: [B, D] -> H times [B, K]."""

    def __init__(self, centers: Sequence[Tensor], temperature: float) -> None:
        self.weights = torch.cat(tuple(centers)).detach().t() / temperature
        self.sizes = [len(head) for head in centers]

    def __call__(self, vectors: Tensor) -> list[Tensor]:
        with torch.autocast(vectors.device.type, enabled=False):
            logits = vectors @ self.weights
        return [log_softmax(head, dim=1) for head in logits.split(self.sizes, dim=1)]


@torch.no_grad()
def _agreement(branch: list[Tensor], target: Target) -> Tensor:
    heaviest = target.weights.argmax(dim=-1, keepdim=True)
    labels = target.labels.gather(-1, heaviest)[..., 0]
    predicted = torch.stack([argmax_rows(head) for head in branch], dim=1)
    return (predicted == labels).float().mean()
