"""Backbone f, projector g, predictor h (method section 3): images in, unit projections and predictions out.

The network is pure: a forward pass changes no label, dual or center (batch statistics aside).
Shapes: B batch, F backbone features, D output dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize

from coke.errors import ConfigError

QUARTERS = 4


class Output(NamedTuple):
    """What one view of a batch gives."""

    projection: Tensor  # [B, D] unit vectors z = g(f(x)): what is clustered
    prediction: Tensor  # [B, D] unit vectors p = h(g(f(x))): what predicts the cluster
    rotation_logits: Tensor | None = None  # [B, 4] of the quarter turns of small copies, where asked for


class Network(nn.Module):
    """f, g and h in one module, so that one wrapper (DDP, compile) covers them.

    Args:
        backbone: any module [B, 3, H, W] -> [B, F] (feature maps are averaged over positions).
        n_features: F.
        dim: D.
        hidden: width of the hidden layers; default F.
        predicts_rotation: whether there is a head that tells by how many quarters a small copy was turned.
    """

    def __init__(
        self,
        backbone: nn.Module,
        n_features: int,
        dim: int = 128,
        hidden: int | None = None,
        predicts_rotation: bool = False,
    ) -> None:
        super().__init__()
        hidden = hidden or n_features
        self.backbone = backbone
        self.projector = make_projector(n_features, hidden, dim)
        self.predictor = nn.Sequential(*_hidden_layer(dim, hidden), nn.Linear(hidden, dim))
        self.turner = (  # so named in checkpoints
            nn.Sequential(*_hidden_layer(n_features, hidden), nn.Linear(hidden, QUARTERS))
            if predicts_rotation
            else None
        )

    def forward(self, images: Tensor, turns: Tensor | None = None) -> Output:
        """Images [B, 3, H, W] -> unit vectors in float32, whatever the precision of the layers.

        With ``turns`` [B] also what the head says of small copies turned by so many quarters. Raises `ConfigError`
        where there is no such head.
        """
        projection = self.projector(pool(self.backbone(images)))
        prediction = self.predictor(projection)
        rotation_logits = None if turns is None else self._tell(rotated(images, turns))
        return Output(normalize(projection.float()), normalize(prediction.float()), rotation_logits)

    def _tell(self, copies: Tensor) -> Tensor:
        if self.turner is None:
            raise ConfigError(
                "this network has no head for rotation prediction: make it with predicts_rotation=True"
            )
        return self.turner(pool(self.backbone(copies))).float()


def make_projector(n_features: int, hidden: int, dim: int) -> nn.Sequential:
    """g: features [B, F] -> [B, D], of which the direction counts."""
    return nn.Sequential(
        *_hidden_layer(n_features, hidden),
        *_hidden_layer(hidden, hidden),
        nn.Linear(hidden, dim, bias=False),
        nn.BatchNorm1d(dim),
    )


def _hidden_layer(width_in: int, width_out: int) -> tuple[nn.Module, ...]:
    return nn.Linear(width_in, width_out, bias=False), nn.BatchNorm1d(width_out), nn.ReLU(inplace=True)


def pool(features: Tensor) -> Tensor:
    """[B, F] as it is, [B, F, h, w] averaged over positions."""
    return features.mean(dim=(2, 3)) if features.dim() == 4 else features


def count_features(backbone: nn.Module, image_size: int) -> int:
    """F of a backbone, from one pass over a blank image. Raises `ConfigError` where that fails."""
    parameter = next(backbone.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            output = backbone(torch.zeros(2, 3, image_size, image_size, device=device))
    except (RuntimeError, AssertionError) as error:  # timm's transformers assert their image size
        raise ConfigError(f"the backbone does not take images of {image_size} px: {error}") from error
    finally:
        backbone.train(was_training)
    if not isinstance(output, Tensor) or output.dim() not in (2, 4):
        came = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(f"a backbone must give [B, F] or [B, F, h, w], this one gave {came}")
    return pool(output).shape[1]


def rotated(images: Tensor, turns: Tensor) -> Tensor:
    """Copies of half the side, each turned left by its own number of quarters, which the network is to tell.

    Rotation prediction beside the loss, for little data: labels of the first epochs say little (a random network made
    them), how an image was turned is certain from the first step on. As a task: arXiv 1803.07728; beside another loss
    and at half of the size: arXiv 2111.00899. Not for images that have no upright.

    Args:
        images: [B, 3, S, S].
        turns: int64 [B], 0 ... 3.

    Returns:
        [B, 3, S // 2, S // 2], channels last in memory.

    >>> image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    >>> rotated(image.expand(2, 3, 4, 4), torch.tensor([0, 1]))[:, 0].tolist()
    [[[1.0, 2.0], [3.0, 4.0]], [[2.0, 4.0], [1.0, 3.0]]]
    """
    copies = avg_pool2d(images, 2)
    ways = torch.stack([copies.rot90(quarters, (2, 3)) for quarters in range(QUARTERS)])
    chosen = ways[turns, torch.arange(len(turns), device=turns.device)]
    return chosen.contiguous(memory_format=torch.channels_last)
