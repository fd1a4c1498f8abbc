"""`coke.load`: a finished run's folder is all that new images need."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from torch.nn.functional import cosine_similarity, normalize

import coke
from coke.errors import BoundsError, ConfigError, DataError, ResumeError
from coke.images import open_data
from coke.images.image_set import center
from coke.model import Model, Preprocessing
from coke.run import Run
from tiny_runs import SETTINGS, tiny, write_textures

KEYS: dict[str, Any] = {**SETTINGS, "backbone": "coke_conv5_w16", "epochs": 3, "min_size_ratio": 0.8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_textures(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = coke.pretrain(folder, out=tmp_path_factory.mktemp("run") / "run", overrides=KEYS)
    shutil.rmtree(run.checkpoints)  # nothing below may need them
    return run


@pytest.fixture(scope="module")
def model(run: Run) -> Model:
    return coke.load(run.path)


def test_the_runs_own_images_get_its_clusters(run: Run, model: Model, folder: Path) -> None:
    """Nearest centers where the bound moved nothing; with the run's bound, the clusters that it wrote."""
    images, table = open_data(folder).train, pq.read_table(run.assignments)
    for head in range(2):
        found, stored = model.predict(images, head), table[f"cluster_{head}"].to_numpy()
        margins = table[f"margin_{head}"].to_numpy()
        assert (found.cluster.numpy() == stored)[margins > 1e-5].all()
        assert (found.cluster.numpy() != stored)[margins < -1e-5].all()
        bounded = model.predict(images, head, min_size_ratio=0.8)
        assert bounded.cluster.tolist() == stored.tolist()
        np.testing.assert_allclose(bounded.score.numpy(), table[f"score_{head}"].to_numpy(), atol=1e-5)
        np.testing.assert_allclose(bounded.margin.numpy(), margins, atol=1e-5)
    assert any((table[f"margin_{head}"].to_numpy() < 0).any() for head in range(2))  # a bound was at work


def test_score_margin_and_second_by_hand(run: Run, model: Model, folder: Path) -> None:
    images = open_data(folder).train.subset(range(9))
    projections = model.embed(images, features="projection")
    assert torch.allclose(projections.norm(dim=1), torch.ones(9))
    centers = load_file(run.clusters)["centers_1"]
    best = (projections @ normalize(centers).t()).topk(2, dim=1)
    found = model.predict(images, 1)
    assert torch.equal(found.cluster, best.indices[:, 0])
    assert torch.equal(found.second, best.indices[:, 1])
    assert torch.allclose(found.score, best.values[:, 0], atol=1e-5)
    assert torch.allclose(found.margin, best.values[:, 0] - best.values[:, 1], atol=1e-5)
    assert torch.equal(
        model.predict(projections, 1).cluster, found.cluster
    )  # features that are there already


def test_every_kind_of_image_gives_the_same(model: Model, folder: Path) -> None:
    images = open_data(folder).train.subset([3, 1, 2])
    paths = [folder / key for key in images.keys]
    expected = model.embed(images)
    pixels = torch.stack([images.read(index) for index in range(3)])
    for kind in (paths, [str(path) for path in paths], [Image.open(path) for path in paths], pixels):
        assert torch.allclose(model.embed(kind), expected, atol=1e-6)
    assert torch.allclose(model.embed(pixels.numpy()), expected, atol=1e-6)
    assert torch.allclose(model.embed([paths[0], pixels[1], Image.open(paths[2])]), expected, atol=1e-6)
    assert torch.allclose(model.embed(paths[1]), expected[1:2], atol=1e-6)
    assert torch.allclose(model.embed(pixels[1]), expected[1:2], atol=1e-6)
    assert torch.allclose(model.embed(images, batch_size=2), expected, atol=1e-6)


def test_neighbours_by_brute_force(model: Model, folder: Path) -> None:
    bank = model.embed(open_data(folder).train)
    cosines, rows = model.neighbours(bank[:7], bank, k=3)
    whole = normalize(bank[:7]) @ normalize(bank).t()
    assert torch.allclose(cosines, whole.topk(3).values, atol=1e-6)
    assert torch.allclose(whole.gather(1, rows), cosines, atol=1e-6)
    assert torch.allclose(cosines[:, 0], torch.ones(7), atol=1e-6)  # each is its own nearest


@pytest.mark.parametrize("size", [32, 96, 224])
def test_timms_own_transform_sees_the_same(size: int) -> None:
    """A photograph-like image through timm's pipeline, by the keys that travel with the weights."""
    generator = np.random.default_rng(0)
    rough = generator.integers(0, 256, (19, 28, 3), dtype=np.uint8)
    picture = Image.fromarray(rough).resize((421, 287), Image.Resampling.BICUBIC)
    seen = Preprocessing(size, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)).as_timm()
    network = timm.create_model("resnet10t", num_classes=0, pretrained_cfg_overlay=seen).eval()
    theirs = create_transform(**resolve_model_data_config(network))(picture)
    ours = center(torch.from_numpy(np.array(picture)).permute(2, 0, 1), size).float() / 255
    mean, std = (torch.tensor(seen[name])[:, None, None] for name in ("mean", "std"))
    with torch.inference_mode():
        features = network(torch.stack([theirs, (ours - mean) / std]))
    assert float(cosine_similarity(*features, dim=0)) > 0.999
    assert float(((theirs * std + mean) - ours).abs().mean()) < 1 / 255


def test_crop_pct_gives_the_resize_back() -> None:
    """timm rounds size / crop_pct down: 443 px would be cut from 505 in place of 506."""
    for size in range(8, 1200):
        seen = Preprocessing(size, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
        stated = seen.as_timm()
        assert math.floor(size / stated["crop_pct"]) == seen.shorter == Preprocessing.of_timm(stated).shorter


def test_a_module_of_ones_own(folder: Path, tmp_path: Path) -> None:
    run = coke.pretrain(folder, out=tmp_path, backbone=tiny(1), overrides=SETTINGS)
    with pytest.raises(ConfigError, match=r"custom:Tiny\): give it as backbone="):
        coke.load(run.path)
    model = coke.load(run.path, backbone=tiny(7))
    bounded = model.predict(open_data(folder).train, 0, min_size_ratio=run.config["min_size_ratio"])
    assert bounded.cluster.tolist() == pq.read_table(run.assignments)["cluster_0"].to_pylist()


def test_without_projector_or_clusters(run: Run, model: Model, tmp_path: Path) -> None:
    shutil.copy(run.backbone, tmp_path)
    pixels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    bare = coke.load(tmp_path)
    assert torch.equal(bare.embed(pixels), model.embed(pixels))
    with pytest.raises(ConfigError, match="no projector: it has backbone features alone"):
        bare.embed(pixels, features="projection")
    with pytest.raises(ConfigError, match=r"no head 0: this model has none: clusters.safetensors is missing"):
        bare.predict(pixels)
    with pytest.raises(ConfigError, match="no head 2: this model has 2, numbered from 0"):
        model.predict(pixels, head=2)


def test_what_cannot_be_read_is_named(run: Run, model: Model, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"holds no finished model: backbone.safetensors is missing"):
        coke.load(tmp_path)
    with pytest.raises(DataError, match=r"pixels must be uint8 \[N, 3, H, W\], 0 to 255, got float32"):
        model.embed(torch.zeros(2, 3, 16, 16))
    with pytest.raises(DataError, match=r"gone.png cannot be read"):
        model.embed([tmp_path / "gone.png"])
    with pytest.raises(DataError, match="no images"):
        model.embed([])
    pixels = torch.zeros(2, 3, 9, 9, dtype=torch.uint8)
    for odd, sentence in (
        (None, "images must be pixels, paths, PIL images, a list of these or a data set, got NoneType"),
        (b"bytes", r"got bytes|uint8 \[N, 3, H, W\]"),
        ((image for image in pixels), "or a data set, got generator"),
        ([pixels], r"in a list each image must be \[3, H, W\], got \[2, 3, 9, 9\]"),
        (pixels[:, :, :0], r"pixels must be uint8 \[N, 3, H, W\], 0 to 255, got uint8 \[2, 3, 0, 9\]"),
        (
            pixels.permute(0, 2, 3, 1),
            r"must be channels first, \[N, 3, H, W\], got \[2, 9, 9, 3\]: permute them",
        ),
    ):
        with pytest.raises(DataError, match=sentence):
            model.embed(odd)
    with pytest.raises(ConfigError, match="features must be 'backbone' or 'projection', got 'project'"):
        model.embed(pixels, features="project")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="device='cuda:99' cannot be had"):
        coke.load(run.path, device="cuda:99")
    with pytest.raises(BoundsError):
        model.predict(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), min_size=100)
    with pytest.raises(ConfigError, match=r"k must lie in 1 \.\.\. 3"):
        model.neighbours(torch.eye(3), torch.eye(3), k=4)
    for name in ("backbone.safetensors", "projector.safetensors"):
        copied = Path(shutil.copytree(run.path, tmp_path / f"damaged {name}"))
        (copied / name).write_bytes(b"nothing")
        with pytest.raises(DataError, match=f"{name} cannot be read as safetensors"):
            coke.load(copied)
    save_file(load_file(run.backbone), tmp_path / "backbone.safetensors")
    with pytest.raises(DataError, match="does not say how it was made"):
        coke.load(tmp_path)
    save_file(load_file(run.backbone), tmp_path / "backbone.safetensors", {"format_version": "99"})
    with pytest.raises(ResumeError, match="has format 99, this coke reads up to 1: install a newer coke"):
        coke.load(tmp_path)


def test_weights_that_a_run_wrote_say_how_images_are_seen(run: Run, model: Model, folder: Path) -> None:
    """Also where they are given beside an architecture's name, whose own size and normalisation are others."""
    other = Model.of_timm("coke_conv5_w16", run.backbone)
    assert other.preprocessing == model.preprocessing
    images = open_data(folder).train.subset(range(5))
    assert torch.equal(other.embed(images), model.embed(images))


def test_a_projector_of_another_program(run: Run, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run.path, tmp_path / "copy"))
    save_file(load_file(run.projector), copied / "projector.safetensors")
    with pytest.raises(DataError, match="does not say how wide its layers are"):
        coke.load(copied)
