"""What a finished run leaves: the backbone's weights, the clusters, and every image's place in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from coke.clustering import OnlineConstrainedKMeans
from coke.data import ImageSet
from coke.errors import ConfigError
from coke.evaluation import extract
from coke.run import Run, atomic
from coke.training.config import Config
from coke.training.network import Network, pool

_BLOCK = 4096  # images whose features are held at a time: never all of them


def write_backbone(path: Path, backbone: nn.Module, config: Config) -> None:
    """Weights as ``timm.create_model(name, num_classes=0, checkpoint_path=path)`` takes them.

    Name, view size, mean and standard deviation are in the file's metadata.
    """
    weights = own_tensors(backbone.state_dict())
    metadata = {
        "architecture": config.backbone,
        "input_size": json.dumps([3, config.image_size, config.image_size]),
        "mean": json.dumps(config.mean),
        "std": json.dumps(config.std),
    }
    with atomic(path, "wb") as stream:
        stream.write(save(weights, metadata))


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


def start_from(backbone: nn.Module, path: Path) -> str:
    """Load weights into a backbone and say what was: '62 of 62 tensors'. A classifier's weights may be left.

    Raises `ConfigError` where a tensor of the backbone is missing from the file or of another shape.
    """
    weights, own = read_weights(path), backbone.state_dict()
    missing = [name for name in own if name not in weights]
    misshapen = [
        f"{name} {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if missing or misshapen:
        fit = len(own) - len(missing) - len(misshapen)
        raise ConfigError(
            f"{path} does not fit the backbone: {fit} of {len(own)} tensors match; "
            f"missing {missing[:3]}, of another shape {misshapen[:3]}"
        )
    backbone.load_state_dict({name: weights[name] for name in own})
    unused = [name for name in weights if name not in own]
    left = f"; {len(unused)} in the file not used ({', '.join(unused[:3])})" if unused else ""
    return f"started from {path}: {len(own)} of {len(own)} tensors{left}"


def write_clusters(run: Run, clusterings: list[OnlineConstrainedKMeans]) -> None:
    """Centers and duals of each head."""
    tensors: dict[str, Tensor] = {}
    for head, clustering in enumerate(clusterings):
        tensors[f"centers_{head}"] = clustering.frozen_centers.cpu().contiguous()
        tensors[f"duals_{head}"] = clustering.duals.cpu().contiguous()
    with atomic(run.clusters, "wb") as stream:
        stream.write(save(tensors))


def write_assignments(
    run: Run, network: Network, clusterings: list[OnlineConstrainedKMeans], images: ImageSet, config: Config
) -> None:
    """Every image's cluster in every head, from its un-augmented centre and the final centers and duals.

    ``score`` is the cosine to the center, ``margin`` how far cosine plus dual lies above the second best.
    """
    projection = _Projection(network)
    heads = [(clustering.frozen_centers.cpu(), clustering.duals.cpu()) for clustering in clusterings]
    blocks: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in heads]
    for rows in torch.arange(len(images)).split(_BLOCK):
        features = extract(
            projection, images.subset(rows), size=config.image_size, mean=config.mean, std=config.std
        )
        for found, (centers, duals) in zip(blocks, heads, strict=True):
            found.append(place(features, centers, duals))
    columns: dict[str, object] = {"key": pa.array(images.keys, pa.string())}
    if images.labels is not None:
        columns["label"] = images.labels.numpy()
    for head, found in enumerate(blocks):
        for name, values in zip(("cluster", "score", "margin"), zip(*found, strict=True), strict=True):
            columns[f"{name}_{head}"] = torch.cat(values).numpy()
    with atomic(run.assignments, "wb") as stream:
        pq.write_table(pa.table(columns), stream)


class _Projection(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        projection = self.network.projector(pool(self.network.backbone(images)))
        return nn.functional.normalize(projection.float())


@torch.no_grad()
def place(features: Tensor, centers: Tensor, duals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster, cosine and margin [B] each of features [B, D] under centers [K, D] and duals [K]."""
    cosines = features @ centers.t()
    best = (cosines + duals).topk(min(2, len(centers)), dim=1)
    cluster = best.indices[:, 0]
    score = cosines.gather(1, cluster[:, None])[:, 0]
    return cluster, score, best.values[:, 0] - best.values[:, -1]
