"""What a finished run leaves beside its backbone: the clusters, and every image's place in them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from coke.bounded.files import as_bytes
from coke.evaluation import extract
from coke.images import ImageSet
from coke.method import OnlineConstrainedKMeans
from coke.method.network import Network, pool
from coke.run import Run, atomic
from coke.training.config import Config

_BLOCK = 4096  # images whose features are held at a time: never all of them


def write_clusters(run: Run, clusterings: list[OnlineConstrainedKMeans], counts: list[Tensor]) -> None:
    """Centers, duals (in units of cosine) and counts [K] of each head, in the format of `coke cluster`."""
    heads = [(each.frozen_centers, each.duals, n) for each, n in zip(clusterings, counts, strict=True)]
    ratios = [clustering.min_size_ratio for clustering in clusterings]
    facts = {"n_rows": int(counts[0].sum()), "min_size_ratio": ratios}
    with atomic(run.clusters, "wb") as stream:
        stream.write(as_bytes(heads, "cosine", facts))


def write_assignments(
    run: Run, network: Network, clusterings: list[OnlineConstrainedKMeans], images: ImageSet, config: Config
) -> list[Tensor]:
    """Every image's cluster in every head, from its un-augmented centre and the final centers and duals.

    Returns the clusters' counts, int64 [K] of each head.

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
    return [
        torch.cat([cluster for cluster, _, _ in found]).bincount(minlength=clustering.n_clusters)
        for found, clustering in zip(blocks, clusterings, strict=True)
    ]


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
