"""A checkpoint of the released CoKe implementation becomes the files that `coke.load` takes.

Its state dict, every name under ``module.``:

    encoder.*          torchvision's ResNet-50; encoder.fc is the projector g, whose three linear layers have biases
    predictor.*        h, of use in training alone
    pre_center_i [D, K], cur_center_i, dual_i [K], counter_i    per head i: columns are centers; both are equal at an
                       epoch's end; counters are those of the first epoch, as the release never saves them again
    assign_labels      int64 [H, N], or [H, N, slots] with label_val [H, N, slots] and label_idx [H, N]

Shapes: F features, D dimensions of the projection, H heads, K clusters of a head, N images that it learned from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from coke.atomic import atomic, atomic_place
from coke.bounded.files import as_bytes
from coke.errors import ConfigError
from coke.evaluation.features import normalised
from coke.method.network import make_projector
from coke.model.export import check_place
from coke.model.files import (
    BACKBONE,
    CLUSTERS,
    PROJECTOR,
    Preprocessing,
    load,
    read_weights,
    write_backbone,
    write_projector,
)
from coke.model.parity import pixels, within

ARCHITECTURE = "resnet50"
SEEN = Preprocessing(  # as its own evaluation looks at ImageNet
    224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop_pct=224 / 256, interpolation="bilinear"
)
_LIMIT = 1e-5


class Imported(NamedTuple):
    """The folder, what of the checkpoint went into it and what did not, and how it was checked."""

    path: Path
    taken: list[str]
    left: list[str]
    parity: str


def import_released(
    checkpoint: str | os.PathLike[str], out: str | os.PathLike[str], *, overwrite: bool = False
) -> Imported:
    """Make a folder for `coke.load` of a released checkpoint.

    Args:
        checkpoint: the .pth.tar file; read without running what it may hold beside tensors.
        out: the folder.
        overwrite: replace an earlier one.

    Raises:
        ConfigError: another kind of file, or one that lacks or adds a tensor; nothing is written then.
    """
    from coke.backbones import create

    source, out = Path(checkpoint), Path(out)
    check_place(out, source, "what coke import writes", None, overwrite)
    state = {name.removeprefix("module."): value for name, value in read_weights(source).items()}
    network = _released(state)
    _check_match(state, network, source)
    encoder = {name[8:]: value for name, value in state.items() if name.startswith("encoder.")}
    backbone, projector, heads = create(ARCHITECTURE, SEEN.size), _projector(encoder), _heads(state, source)
    backbone.load_state_dict({name: value for name, value in encoder.items() if not name.startswith("fc.")})
    facts = {"n_rows": state["assign_labels"].shape[1], "imported_from": source.name}
    with atomic_place(out) as place:
        place.mkdir()
        write_backbone(place / BACKBONE, backbone, ARCHITECTURE, SEEN)
        write_projector(place / PROJECTOR, projector)
        with atomic(place / CLUSTERS, "wb") as stream:
            stream.write(as_bytes(heads, "cosine", facts))
        network.load_state_dict(state, strict=False, assign=True)  # all but buffers of the clustering
        parity = _checked(place, network.encoder)
    return Imported(out, *_told(state, heads), parity)


def _released(state: Mapping[str, Tensor]) -> Any:
    """Encoder and predictor as they were released, of this checkpoint's widths, still without weights."""
    import torchvision

    def width(layer: str) -> int:
        return state[layer].shape[0] if layer in state else 1

    hidden, dim = width("encoder.fc.0.weight"), width("encoder.fc.6.weight")
    with torch.device("meta"):
        network: Any = nn.Module()
        network.encoder = torchvision.models.resnet50()
        network.encoder.fc = nn.Sequential(
            *(nn.Linear(network.encoder.fc.in_features, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            *(nn.Linear(hidden, dim), nn.BatchNorm1d(dim)),
        )
        network.predictor = nn.Sequential(
            *(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim))
        )
    return network.eval()


def _check_match(found: Mapping[str, Tensor], network: nn.Module, source: Path) -> None:
    """Raise `ConfigError` where a tensor is missing, has another shape, or is none of the format's."""
    wanted: dict[str, Any] = {name: value.shape for name, value in network.state_dict().items()}
    for head in range(max(1, _n_heads(found))):
        centers, shape = found.get(f"pre_center_{head}"), None
        if centers is not None:
            dim = wanted["encoder.fc.6.bias"]
            shape = torch.Size([*dim, centers.shape[1]]) if centers.ndim == 2 else centers.shape
        wanted |= {f"pre_center_{head}": shape, f"cur_center_{head}": shape}
        wanted |= dict.fromkeys((f"dual_{head}", f"counter_{head}"), None if shape is None else shape[1:])
    labels = found.get("assign_labels")
    slots = () if labels is None or labels.ndim == 2 else ("label_val", "label_idx")
    wanted |= dict.fromkeys(("assign_labels", *slots))
    missing = [f"{name} is missing" for name in wanted if name not in found]
    other = [
        f"{name} is {list(found[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if shape is not None and name in found and found[name].shape != shape
    ]
    unknown = [f"{name} is unknown" for name in found if name not in wanted]
    if reasons := [*missing, *other, *unknown]:
        n_fit = len(wanted) - len(missing) - len(other)
        more = f" and {len(reasons) - 2} more" if len(reasons) > 2 else ""
        raise ConfigError(
            f"{source} is no whole checkpoint of the released CoKe, a {ARCHITECTURE}: {n_fit} of {len(wanted)} "
            f"tensors fit; {', '.join(reasons[:2])}{more}"
        )


def _n_heads(state: Mapping[str, Tensor]) -> int:
    return sum(name.startswith("pre_center_") for name in state)


def _projector(encoder: dict[str, Tensor]) -> nn.Sequential:
    """g without biases: batch norm subtracts its mean, so a bias before it is less of that mean."""
    state = {name[3:]: value for name, value in encoder.items() if name.startswith("fc.")}
    for linear, norm in ((0, 1), (3, 4), (6, 7)):
        state[f"{norm}.running_mean"] = state[f"{norm}.running_mean"] - state.pop(f"{linear}.bias")
    hidden, n_features = state["0.weight"].shape
    projector = make_projector(n_features, hidden, state["6.weight"].shape[0])
    projector.load_state_dict(state, strict=True)
    return projector


def _heads(state: Mapping[str, Tensor], source: Path) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each head its centers [K, D], duals [K] and counts [K] of the labels that its images had last."""
    labels, heads = state["assign_labels"], []
    if labels.ndim == 3:  # of an image's labels the heaviest, which is the first one before there are weights
        labels = labels.gather(2, state["label_val"].argmax(dim=2, keepdim=True))[..., 0]
    for head in range(_n_heads(state)):
        centers, n_clusters = state[f"pre_center_{head}"].t(), len(state[f"dual_{head}"])
        own = labels[head] if labels.ndim == 2 and len(labels) > head else torch.tensor([-1])
        if not 0 <= own.min() <= own.max() < n_clusters:
            came = f"assign_labels {list(state['assign_labels'].shape)}"
            raise ConfigError(f"{source}: {came} are not labels of head {head}: it has {n_clusters}")
        counts = torch.bincount(own, minlength=n_clusters)
        heads.append((normalize(centers.float()), state[f"dual_{head}"], counts))
    return heads


def _checked(folder: Path, network: nn.Module) -> str:
    model = load(folder)
    images = pixels(model)
    with torch.inference_mode():
        theirs = normalize(network(normalised(images, SEEN.mean, SEEN.std)))
    apart = within(_LIMIT, model.features(images, "projection"), theirs, "the imported projection")
    return f"{len(images)} pictures through the released network: projections {apart:.1e} apart at most"


def _told(
    state: Mapping[str, Tensor], heads: list[tuple[Tensor, Tensor, Tensor]]
) -> tuple[list[str], list[str]]:
    n_encoder, n_projector, n_predictor = (
        sum(name.startswith(part) for name in state) for part in ("encoder.", "encoder.fc.", "predictor.")
    )
    n_backbone = n_encoder - n_projector
    clusters = ", ".join(f"{len(centers):,}" for centers, _, _ in heads)
    taken = [
        f"backbone: {n_backbone} of {n_backbone} tensors, as timm's {ARCHITECTURE}",
        f"projector: {n_projector} of {n_projector} tensors; biases went into the means of the batch norms after them",
        f"clusters: pre_center and dual of {len(heads)} heads ({clusters}); counts are the last labels of "
        f"{state['assign_labels'].shape[1]:,} images",
    ]
    same = all(torch.equal(state[f"pre_center_{h}"], state[f"cur_center_{h}"]) for h in range(len(heads)))
    current = "equal to pre_center" if same else "other than pre_center: its epoch had not ended"
    left = [
        f"predictor: {n_predictor} tensors, of use in training alone",
        f"cur_center: {current}",
        "counter: of no use without its epoch",
    ]
    if "label_val" in state:
        left.append("label_val, label_idx: what earlier labels weigh")
    return taken, left
