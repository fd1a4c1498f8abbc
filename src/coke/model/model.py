"""A trained model at work on new images: features, clusters, neighbours.

Shapes: N images, F features of the backbone, D dimensions of the projection, K clusters of a head.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from coke.bounded.places import places
from coke.errors import ConfigError, DataError
from coke.evaluation.features import normalised, pooled
from coke.images import ImageSet
from coke.images.decode import decode
from coke.images.image_set import center
from coke.model.files import Preprocessing
from coke.vectors import open_vectors

if TYPE_CHECKING:
    from coke.bounded.estimator import ConstrainedKMeans

Features = Literal["backbone", "projection"]
_INPUT = 1 << 26  # bytes of normalised pixels that a batch holds at most: 111 images of 224 px
_LARGEST = 512  # images of a batch


class Prediction(NamedTuple):
    """Where images lie among the clusters of a head, [N] each."""

    cluster: Tensor  # int64
    score: Tensor  # cosine to the cluster's center
    margin: Tensor  # how much smaller the cosine to the second is; negative where a bound moved the image
    second: Tensor  # int64, the nearest other cluster; -1 where there is none


class Model:
    """A backbone that is ready for images, with projector and clusters where there are any. See `coke.load`.

    Args:
        backbone: f, [B, 3, S, S] -> [B, F].
        preprocessing: how images become its input.
        projector: g, [B, F] -> [B, D].
        heads: clusters of unit vectors g(f(x)), one estimator per head.
        name: the architecture, as timm calls it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        preprocessing: Preprocessing,
        *,
        projector: nn.Module | None = None,
        heads: Sequence[ConstrainedKMeans] = (),
        name: str = "",
    ) -> None:
        self.backbone, self.projector = backbone.eval(), None if projector is None else projector.eval()
        self.preprocessing, self.heads, self.name = preprocessing, list(heads), name
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> Self:
        """Compute there. Raises `ConfigError` for a device that is not there."""
        try:
            self.device = torch.device(device)
            self.backbone.to(self.device)
            if self.projector is not None:
                self.projector.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device={str(device)!r} cannot be had: {error}") from error
        return self

    def embed(self, images: Any, *, features: Features = "backbone", batch_size: int | None = None) -> Tensor:
        """Features of images, in their order: float32 [N, F] on the host.

        Args:
            images: uint8 pixels [N, 3, H, W] or [3, H, W]; a path, a PIL image, or a list of these and of pixels;
                or an `ImageSet`. Each is resized and cut to its centre as in training's evaluation.
            features: "backbone", the pooled output of f, for probes and search; or "projection", unit vectors
                g(f(x)) [N, D], which the clusters are made of.
            batch_size: of one pass; default: as many as 64 MiB of input hold, at most 512.

        Raises:
            DataError: an image that cannot be read, pixels that are not uint8. ConfigError: no projector here.
        """
        if features == "projection" and self.projector is None:
            raise ConfigError("this model has no projector: it has backbone features alone")
        size = self.preprocessing.size
        batch_size = batch_size or max(1, min(_LARGEST, _INPUT // (12 * size**2)))
        return torch.cat([self.features(pixels, features) for pixels in centered(images, size, batch_size)])

    @torch.inference_mode()
    def features(self, pixels: Tensor, features: Features = "backbone") -> Tensor:
        """Of pixels uint8 [B, 3, S, S] that have the model's size: float32 [B, F] on the host."""
        seen = self.preprocessing
        found = pooled(self.backbone(normalised(pixels.to(self.device), seen.mean, seen.std)))
        if features == "projection":
            assert self.projector is not None
            found = normalize(self.projector(found).float())
        return found.cpu()

    def predict(self, images: Any, head: int = 0, **sizes: Any) -> Prediction:
        """The cluster of each image: the nearest center of a head, by cosine.

        With sizes (``min_size``, ``max_size``, ``min_size_ratio``, ``max_size_ratio``, as `ConstrainedKMeans.assign`
        takes them) the best clusters under which these images keep them.

        Args:
            images: as for `embed`, or float features [N, D], projections of `embed`.
        """
        if not 0 <= head < len(self.heads):
            have = (
                f"{len(self.heads)}, numbered from 0"
                if self.heads
                else "none: clusters.safetensors is missing"
            )
            raise ConfigError(f"there is no head {head}: this model has {have}")
        given = isinstance(images, Tensor | np.ndarray) and images.ndim == 2
        projections = torch.as_tensor(images) if given else self.embed(images, features="projection")
        km = self.heads[head]
        asked = any(value is not None for value in sizes.values())
        labels = km.assign(projections, **sizes) if asked else km.predict(projections)
        place = places(open_vectors(projections), labels, km.cluster_centers_, km.metric)
        columns = {name: torch.from_numpy(place[name].copy()) for name in place.dtype.names}
        return Prediction(
            columns["cluster"].long(), 1 - columns["distance"], columns["margin"], columns["second"].long()
        )

    def neighbours(self, images: Any, bank: Any, k: int = 10) -> tuple[Tensor, Tensor]:
        """The k most similar rows of a bank for each image: cosines [N, k], largest first, and row numbers [N, k].

        Args:
            images: as for `embed`, or features [N, F].
            bank: features [M, F], of `embed`.
        """
        rows, asked = torch.as_tensor(bank), images
        if not (isinstance(images, Tensor | np.ndarray) and images.ndim == 2):
            asked = self.embed(images)
        asked = torch.as_tensor(asked)
        if rows.ndim != 2 or rows.shape[1] != asked.shape[1]:
            raise DataError(f"the bank must be [M, {asked.shape[1]}], got {list(rows.shape)}")
        if not 1 <= k <= len(rows):
            raise ConfigError(f"k must lie in 1 ... {len(rows)}, the bank's rows, got {k}")
        unit = normalize(rows.to(self.device, torch.float32))
        found = [
            (normalize(block.to(self.device, torch.float32)) @ unit.t()).topk(k, dim=1)
            for block in asked.split(max(1, (1 << 24) // len(rows)))
        ]
        return torch.cat([f.values for f in found]).cpu(), torch.cat([f.indices for f in found]).cpu()


def centered(images: Any, size: int, batch_size: int) -> Iterator[Tensor]:
    """Images of any kind as batches uint8 [b, 3, size, size], in order."""
    if isinstance(images, ImageSet):
        yield from images.centered(size, batch_size)
        return
    if isinstance(images, Tensor | np.ndarray):
        pixels = _pixels(images)
        for block in (pixels if pixels.ndim == 4 else pixels[None]).split(batch_size):
            yield center(block, size)
        return
    listed = images if isinstance(images, list | tuple) else [images]
    if not listed:
        raise DataError("no images: there is nothing to embed")
    for first in range(0, len(listed), batch_size):
        yield torch.stack([center(_one(image), size) for image in listed[first : first + batch_size]])


def _one(image: Any) -> Tensor:
    if isinstance(image, str | os.PathLike):
        try:
            return decode(Path(image).read_bytes())
        except (OSError, DataError) as error:
            raise DataError(f"{image} cannot be read: {error}") from error
    return decode(image) if isinstance(image, Image.Image) else _pixels(image)


def _pixels(images: Any) -> Tensor:
    pixels = torch.as_tensor(images)
    if pixels.dtype != torch.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-3] != 3:
        raise DataError(
            f"pixels must be uint8 [N, 3, H, W], 0 to 255, got {str(pixels.dtype)[6:]} {list(pixels.shape)}: "
            "what is normalised already goes to model.backbone"
        )
    return pixels
