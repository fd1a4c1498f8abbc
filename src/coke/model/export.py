"""A run in the formats that others load. Each is checked against coke's own features before its name appears.

timm          FILE.safetensors    weights for `timm.create_model`; the call is printed
hf            FOLDER              what timm loads as "local-dir:FOLDER" and as a hub's repository: configuration,
                                  weights, model card
torchvision   FILE.safetensors    weights of the model of that name in torchvision
onnx          FILE.onnx           a graph, with the run's clusters if asked (`coke.model.graph`)
safetensors   FOLDER              the whole model, for `coke.load`
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from coke.atomic import atomic, atomic_place
from coke.errors import ConfigError, DataError, did_you_mean
from coke.evaluation.features import normalised, pooled
from coke.model.card import model_card
from coke.model.files import BACKBONE, CLUSTERS, PROJECTOR, load, own_tensors, write_backbone
from coke.model.model import Model
from coke.model.parity import pictures, pixels, within
from coke.output import is_writable
from coke.run import Run

Format = Literal["timm", "hf", "torchvision", "onnx", "safetensors"]
SUFFIXES = {"timm": ".safetensors", "torchvision": ".safetensors", "onnx": ".onnx"}  # of the others: a folder
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_WRITTEN = {BACKBONE, PROJECTOR, CLUSTERS, CONFIG, WEIGHTS, CARD}
_LEAST_COSINE = 0.999  # of features through timm's own transform to coke's
_OF_THE_ARCHITECTURE = ("first_conv", "classifier", "fixed_input_size")
_TORCHVISION = (  # whose names and layers are timm's too
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)


class Exported(NamedTuple):
    """What was written, how it was checked, and the code that loads it."""

    path: Path
    parity: str
    loads_with: str


def export(
    run: Run | str | os.PathLike[str],
    to: Format,
    out: str | os.PathLike[str],
    *,
    predict: bool = False,
    head: int | None = None,
    backbone: nn.Module | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a finished run for timm, a hub, torchvision, ONNX or `coke.load`, checked against coke's own features.

    Args:
        run: a run folder, or any folder that `load` takes.
        to: "timm", "torchvision" (a .safetensors file), "onnx" (a .onnx file), "hf" or "safetensors" (a folder).
        out: where to.
        predict: of "onnx": the graph also gives projections and clusters.
        head: ... of this head alone; default: of all.
        backbone: an instance of the user's own module, where the run has one.
        overwrite: replace an earlier export.

    Raises:
        ConfigError: what cannot be written, before any work. DataError: an output that does not compute the same;
            then nothing is left of it.

    >>> import tempfile, coke
    >>> folder = tempfile.mkdtemp()
    >>> run = coke.pretrain(out=folder + "/run", epochs=2, linear_probe=False, tensorboard=False)
    >>> export(run, to="hf", out=folder + "/textures").parity
    "8 pictures as timm loads it: equal to the bit; through timm's own transform: cosine 0.9999 or more"
    """
    source, out = Path(run.path if isinstance(run, Run) else run), Path(out)
    _check(source, to, out, predict, head, overwrite)
    model = load(source, backbone=backbone)
    _check_model(model, to, predict, head)
    with atomic_place(out) as place:
        if to == "timm":
            parity, loads = _write_timm(model, place, out)
        elif to == "hf":
            parity, loads = _write_hf(model, place, out)
        elif to == "torchvision":
            parity, loads = _write_torchvision(model, place, out)
        elif to == "onnx":
            from coke.model.graph import write_graph

            heads = range(len(model.heads)) if head is None else [head]
            parity = write_graph(model, place, heads if predict else ())
            loads = f'onnxruntime.InferenceSession("{out}")'
        else:
            parity, loads = _write_whole(model, source, place, out)
        if to in ("hf", "safetensors"):
            with atomic(place / CARD) as stream:
                stream.write(model_card(model, Run(source), loads.replace(str(out), out.name)))
    return Exported(out, parity, loads)


def check_place(out: Path, source: Path, what: str, suffix: str | None, overwrite: bool) -> None:
    """Raise `ConfigError` where an output cannot go, or would replace what is none of ours.

    suffix: of a file; None is a folder.
    """
    kind = "folder" if suffix is None else f"{suffix} file"
    if out.suffix != suffix if suffix is not None else out.suffix == ".safetensors":
        raise ConfigError(
            f"{out}: {what} is a {kind}, not {'a file' if suffix is None else repr(out.suffix)}"
        )
    if not is_writable(out):
        raise ConfigError(f"{out} cannot be written there: choose another --out")
    if not out.exists():
        return
    if source.resolve() in (out.resolve(), out.resolve().parent) or out.resolve() in source.resolve().parents:
        raise ConfigError(f"{out} is what is read, or lies in it: choose another --out")
    if not overwrite:
        raise ConfigError(f"{out} exists: choose another --out, or --overwrite it")
    if out.is_dir() != (suffix is None):
        there = "folder" if out.is_dir() else "file"
        raise ConfigError(f"{out} is a {there}, {what} is none: choose another --out")
    others = sorted({entry.name for entry in out.iterdir()} - _WRITTEN) if out.is_dir() else []
    if others:
        raise ConfigError(f"{out} holds what no export wrote ({others[0]}): choose another --out")


def _check(source: Path, to: str, out: Path, predict: bool, head: int | None, overwrite: bool) -> None:
    if to not in get_args(Format):
        known = ", ".join(get_args(Format))
        raise ConfigError(f"unknown format {to!r}{did_you_mean(to, get_args(Format))}: there are {known}")
    if (predict or head is not None) and to != "onnx":
        raise ConfigError(f"{to} holds no clusters to predict with: --predict goes with --to onnx")
    if head is not None and not predict:
        raise ConfigError("--head says of which head a graph is to predict clusters: add --predict")
    check_place(out, source, f"what --to {to} writes", SUFFIXES.get(to), overwrite)
    if to == "onnx":
        from coke.model.graph import check_packages

        check_packages()


def _check_model(model: Model, to: str, predict: bool, head: int | None) -> None:
    if model.name.startswith("custom:") and to in ("timm", "hf", "torchvision"):
        own = f"a backbone of your own ({model.name})"
        raise ConfigError(f"{to} does not know {own}: --to safetensors or onnx does")
    if to == "torchvision" and architecture(model) not in _TORCHVISION:
        has = f"{', '.join(_TORCHVISION[:-1])} and {_TORCHVISION[-1]}"
        raise ConfigError(f"torchvision has no {architecture(model)} of the same layers; it has {has}")
    if predict:
        model.check_head(head or 0)


def architecture(model: Model) -> str:
    """timm's name without a tag, which stands for other weights."""
    return model.name.split(".")[0]


def _write_timm(model: Model, place: Path, out: Path) -> tuple[str, str]:
    import timm

    from coke.backbones import size_argument

    write_backbone(place, model.backbone, model.name, model.preprocessing)
    name, sized = architecture(model), size_argument(model.name, model.preprocessing.size)
    overlay = {"file": str(place), **_stated(model)}
    network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **sized)
    words = "".join(f", {key}={value}" for key, value in sized.items())
    overlay["file"] = str(out)
    loads = f'timm.create_model("{name}", pretrained=True{words}, pretrained_cfg_overlay={overlay}).eval()'
    return _as_timm_sees(network, model), f"{_imports(name)}; {loads}"


def _write_hf(model: Model, place: Path, out: Path) -> tuple[str, str]:
    import timm
    from safetensors.torch import save

    from coke.backbones import size_argument

    place.mkdir()
    with atomic(place / WEIGHTS, "wb") as stream:
        stream.write(save(own_tensors(model.backbone.state_dict()), {"format": "pt"}))
    theirs: Mapping[str, Any] = getattr(model.backbone, "pretrained_cfg", {})
    kept = {key: theirs[key] for key in _OF_THE_ARCHITECTURE if key in theirs}
    sized = size_argument(model.name, model.preprocessing.size)
    config = {
        "architecture": architecture(model),
        "num_classes": 0,
        "num_features": model.features(pixels(model)[:1]).shape[1],
        "pretrained_cfg": {**_stated(model), "custom_load": False, **kept},
        **({"model_args": sized} if sized else {}),
    }
    with atomic(place / CONFIG) as stream:
        json.dump(config, stream, indent=2)
        stream.write("\n")
    network = timm.create_model(f"local-dir:{place}", pretrained=True)
    loads = f'timm.create_model("local-dir:{out}", pretrained=True).eval()'
    return _as_timm_sees(network, model), f"{_imports(architecture(model))}; {loads}"


def _imports(name: str) -> str:
    return "import coke.backbones, timm" if name.startswith("coke_") else "import timm"


def _stated(model: Model) -> dict[str, Any]:
    """What timm is to know of the images: of its own entry for the architecture, nothing of other weights holds."""
    return {**model.preprocessing.as_timm(), "crop_mode": "center", "num_classes": 0}


def _as_timm_sees(network: nn.Module, model: Model) -> str:
    from timm.data import create_transform, resolve_model_data_config

    with torch.inference_mode():
        within(0, _features(network, model), model.features(pixels(model)), "the model as timm loads it")
        transform = create_transform(**resolve_model_data_config(network))
        theirs = pooled(network(torch.stack([transform(picture) for picture in pictures()])))
    cosine = float(torch.cosine_similarity(theirs.double(), model.embed(pictures()).double()).min())
    if not cosine >= _LEAST_COSINE:
        came = f"a cosine of {cosine:.4f} to coke's own, below {_LEAST_COSINE}"
        raise DataError(f"features through timm's own transform have {came}: nothing was written")
    shown = int(cosine * 1e4) / 1e4  # never rounded up
    same = f"{len(theirs)} pictures as timm loads it: equal to the bit"
    return f"{same}; through timm's own transform: cosine {shown:.4f} or more"


def _features(network: nn.Module, model: Model) -> Tensor:
    """Of the pictures as coke sees them: [8, F]."""
    seen = model.preprocessing
    with torch.inference_mode():
        return pooled(network.eval()(normalised(pixels(model), seen.mean, seen.std)))


def _write_torchvision(model: Model, place: Path, out: Path) -> tuple[str, str]:
    import torchvision
    from safetensors.torch import load_file

    name = architecture(model)
    write_backbone(place, model.backbone, model.name, model.preprocessing)
    network: Any = torchvision.models.get_model(name, weights=None)
    network.fc = nn.Identity()
    network.load_state_dict(load_file(place), strict=True)
    apart = within(1e-5, _features(network, model), model.features(pixels(model)), f"torchvision's {name}")
    loads = (
        f"import safetensors.torch, torch, torchvision; network = torchvision.models.{name}(); "
        f'network.fc = torch.nn.Identity(); network.load_state_dict(safetensors.torch.load_file("{out}")); '
        "network.eval()"
    )
    return f"8 pictures through torchvision's {name}: {apart:.1e} apart at most", loads


def _write_whole(model: Model, source: Path, place: Path, out: Path) -> tuple[str, str]:
    place.mkdir()
    for name in (BACKBONE, PROJECTOR, CLUSTERS):
        if (source / name).is_file():
            shutil.copyfile(source / name, place / name)
    own = model.name.startswith("custom:")
    again = load(place, backbone=model.backbone if own else None)
    images, shown = pixels(model), ["features"]
    within(0, again.features(images), model.features(images), "the model as it is loaded again")
    if model.projector is not None:
        ours = model.features(images, "projection")
        within(0, again.features(images, "projection"), ours, "the projector as it is loaded again")
        for head in range(len(model.heads)):
            found, own_place = again.predict(ours, head).cluster, model.predict(ours, head).cluster
            within(0, found, own_place, f"head {head} as it is loaded again")
        shown += ["projections", *([f"clusters of {len(model.heads)} heads"] if model.heads else [])]
    loads = f'import coke; coke.load("{out}"{", backbone=..." if own else ""})'
    return f"{len(images)} pictures as coke loads it: {', '.join(shown)} equal to the bit", loads
