"""What `coke pretrain` leaves is a clustering like any other: `coke.load_clustering` and `coke assign` take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import coke
from coke.cli import main
from coke.errors import DataError
from coke.run import Run
from coke.training import outputs
from tiny_runs import SETTINGS, tiny, write_textures


@pytest.fixture(scope="module", params=[0.0, 0.9], ids=["free", "bounded"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Tensor]:
    """A run of two heads, and the features [N, D] by which its images were assigned."""
    folder, seen = tmp_path_factory.mktemp("trained"), []

    def extract(*arguments: Any, **settings: Any) -> Tensor:
        seen.append(whole(*arguments, **settings))
        return seen[-1]

    whole = outputs.extract
    keys = {**SETTINGS, "min_size_ratio": request.param}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "extract", extract)
        run = coke.pretrain(
            write_textures(folder / "data"), out=folder / "run", backbone=tiny(1), overrides=keys
        )
    (features,) = seen  # all images in one block
    return run, features


@pytest.mark.parametrize("head", [0, 1])
def test_every_head_gives_its_clusters(trained: tuple[Run, Tensor], head: int, tmp_path: Path) -> None:
    """Within the run's bound the same clusters come out; without one, the nearest centers."""
    run, features = trained
    clusters = pq.read_table(run.assignments)[f"cluster_{head}"].to_numpy()
    km = coke.load_clustering(run.clusters, head=head)
    assert (km.n_clusters, km.metric) == (SETTINGS["n_clusters"][head], "cosine")
    sizes = np.bincount(clusters, minlength=km.n_clusters)
    assert km.counts_.tolist() == sizes.tolist()
    ratio = run.config["min_size_ratio"]
    assert sizes.min() >= ratio * len(clusters) / km.n_clusters
    assert km.assign(features.numpy(), min_size_ratio=ratio).tolist() == clusters.tolist()
    nearest = (features @ load_file(run.clusters)[f"centers_{head}"].t()).argmax(1)
    assert km.predict(features.numpy()).tolist() == nearest.tolist()
    assert (ratio == 0) <= (nearest.tolist() == clusters.tolist())
    np.save(tmp_path / "features.npy", features.numpy())
    words = ["assign", str(run.clusters), str(tmp_path / "features.npy"), "--head", str(head)]
    bounds = ["--min-size-ratio", str(ratio)] if ratio else []
    assert main([*words, *bounds, "--out", str(tmp_path / "a.parquet")]) == 0
    assert pq.read_table(tmp_path / "a.parquet")["cluster"].to_pylist() == clusters.tolist()


def test_a_bound_was_at_work(trained: tuple[Run, Tensor]) -> None:
    """Or the above were no test."""
    run, _ = trained
    stored = load_file(run.clusters)
    moved = [int((pq.read_table(run.assignments)[f"margin_{head}"].to_numpy() < 0).sum()) for head in (0, 1)]
    duals = torch.cat([stored[f"duals_{head}"] for head in (0, 1)])
    assert bool(duals.any()) == bool(sum(moved)) == (run.config["min_size_ratio"] > 0)


def test_a_head_that_is_not_there(trained: tuple[Run, Tensor]) -> None:
    with pytest.raises(DataError, match=r"clusters.safetensors has no head 2: it has 2, numbered from 0"):
        coke.load_clustering(trained[0].clusters, head=2)
