"""`coke export`: what others load computes what coke does, and nothing that does not is left on the disk."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import coke
import coke.backbones
from coke.cli import main
from coke.errors import ConfigError, DataError
from coke.model import Preprocessing, write_backbone
from coke.run import Run
from tiny_runs import SETTINGS, tiny, write_textures

SEEN = Preprocessing(48, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
FOREIGN = {
    "tag",
    "url",
    "file",
    "hf_hub_id",
    "hf_hub_filename",
    "source",
    "origin_url",
    "paper_ids",
    "paper_name",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_textures(tmp_path_factory.mktemp("secret place") / "birds", labelled=True)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    keys: dict[str, Any] = {**SETTINGS, "backbone": "coke_conv5_w16", "epochs": 3, "min_size_ratio": 0.8}
    run = coke.pretrain(folder, out=tmp_path_factory.mktemp("run") / "run", overrides=keys)
    shutil.rmtree(run.checkpoints)
    return run


def folder_of(place: Path, name: str, seen: Preprocessing = SEEN) -> Path:
    """A folder with such a backbone, whose batch norms have seen images."""
    torch.manual_seed(0)
    network = coke.backbones.create(name, seen.size)
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(4, 3, seen.size, seen.size))
    write_backbone(place / "backbone.safetensors", network, name, seen)
    return place


def photographs(n_images: int = 6) -> list[Image.Image]:
    """Smooth pictures of other shapes than those that the export itself looks at."""
    generator = np.random.default_rng(7)
    rough = [generator.integers(0, 256, (17, 9 + 3 * i, 3), dtype=np.uint8) for i in range(n_images)]
    return [Image.fromarray(r).resize((r.shape[1] * 23, 310), Image.Resampling.BICUBIC) for r in rough]


def executed(code: str) -> Any:
    """The value of the last statement of a printed line, which is a call."""
    *statements, last = code.split("; ")
    names: dict[str, Any] = {}
    exec("\n".join(statements), names)
    return eval(last, names)


def pixels(seen: Preprocessing, n_images: int = 5) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, S, S], and the same normalised."""
    images = torch.randint(256, (n_images, 3, seen.size, seen.size), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (seen.mean, seen.std))
    return images, (images / 255 - mean) / std


def assert_as_coke(network: nn.Module, source: Path) -> None:
    """The same features to the bit; through timm's own transform, all but the same."""
    model = coke.load(source)
    images, normalised = pixels(model.preprocessing)
    transform = create_transform(**resolve_model_data_config(network))
    with torch.inference_mode():
        assert torch.equal(network(normalised), model.features(images))
        theirs = network(torch.stack([transform(picture) for picture in photographs()]))
    assert float(cosine_similarity(theirs, model.embed(photographs()), dim=1).min()) >= 0.999


ARCHITECTURES = ["resnet18", "coke_conv5_w16", "test_vit.r160_in1k", "vit_tiny_patch16_224"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_timm_loads_the_folder_to_the_bit(tmp_path: Path, name: str) -> None:
    size = 160 if name.startswith("test_vit") else 48
    source = folder_of(tmp_path, name, Preprocessing(size, SEEN.mean, SEEN.std))
    done = coke.export(source, to="hf", out=tmp_path / "out")
    assert "as timm loads it: equal to the bit; through timm's own transform: cosine 0.999" in done.parity
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert_as_coke(network, source)
    assert_as_coke(executed(done.loads_with), source)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == name.split(".")[0]
    assert (config["num_classes"], config["num_features"]) == (0, network.num_features)
    assert not FOREIGN & set(config["pretrained_cfg"])
    cfg = network.pretrained_cfg
    assert not any(cfg.get(key) for key in FOREIGN - {"file", "source"})
    assert (cfg["source"], cfg["file"]) == ("local-dir", str(tmp_path / "out"))
    with_classes = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=7)
    assert with_classes(torch.zeros(1, 3, size, size)).shape == (1, 7)  # as for fine-tuning


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_timm_takes_the_printed_call(tmp_path: Path, name: str) -> None:
    size = 160 if name.startswith("test_vit") else 96
    source = folder_of(tmp_path, name, Preprocessing(size, SEEN.mean, SEEN.std))
    done = coke.export(source, to="timm", out=tmp_path / "weights.safetensors")
    assert_as_coke(executed(done.loads_with), source)
    assert ("coke.backbones" in done.loads_with) == name.startswith("coke_")


def test_torchvision_takes_the_printed_call(tmp_path: Path, run: Run) -> None:
    for name in ("resnet18", "resnext50_32x4d"):
        source = folder_of(tmp_path / name, name)
        done = coke.export(source, to="torchvision", out=tmp_path / f"{name}.safetensors")
        names: dict[str, Any] = {}
        exec(done.loads_with, names)
        network = names["network"]
        images, normalised = pixels(SEEN)
        with torch.inference_mode():
            theirs = network(normalised)
        assert float((theirs - coke.load(source).features(images)).abs().max()) <= 1e-5
        assert f"through torchvision's {name}" in done.parity
    with pytest.raises(
        ConfigError, match=r"no coke_conv5_w16 of the same layers; it has resnet18, .* and resnext101"
    ):
        coke.export(run, to="torchvision", out=tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match=r"torchvision has no resnet18d"):
        coke.export(
            folder_of(tmp_path / "d", "resnet18d"), to="torchvision", out=tmp_path / "none.safetensors"
        )
    assert not (tmp_path / "none.safetensors").exists()


def test_the_whole_model_without_its_run(tmp_path: Path, run: Run, folder: Path) -> None:
    copied = Path(shutil.copytree(run.path, tmp_path / "run"))
    done = coke.export(copied, to="safetensors", out=tmp_path / "whole")
    shutil.rmtree(copied)
    assert "features, projections, clusters of 2 heads equal to the bit" in done.parity
    whole, own = executed(done.loads_with), coke.load(run.path)
    paths = sorted(folder.rglob("*.png"))[:20]
    for head in range(2):
        for theirs, ours in zip(whole.predict(paths, head), own.predict(paths, head), strict=True):
            assert torch.equal(theirs, ours)
    again = coke.export(tmp_path / "whole", to="safetensors", out=tmp_path / "again")  # of an export
    assert load_file(again.path / "clusters.safetensors").keys() == load_file(run.clusters).keys()


def test_a_module_of_ones_own(tmp_path: Path, folder: Path) -> None:
    run = coke.pretrain(folder, out=tmp_path / "run", backbone=tiny(1), overrides=SETTINGS)
    done = coke.export(run, to="safetensors", out=tmp_path / "whole", backbone=tiny(5))
    assert done.loads_with.endswith(f'coke.load("{tmp_path / "whole"}", backbone=...)')
    images, _ = pixels(coke.load(run.path, backbone=tiny(6)).preprocessing)
    loaded = [coke.load(place, backbone=tiny(8)).features(images) for place in (run.path, tmp_path / "whole")]
    assert torch.equal(*loaded)
    for to in ("timm", "torchvision", "hf"):
        with pytest.raises(ConfigError, match=rf"{to} does not know a backbone of your own \(custom:Tiny\)"):
            coke.export(
                run, to=to, out=tmp_path / "x.safetensors" if to != "hf" else tmp_path / "x", backbone=tiny(5)
            )
    with pytest.raises(ConfigError, match="give it as backbone="):
        coke.export(run, to="safetensors", out=tmp_path / "x")


def test_what_does_not_compute_the_same_is_not_kept(tmp_path: Path, folder: Path) -> None:
    """A network that draws at random when it is asked: what was there stays."""

    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny(1)

        def forward(self, images: Tensor) -> Tensor:
            features = self.inner(images)
            return features + torch.rand_like(features)

    run = coke.pretrain(folder, out=tmp_path / "run", backbone=Drawing(), overrides=SETTINGS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("earlier")
    with pytest.raises(
        DataError, match=r"differs by .* from coke's own, more than 0e\+00: nothing was written"
    ):
        coke.export(run, to="safetensors", out=tmp_path / "out", backbone=Drawing(), overwrite=True)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["README.md"]
    assert {file.name for file in tmp_path.iterdir()} == {"run", "out"}


def test_the_card_says_what_there_is_to_know(tmp_path: Path, run: Run, folder: Path) -> None:
    for to in ("hf", "safetensors"):
        coke.export(run, to=to, out=tmp_path / to)
        card = (tmp_path / to / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: timm\n")
        assert "# coke_conv5_w16 of birds\n" in card
        assert "an image gives 128\nnumbers" in card
        assert "200 images of birds, without their labels." in card
        assert "- epochs: 3\n" in card
        assert "- n_clusters: [4, 6]\n" in card
        assert "- start: random weights\n" in card
        for name, scores in run.evaluation["representations"].items():
            assert re.search(rf"    {name} +{scores['knn']:.1%} ", card)
        assert "200 images are few to learn from" in card
        assert run.verdict["text"] in card
        for path in (folder, run.path, tmp_path, Path.cwd()):
            assert str(path) not in card
        assert not re.search(r"(?<![\w:.])/\w+/\w+", card.replace("https://arxiv.org/abs", ""))
    assert "import coke.backbones, timm\n" in (tmp_path / "hf" / "README.md").read_text()
    folder_of(tmp_path / "bare", "resnet18")
    coke.export(tmp_path / "bare", to="hf", out=tmp_path / "of bare")
    card = (tmp_path / "of bare" / "README.md").read_text()
    assert card.count("Not known: the folder that this was exported from does not say.") == 2
    assert "Nothing: there were no labels to measure with." in card


def onnx_session(path: Path) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def export_onnx(*arguments: Any, **words: Any) -> coke.model.export.Exported:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} of the extra onnx is not installed")
    return coke.export(*arguments, to="onnx", **words)


def test_onnx_computes_the_same_in_any_batch(tmp_path: Path) -> None:
    source = folder_of(tmp_path, "resnet18")
    done = export_onnx(source, out=tmp_path / "features.onnx")
    assert re.search(r"features in onnxruntime, batches of 1, 2 and 5: \S+ apart at most", done.parity)
    assert [file.name for file in tmp_path.glob("*onnx*")] == ["features.onnx"]
    session, model = onnx_session(done.path), coke.load(source)
    assert [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()] == [
        ("image", "tensor(float)", [3, 48, 48])
    ]
    assert [(o.name, o.shape[1:]) for o in session.get_outputs()] == [("features", [512])]
    for n_images in (1, 2, 5, 7):
        images, _ = pixels(SEEN, n_images)
        (features,) = session.run(None, {"image": (images / 255).numpy()})
        np.testing.assert_allclose(features, model.features(images).numpy(), atol=1e-4)
    stated = session.get_modelmeta().custom_metadata_map
    assert (stated["size"], stated["architecture"]) == ("48", "resnet18")
    assert stated["input"] == "RGB in 0 ... 1, normalised inside"
    assert [json.loads(stated[key]) for key in ("mean", "std")] == [list(SEEN.mean), list(SEEN.std)]
    assert json.loads(stated["crop_pct"]) == SEEN.as_timm()["crop_pct"]


def test_onnx_gives_clusters(tmp_path: Path, run: Run, folder: Path) -> None:
    done = export_onnx(run, out=tmp_path / "all.onnx", predict=True)
    assert "features, projection and clusters in onnxruntime" in done.parity
    session, model = onnx_session(done.path), coke.load(run.path)
    names = [output.name for output in session.get_outputs()]
    assert names == ["features", "projection", "cluster_0", "score_0", "cluster_1", "score_1"]
    images = torch.stack([torch.tensor(np.array(Image.open(file))) for file in sorted(folder.rglob("*.png"))])
    images = images.permute(0, 3, 1, 2)
    found = dict(zip(names, session.run(None, {"image": (images / 255).numpy()}), strict=True))
    for head in range(2):
        own = model.predict(images, head)
        clear = own.margin.numpy() > 1e-5
        assert clear.sum() > 150
        assert (found[f"cluster_{head}"] == own.cluster.numpy())[clear].all()
        np.testing.assert_allclose(found[f"score_{head}"], own.score.numpy(), atol=1e-5)
    np.testing.assert_allclose(
        found["projection"], model.embed(images, features="projection").numpy(), atol=1e-5
    )
    one = export_onnx(run, out=tmp_path / "one.onnx", predict=True, head=1)
    outputs = [output.name for output in onnx_session(one.path).get_outputs()]
    assert outputs == ["features", "projection", "cluster_1", "score_1"]


def test_onnx_of_a_network_without_a_graph(tmp_path: Path) -> None:
    """What a network does must not depend on the numbers that it sees."""

    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny(1)

        def forward(self, images: Tensor) -> Tensor:
            features = self.inner(images)
            return features if float(features.sum()) > 0 else -features

    write_backbone(tmp_path / "backbone.safetensors", Choosing(), "custom:Choosing", SEEN)
    with pytest.raises(ConfigError, match="torch finds no graph for custom:Choosing: "):
        export_onnx(tmp_path, out=tmp_path / "x.onnx", backbone=Choosing())
    assert {file.name for file in tmp_path.iterdir()} == {"backbone.safetensors"}


def test_onnx_without_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Run, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(run.path), "--to", "onnx", "--out", str(tmp_path / "x.onnx")]) == 1
    assert re.search(r'needs .*onnxscript.*: pip install "coke-ssl\[onnx\]"', capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_the_command_prints_the_check(capsys: pytest.CaptureFixture[str], run: Run, tmp_path: Path) -> None:
    words = ["export", str(run.path), "--to", "hf", "--out", str(tmp_path / "birds")]
    assert main(words) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("parity: 8 pictures as timm loads it: equal to the bit")
    call = f'timm.create_model("local-dir:{tmp_path / "birds"}", pretrained=True).eval()'
    assert second == f"{tmp_path / 'birds'}: import coke.backbones, timm; {call}"
    assert main(words) == 1
    assert "exists: choose another --out, or --overwrite it" in capsys.readouterr().err
    (tmp_path / "birds" / "config.json").write_text("damaged")
    assert main([*words, "--overwrite"]) == 0
    timm.create_model(f"local-dir:{tmp_path / 'birds'}", pretrained=True)
    assert {file.name for file in tmp_path.iterdir()} == {"birds"}


def test_refusals_come_before_any_work(
    capsys: pytest.CaptureFixture[str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "own.png").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"mine")
    before = {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    anywhere = ["--overwrite", "--out"]
    for words, sentence in (
        (
            ["--to", "timm", "--out", "x.pth"],
            "x.pth: what --to timm writes is a .safetensors file, not '.pth'",
        ),
        (["--to", "onnx", "--out", "x"], "what --to onnx writes is a .onnx file, not ''"),
        (
            ["--to", "safetensors", "--out", "x.safetensors"],
            "what --to safetensors writes is a folder, not a file",
        ),
        (
            ["--to", "hf", *anywhere, "photos"],
            "photos holds what no export wrote (own.png): choose another --out",
        ),
        (["--to", "hf", *anywhere, "file"], "file is a file, what --to hf writes is none"),
        (["--to", "hf", *anywhere, run.path], "is what is read, or lies in it"),
        (["--to", "hf", *anywhere, run.path.parent], "is what is read, or lies in it"),
        (["--to", "timm", *anywhere, run.backbone], "is what is read, or lies in it"),
        (["--to", "hf", "--out", "file/x"], "file/x cannot be written there: choose another --out"),
        (["--to", "hf", "--out", "x", "--predict"], "hf holds no clusters to predict with"),
        (["--to", "onnx", "--out", "x.onnx", "--head", "0"], "add --predict"),
        (
            ["--to", "onnx", "--out", "x.onnx", "--predict", "--head", "7"],
            "there is no head 7: this model has 2",
        ),
    ):
        if sentence.startswith("there is no head"):
            pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
        assert main(["export", str(run.path), *map(str, words)]) == 1
        assert sentence in capsys.readouterr().err, words
    assert main(["export", "nothing", "--to", "hf", "--out", "x"]) == 1
    assert "nothing holds no finished model: backbone.safetensors is missing" in capsys.readouterr().err
    with pytest.raises(
        ConfigError, match=r"unknown format 'timn' \(did you mean 'timm'\?\): there are timm, hf, "
    ):
        coke.export(run, to="timn", out="x")  # type: ignore[arg-type]
    assert {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "file"}
