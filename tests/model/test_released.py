"""`coke import`: a checkpoint in the released layout, which the test writes, computes the same as a folder for coke."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import interpolate, normalize

import coke
from coke.cli import main
from coke.errors import ConfigError
from coke.model.released import import_released
from released_files import Released, released_state, write_released


@pytest.fixture(scope="module")
def network() -> Released:
    return Released()


@pytest.fixture(scope="module")
def state(network: Released) -> dict[str, Tensor]:
    return released_state(network)


@pytest.fixture(scope="module")
def folder(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("released")
    return import_released(write_released(place / "coke.pth.tar", state), place / "out").path


def test_it_computes_what_the_released_network_does(
    network: Released, state: dict[str, Tensor], folder: Path
) -> None:
    """Features, projections, the nearest centers; with the duals, the labels that training would have given."""
    model = coke.load(folder)
    assert (model.name, model.preprocessing.size, len(model.heads)) == ("resnet50", 224, 2)
    rough = torch.rand(12, 3, 5, 5) * 255 * torch.rand(12, 3, 1, 1)
    pixels = interpolate(rough, 224, mode="bilinear").to(torch.uint8)
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.preprocessing.mean, model.preprocessing.std))
    with torch.inference_mode():
        expected = normalize(network.encoder((pixels / 255 - mean) / std))
    projections = model.features(pixels, "projection")
    assert torch.allclose(projections, expected, atol=1e-5)
    for head in range(2):
        cosines = expected @ state[f"module.pre_center_{head}"]
        found = model.predict(projections, head)
        assert torch.equal(found.cluster, cosines.argmax(dim=1))
        assert torch.allclose(found.score, cosines.amax(dim=1), atol=1e-5)
        km = model.heads[head]
        labels = (km.transform(projections.numpy()) - km.duals_).argmin(axis=1)
        assert labels.tolist() == (cosines + state[f"module.dual_{head}"]).argmax(dim=1).tolist()
        counts = state["module.assign_labels"][head].bincount(minlength=km.n_clusters)
        assert km.counts_.tolist() == counts.tolist()


def test_images_are_seen_as_in_its_evaluation(folder: Path) -> None:
    """Shorter side to 256 px, bilinear, then the centre of 224 px; ImageNet's mean and standard deviation."""
    from PIL import Image
    from torchvision.transforms import v2

    rough = torch.randint(256, (3, 20, 30), dtype=torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(rough).resize((480, 320), Image.Resampling.BICUBIC)
    theirs = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])(picture)
    seen = coke.load(folder).preprocessing
    ours = seen.center(v2.functional.pil_to_tensor(picture))
    assert float((theirs.float() - ours.float()).abs().mean()) < 0.5
    assert (seen.mean, seen.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_the_backbone_comes_out_as_it_went_in(network: Released, folder: Path, tmp_path: Path) -> None:
    done = coke.export(folder, to="torchvision", out=tmp_path / "tv.safetensors")
    assert done.parity.endswith("0.0e+00 apart at most")
    encoder = {k: v for k, v in network.encoder.state_dict().items() if not k.startswith("fc.")}
    written = load_file(tmp_path / "tv.safetensors")
    assert written.keys() == encoder.keys()
    assert all(torch.equal(written[name], value) for name, value in encoder.items())


def test_the_command_says_what_it_took_and_what_not(
    capsys: pytest.CaptureFixture[str], network: Released, tmp_path: Path
) -> None:
    """Of one view's training: five labels an image, each with a weight."""
    state = released_state(network, (5, 6, 7), slots=5)
    source = write_released(tmp_path / "one-view.pth.tar", state)
    assert main(["import", str(source), "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "taken: backbone: 318 of 318 tensors, as timm's resnet50\n" in text
    assert "taken: projector: 21 of 21 tensors; biases went into the means of the batch norms" in text
    assert (
        "taken: clusters: pre_center and dual of 3 heads (5, 6, 7); counts are the last labels of 40 images"
        in text
    )
    assert (
        "left: predictor: 9 tensors, of use in training alone\nleft: cur_center: equal to pre_center\n"
        in text
    )
    assert "left: label_val, label_idx" in text
    assert "parity: 8 pictures through the released network: projections " in text
    assert f'coke.load("{tmp_path / "out"}")' in text
    assert {file.name for file in tmp_path.iterdir()} == {"out", "one-view.pth.tar"}
    heaviest = state["module.label_val"].argmax(dim=2, keepdim=True)
    labels = state["module.assign_labels"].gather(2, heaviest)[..., 0]
    for head, km in enumerate(coke.load(tmp_path / "out").heads):
        assert km.counts_.tolist() == labels[head].bincount(minlength=km.n_clusters).tolist()
    assert main(["import", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "exists: choose another --out, or --overwrite it" in capsys.readouterr().err
    assert main(["import", str(source), "--out", str(tmp_path / "out"), "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"module.encoder.layer1.0.conv1.weight": None},
            "356 of 357 tensors fit; encoder.layer1.0.conv1.weight is m",
        ),
        ({"module.encoder.fc.6.bias": None}, "356 of 357 tensors fit; encoder.fc.6.bias is missing"),
        ({"module.predictor.0.bias": None}, "356 of 357 tensors fit; predictor.0.bias is missing"),
        ({"module.dual_1": None}, "356 of 357 tensors fit; dual_1 is missing"),
        ({"module.dual_1": torch.zeros(5)}, r"dual_1 is \[5\], not \[7\]"),
        ({"module.pre_center_0": torch.zeros(9, 5)}, r"pre_center_0 is \[9, 5\], not \[16, 5\]"),
        ({"module.queue": torch.zeros(2)}, "357 of 357 tensors fit; queue is unknown"),
        ({"module.assign_labels": torch.full((2, 40), 7)}, r"\[2, 40\] are not labels of head 0: it has 5"),
        (
            {"module.assign_labels": torch.zeros(2, 40, 5).long()},
            "label_val is missing, label_idx is missing",
        ),
    ],
    ids=str,
)
def test_below_a_full_match_it_is_refused(
    state: dict[str, Tensor], tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    changed = {name: value for name, value in ({**state, **change}).items() if value is not None}
    source = write_released(tmp_path / "other.pth.tar", changed)
    with pytest.raises(ConfigError, match=sentence):
        import_released(source, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["other.pth.tar"]


class Harmful:
    """What a pickle may run when it is opened."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("harm"),)


def test_nothing_in_a_pickle_is_run(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = {name: value for name, value in state.items() if "encoder" not in name}
    source = write_released(tmp_path / "harmful.pth.tar", few, optimizer=Harmful())
    with pytest.raises(ConfigError, match=r"cannot be read as weights .*torch file that holds tensors alone"):
        import_released(source, "out")
    assert [file.name for file in tmp_path.iterdir()] == ["harmful.pth.tar"]
    with pytest.raises(ConfigError, match="no such file of weights"):
        import_released("gone.pth.tar", "out")
    torch.save([1, 2], "list.pth.tar")
    with pytest.raises(ConfigError, match="holds no state dict"):
        import_released("list.pth.tar", "out")
