"""`pretrain` and `evaluate` from Python: every file, every image, with labels and without."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import coke
from coke.errors import ConfigError, DataError, ResumeError, UnreadableError
from coke.evaluation import augmented_linear_probe
from coke.images import open_data
from coke.run import Run
from coke.training.backbone import load_backbone
from coke.training.config import Config
from tiny_runs import SETTINGS, tiny, write_textures


def train(data: Path, out: Path, **keys: Any) -> Run:
    return coke.pretrain(data, out=out, backbone=tiny(1), overrides={**SETTINGS, "epochs": 3, **keys})


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and test split in class folders, and an image that cannot be read in each."""
    folder = tmp_path_factory.mktemp("labelled")
    for name, n_images, seed in (("train", 200, 0), ("test", 60, 1)):
        write_textures(folder / name, n_images, seed=seed, labelled=True)
        (folder / name / "class 0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n, but no more")
    return folder


@pytest.fixture(scope="module")
def run(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = {"max_unreadable_share": 0.05, "linear_probe": True, "tensorboard": True}
    return train(labelled, tmp_path_factory.mktemp("runs") / "run", **settings)


def test_every_file(run: Run) -> None:
    assert isinstance(run, Run)
    names = {
        *("config.yaml", "environment.json", "metrics.jsonl", "unreadable.csv", "checkpoints", "tensorboard"),
        *("backbone.safetensors", "projector.safetensors", "assignments.parquet", "clusters.safetensors"),
        *("evaluation.json", "verdict.json", "report.html", "map.parquet", "thumbnails.parquet"),
    }
    assert {path.name for path in run.path.iterdir()} == names
    assert not [path for path in run.path.rglob("*") if path.name.endswith(".tmp")]
    assert list(run.tensorboard.iterdir())
    kinds = [record["kind"] for record in run.metrics()]
    assert kinds.count("epoch") == 3
    assert kinds.count("step") == 2 * 5


def test_backbone_is_the_users_module(run: Run, labelled: Path, tmp_path: Path) -> None:
    """Trained in place: the module that was given holds what the file holds."""
    module = tiny(1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    again = coke.pretrain(labelled, out=tmp_path, backbone=module, overrides=dict(run.config, workers=0))
    weights = load_file(again.backbone)
    assert weights.keys() == before.keys()
    for name, value in module.state_dict().items():
        assert torch.equal(weights[name], value)
        assert torch.equal(weights[name], load_file(run.backbone)[name])  # the same seed, the same run
        assert torch.equal(load_file(again.initial)[name], before[name])
    assert not torch.equal(weights["layers.0.weight"], before["layers.0.weight"])


def test_every_image_has_its_place(run: Run, labelled: Path) -> None:
    """Every readable image of the train split once, none of the test split."""
    table = pq.read_table(run.assignments)
    expected = sorted(str(path.relative_to(labelled)) for path in labelled.glob("train/*/[0-9]*.png"))
    found = sorted(key if key.startswith("train/") else f"train/{key}" for key in table["key"].to_pylist())
    assert found == expected
    assert len(found) == 200
    columns = {
        "key",
        "content",
        "label",
        *(
            f"{what}_{head}"
            for what in ("cluster", "score", "margin", "second", "trained")
            for head in (0, 1)
        ),
    }
    assert set(table.column_names) == columns
    for head, n_clusters in enumerate(SETTINGS["n_clusters"]):
        for name in ("cluster", "second", "trained"):
            assert set(table[f"{name}_{head}"].to_pylist()) <= set(range(n_clusters))
        assert table[f"cluster_{head}"].to_pylist() != table[f"second_{head}"].to_pylist()
        assert all(-1.001 <= score <= 1.001 for score in table[f"score_{head}"].to_pylist())
        sizes = np.bincount(table[f"cluster_{head}"].to_numpy(), minlength=n_clusters)
        assert sizes.min() >= run.config["min_size_ratio"] * 200 / n_clusters


def test_unreadable_images_are_listed(run: Run) -> None:
    with open(run.unreadable_file, encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["key", "reason"]
    assert sum("broken.png" in key for key, _ in rows) == len(rows) >= 1
    assert all(reason for _, reason in rows)


def test_too_many_unreadable(labelled: Path, tmp_path: Path) -> None:
    """The run folder then holds the list of them, of both splits, and can be started again."""
    run = Run(tmp_path / "run")
    with pytest.raises(UnreadableError, match=r"broken\.png.*All of them: .*run/unreadable\.csv$") as refused:
        train(labelled, run.path, max_unreadable_share=0)
    assert list(run.path.iterdir()) == [run.unreadable_file]
    with open(run.unreadable_file, encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["key", "reason"]
    assert [key for key, _ in rows] == [f"{split}/class 0/broken.png" for split in ("train", "test")]
    assert [tuple(row) for row in rows] == refused.value.unreadable
    again = train(labelled, run.path, max_unreadable_share=0.1)
    assert again.backbone.is_file()


def test_images_that_are_too_large(labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UnreadableError, match=r"201 of 201.*16 x 16 px are 256 pixels, more than max_image_pixels=255"
    ):
        train(labelled, tmp_path / "run", max_unreadable_share=0.1, max_image_pixels=255)


def test_all_unreadable_are_listed(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:02}.jpg").write_bytes(b"no image")
    with pytest.raises(UnreadableError, match="12 of 12 images cannot be read") as refused:
        train(tmp_path, tmp_path / "run", max_unreadable_share=1.0)
    assert "max_unreadable_share" not in str(refused.value)  # no share would do
    assert len(Run(tmp_path / "run").unreadable_file.read_text().splitlines()) == 13


def test_evaluation_lists_what_it_could_not_read(run: Run, labelled: Path, tmp_path: Path) -> None:
    run = Run(shutil.copytree(run.path, tmp_path / "run"))
    coke.evaluate(run, backbone=tiny(5))
    assert len(run.evaluation_unreadable_file.read_text().splitlines()) == 3
    before = run.unreadable_file.read_text()
    other = Path(shutil.copytree(labelled / "test", tmp_path / "other"))
    for name in ("class 0", "class 1"):
        (other / name / "more.png").write_bytes(b"no image")
        (other / name / "and more.png").write_bytes(b"no image")
    with pytest.raises(UnreadableError, match=r"All of them: .*evaluation\.unreadable\.csv"):
        coke.evaluate(run, other, backbone=tiny(5))
    assert len(run.evaluation_unreadable_file.read_text().splitlines()) == 6
    assert run.unreadable_file.read_text() == before


def test_evaluation(run: Run) -> None:
    evaluation = run.evaluation
    assert "test split (60 images)" in evaluation["split"]
    assert list(evaluation["representations"]) == ["raw pixels", "untrained", "trained"]
    for scores in evaluation["representations"].values():
        assert {"knn", "linear", "accuracy", "nmi", "ari"} <= scores.keys()
        assert 0 <= scores["knn"] <= 1
    assert len(evaluation["heads"]) == 2


def test_a_run_with_keys_that_are_gone_is_evaluated(run: Run, tmp_path: Path) -> None:
    """It is done: whatever they were, they change nothing any more."""
    older = Run(shutil.copytree(run.path, tmp_path / "run"))
    older.write_config({**run.config, "label_slots": 3, "keep_checkpoints": 7})
    assert coke.evaluate(older, backbone=tiny(5)) == run.evaluation


def test_evaluate_again_gives_the_same(run: Run) -> None:
    before = json.loads(run.evaluation_file.read_text())
    run.evaluation_file.unlink()
    assert coke.evaluate(run, backbone=tiny(5)) == before
    assert run.evaluation == before


def test_evaluate_where_the_data_moved(run: Run, labelled: Path, tmp_path: Path) -> None:
    moved = Run(shutil.copytree(run.path, tmp_path / "run"))
    data = shutil.copytree(labelled, tmp_path / "data")
    assert coke.evaluate(moved.path, data, backbone=tiny(5)) == run.evaluation


def test_evaluate_on_other_images(run: Run, tmp_path: Path) -> None:
    """Another set with labels of its own: its scores, and nothing about the run's clusters on it."""
    other = Run(shutil.copytree(run.path, tmp_path / "run"))
    data = write_textures(tmp_path / "data", 100, seed=7, labelled=True)
    evaluation = coke.evaluate(other, data, backbone=tiny(5))
    assert "hold-out" in evaluation["split"]
    assert evaluation["representations"] != run.evaluation["representations"]
    assert evaluation["heads"] == []
    first, others = other.evaluation, {"data": {**evaluation, "source": str(data)}}
    assert first == {**run.evaluation, "others": others}
    namesake = write_textures(tmp_path / "elsewhere" / "data", 80, seed=8, labelled=True)
    again = coke.evaluate(other, namesake, backbone=tiny(5))
    others["data (2)"] = {**again, "source": str(namesake)}
    assert other.evaluation == {**run.evaluation, "others": others}
    assert coke.evaluate(other, data, backbone=tiny(5)) == evaluation  # takes its own place
    assert other.evaluation == {**run.evaluation, "others": others}
    assert coke.evaluate(other, backbone=tiny(5)) == run.evaluation  # the run's own images again
    assert other.evaluation == {**run.evaluation, "others": others}


def test_the_order_of_the_same_images_changes_no_score(tmp_path: Path) -> None:
    """What is held out goes by their order; a shuffled list of them is asked about the same ones."""
    folder = write_textures(tmp_path / "images", 150, labelled=True)
    run = train(folder, tmp_path / "run", linear_probe=True)
    first = run.evaluation
    paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    shuffled = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]
    listed = folder / "shuffled.csv"
    listed.write_text("\n".join(["path,label", *(f"{path},{path.split('/')[0]}" for path in shuffled)]))
    again = coke.evaluate(run, listed, backbone=tiny(5))
    assert {**again, "split": first["split"]} == first == run.evaluation
    relabelled = folder / "relabelled.csv"
    relabelled.write_text("\n".join(["path,label", *(f"{path},{int(path[-5]) % 3}" for path in shuffled)]))
    other = coke.evaluate(run, relabelled, backbone=tiny(5))
    assert other["heads"]  # the run's clusters beside these labels
    name = next(iter(run.evaluation["others"]))
    assert run.evaluation == {**first, "others": {name: {**other, "source": str(relabelled)}}}


def test_nor_does_the_order_of_others(run: Run, tmp_path: Path) -> None:
    folder = write_textures(tmp_path / "images", 150, seed=9, labelled=True)
    paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    scores = []
    for name, listed in (("one", paths), ("other", paths[::-1])):
        file = folder / f"{name}.csv"
        file.write_text("\n".join(["path,label", *(f"{path},{path.split('/')[0]}" for path in listed)]))
        asked = Run(shutil.copytree(run.path, tmp_path / name))
        scores.append(coke.evaluate(asked, file, backbone=tiny(5))["representations"])
    assert scores[0] == scores[1]


def shown(run: Run) -> int:
    """Pictures on the page that need no script."""
    return len(re.findall(r'<img src="data:image/webp;base64,', run.report.read_text("utf-8")))


def test_evaluating_on_other_images_costs_no_picture(run: Run, tmp_path: Path) -> None:
    other = Run(shutil.copytree(run.path, tmp_path / "run"))
    data = write_textures(tmp_path / "other images", 100, seed=7, labelled=True)
    coke.evaluate(other, data, backbone=tiny(5))
    assert shown(other) == shown(run) > 20
    page = other.report.read_text("utf-8")
    assert "On other images: other images" in page
    assert "On the run&#39;s own images" in page or "On the run's own images" in page


def test_the_report_is_written_again_from_the_folder_alone(run: Run, tmp_path: Path) -> None:
    moved = Run(shutil.copytree(run.path, tmp_path / "run"))
    moved.report.unlink()
    assert coke.write_report(str(moved.path)) == moved.report
    assert shown(moved) == shown(run)


def test_the_report_finds_images_that_moved_by_their_content(
    run: Run, labelled: Path, tmp_path: Path
) -> None:
    moved = Run(shutil.copytree(run.path, tmp_path / "run"))
    moved.thumbnails.unlink()
    coke.write_report(moved)
    assert shown(moved) == 0
    images = tmp_path / "images"
    for number, path in enumerate(sorted(labelled.glob("train/*/[0-9]*.png"), reverse=True)):
        images.mkdir(exist_ok=True)
        shutil.copy(path, images / f"{number}.png")
    coke.write_report(moved, images)
    assert shown(moved) == shown(run)
    assert 'href="../images/' in moved.report.read_text("utf-8")


def test_the_report_makes_the_map_of_an_older_run(tmp_path: Path) -> None:
    settings = {**SETTINGS, "epochs": 2}
    data = write_textures(tmp_path / "images", 60)
    run = coke.pretrain(data, out=tmp_path / "run", backbone="coke_conv5_w16", overrides=settings)
    made = pq.read_table(run.map)
    run.map.unlink()
    coke.write_report(run)
    assert not run.map.exists()
    assert "--data DATA makes it from the images" in run.report.read_text("utf-8")
    coke.write_report(run, data)
    again = pq.read_table(run.map)
    assert again["nearest"] == made["nearest"]
    for name in ("x", "y", "similarity", "red"):
        np.testing.assert_allclose(again[name].to_numpy(), made[name].to_numpy(), atol=1e-4)


def test_a_report_of_other_images_is_refused(run: Run, tmp_path: Path) -> None:
    before = run.report.read_bytes()
    others = write_textures(tmp_path / "others", 20, seed=9)
    with pytest.raises(DataError, match="none of the run's images is among the 20 there"):
        coke.write_report(run, others)
    with pytest.raises(ResumeError, match="holds no run to report"):
        coke.write_report(tmp_path / "nothing")
    with pytest.raises(DataError, match="no such file or folder"):
        coke.write_report(run, tmp_path / "nothing")
    assert run.report.read_bytes() == before


def test_scores_on_other_images_are_no_first_ones(tmp_path: Path) -> None:
    run = train(write_textures(tmp_path / "images"), tmp_path / "run")
    data = write_textures(tmp_path / "labelled", 100, seed=7, labelled=True)
    evaluation = coke.evaluate(run, data, backbone=tiny(5))
    assert run.evaluation == {"others": {"labelled": {**evaluation, "source": str(data)}}}


def test_without_labels(tmp_path: Path) -> None:
    """A flat folder: no probes, but all else; and `evaluate` says what is missing."""
    images = write_textures(tmp_path / "images")
    run = train(images, tmp_path / "run")
    assert not run.evaluation_file.exists()
    assert run.metrics("knn") == []
    assert "label" not in pq.read_table(run.assignments).column_names
    assert "no labels" in run.environment["data"]["splits"]
    assert run.report.stat().st_size > 10_000
    with pytest.raises(DataError, match="evaluation needs labels"):
        coke.evaluate(run, backbone=tiny())


def test_evaluate_an_unfinished_run(run: Run, tmp_path: Path) -> None:
    other = Run(shutil.copytree(run.path, tmp_path / "run"))
    other.backbone.unlink()
    with pytest.raises(ResumeError, match=r"not finished: backbone\.safetensors is missing; continue it"):
        coke.evaluate(other)


def test_evaluate_without_the_users_module(run: Run) -> None:
    with pytest.raises(ConfigError, match="custom:Tiny is a module of your own: give it as backbone="):
        coke.evaluate(run)


@pytest.mark.parametrize("shape", ["scalar", "tokens"])
def test_module_that_is_no_backbone(tmp_path: Path, shape: str) -> None:
    module = torch.nn.Flatten(0) if shape == "scalar" else torch.nn.Flatten(2)
    data = write_textures(tmp_path / "images", 40)
    with pytest.raises(ConfigError, match=r"a backbone must give \[B, F\] or \[B, F, h, w\]"):
        coke.pretrain(data, out=tmp_path / "run", backbone=module, overrides={**SETTINGS, "batch_size": 20})
    assert not (tmp_path / "run").exists()


def test_users_module_stands_for_both_networks(run: Run) -> None:
    """The augmented probe asks both networks last: one module must not have become the other by then."""
    shown = coke.evaluate(run, backbone=tiny(5), augmented=True)["representations"]
    config, splits = Config(**run.config), open_data(run.data, max_unreadable_share=0.05)
    seen = {"size": config.image_size, "mean": config.mean, "std": config.std, "seed": config.seed}
    for name, file in (("untrained", run.initial), ("trained", run.backbone)):
        alone = load_backbone(config, file, tiny(5))
        score = augmented_linear_probe(alone, splits.bank, splits.query, **seen)
        assert shown[name]["linear_augmented"] == score, name


@pytest.mark.parametrize("data", [["flat"], 3, b"flat"])
def test_data_that_is_no_name(run: Run, data: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="DATA must be a path or the name of a data set, got"):
        coke.pretrain(data)
    with pytest.raises(ConfigError, match="DATA must be a path or the name of a data set, got"):
        coke.evaluate(run, data)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"recipe": "cifar10"}, r"recipe is given as --recipe NAME \(in Python: recipe=\.\.\.\)"),
        ({"data": "textures"}, "data is given as DATA, not as a key"),
    ],
)
def test_recipe_and_data_are_no_keys(
    run: Run, labelled: Path, keys: dict[str, str], message: str, tmp_path: Path
) -> None:
    """The folder would be named after another recipe, or other images, than those that are learned from."""
    for out, resume in ((tmp_path / "run", False), (run.path, True)):
        with pytest.raises(ConfigError, match=message):
            coke.pretrain(labelled, out=out, resume=resume, backbone=tiny(1), overrides={**SETTINGS, **keys})
    assert not (tmp_path / "run").exists()


def test_backbone_by_name(tmp_path: Path) -> None:
    """A natural thing to write, and what `backbone=` means on the command line."""
    data = write_textures(tmp_path / "images", 40)
    settings = {**SETTINGS, "batch_size": 20, "epochs": 2}
    run = coke.pretrain(data, out=tmp_path / "run", backbone="coke_conv5_w16", overrides=settings)
    assert run.config["backbone"] == "coke_conv5_w16"
    with pytest.raises(ConfigError, match="backbone must be a module or the name of timm's, got 3"):
        coke.pretrain(data, out=tmp_path / "other", backbone=3)  # type: ignore[arg-type]
