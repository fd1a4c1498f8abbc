"""A run that goes on from an earlier one with images added or gone: what is carried over, and how far clusters drift.

Images are recognised by their content, wherever they lie and whatever they are called. Shapes: N images of the earlier
run, H heads, K clusters of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from coke.bounded.files import load_clusterings
from coke.errors import ConfigError, ResumeError
from coke.images import ImageSet
from coke.model.files import load_weights
from coke.run import Run
from coke.training.config import Config
from coke.training.learner import Learner

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Earlier:
    """A finished run: the row of each image by its content, the labels of its training [N, H], its clusters [N, H]."""

    run: Run
    rows: dict[bytes, int]
    trained: Tensor
    clusters: Array

    def find(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        """Images that the run knew: their numbers now, and their rows then, int64 [M] each."""
        contents = images.hashes.numpy()
        found = [(i, self.rows[key]) for i, row in enumerate(contents) if (key := row.tobytes()) in self.rows]
        now, then = zip(*found, strict=True) if found else ((), ())
        return torch.tensor(now, dtype=torch.int64), torch.tensor(then, dtype=torch.int64)


def check_earlier(run: Run, config: Config) -> None:
    """Whether a run can be gone on from, by its files' names and columns.

    Raises `ResumeError` where it is not finished, or of a coke that did not write what is needed; `ConfigError` where
    the clusters asked for are others than the run has.
    """
    for file in (run.backbone, run.projector, run.clusters, run.assignments):
        if not file.is_file():
            raise ResumeError(f"{run.path} cannot be gone on from: {file.name} is missing")
    then = run.config
    for key in ("n_clusters", "dim", "hidden"):
        asked = getattr(config, key)
        asked = list(asked) if isinstance(asked, tuple) else asked
        if asked != then.get(key):
            raise ConfigError(
                f"{key}={asked} does not fit {run.path}, whose clusters are carried over and which has {then.get(key)}"
            )
    load_clusterings(run.clusters)
    with safe_open(run.clusters, "pt") as file:
        centers = [name for name in file.keys() if name.startswith("trained_centers")]  # noqa: SIM118 it is no mapping
    if not centers or "content" not in run.read_assignments().column_names:
        raise ResumeError(f"{run.path} was made by an older coke, which did not leave what another needs")


def read_earlier(run: Run, config: Config) -> Earlier:
    """What a run left, for one that goes on from it. Raises as `check_earlier` does."""
    check_earlier(run, config)
    heads = range(len(config.n_clusters))
    table = run.read_assignments(
        ["content", *(f"{name}_{h}" for h in heads for name in ("trained", "cluster"))]
    )
    rows = {content: row for row, content in enumerate(table["content"].to_pylist())}
    trained, clusters = (
        np.stack([table[f"{name}_{head}"].to_numpy() for head in heads], axis=1)
        for name in ("trained", "cluster")
    )
    return Earlier(run, rows, torch.from_numpy(trained).long(), clusters)


def load_earlier_backbone(earlier: Earlier, backbone: nn.Module) -> None:
    """The run's weights into a backbone. Raises `ConfigError` where they do not fit."""
    load_weights(backbone, earlier.run.backbone, "backbone")


def carry_over(earlier: Earlier, learner: Learner, images: ImageSet) -> str:
    """Projector, clusters and the labels of known images into a learner that has not begun; says how many there are.

    Predictor and duals begin anew, as in every run: the first is no part of a finished one, and the prices of the final
    assignment are far larger than training's duals (0.8 against 0.1 on the textures), so that they would move images.
    Centers are training's own: with those of un-augmented images 55, 35 and 26 % of known images kept their cluster
    over 8 epochs of textures, with these 81, 67 and 50 %.
    """
    load_weights(learner.network.module.projector, earlier.run.projector, "projector")
    tensors = load_file(earlier.run.clusters)
    for head, clustering in enumerate(learner.clusterings):
        centers = tensors[f"trained_centers_{head}"].to(learner.device)
        clustering.centers.copy_(centers)
        clustering.frozen_centers.copy_(centers)
    now, then = earlier.find(images)
    if len(now):
        labels = earlier.trained[then]
        known = (labels >= 0).all(dim=1)
        learner.memory.write(now[known].to(learner.device), labels[known].to(learner.device))
    n_new, n_gone = len(images) - len(now), len(earlier.rows) - len(then.unique())
    return (
        f"goes on from {earlier.run.path}: {len(now):,} images that it knew, {n_new:,} new, {n_gone:,} gone; clusters, "
        "labels and projector carried over"
    )


def drift(earlier: Earlier, run: Run, images: ImageSet) -> dict[str, Any]:
    """How the clusters of images that both runs have differ, head by head, by the clusters' numbers.

    Of the clusters that held any of them: ``emptied`` keep none of theirs; of ``split`` ones no cluster holds half any
    more; ``merged`` are clusters that hold more than half of two or more.
    """
    now, then = (index.numpy() for index in earlier.find(images))
    table = run.read_assignments()
    heads = []
    for head in range(earlier.clusters.shape[1]):
        after = table[f"cluster_{head}"].to_numpy()[now]
        before = earlier.clusters[then, head]
        n_clusters = 1 + max(int(after.max(initial=0)), int(before.max(initial=0)))
        moved = np.zeros((n_clusters, n_clusters), dtype=np.int64)  # from, to
        np.add.at(moved, (before, after), 1)
        held = moved.sum(axis=1)
        most = np.where(2 * moved.max(axis=1) > held, moved.argmax(axis=1), -1)[held > 0]
        heads.append(
            {
                "n_clusters": int((held > 0).sum()),
                "kept": float((before == after).mean()) if len(now) else None,
                "emptied": int(((held > 0) & (moved.diagonal() == 0)).sum()),
                "split": int((most < 0).sum()),
                "merged": int((np.bincount(most[most >= 0], minlength=n_clusters) > 1).sum()),
            }
        )
    return {"earlier": str(earlier.run.path), "images": len(now), "heads": heads}


def in_words(found: dict[str, Any]) -> list[str]:
    """A line for each head of what `drift` found."""
    if not found["images"]:
        return ["no image of the earlier run is among these: there is no drift to speak of"]
    return [
        f"head {number}: {head['kept']:.0%} of {found['images']:,} known images kept their cluster; of "
        f"{head['n_clusters']} clusters {head['split']} split, {head['emptied']} emptied; {head['merged']} merged"
        for number, head in enumerate(found["heads"])
    ]
