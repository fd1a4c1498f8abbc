"""A trained model at work on new images: features, clusters, neighbours.

Shapes: N images, F features of the backbone, D dimensions of the projection, K clusters of a head.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from coke.errors import ConfigError, DataError
from coke.evaluation.features import normalised, pooled
from coke.images import ImageSet
from coke.images.decode import decode
from coke.model.files import Preprocessing, load_weights, published, stated_in, stated_preprocessing
from coke.model.listed import Listed
from coke.reading import read_file

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
                an `ImageSet`; or a data set as `coke pretrain` takes it (a folder, a list, parquet, NAME:ROOT), all
                splits. Each is resized and cut to its centre as in training's evaluation.
            features: "backbone", the pooled output of f, for probes and search; or "projection", unit vectors
                g(f(x)) [N, D], which the clusters are made of.
            batch_size: of one pass; default: as many as 64 MiB of input hold, at most 512.

        Raises:
            DataError: an image that cannot be read, pixels that are not uint8. ConfigError: no projector here.
        """
        self.check_features(features)
        batches = self.batches(images, self.images_of_a_pass(batch_size))
        return torch.cat([self.features(pixels, features) for pixels in batches])

    def batches(self, images: Any, batch_size: int) -> Iterator[Tensor]:
        """Images of any kind as batches uint8 [b, 3, S, S], in order."""
        seen = self.preprocessing
        if isinstance(images, str | os.PathLike) and not _is_one_image(Path(images)):
            images = Listed.of(Path(images))
        if isinstance(images, Listed):
            for pixels, failed, _ in images.batches(seen, batch_size):
                for index, reason in failed.items():
                    said = f"{images.keys[index]} cannot be read ({reason})"
                    raise DataError(f"{said}: `coke embed` leaves such images out and lists them")
                yield pixels
        elif isinstance(images, ImageSet):
            yield from images.centered(seen.size, batch_size, seen.shorter, seen.interpolation)
        elif isinstance(images, Tensor | np.ndarray):
            pixels = _pixels(images)
            for block in (pixels if pixels.ndim == 4 else pixels[None]).split(batch_size):
                yield seen.center(block)
        else:
            listed = images if isinstance(images, list | tuple) else [images]
            if not listed:
                raise DataError("no images: there is nothing to embed")
            for first in range(0, len(listed), batch_size):
                yield torch.stack([seen.center(_one(image)) for image in listed[first : first + batch_size]])

    @property
    def batch_size(self) -> int:
        """Images of one pass, unless said: what 64 MiB of input hold, at most 512."""
        return max(1, min(_LARGEST, _INPUT // (12 * self.preprocessing.size**2)))

    def images_of_a_pass(self, asked: int | None) -> int:
        """As many as asked for, or `batch_size`. Raises `ConfigError` for less than one."""
        if asked is not None and asked < 1:
            remedy = f"leave it out for {self.batch_size}"
            raise ConfigError(f"batch_size must be at least 1, got {asked}: {remedy}")
        return self.batch_size if asked is None else asked

    @torch.inference_mode()
    def features(self, pixels: Tensor, features: Features = "backbone") -> Tensor:
        """Of pixels uint8 [B, 3, S, S] that have the model's size: float32 [B, F] on the host."""
        seen = self.preprocessing
        found = pooled(self.backbone(normalised(pixels.to(self.device), seen.mean, seen.std)))
        if features == "projection":
            assert self.projector is not None
            found = normalize(self.projector(found).float())
        return found.cpu()

    @torch.inference_mode()
    def tokens(self, pixels: Tensor) -> Tensor:
        """Of pixels uint8 [B, 3, S, S] the backbone's output before it is pooled: float32 [B, L, F] on the host.

        L are the patches of a transformer, without its class and register tokens, or the positions of a map, row by
        row. Raises `ConfigError` for a module that has no ``forward_features``, which timm's have.
        """
        if not hasattr(self.backbone, "forward_features"):
            kind = type(self.backbone).__name__
            raise ConfigError(f"{kind} has no forward_features, as timm's models have, hence no tokens")
        seen = self.preprocessing
        forward: Any = self.backbone.forward_features
        found = forward(normalised(pixels.to(self.device), seen.mean, seen.std))
        if found.ndim == 4:
            if getattr(self.backbone, "output_fmt", "NCHW") != "NHWC":
                found = found.permute(0, 2, 3, 1)
            found = found.flatten(1, 2)
        else:
            found = found[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
        return found.float().cpu()

    @classmethod
    def of_timm(cls, name: str, weights: str | os.PathLike[str] | None = None) -> Model:
        """Any of timm's models, seeing images as the file of its weights says, or as its published weights want them.

        Args:
            name: with or without a tag, as ``timm.create_model`` takes it.
            weights: a file of them; None takes the published ones, from this machine or the network.

        Raises:
            ConfigError: an unknown name, weights that do not fit, that are nowhere or cannot be downloaded.
        """
        from timm.data import resolve_model_data_config

        from coke.backbones import create

        file = None if weights is None else Path(weights)
        backbone = published(name) if file is None else load_weights(create(name), file, "backbone")
        seen = Preprocessing.of_timm(resolve_model_data_config(backbone))
        if file is not None and file.suffix == ".safetensors":
            seen = stated_preprocessing(stated_in(file)) or seen
        return cls(backbone, seen, name=name)

    def predict(self, images: Any, head: int = 0, **sizes: Any) -> Prediction:
        """The cluster of each image: the nearest center of a head, by cosine.

        With sizes (``min_size``, ``max_size``, ``min_size_ratio``, ``max_size_ratio``, as `ConstrainedKMeans.assign`
        takes them) the best clusters under which these images keep them.

        Args:
            images: as for `embed`, or float features [N, D], projections of `embed`.
        """
        from coke.model.predict import placed

        self.check_head(head)
        given = isinstance(images, Tensor | np.ndarray) and images.ndim == 2
        projections = torch.as_tensor(images) if given else self.embed(images, features="projection")
        place, _ = placed(self.heads[head], projections, **sizes)
        cluster, distance, margin, second = (
            torch.from_numpy(place[name].copy()) for name in place.dtype.names
        )
        return Prediction(cluster.long(), 1 - distance, margin, second.long())

    def check_features(self, features: str) -> None:
        """Raise `ConfigError` for features that there are not."""
        if features not in get_args(Features):
            raise ConfigError(f"features must be 'backbone' or 'projection', got {features!r}")
        if features == "projection" and self.projector is None:
            raise ConfigError("this model has no projector: it has backbone features alone")

    def check_head(self, head: int) -> None:
        """Raise `ConfigError` where there is no such head."""
        if not 0 <= head < len(self.heads):
            some = f"{len(self.heads)}, numbered from 0"
            have = some if self.heads else "none: clusters.safetensors is missing"
            raise ConfigError(f"there is no head {head}: this model has {have}")

    def neighbours(self, images: Any, bank: Any, k: int = 10) -> tuple[Tensor, Tensor]:
        """The k most similar rows of a bank for each image: cosines [N, k], largest first, and row numbers [N, k].

        Args:
            images: as for `embed`, or features [N, F].
            bank: features [M, F], of `embed`.
        """
        given = isinstance(images, Tensor | np.ndarray) and images.ndim == 2
        rows, asked = torch.as_tensor(bank), torch.as_tensor(images) if given else self.embed(images)
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


def _is_one_image(path: Path) -> bool:
    """Whether a path is of an image, and not of a list of them, parquet, a folder or the name of a data set."""
    return path.is_file() and path.suffix.lower() not in (".txt", ".lst", ".list", ".csv", ".tsv", ".parquet")


def _one(image: Any) -> Tensor:
    if isinstance(image, str | os.PathLike):
        try:
            return decode(read_file(image))
        except (OSError, DataError) as error:
            raise DataError(f"{image} cannot be read: {error}") from error
    if isinstance(image, Image.Image):
        return decode(image)
    pixels = _pixels(image)
    if pixels.ndim != 3:
        raise DataError(f"in a list each image must be [3, H, W], got {list(pixels.shape)}")
    return pixels


def _pixels(images: Any) -> Tensor:
    try:
        pixels = torch.as_tensor(images)
    except (TypeError, ValueError, RuntimeError) as error:
        wanted = "pixels, paths, PIL images, a list of these or a data set"
        raise DataError(f"images must be {wanted}, got {type(images).__name__}") from error
    shape = list(pixels.shape)
    if pixels.ndim in (3, 4) and shape[-1] == 3 != shape[-3]:
        raise DataError(f"pixels must be channels first, [N, 3, H, W], got {shape}: permute them")
    if pixels.dtype != torch.uint8 or pixels.ndim not in (3, 4) or shape[-3] != 3 or 0 in shape[-2:]:
        raise DataError(
            f"pixels must be uint8 [N, 3, H, W], 0 to 255, got {str(pixels.dtype)[6:]} {shape}: "
            "what is normalised already goes to model.backbone"
        )
    return pixels
