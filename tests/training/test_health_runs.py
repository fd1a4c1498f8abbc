"""Runs that fail in four ways, provoked on purpose, and one that learns: the verdict tells them apart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import coke.backbones
from coke.run import Run
from coke.training.monitor import DivergedError
from tiny_runs import SETTINGS, tiny, write_textures

MILD: dict[str, Any] = {"views.crop": [0.8, 1.0], "views.jitter": [0.3, 0.3, 0, 0], "views.gray": 0.0}


class Constant(nn.Module):
    """Sees nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Parameter(torch.ones(16))

    def forward(self, images: Tensor) -> Tensor:
        return self.features.expand(len(images), 16)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_textures(tmp_path_factory.mktemp("images"), 600)


def train(images: Path, out: Path, backbone: nn.Module | None = None, **keys: Any) -> Run:
    torch.manual_seed(0)
    backbone = backbone or timm.create_model("coke_conv5_w16", num_classes=0)
    overrides = {**SETTINGS, **MILD, "dim": 32, "epochs": 5, "learning_rate": 0.1, **keys}
    return coke.pretrain(images, out=out, backbone=backbone, overrides=overrides)


def write_blank(folder: Path, n_images: int) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(n_images):
        Image.new("RGB", (16, 16), (90, 120, 30)).save(folder / f"blank {number}.png")
    return folder


def test_healthy(images: Path, tmp_path: Path) -> None:
    run = train(images, tmp_path, dim=16, epochs=12)
    verdict = run.verdict
    assert (verdict["state"], verdict["healthy"], verdict["action"]) == ("learning", True, "")
    epochs = run.metrics("epoch")
    states = [record["verdict"]["state"] for record in epochs]
    assert states[:3] == ["clustering", "starting", "starting"]
    last = epochs[-1]
    assert epochs[1]["loss"] > epochs[1]["ln_clusters"]  # why it is called starting
    assert last["loss"] < 0.9 * last["ln_clusters"]
    assert last["label_agreement"] > 0.1
    assert last["effective_rank"] > 2


def test_dominating_cluster(tmp_path: Path) -> None:
    """Half of the images are alike, and nothing bounds a cluster."""
    folder = write_blank(write_textures(tmp_path / "images", 300), 300)
    settings = {
        "n_clusters": 64,
        "min_size_ratio": 0.0,
        "dual_lr": 0.0,
        "epochs": 2,
        "views.jitter": [0, 0, 0, 0],
    }
    verdict = train(folder, tmp_path / "run", **settings).verdict
    assert (verdict["state"], verdict["healthy"]) == ("collapsing", False)
    assert re.fullmatch(r"one cluster of 64 holds [45]\d % of images", verdict["text"])
    assert "raise dual_lr or min_size_ratio" in verdict["action"]


def test_label_noise(images: Path, tmp_path: Path) -> None:
    """Dual steps a hundred times the cosines: sizes are perfect, labels are drawn."""
    run = train(images, tmp_path, n_clusters=20, min_size_ratio=1.0, dual_lr=4000.0)
    verdict, last = run.verdict, run.metrics("epoch")[-1]
    assert last["heads"][0]["largest"] < 3 * last["heads"][0]["bound"]
    assert (verdict["state"], verdict["healthy"]) == ("noise", False)
    assert "dual_lr" in verdict["action"]


def test_network_that_sees_nothing(images: Path, tmp_path: Path) -> None:
    verdict = train(images, tmp_path, Constant(), epochs=4, learning_rate=0.01).verdict
    assert (verdict["state"], verdict["healthy"]) == ("constant", False)
    assert "check that the images differ" in verdict["action"]


def test_images_all_alike(tmp_path: Path) -> None:
    """Batch norm blows rounding errors up, so that the features are noise rather than constant."""
    settings = {"epochs": 4, "learning_rate": 0.01, "views.jitter": [0, 0, 0, 0]}
    run = train(write_blank(tmp_path / "images", 200), tmp_path / "run", tiny(), **settings)
    assert run.verdict["state"] in ("constant", "noise")
    assert not run.verdict["healthy"]


def test_exploding_loss(images: Path, tmp_path: Path) -> None:
    run = train(images, tmp_path, learning_rate=1000.0, epochs=2)
    verdict, last = run.verdict, run.metrics("epoch")[-1]
    assert last["loss"] > 2 * last["ln_clusters"]
    assert (verdict["state"], verdict["healthy"]) == ("diverging", False)
    assert "lower learning_rate" in verdict["action"]


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_loss_that_is_no_number(images: Path, tmp_path: Path, clip_norm: float | None) -> None:
    """Training stops after an epoch's steps in a row, with the verdict on disk."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(DivergedError, match=r"not finite in \d+ steps.*learning_rate=1e\+19"):
        train(images, tmp_path, network, learning_rate=1e20, epochs=4, clip_norm=clip_norm)
    run = Run(tmp_path)
    assert run.verdict["state"] == "diverging"
    assert len(run.metrics("epoch")) < 4
    assert not run.backbone.exists()
