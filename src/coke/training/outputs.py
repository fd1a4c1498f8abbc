"""What a finished run leaves beside its backbone: the clusters, and every image's place in them."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from coke import distributed
from coke.atomic import atomic, remove
from coke.bounded.files import as_bytes, estimator_of
from coke.evaluation import extract
from coke.explore.neighbours import sums_of_directions
from coke.images import ImageSet
from coke.method import OnlineConstrainedKMeans
from coke.method.network import Network, pool
from coke.model.embed import Partial
from coke.model.predict import columns_of, placed
from coke.run import Run
from coke.training.config import Config
from coke.training.map import write_map

_FOLDER = ".projections-"
_BLOCK = 4096  # images whose features are held at a time: all of them lie in a file


def write_clustering(
    run: Run,
    network: Network,
    clusterings: list[OnlineConstrainedKMeans],
    trained: Tensor,
    images: ImageSet,
    config: Config,
    seconds: float = 0.0,
) -> None:
    """assignments.parquet and clusters.safetensors: every image's cluster in every head, within the head's bound.

    What the run left after fewer epochs goes before: none of it lies beside what belongs to more of them.

    And map.parquet, by the head of most clusters: see `coke.training.map`.

    Images are seen un-augmented, at their centre, as later ones will be: the centers are the means of their projections
    under the labels that training gave last (training's own centers are of augmented views, which lie elsewhere). All
    are then assigned exactly, at the least sum of 1 - cosine under which each cluster holds its ``min_size_ratio``
    N / K images: what the training aims at.

    Per head h, ``score_h`` is the cosine to the own center; ``second_h`` the nearest other cluster, and ``margin_h``
    how much smaller the cosine to it is: negative where the bound moved the image. ``trained_h`` is the label that
    training gave last, in the last epoch's augmented view. The clusters' duals are those of the final assignment.

    Args:
        trained: labels of the training [N, H], -1 where there is none.
        seconds: that training took, which decide what a map may take.
    """
    contents = [row.tobytes() for row in images.hashes.numpy()]
    columns: dict[str, object] = {
        "key": pa.array(images.keys, pa.string()),
        "content": pa.array(contents, pa.binary(16)),  # by which a later run knows the image again
    }
    if images.labels is not None:
        columns["label"] = images.labels.numpy()
    heads = []
    for left in run.path.glob(f"{_FOLDER}*"):  # by a process that was killed here
        shutil.rmtree(left)
    with TemporaryDirectory(prefix=_FOLDER, dir=run.path) as folder, distributed.alone():
        features = _projections(Path(folder), network, images, config)
        for head, clustering in enumerate(clusterings):
            labels, own = trained[:, head].cpu().numpy(), clustering.frozen_centers.cpu()
            means = torch.from_numpy(sums_of_directions(features, labels, len(own)))
            there = means.norm(dim=1, keepdim=True) > 0  # training's own where no image has the label
            centers = nn.functional.normalize(means).to(own.dtype).where(there, own)
            km = estimator_of(centers, clustering.duals.cpu(), torch.ones(len(centers)), metric="cosine")
            place, prices = placed(km, features, min_size_ratio=clustering.min_size_ratio)
            columns |= columns_of(head, place) | {f"trained_{head}": labels.astype(np.int32)}
            counts = np.bincount(place["cluster"], minlength=len(centers))
            heads.append((centers, torch.from_numpy(prices), torch.from_numpy(counts)))
        remove(
            run.backbone,
            run.projector,
            run.clusters,
            run.assignments,
            run.map,
            run.evaluation_file,
            run.report,
        )
        finest = max(range(len(heads)), key=lambda head: len(heads[head][0]))
        clusters = np.asarray(columns[f"cluster_{finest}"])
        write_map(run.map, features, clusters, heads[finest][0], images, seconds=seconds)
    with atomic(run.assignments, "wb") as stream:
        pq.write_table(pa.table(columns), stream)
    ratios = [clustering.min_size_ratio for clustering in clusterings]
    begun = {f"trained_centers_{head}": km.frozen_centers.cpu() for head, km in enumerate(clusterings)}
    with atomic(run.clusters, "wb") as stream:
        stream.write(as_bytes(heads, "cosine", {"n_rows": len(images), "min_size_ratio": ratios}, begun))


def _projections(folder: Path, network: Network, images: ImageSet, config: Config) -> np.ndarray[Any, Any]:
    """Unit vectors [N, D] of all images, mapped from a file in a folder."""
    projection, stored = _Projection(network), Partial(folder / "projections", {}, "float32")
    for rows in torch.arange(len(images)).split(_BLOCK):
        block = extract(
            projection, images.subset(rows), size=config.image_size, mean=config.mean, std=config.std
        )
        block[(block == 0).all(dim=1), 0] = 1.0  # what has no direction lies anywhere
        stored.add(block, {}, int(rows[-1]) + 1)
    return stored.rows()


class _Projection(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        projection = self.network.projector(pool(self.network.backbone(images)))
        return nn.functional.normalize(projection.float())
