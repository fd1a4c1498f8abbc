"""`init`: from a run, a file of weights or a name of timm's, settled and refused before images are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import coke
from coke.errors import ConfigError
from coke.model import files
from coke.run import Run
from coke.training.plan import make_plan
from tiny_runs import SETTINGS, write_textures

KEYS: dict[str, Any] = {**SETTINGS, "epochs": 2, "views.size": 16}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_textures(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def first(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("run") / "first"
    return coke.pretrain(images, out=out, overrides={**KEYS, "backbone": "coke_conv5_w24"})


def test_from_a_run(first: Run, images: Path, tmp_path: Path) -> None:
    run = coke.pretrain(images, out=tmp_path / "run", overrides={**KEYS, "init": str(first.path)})
    assert run.config["backbone"] == "coke_conv5_w24"
    told = [record["text"] for record in run.metrics("event")]
    assert f"backbone coke_conv5_w24: what init={first.path} is of" in told
    assert f"started from {first.path}: 30 of 30 tensors" in told
    begun, given = load_file(run.initial), load_file(first.backbone)
    assert all(torch.equal(begun[name], given[name]) for name in given)


def test_from_files(first: Run, images: Path, tmp_path: Path) -> None:
    plan = make_plan(images, None, {**KEYS, "init": str(first.backbone)})
    assert plan.config.backbone == "coke_conv5_w24"  # its metadata say so
    save_file(
        {f"module.{name}": value for name, value in load_file(first.backbone).items()},
        tmp_path / "w.safetensors",
    )
    with pytest.raises(ConfigError, match="does not say of which backbone it is: name it with backbone=NAME"):
        make_plan(images, None, {**KEYS, "init": str(tmp_path / "w.safetensors")})
    keys = {**KEYS, "init": str(tmp_path / "w.safetensors"), "backbone": "coke_conv5_w24"}
    run = coke.pretrain(images, out=tmp_path / "run", overrides=keys)
    assert any("30 of 30 tensors, under 'module.'" in record["text"] for record in run.metrics("event"))


def test_from_a_published_name(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights stand where timm would look for them; without them the refusal says what to do."""
    torch.manual_seed(0)
    given = timm.create_model("test_resnet.r160_in1k", num_classes=0)
    with monkeypatch.context() as patch:
        patch.setattr(files, "published", lambda name: given)
        patch.setattr("coke.training.backbone.published", lambda name: given)
        run = coke.pretrain(images, out=tmp_path / "run", overrides={**KEYS, "init": "test_resnet.r160_in1k"})
    assert run.config["backbone"] == "test_resnet"
    begun = load_file(run.initial)
    assert all(torch.equal(begun[name], value) for name, value in given.state_dict().items())

    def offline(*arguments: Any, **settings: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        ConfigError, match=r"weights of resnet18 are not on this machine and cannot be downloaded"
    ):
        files.published("resnet18")


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"init": "resnet18x"}, "init=resnet18x is no run folder, no file of weights, and no name"),
        ({"init": "runs/nothing"}, "runs/nothing: no such file of weights"),
        ({"init": "nothing.pt"}, "nothing.pt: no such file of weights"),
        ({"init": "."}, "this folder holds no finished run, backbone.safetensors is missing"),
        ({"backbone": "resnet19"}, "unknown backbone 'resnet19' (did you mean"),
    ],
)
def test_refused_before_images_are_read(
    keys: dict[str, Any], sentence: str, images: Path, tmp_path: Path
) -> None:
    read: list[int] = []
    with pytest.raises(ConfigError) as refusal:
        make_plan(images, None, keys, progress=lambda done, total: read.append(done))
    assert sentence in str(refusal.value)
    assert not read
