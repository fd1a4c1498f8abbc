"""`coke embed` and `coke predict`: whole data sets, in order, with keys, gone on with where they were interrupted."""

from __future__ import annotations

import csv
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import coke
from coke.cli import main
from coke.errors import ConfigError, DataError
from coke.images import open_data
from coke.model import Model
from coke.model.embed import Partial, embed_data
from coke.run import Run
from tiny_runs import SETTINGS, write_textures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_textures(tmp_path_factory.mktemp("images"), labelled=True)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    keys: dict[str, Any] = {**SETTINGS, "backbone": "coke_conv5_w16", "epochs": 3, "min_size_ratio": 0.8}
    return coke.pretrain(folder, out=tmp_path_factory.mktemp("run") / "run", overrides=keys)


@pytest.fixture(scope="module")
def model(run: Run) -> Model:
    return coke.load(run.path)


def said(capsys: pytest.CaptureFixture[str], *words: Any, code: int = 0) -> str:
    """What a command prints."""
    assert main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def vectors_of(path: Path, column: str = "embedding") -> np.ndarray[Any, Any]:
    return np.stack(pq.read_table(path)[column].to_numpy())


def test_rows_in_order_with_keys_and_labels(
    capsys: pytest.CaptureFixture[str], run: Run, model: Model, folder: Path, tmp_path: Path
) -> None:
    text = said(capsys, "embed", run.path, folder, "--out", tmp_path / "e.parquet")
    assert "coke_conv5_w16, backbone features of 16 px, on cpu" in text
    assert f"{tmp_path / 'e.parquet'}: 200 images in" in text
    table = pq.read_table(tmp_path / "e.parquet")
    assert table.column_names == ["key", "label", "embedding"]
    keys = table["key"].to_pylist()
    assert keys == sorted(keys)
    assert table["label"].to_pylist() == [key.split("/")[0] for key in keys]
    expected = model.embed([folder / key for key in keys])
    np.testing.assert_allclose(vectors_of(tmp_path / "e.parquet"), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(model.embed(folder).numpy(), expected.numpy(), atol=1e-5)
    assert {file.name for file in tmp_path.iterdir()} == {"e.parquet"}


def test_into_the_other_half(
    capsys: pytest.CaptureFixture[str], run: Run, folder: Path, tmp_path: Path
) -> None:
    """embed, cluster: the keys arrive. embed, assign on the run's clusters: what predict says."""
    projections = tmp_path / "e.parquet"
    said(capsys, "embed", run.path, folder, "--features", "projection", "--out", projections)
    said(capsys, "cluster", projections, "--k", 4, "--max-size", 60, "--out", tmp_path / "c.parquet")
    assert pq.read_table(tmp_path / "c.parquet")["key"].equals(pq.read_table(projections)["key"])
    for index, bounds in enumerate(([], ["--min-size", 30], ["--max-size-ratio", 1.1])):
        predicted, assigned = tmp_path / f"p{index}.parquet", tmp_path / f"a{index}.parquet"
        said(capsys, "predict", run.path, folder, "--out", predicted, *bounds)
        said(capsys, "assign", run.clusters, projections, "--head", 1, "--out", assigned, *bounds)
        table, theirs = pq.read_table(predicted), pq.read_table(assigned)
        assert table["key"].equals(theirs["key"])
        assert table["cluster_1"].to_pylist() == theirs["cluster"].to_pylist()
        assert table["second_1"].to_pylist() == theirs["second"].to_pylist()
        np.testing.assert_allclose(table["margin_1"].to_numpy(), theirs["margin"].to_numpy(), atol=1e-5)
    sizes = np.bincount(pq.read_table(tmp_path / "p1.parquet")["cluster_0"].to_numpy())
    assert sizes.min() >= 30
    bounded = tmp_path / "own.parquet"
    said(capsys, "predict", run.path, folder, "--out", bounded, "--min-size-ratio", 0.8, "--head", 0)
    assert pq.read_table(bounded).column_names == [
        "key",
        "label",
        "cluster_0",
        "score_0",
        "margin_0",
        "second_0",
    ]
    own = dict(
        zip(*(pq.read_table(run.assignments)[name].to_pylist() for name in ("key", "cluster_0")), strict=True)
    )
    found = dict(
        zip(*(pq.read_table(bounded)[name].to_pylist() for name in ("key", "cluster_0")), strict=True)
    )
    assert own == found


def test_what_cannot_be_read_is_listed(
    capsys: pytest.CaptureFixture[str], run: Run, model: Model, folder: Path, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(folder, tmp_path / "images"))
    files = sorted(images.rglob("*.png"))
    for file in (files[3], files[150]):
        file.write_bytes(b"damaged")
    out = tmp_path / "e.parquet"
    text = said(capsys, "embed", run.path, images, "--out", out, "--batch-size", 7)
    assert f"2 images cannot be read and have no row: {tmp_path / 'e.unreadable.csv'} says why" in text
    with open(tmp_path / "e.unreadable.csv") as stream:
        listed = list(csv.reader(stream))
    assert listed[0] == ["key", "reason"]
    assert [key for key, _ in listed[1:]] == [str(files[i].relative_to(images)) for i in (3, 150)]
    assert all("not an image in a known format (7 bytes)" in reason for _, reason in listed[1:])
    keys = pq.read_table(out)["key"].to_pylist()
    assert keys == [str(file.relative_to(images)) for i, file in enumerate(files) if i not in (3, 150)]
    expected = model.embed([images / key for key in keys])
    np.testing.assert_allclose(vectors_of(out), expected.numpy(), atol=1e-5)
    said(capsys, "predict", run.path, images, "--out", tmp_path / "p.parquet")
    assert pq.read_table(tmp_path / "p.parquet")["key"].to_pylist() == keys
    assert (tmp_path / "p.unreadable.csv").read_text() == (tmp_path / "e.unreadable.csv").read_text()
    with pytest.raises(
        DataError, match=r"cannot be read .*coke embed. leaves such images out and lists them"
    ):
        model.embed(images)
    for file in files:
        file.write_bytes(b"damaged")
    text = said(capsys, "embed", run.path, images, "--out", tmp_path / "none.npy", code=1)
    assert "none of 200 images can be read (not an image in a known format (7 bytes))" in text
    text = said(capsys, "predict", run.path, images, "--out", tmp_path / "nothing.parquet", code=1)
    for name in ("none", "nothing"):  # every one of them, and nothing else is left behind
        lines = (tmp_path / f"{name}.unreadable.csv").read_text().splitlines()
        assert len(lines) == 201
        assert [path.name for path in tmp_path.glob(f"*{name}*")] == [f"{name}.unreadable.csv"]
    assert f"All of them: {tmp_path / 'nothing.unreadable.csv'}" in text
    with pytest.raises(DataError, match=r"png cannot be read: not an image"):
        model.embed([files[0]])


@pytest.mark.parametrize("verb", ["embed", "predict"])
def test_large_images_are_left_out_as_in_the_run(
    capsys: pytest.CaptureFixture[str], run: Run, folder: Path, tmp_path: Path, verb: str
) -> None:
    """The run's own bound holds, unless another is given."""
    images = Path(shutil.copytree(folder, tmp_path / "images"))
    Image.new("RGB", (20, 30)).save(images / "large.png")
    own = Run(shutil.copytree(run.path, tmp_path / "run"))
    own.write_config({**run.config, "max_image_pixels": 599})
    out = tmp_path / "out.parquet"
    said(capsys, verb, own.path, images, "--out", out)
    listed = (tmp_path / "out.unreadable.csv").read_text()
    assert "20 x 30 px are 600 pixels, more than max_image_pixels=599" in listed
    assert len(pq.read_table(out)) == 200
    said(capsys, verb, own.path, images, "--out", out, "--overwrite", "--max-image-pixels", 600)
    assert len(pq.read_table(out)) == 201
    assert not (tmp_path / "out.unreadable.csv").exists()
    words = (verb, own.path, images, "--out", out, "--overwrite", "--max-image-pixels", 0)
    assert "max_image_pixels must be at least 1, got 0" in said(capsys, *words, code=1)


def test_what_heic_needs_is_said(
    capsys: pytest.CaptureFixture[str],
    run: Run,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    images = Path(shutil.copytree(folder, tmp_path / "images"))
    (images / "telephone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    text = said(capsys, "embed", run.path, images, "--out", tmp_path / "e.npy")
    assert "1 HEIC image cannot be read here: install pillow-heif (pip install 'coke-ssl[heic]')" in text


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
@pytest.mark.parametrize("tokens", [False, True])
def test_an_interrupted_one_goes_on(
    model: Model, folder: Path, tmp_path: Path, suffix: str, tokens: bool
) -> None:
    """The same bytes as without an interruption; asked for something else it begins anew."""

    class Interrupted(Exception):
        pass

    def interrupt(done: int, total: int) -> None:
        if done >= 90:
            raise Interrupted

    settings: dict[str, Any] = {"batch_size": 30, "tokens": tokens, "number_type": "float16"}
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    embed_data(model, folder, whole, **settings)
    with pytest.raises(Interrupted):
        embed_data(model, folder, out, **settings, progress=interrupt)
    assert not out.exists()
    counted: list[int] = []
    done = embed_data(model, folder, out, **settings, progress=lambda count, _: counted.append(count))
    assert (done.resumed_at, counted[0], done.n_rows) == (90, 120, 200)
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(Interrupted):
        embed_data(model, folder, out, **settings, progress=interrupt)
    other = Model.of_timm("coke_conv5_w16", _weights(tmp_path))
    assert embed_data(other, folder, out, **settings).resumed_at == 0


@pytest.mark.parametrize("damage", ["other content", "no rows", "half the rows", "half a note"])
def test_it_goes_on_only_from_what_is_whole_and_of_the_same_images(
    model: Model, folder: Path, tmp_path: Path, damage: str
) -> None:
    copy, out = tmp_path / "images", tmp_path / "out.npy"
    shutil.copytree(folder, copy)

    def stop(done: int, total: int) -> None:
        if done >= 90:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_data(model, copy, out, batch_size=30, progress=stop)
    partial = tmp_path / ".out.npy.partial"
    if damage == "other content":  # under the same names
        first, *_, last = sorted(copy.rglob("*.png"))
        first.write_bytes(last.read_bytes())
    elif damage == "no rows":
        (partial / "rows").unlink()
    elif damage == "half the rows":
        os.truncate(partial / "rows", (partial / "rows").stat().st_size // 2)
    else:
        (partial / "note.json").write_text('{"as')
    assert embed_data(model, copy, out, batch_size=30).resumed_at == 0
    assert np.allclose(np.load(out), model.embed(copy), atol=1e-5)


def _weights(folder: Path) -> Path:
    torch.manual_seed(3)
    network = timm.create_model("coke_conv5_w16", num_classes=0)
    save_file(network.state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def test_tokens_are_what_pooling_averages(
    capsys: pytest.CaptureFixture[str], run: Run, folder: Path, tmp_path: Path
) -> None:
    said(capsys, "embed", run.path, folder, "--out", tmp_path / "pooled.npy")
    said(capsys, "embed", run.path, folder, "--out", tmp_path / "t.npy", "--tokens")
    said(capsys, "embed", run.path, folder, "--out", tmp_path / "t.parquet", "--tokens", "--dtype", "float16")
    tokens, pooled = np.load(tmp_path / "t.npy"), np.load(tmp_path / "pooled.npy")
    assert tokens.shape == (200, 4, 128)  # 2 x 2 positions
    np.testing.assert_allclose(tokens.mean(axis=1), pooled, atol=1e-5)
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column_names == ["key", "label", "token", "embedding"]
    assert table["token"].to_pylist() == list(range(4)) * 200
    assert vectors_of(tmp_path / "t.parquet").dtype == np.float16
    np.testing.assert_allclose(
        vectors_of(tmp_path / "t.parquet"), tokens.reshape(800, 128), atol=2e-3, rtol=1e-3
    )
    with open(tmp_path / "t.keys.csv") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["key", "label"]
    assert [key for key, _ in rows[1:]] == table["key"].to_pylist()[::4]


def test_a_transformer_of_timms_with_a_file_of_weights(folder: Path, tmp_path: Path) -> None:
    """Tokens without the class token; images seen as timm's configuration of it says."""
    torch.manual_seed(0)
    network = timm.create_model("test_vit.r160_in1k", num_classes=0).eval()
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    model = Model.of_timm("test_vit.r160_in1k", tmp_path / "vit.safetensors")
    assert model.preprocessing.size == 160
    images = open_data(folder).train.subset(range(3))
    pixels = torch.stack([model.preprocessing.center(images.read(row)) for row in range(3)])
    tokens = model.tokens(pixels)
    assert tokens.shape == (3, 100, network.num_features)
    seen = model.preprocessing
    mean, std = (torch.tensor(values)[:, None, None] for values in (seen.mean, seen.std))
    with torch.inference_mode():
        whole = network.forward_features((pixels / 255 - mean) / std)
        pooled = network((pixels / 255 - mean) / std)
    assert torch.allclose(tokens, whole[:, network.num_prefix_tokens :], atol=1e-5)
    assert torch.allclose(model.embed(images), pooled, atol=1e-5)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    """Not by a signal, as of a mapped file that the disk has no room for; what was noted before is gone on with."""
    partial = Partial(tmp_path / "partial", {}, "float32")
    partial.add(torch.ones(3, 100), {1: "damaged"}, 4)
    partial.note()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            partial.add(torch.ones(1000, 100), {}, 1004)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    again = Partial(tmp_path / "partial", {}, "float32")
    assert (again.n_seen, again.n_rows, again.shape, again.failed) == (4, 3, (100,), {1: "damaged"})
    again.add(torch.zeros(1, 100), {}, 5)
    assert again.rows().tolist() == [[1.0] * 100] * 3 + [[0.0] * 100]


def test_weights_of_another_architecture_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"does not fit the backbone ResNet: \d+ of its 120 tensors"
    ) as raised:
        Model.of_timm("resnet18", _weights(tmp_path))
    assert len(str(raised.value)) < 400


def test_several_processes_that_decode(model: Model, folder: Path, tmp_path: Path) -> None:
    alone, many = tmp_path / "0.npy", tmp_path / "2.npy"
    embed_data(model, folder, alone, batch_size=30)
    embed_data(model, folder, many, batch_size=30, workers=2)
    assert alone.read_bytes() == many.read_bytes()


def test_splits_that_number_their_rows(model: Model, tmp_path: Path) -> None:
    embed_data(model, "textures", tmp_path / "e.npy")
    with open(tmp_path / "e.keys.csv") as stream:
        keys = [key for key, _ in list(csv.reader(stream))[1:]]
    assert len(set(keys)) == 6000
    assert (keys[0], keys[-1]) == ("train/row 0", "test/row 999")


def test_refusals_come_before_any_work(
    capsys: pytest.CaptureFixture[str], run: Run, model: Model, folder: Path, tmp_path: Path
) -> None:
    for words, sentence in (
        (
            ["embed", run.path, folder, "--out", "e.csv"],
            "e.csv: it is written as parquet or npy, so let its name end in .parquet or .npy",
        ),
        (["predict", run.path, folder, "--out", "e.npy"], "e.npy: it is written as parquet, so let its name"),
        (["predict", "nothing", folder, "--out", "e.parquet"], "there is no such run folder"),
        (
            ["predict", run.path, folder, "--out", "e.parquet", "--head", 7],
            "there is no head 7: this model has 2",
        ),
        (["embed", run.path, tmp_path / "none", "--out", "e.npy"], "no such file or folder"),
        (["embed", "resnet18x", folder, "--out", "e.npy"], "unknown backbone 'resnet18x' (did you mean"),
        (
            ["embed", "coke_conv5_w16", folder, "--out", "e.npy"],
            "No pretrained weights exist for coke_conv5_w16",
        ),
        (["embed", run.path, folder, "--out", "e.npy", "--weights", "w.pt"], "has weights of its own"),
        (["embed", run.path, folder, "--out", run.backbone], "it is written as parquet or npy"),
        (
            ["embed", run.path, folder, "--out", run.assignments],
            "exists: choose another --out, or --overwrite it",
        ),
        (
            ["embed", run.path, folder, "--out", "e.npy", "--device", "cuda:77"],
            "device='cuda:77' cannot be had",
        ),
        (
            ["embed", run.path, folder, "--out", "e.npy", "--tokens", "--features", "projection"],
            "tokens have no projection",
        ),
        (
            ["embed", run.path, folder, "--out", "e.npy", "--batch-size", 0],
            "batch_size must be at least 1, got 0: leave it out for 512",
        ),
    ):
        assert sentence in said(capsys, *words, code=1), words
    with pytest.raises(ConfigError, match="number_type must be 'float16' or 'float32', got 'float64'"):
        embed_data(model, folder, tmp_path / "e.npy", number_type="float64")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="workers must be 0 or more processes, got -1"):
        embed_data(model, folder, tmp_path / "e.npy", workers=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"e.npy cannot be written: nothing can be made in .*file"):
        embed_data(model, folder, tmp_path / "file" / "e.npy")
    missing = said(capsys, "embed", "resnet18", tmp_path / "none", "--out", "e.npy", code=1)
    assert "no such file or folder" in missing  # before weights are looked for
    with pytest.raises(ConfigError, match="has no forward_features"):
        Model(torch.nn.Flatten(), model.preprocessing).tokens(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
