"""The files of a model: complete without checkpoints, each saying what it is.

    backbone.safetensors     weights of f under timm's names; architecture and preprocessing in the metadata
    projector.safetensors    weights of g, whose unit vectors are clustered
    clusters.safetensors     per head: centers, duals, counts (`coke.bounded.files`)

A run folder holds all three, and so does any folder that they are copied to.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from coke import schemas
from coke.atomic import atomic
from coke.errors import ConfigError, DataError, ResumeError
from coke.images.image_set import center, shorter_side

if TYPE_CHECKING:
    from coke.model.model import Model

BACKBONE, PROJECTOR, CLUSTERS = "backbone.safetensors", "projector.safetensors", "clusters.safetensors"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a backbone's input: resized, its centre cut out, normalised. timm's "data config".

    Args:
        size: side in px.
        mean, std: per channel, of pixels in 0 ... 1.
        crop_pct: ``size`` over what the shorter side is resized to; None is coke's own.
        interpolation: "bicubic" or "bilinear", with antialias.

    >>> Preprocessing(224, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).as_timm()["crop_pct"]
    0.875
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float | None = None
    interpolation: str = "bicubic"

    @property
    def shorter(self) -> int:
        """What the shorter side is resized to, px."""
        return shorter_side(self.size) if self.crop_pct is None else math.floor(self.size / self.crop_pct)

    def center(self, image: Tensor) -> Tensor:
        """Pixels uint8 [..., 3, h, w] as [..., 3, size, size]."""
        return center(image, self.size, self.shorter, self.interpolation)

    @classmethod
    def of_timm(cls, stated: Mapping[str, Any]) -> Preprocessing:
        """From timm's ``pretrained_cfg``. Raises `ConfigError` for an interpolation other than these two."""
        if stated["interpolation"] not in ("bicubic", "bilinear"):
            raise ConfigError(f"interpolation {stated['interpolation']!r} is neither bicubic nor bilinear")
        normal = (tuple(stated["mean"]), tuple(stated["std"]))
        return cls(stated["input_size"][-1], *normal, stated["crop_pct"], stated["interpolation"])

    def as_timm(self) -> dict[str, Any]:
        """Keys of timm's ``pretrained_cfg``: with them timm's own transform sees what coke sees."""
        crop_pct = self.size / self.shorter
        if math.floor(self.size / crop_pct) < self.shorter:  # 443 / (443 / 506) is 505.99..., which timm cuts
            crop_pct = math.nextafter(crop_pct, 0)
        return {
            "input_size": (3, self.size, self.size),
            "mean": tuple(self.mean),
            "std": tuple(self.std),
            "crop_pct": crop_pct,
            "interpolation": self.interpolation,
        }


def write_backbone(path: Path, backbone: nn.Module, architecture: str, seen: Preprocessing) -> None:
    """Weights as ``timm.create_model(architecture, num_classes=0, checkpoint_path=path)`` takes them."""
    stated = {key: json.dumps(value) for key, value in seen.as_timm().items()}
    _write(path, backbone, {"architecture": architecture, "format_version": str(FORMAT_VERSION), **stated})


def write_projector(path: Path, projector: nn.Sequential) -> None:
    """Weights of g (`coke.method.network.make_projector`), and its widths F, hidden, D."""
    first, *_, last = (layer for layer in projector if isinstance(layer, nn.Linear))
    widths = [first.in_features, first.out_features, last.out_features]
    stated = {"kind": "coke projector", "widths": json.dumps(widths)}
    _write(path, projector, {**stated, "format_version": str(FORMAT_VERSION)})


def _write(path: Path, module: nn.Module, metadata: Mapping[str, str]) -> None:
    with atomic(path, "wb") as stream:
        stream.write(_in_one_order(save(own_tensors(module.state_dict()), dict(metadata))))


def _in_one_order(content: bytes) -> bytes:
    """A safetensors file with its header sorted, which lists metadata in whatever order: equal weights, equal bytes."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return content[:8] + header.encode().ljust(end - 8) + content[end:]


def own_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host: safetensors refuses tensors that share memory, as tied weights do."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights of a safetensors file or of a torch file that holds nothing but tensors.

    A state dict may lie under ``state_dict`` or ``model``. Raises `ConfigError` where it cannot be read.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file of weights")
    try:
        found = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:
        wanted = "a .safetensors file, or a torch file that holds tensors alone"
        raise ConfigError(  # torch's own words fill a page and advise unsafe loading
            f"{path} cannot be read as weights ({type(error).__name__}): it must be {wanted}"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConfigError(f"{path} holds no state dict (names to tensors)")
    return found


def load_weights(module: nn.Module, path: Path, what: str) -> nn.Module:
    """A module with weights from a file, strictly. Raises `ConfigError` where they do not fit."""
    weights, own = read_weights(path), module.state_dict()
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
        foreign = [name for name in weights if name not in own]
        raise ConfigError(  # torch's own words name every tensor, pages of them
            f"{path} does not fit the {what} {type(module).__name__}: {len(wrong)} of its {len(own)} tensors are "
            f"missing there or of another shape, {len(foreign)} there are not its own ({(wrong + foreign)[0]} "
            "first): give weights of the same architecture"
        ) from error
    return module


def load(
    path: str | os.PathLike[str],
    *,
    backbone: nn.Module | None = None,
    device: torch.device | str = "cpu",
) -> Model:
    """The model of a finished run, for new images: embed them, say their clusters, find neighbours.

    Args:
        path: a run folder, or any folder with its backbone.safetensors; projector.safetensors and
            clusters.safetensors beside it are taken where they are.
        backbone: an instance of the user's own module, where the run has one.
        device: where the model computes.

    Raises:
        ResumeError: no finished run there, or files of a newer coke. ConfigError: weights that do not fit.
        DataError: a damaged file.

    >>> import tempfile, coke
    >>> run = coke.pretrain(out=tempfile.mkdtemp() + "/run", epochs=2, linear_probe=False, tensorboard=False)
    >>> model = load(run.path)
    >>> images = torch.randint(256, (5, 3, 40, 60), dtype=torch.uint8)
    >>> model.embed(images).shape, model.predict(images, head=2).cluster.shape
    (torch.Size([5, 128]), torch.Size([5]))
    """
    from coke.backbones import create
    from coke.bounded.files import load_clusterings
    from coke.method.network import make_projector
    from coke.model.model import Model

    folder = Path(path)
    if not (folder / BACKBONE).is_file():
        raise ResumeError(f"{folder} holds no finished model: {BACKBONE} is missing")
    stated = stated_in(folder / BACKBONE)
    seen = stated_preprocessing(stated, folder / BACKBONE)
    if seen is None or "architecture" not in stated:
        raise DataError(f"{folder / BACKBONE} does not say how it was made: coke did not write it")
    architecture = stated["architecture"]
    if backbone is None:
        if architecture.startswith("custom:"):
            raise ConfigError(f"{folder} has a backbone of your own ({architecture}): give it as backbone=")
        backbone = create(architecture, seen.size)
    load_weights(backbone, folder / BACKBONE, "backbone")
    projector, heads = None, []
    if (folder / PROJECTOR).is_file():
        path = folder / PROJECTOR
        widths = stated_in(path).get("widths")
        if widths is None:
            raise DataError(f"{path} does not say how wide its layers are: coke did not write it")
        found = schemas.read(path, lambda: {"widths": tuple(json.loads(widths))}, schemas.Projector)["widths"]
        if [list(read_weights(path).get("0.weight", torch.empty(0)).shape)] != [[found[1], found[0]]]:
            raise schemas.damaged(path, f"its weights are not those of layers of widths {list(found)}")
        projector = make_projector(*found)
        load_weights(projector, folder / PROJECTOR, "projector")
        if (folder / CLUSTERS).is_file():
            heads = load_clusterings(folder / CLUSTERS)
    return Model(backbone, seen, projector=projector, heads=heads, name=architecture).to(device)


def stated_preprocessing(stated: Mapping[str, str], path: Path = Path("weights")) -> Preprocessing | None:
    """How a file's metadata say that images are to be seen; None where they do not.

    Raises `ResumeError` where what they say cannot be.
    """
    keys = ("input_size", "mean", "std", "crop_pct", "interpolation")
    try:
        found = {key: json.loads(stated[key]) for key in keys}
    except (KeyError, ValueError, RecursionError):
        return None
    for key in keys[:3]:
        found[key] = tuple(found[key]) if isinstance(found[key], list) else found[key]
    schemas.checked(path, found, schemas.Preprocessing)
    return Preprocessing.of_timm(found)


def stated_in(path: Path) -> dict[str, str]:
    """A file's metadata. Raises `DataError` where it is damaged, `ResumeError` where a newer coke wrote it."""
    try:
        with safe_open(path, "pt") as file:
            stated = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read as safetensors: {error}") from error
    version = schemas.read(path, lambda: {"version": int(stated.get("format_version", 1))})["version"]
    if version > FORMAT_VERSION:
        raise schemas.newer(path, version, FORMAT_VERSION)
    return stated


def published(name: str) -> nn.Module:
    """timm's model of a name with its published weights, from this machine or the network, without classifier.

    Raises `ConfigError` for an unknown name, and where there are no such weights or they cannot be downloaded.
    """
    import timm

    from coke.backbones import check_name

    check_name(name)
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except RuntimeError as error:  # timm's, where there are none, or none of that tag
        raise ConfigError(f"{name}: {error} Or give a file of weights") from error
    except OSError as error:
        raise ConfigError(
            f"the published weights of {name} are not on this machine and cannot be downloaded "
            f"({type(error).__name__}): give a file of weights"
        ) from error
