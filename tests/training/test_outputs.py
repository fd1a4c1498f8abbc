"""What a run leaves: weights that say what they are, clusters, and each image's place in them."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn.functional import normalize

from coke.errors import ConfigError
from coke.images.scan import scan
from coke.images.table import Pixels, Rows
from coke.images.views import View
from coke.method import OnlineConstrainedKMeans
from coke.method.network import Network
from coke.model.files import Preprocessing, own_tensors, read_weights, write_backbone
from coke.run import Run
from coke.training import map as maps
from coke.training import outputs
from coke.training.backbone import find_init, start_from
from coke.training.config import Config
from coke.training.map import write_map
from coke.training.outputs import write_clustering


@pytest.fixture
def config():
    return Config(
        recipe="auto",
        data="textures",
        mean=(0.4, 0.5, 0.6),
        std=(0.1, 0.2, 0.3),
        views=(View(size=16),),
        backbone="custom:Sequential",
        n_clusters=(3, 4),
        dual_lr=(1.0, 1.0),
        epochs=3,
        batch_size=8,
        learning_rate=0.1,
    )


def small(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_weights_say_what_they_are(tmp_path, config):
    path = tmp_path / "backbone.safetensors"
    seen = Preprocessing(16, config.mean, config.std)
    write_backbone(path, small(), config.backbone, seen)
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
    assert metadata["architecture"] == "custom:Sequential"
    assert json.loads(metadata["input_size"]) == [3, 16, 16]
    assert json.loads(metadata["mean"]) == [0.4, 0.5, 0.6]
    assert json.loads(metadata["std"]) == [0.1, 0.2, 0.3]
    assert (json.loads(metadata["crop_pct"]), json.loads(metadata["interpolation"])) == (1.0, "bicubic")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_starting_from_a_torch_file_says_what_was_loaded(tmp_path, wrapper):
    given, path = small(), tmp_path / "weights.pt"
    state = given.state_dict()
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    backbone = small()
    assert start_from(backbone, find_init(str(path))) == f"started from {path}: 7 of 7 tensors"
    assert all(torch.equal(value, backbone.state_dict()[key]) for key, value in given.state_dict().items())


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder.0."])
def test_a_prefix_is_taken_off_and_named(tmp_path, prefix):
    given, path = small(), tmp_path / "weights.safetensors"
    state = {f"{prefix}{name}": value for name, value in given.state_dict().items()}
    save_file({**state, "module.predictor.weight": torch.zeros(2)}, path)
    backbone = small()
    said = start_from(backbone, find_init(str(path)))
    assert f"7 of 7 tensors, under '{prefix}'; 1 in the file not used (module.predictor.weight)" in said
    assert all(torch.equal(value, given.state_dict()[name]) for name, value in backbone.state_dict().items())


def test_a_classifier_in_the_file_is_named_as_unused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({**small().state_dict(), "fc.weight": torch.zeros(2, 4), "fc.bias": torch.zeros(2)}, path)
    said = start_from(small(), find_init(str(path)))
    assert "7 of 7 tensors; 2 in the file not used" in said
    assert "fc.weight" in said
    assert "fc.bias" in said


def test_misfits_are_refused_and_nothing_is_loaded(tmp_path):
    path = tmp_path / "weights.safetensors"
    state = small(5).state_dict()
    del state["1.weight"]
    save_file(state, path)
    backbone = small()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(
        ConfigError, match=r"1 of 7 tensors match; missing \['1.weight'\], of another shape"
    ) as refusal:
        start_from(backbone, find_init(str(path)))
    assert "0.weight [5, 3, 3, 3] instead of [4, 3, 3, 3]" in str(refusal.value)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_files_that_are_no_weights_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file of weights"):
        read_weights(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("text.pt", "text.safetensors"):
        with pytest.raises(ConfigError, match=f"{name} cannot be read as weights"):
            read_weights(tmp_path / name)
    torch.save({"epoch": 3, "weights": [1, 2]}, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match="holds no state dict"):
        read_weights(tmp_path / "other.pt")


def test_no_code_is_run_from_a_file(tmp_path):
    torch.save({"model": small()}, tmp_path / "pickled.pt")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        read_weights(tmp_path / "pickled.pt")


def clusterings():
    made = [OnlineConstrainedKMeans(k, 5) for k in (3, 4)]
    for each in made:
        each.duals.uniform_(0, 0.1)
        each.centers.zero_()  # of an epoch that has not ended: not what is written
    return made


def within_a_minimum(costs, least):
    """The least cost under which every cluster gets its minimum, by scipy: a column for each place to be taken."""
    n_images, n_clusters = costs.shape
    wanted = np.repeat(np.arange(n_clusters), least)
    anywhere = costs.min(axis=1, keepdims=True).repeat(n_images - len(wanted), axis=1)
    square = np.concatenate([costs[:, wanted], anywhere], axis=1)
    return square[linear_sum_assignment(square)].sum()


@pytest.mark.parametrize(("labelled", "block"), [(False, 4096), (True, 4096), (True, 4)])
def test_assignments_are_the_best_within_the_bound(tmp_path, config, monkeypatch, labelled, block):
    monkeypatch.setattr(outputs, "_BLOCK", block)  # 11 images in one block, or in three
    pixels = torch.randint(256, (11, 3, 16, 16), dtype=torch.uint8)
    labels = torch.arange(11) % 3 if labelled else None
    rows = Rows(
        "made", [f"a/{i}.png" for i in range(11)], Pixels(pixels), labels, list("xyz") if labelled else None
    )
    heads, run = clusterings(), Run(tmp_path)
    network = Network(small(), 4, dim=5).train()
    statistics = network.projector[1].running_mean.clone()
    trained = torch.randint(3, (11, 2))  # so that no image has label 3 of the second head, ...
    trained[0] = -1  # ... and one has none
    (tmp_path / ".projections-of-a-killed-process").mkdir()
    write_clustering(run, network, heads, trained, scan(rows), config)
    assert network.training
    assert torch.equal(network.projector[1].running_mean, statistics)
    assert {file.name for file in tmp_path.iterdir()} == {
        run.assignments.name,
        run.clusters.name,
        run.map.name,
    }
    table, stored, plane = pq.read_table(run.assignments), load_file(run.clusters), pq.read_table(run.map)
    names = ("cluster", "score", "margin", "second", "trained")
    columns = [f"{name}_{head}" for head in range(2) for name in names]
    assert table.column_names == ["key", "content", *(["label"] if labelled else []), *columns]
    assert table["key"].to_pylist() == [f"a/{i}.png" for i in range(11)]
    if labelled:
        assert table["label"].to_pylist() == labels.tolist()

    mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
    with torch.no_grad():
        features = network.eval()((pixels / 255 - mean) / std).projection.double()
    likeness = (features @ features.t()).fill_diagonal_(-2)
    nearest = likeness[range(11), plane["nearest"].to_pylist()]
    np.testing.assert_allclose(nearest, likeness.amax(dim=1), atol=1e-6)
    np.testing.assert_allclose(plane["similarity"].to_numpy(), likeness.amax(dim=1), atol=1e-6)
    colours = np.stack([plane[name].to_numpy() for name in ("red", "green", "blue")], axis=1)
    np.testing.assert_allclose(colours, pixels.float().mean(dim=(2, 3)), atol=0.51)
    assert np.isfinite(plane["x"].to_numpy()).all()
    assert plane.schema.metadata[b"nearest"] == b"of all images"
    assert b"main directions" in plane.schema.metadata[b"map"]
    kinds = ("centers", "duals", "counts", "trained_centers")
    assert set(stored) == {f"{name}_{head}" for name in kinds for head in range(2)}
    for head, clustering in enumerate(heads):
        assert torch.equal(stored[f"trained_centers_{head}"], clustering.frozen_centers)
        centers = clustering.frozen_centers.clone()
        for label in trained[1:, head].unique():
            centers[label] = normalize(features[trained[:, head] == label].sum(dim=0), dim=0)
        torch.testing.assert_close(stored[f"centers_{head}"], centers)
        assert table[f"trained_{head}"].to_pylist() == trained[:, head].tolist()
        cosines = (features @ centers.double().t()).numpy()
        cluster = table[f"cluster_{head}"].to_numpy()
        sizes = np.bincount(cluster, minlength=clustering.n_clusters)
        assert stored[f"counts_{head}"].tolist() == sizes.tolist()
        assert sizes.min() >= 2  # 0.4 * 11 / 3 and 0.4 * 11 / 4, rounded up
        own = cosines[np.arange(11), cluster]
        assert (1 - own).sum() == pytest.approx(within_a_minimum(1 - cosines, 2), abs=1e-6)
        np.testing.assert_allclose(table[f"score_{head}"].to_numpy(), own, atol=1e-6)
        prices = stored[f"duals_{head}"].numpy()
        assert (cosines + prices).max(axis=1) == pytest.approx(own + prices[cluster], abs=1e-6)
        others = cosines.copy()
        others[np.arange(11), cluster] = -np.inf
        assert table[f"second_{head}"].to_pylist() == others.argmax(axis=1).tolist()
        np.testing.assert_allclose(table[f"margin_{head}"].to_numpy(), own - others.max(axis=1), atol=1e-6)


def test_one_cluster_has_no_second(tmp_path, config):
    pixels = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8)
    images = scan(Rows("made", list("abcdef"), Pixels(pixels)))
    run, labels = Run(tmp_path), torch.zeros(6, 1, dtype=torch.int64)
    network = Network(small(), 4, dim=5)
    write_clustering(run, network, [OnlineConstrainedKMeans(1, 5)], labels, images, config)
    table = pq.read_table(run.assignments)
    assert table["cluster_0"].to_pylist() == [0] * 6
    assert table["second_0"].to_pylist() == table["margin_0"].to_pylist() == [None] * 6


def test_a_map_of_one_image_has_no_nearest(tmp_path, config):
    images = scan(Rows("made", ["a"], Pixels(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))))
    write_map(tmp_path / "map.parquet", np.eye(1, 5), np.zeros(1, int), np.eye(1, 5), images, seconds=1e9)
    (row,) = pq.read_table(tmp_path / "map.parquet").to_pylist()
    assert row == {"x": 0, "y": 0, "nearest": None, "similarity": None, "red": 0, "green": 0, "blue": 0}


def test_above_many_rows_only_near_clusters_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(maps, "ALL_PAIRS", 100)
    random = np.random.default_rng(0)
    centers = np.linalg.qr(random.normal(size=(16, 16)))[0]
    clusters = np.repeat(np.arange(16), 20)
    vectors = centers[clusters] + 0.05 * random.normal(size=(320, 16))
    images = scan(
        Rows("made", list(map(str, range(320))), Pixels(torch.zeros(320, 3, 4, 4, dtype=torch.uint8)))
    )
    write_map(tmp_path / "map.parquet", vectors, clusters, centers, images)
    table = pq.read_table(tmp_path / "map.parquet")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -2)
    assert table["nearest"].to_pylist() == likeness.argmax(axis=1).tolist()  # groups lie far apart
    assert table.schema.metadata[b"nearest"] == b"of its own cluster and the 3 nearest ones"


def test_images_without_a_direction_are_put_somewhere(tmp_path, config):
    """A projector that has seen nothing but one colour gives zeros for it."""
    network = Network(small(), 4, dim=5)
    network.projector = nn.Sequential(nn.Linear(4, 5, bias=False))
    nn.init.zeros_(network.projector[0].weight)
    images = scan(Rows("made", list("abcdef"), Pixels(torch.zeros(6, 3, 16, 16, dtype=torch.uint8))))
    run, labels = Run(tmp_path), torch.zeros(6, 1, dtype=torch.int64)
    write_clustering(run, network, [OnlineConstrainedKMeans(3, 5)], labels, images, config)
    assert np.bincount(pq.read_table(run.assignments)["cluster_0"].to_numpy(), minlength=3).min() >= 1


def test_tied_weights_are_written_under_both_names(tmp_path):
    backbone = small()
    backbone.twin = backbone[0]
    copies = own_tensors(backbone.state_dict())
    save_file(copies, tmp_path / "weights.safetensors")
    assert torch.equal(read_weights(tmp_path / "weights.safetensors")["twin.weight"], backbone[0].weight)
