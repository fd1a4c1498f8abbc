"""A run that was interrupted, wherever, and continued equals the run that was not: every bit, on the CPU."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import coke
from coke.errors import ResumeError
from coke.run import Run
from coke.training import checkpoint
from coke.training.config import Config
from coke.training.loop import Stopped
from tiny_runs import SETTINGS, assert_same_run, tiny, write_textures

N_STEPS = 5  # 200 images in batches of 40
EVERY_STEP: dict[str, Any] = {"checkpoint_minutes": 0, "checkpoint_epochs": 1}
TWO_VIEWS: dict[str, Any] = {
    "views": [{"size": 16}, {"size": 16, "solarise": 0.2}, {"size": 8, "clusters": False, "count": 2}],
    "objective.temperature": 0.05,
    "objective.label_weight": 0.2,
    "objective.prediction_share": 0.5,
    "objective.rotation": 0.4,
    "objective.decorrelation": 0.1,
}


@pytest.fixture
def every_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are steps are kept, to resume from each."""
    monkeypatch.setattr(checkpoint, "KEPT", 1000)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_textures(tmp_path_factory.mktemp("images"))


def train(
    images: Path, out: Path, *, backbone: nn.Module | None = None, resume: bool = False, **keys: Any
) -> Run:
    overrides = {**SETTINGS, **keys}
    return coke.pretrain(images, out=out, backbone=backbone or tiny(1), resume=resume, overrides=overrides)


def stopped_at(run: Run, out: Path, path: Path) -> Run:
    """The folder as it was when the process died right after a checkpoint, or a little later."""
    copy = Run(out)
    copy.checkpoints.mkdir(parents=True)
    for file in (path, run.initial):
        shutil.copy(file, copy.checkpoints)
    for file in (run.metrics_file, run.config_file, run.environment_file):
        shutil.copy(file, copy.path)
    return copy


@pytest.mark.usefixtures("every_checkpoint")
def test_from_any_step(images: Path, tmp_path: Path) -> None:
    """Every step of a run with a clustering epoch, two of stage 1 and one of stage 2."""
    settings = {**EVERY_STEP, "averaging_share": 0.3}
    whole = train(images, tmp_path / "whole", **settings)
    paths = sorted(whole.checkpoints.glob("*.pt"))
    assert len(paths) == 4 * N_STEPS
    for path in paths:
        run = stopped_at(whole, tmp_path / path.stem, path)
        resumed = train(images, run.path, backbone=tiny(2), resume=True, **settings)
        assert_same_run(resumed, whole)


@pytest.mark.usefixtures("every_checkpoint")
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(TWO_VIEWS, id="two views and small ones"),
        pytest.param({"accumulate": 2, "batch_size": 30}, id="accumulate, uneven batches"),
        pytest.param({"optimizer": "adamw", "learning_rate": 1e-3}, id="adamw"),
        pytest.param({"optimizer": "lars", "learning_rate": 0.5, "clip_norm": 1.0}, id="lars"),
        pytest.param({"precision": "bf16-mixed"}, id="bf16"),
        pytest.param(
            {"count_carry": 0.5, "averaging_share": 0.6},
            id="options",
        ),
    ],
)
def test_whatever_the_recipe(images: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    settings = {**EVERY_STEP, **settings}
    whole = train(images, tmp_path / "whole", **settings)
    paths = sorted(whole.checkpoints.glob("*.pt"))
    for path in (paths[2], paths[len(paths) // 2 - 1], paths[-3]):
        run = stopped_at(whole, tmp_path / path.stem, path)
        assert_same_run(train(images, run.path, backbone=tiny(2), resume=True, **settings), whole)


@pytest.mark.parametrize("call", [2, N_STEPS, N_STEPS + 3, 2 * N_STEPS, 3 * N_STEPS + 1])
def test_signal_at_a_step(images: Path, tmp_path: Path, call: int) -> None:
    """Within the clustering epoch, at its end, within training, at a boundary, in stage 2; with random dropout."""
    whole = train(images, tmp_path / "whole", backbone=tiny(1, dropout=0.3), averaging_share=0.3)
    interrupted = tiny(1, dropout=0.3, interrupt_at=call)
    with pytest.raises(Stopped) as stopped:
        train(images, tmp_path / "run", backbone=interrupted, averaging_share=0.3)
    assert stopped.value.signal_number == signal.SIGTERM
    assert checkpoint.load(Run(tmp_path / "run"))["step"] == call % N_STEPS
    assert checkpoint.load(Run(tmp_path / "run"))["epoch"] == call // N_STEPS
    torch.manual_seed(99)  # another process would have another random state
    resumed = train(images, tmp_path / "run", backbone=tiny(2, dropout=0.3), averaging_share=0.3, resume=True)
    assert_same_run(resumed, whole)


def test_interrupted_again_and_again(tmp_path: Path) -> None:
    """With labels, hence k-NN on the way; each resumption is told in the record and none is forgotten."""
    images = write_textures(tmp_path / "images", labelled=True)
    settings = {"knn_every": 1, "averaging_share": 0.3}
    whole = train(images, tmp_path / "whole", backbone=tiny(1), **settings)
    calls = [3, 1, 4, 1, 5]  # each counted from the resumption
    for index, call in enumerate(calls):
        backbone = tiny(index + 1, interrupt_at=call)
        with pytest.raises(Stopped):
            train(images, tmp_path / "run", backbone=backbone, resume=index > 0, **settings)
    resumed = train(images, tmp_path / "run", backbone=tiny(9), resume=True, **settings)
    assert_same_run(resumed, whole)
    assert len(resumed.metrics("knn")) == 4
    texts = [record["text"] for record in resumed.metrics("event")]
    assert sum("resumed at epoch" in text for text in texts) == len(calls)
    assert sum("(stage 2)" in text for text in texts) == 1
    assert resumed.evaluation["representations"] == whole.evaluation["representations"]


def test_last_step_finishes(images: Path, tmp_path: Path) -> None:
    """A signal in the very last step has nothing left to stop."""
    run = train(images, tmp_path / "run", backbone=tiny(1, interrupt_at=4 * N_STEPS))
    assert run.backbone.is_file()


def test_finished_run_is_resumed_without_training(images: Path, tmp_path: Path) -> None:
    """As after a crash between the last step and the last file."""
    run = train(images, tmp_path / "run")
    whole = Run(shutil.copytree(run.path, tmp_path / "whole"))
    for file in (run.backbone, run.clusters, run.assignments, run.report):
        file.unlink()
    assert_same_run(train(images, run.path, backbone=tiny(2), resume=True), whole)
    assert run.report.is_file()


def test_a_finished_run_says_that_nothing_is_left_and_stays_as_it_is(images: Path, tmp_path: Path) -> None:
    run = train(images, tmp_path / "run", epochs=2)
    written = {
        file: file.stat().st_mtime_ns for file in (run.backbone, run.clusters, run.assignments, run.report)
    }
    again = train(images, run.path, backbone=tiny(2), resume=True, epochs=2)
    assert again.metrics("event")[-1]["text"] == (
        "nothing is left to do: all 2 epochs are done; more of them, as epochs=4, go on"
    )
    assert {file: file.stat().st_mtime_ns for file in written} == written
    more = train(images, run.path, backbone=tiny(2), resume=True, epochs=3)
    assert "1 of 3 epochs are left" in [record["text"] for record in more.metrics("event")]
    assert run.report.stat().st_mtime_ns > written[run.report]
    assert run.environment["finished_epochs"] == 3


def test_epochs_never_fall_below_what_is_done(images: Path, tmp_path: Path) -> None:
    """Refused with the folder as it was; the number that is done ends the run there."""
    run = Run(tmp_path / "run")
    with pytest.raises(Stopped):
        train(images, run.path, backbone=tiny(1, interrupt_at=3 * N_STEPS))
    before = run.config_file.read_bytes()
    with pytest.raises(
        ResumeError, match=r"epochs=2 is fewer than the 3 that are done or begun: .* epochs=3"
    ):
        train(images, run.path, resume=True, epochs=2)
    assert run.config_file.read_bytes() == before
    ended = train(images, run.path, backbone=tiny(2), resume=True, epochs=3)
    assert len(ended.metrics("epoch")) == ended.config["epochs"] == 3
    assert ended.report.is_file()


def test_the_first_command_is_kept(
    images: Path, one_step: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(shutil.copytree(one_step.path, tmp_path / "run"))
    first = run.environment["command"]
    kept = run.environment
    del kept["commands"]  # as an older coke wrote it
    run.write_json(run.environment_file, kept)
    monkeypatch.setattr("sys.argv", ["coke", "pretrain", "--resume"])
    with pytest.raises(Stopped):
        train(images, run.path, backbone=tiny(2, interrupt_at=1), resume=True)
    train(images, run.path, backbone=tiny(3), resume=True)
    assert run.environment["command"] == first
    assert run.environment["commands"] == [first, *["coke pretrain --resume"] * 2]


def test_what_may_change_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Place of the data, workers and logging change nothing, and the record says that they changed."""
    images = write_textures(tmp_path / "images", mixed=True)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "KEPT", 1000)
        whole = train(images, tmp_path / "whole", **EVERY_STEP)
    run = stopped_at(whole, tmp_path / "run", sorted(whole.checkpoints.glob("*.pt"))[7])
    moved = shutil.move(images, tmp_path / "elsewhere")
    changed = {**EVERY_STEP, "workers": 1, "knn_every": 2}
    resumed = train(Path(moved), run.path, backbone=tiny(2), resume=True, **changed)
    assert_same_run(resumed, whole)
    assert len(list(resumed.checkpoints.glob("*.pt"))) == 2
    (text,) = [record["text"] for record in resumed.metrics("event") if "resumed" in record["text"]]
    for words in (
        "data: ",
        "elsewhere",
        "workers: 0 -> 1",
        "knn_every: 5 -> 2",
    ):
        assert words in text


@pytest.mark.usefixtures("every_checkpoint")
@pytest.mark.parametrize("epochs_done", [2, 4])
def test_more_epochs(images: Path, tmp_path: Path, epochs_done: int) -> None:
    """The schedule stretches over the new number of epochs: it learns in all of them, and ends near 0."""
    whole = train(images, tmp_path / "whole", **EVERY_STEP)
    path = next(whole.checkpoints.glob(f"epoch-{epochs_done:05d}-step-*0.pt"))
    run = stopped_at(whole, tmp_path / "run", path)
    train(images, run.path, backbone=tiny(2), resume=True, **{**EVERY_STEP, "epochs": 7})
    assert [record["epoch"] for record in run.metrics("epoch")] == list(range(7))
    rates = [record["learning_rate"] for record in run.metrics("step") if record["epoch"] >= epochs_done]
    assert rates[0] > 0.3 * SETTINGS["learning_rate"]
    assert 0 < rates[-1] < 0.02 * SETTINGS["learning_rate"]
    assert any("epochs: 4 -> 7" in record["text"] for record in run.metrics("event"))


def change_an_image(images: Path) -> None:
    first, second, *_ = sorted(images.rglob("*.png"))
    shutil.copy(first, second)


def remove_an_image(images: Path) -> None:
    min(images.rglob("*.png")).unlink()


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"n_clusters": [4, 7]}, ["n_clusters", "[4, 6]", "[4, 7]"]),
        ({"n_clusters": 5}, ["n_clusters", "[4, 6]", "[5]"]),
        ({"views.crop": [0.5, 1.0]}, ["views", "0.3", "0.5"]),
        ({"seed": 1}, ["seed: 0 in the run, 1 asked"]),
        ({"objective.temperature": 0.2}, ["objective.temperature: 0.1 in the run, 0.2 asked"]),
        ({"batch_size": 20}, ["batch_size: 40 in the run, 20 asked"]),
        ({"learning_rate": 0.01}, ["learning_rate: 0.05 in the run, 0.01 asked"]),
        ({"precision": "bf16-mixed"}, ["precision: '32-true' in the run, 'bf16-mixed' asked"]),
    ],
)
def test_what_is_learned_must_match(
    images: Path, one_step: Run, tmp_path: Path, changes: dict[str, Any], shown: list[str]
) -> None:
    run = Run(shutil.copytree(one_step.path, tmp_path / "run"))
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    with pytest.raises(ResumeError, match="cannot resume") as refused:
        train(images, run.path, resume=True, **changes)
    for words in shown:
        assert words in str(refused.value)
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before


def test_a_run_older_than_a_key_goes_on_without_it(images: Path, one_step: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(one_step.path, tmp_path / "run"))
    path = run.latest_checkpoint()
    assert path is not None
    state, config = torch.load(path, weights_only=True), run.config
    for stored in (state["config"], config):
        for key in ("decorrelation", "rotation"):
            del stored["objective"][key]
    torch.save(state, path)
    run.write_config(config)
    finished = train(images, run.path, resume=True)
    assert [record["epoch"] for record in finished.metrics("epoch")] == list(range(SETTINGS["epochs"]))
    assert finished.config["objective"]["rotation"] == 0


def test_a_run_by_names_of_old_goes_on(images: Path, one_step: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(one_step.path, tmp_path / "run"))
    path = run.latest_checkpoint()
    assert path is not None
    state, config = torch.load(path, weights_only=True), run.config
    for stored in (state["config"], config):
        stored["recipe"] = "cifar10-companions"
        stored["objective"]["turning"] = stored["objective"].pop("rotation")
    torch.save(state, path)
    run.write_config(config)
    with pytest.raises(ResumeError, match=r"objective.rotation: 0.0 in the run, 0.4 asked"):
        train(images, run.path, resume=True, **{"objective.turning": 0.4})
    finished = train(images, run.path, backbone=tiny(2), resume=True)
    assert finished.config["recipe"] == "cifar10-auxiliary"
    assert finished.config["objective"]["rotation"] == 0


def store(run: Run, **keys: Any) -> None:
    """Write keys into a run's configuration, in its folder and in its checkpoint, as an older coke did."""
    path = run.latest_checkpoint()
    assert path is not None
    state, config = torch.load(path, weights_only=True), run.config
    for stored in (state["config"], config):
        stored.update({key: value for key, value in keys.items() if "." not in key})
        stored["objective"].update({key[10:]: keys[key] for key in keys if key.startswith("objective.")})
    torch.save(state, path)
    run.write_config(config)


def test_a_run_with_keys_that_are_fixed_now_goes_on(images: Path, one_step: Run, tmp_path: Path) -> None:
    """Where they stood as they are now; how many checkpoints are kept decides nothing that is learned."""
    plain, older = (Run(shutil.copytree(one_step.path, tmp_path / name)) for name in ("plain", "older"))
    store(older, **{**Config.FIXED, "keep_checkpoints": 7})
    for run in (plain, older):
        train(images, run.path, backbone=tiny(2), resume=True)
    assert_same_run(older, plain)
    assert "label_slots" not in older.config
    assert any("keep_checkpoints: 7 -> 2" in record["text"] for record in older.metrics("event"))


def test_a_run_that_learned_with_another_value_is_refused(
    images: Path, one_step: Run, tmp_path: Path
) -> None:
    run = Run(shutil.copytree(one_step.path, tmp_path / "run"))
    store(run, label_slots=3, **{"objective.average_temperature": 0.1})
    with pytest.raises(
        ResumeError, match=r"label_slots: 3 in the run, fixed at 5 now; objective\.average_temp"
    ):
        train(images, run.path, resume=True)


def test_settings_of_numpy_are_the_same_settings(images: Path, one_step: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(one_step.path, tmp_path / "run"))
    finished = train(images, run.path, resume=True, n_clusters=np.array([4, 6]), epochs=np.int64(3))
    assert (finished.config["n_clusters"], finished.config["epochs"]) == ([4, 6], 3)


def test_backbone_must_match(images: Path, one_step: Run) -> None:
    with pytest.raises(ResumeError, match=r"backbone: 'custom:Tiny' in the run, 'custom:Other' asked"):
        train(images, one_step.path, backbone=type("Other", (type(tiny()),), {})(), resume=True)
    with pytest.raises(ResumeError, match="backbone: 'custom:Tiny' in the run, 'coke_conv5_w16' asked"):
        coke.pretrain(
            images, out=one_step.path, resume=True, overrides={**SETTINGS, "backbone": "coke_conv5_w16"}
        )


def test_layers_must_match(images: Path, one_step: Run) -> None:
    """Two modules of one class: found when the weights are put in, before the folder is touched."""
    before = one_step.config_file.read_bytes()
    other = tiny(1)
    other.layers.insert(0, nn.Conv2d(3, 3, 1))
    with pytest.raises(ResumeError, match=r"the checkpoint does not fit the backbone given: .*layers"):
        train(images, one_step.path, backbone=other, resume=True, epochs=3)
    assert one_step.config_file.read_bytes() == before


def test_a_new_start_keeps_nothing_of_the_old_one(images: Path, tmp_path: Path) -> None:
    """Where a run ended before its first checkpoint."""
    run = Run(tmp_path / "run")
    run.tensorboard.mkdir(parents=True)
    for path in (run.unreadable_file, run.verdict_file, run.metrics_file, run.tensorboard / "events"):
        path.write_text("old")
    train(images, run.path)
    assert not run.unreadable_file.exists()
    assert not run.tensorboard.exists()
    assert run.verdict["state"]
    assert len(run.metrics("epoch")) == SETTINGS["epochs"]


@pytest.mark.parametrize("change", [change_an_image, remove_an_image])
def test_images_must_match(
    tmp_path: Path, images: Path, one_step: Run, change: Callable[[Path], None]
) -> None:
    other = Path(shutil.copytree(images, tmp_path / "other"))
    change(other)
    with pytest.raises(ResumeError, match=r"the images: .*200 images .* images \w+"):
        train(other, one_step.path, resume=True, mean=[0.5, 0.5, 0.5], std=[0.2, 0.2, 0.2])


@pytest.fixture(scope="module")
def one_step(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was stopped in its second epoch."""
    run = Run(tmp_path_factory.mktemp("stopped") / "run")
    with pytest.raises(Stopped):
        train(images, run.path, backbone=tiny(1, interrupt_at=N_STEPS + 1))
    return run


def test_folder_is_not_overwritten(images: Path, one_step: Run, tmp_path: Path) -> None:
    before = one_step.metrics_file.read_bytes()
    with pytest.raises(
        ResumeError, match=r"holds a run already: continue it with --resume, or choose another --out"
    ):
        train(images, one_step.path)
    assert one_step.metrics_file.read_bytes() == before
    with pytest.raises(ResumeError, match=r"holds no run to resume: .* start it without --resume"):
        train(images, tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_more_minutes(images: Path, tmp_path: Path) -> None:
    """A run that was cut goes on to all its epochs once time allows; more epochs alone do not buy time."""
    run = train(images, tmp_path, epochs=1000, max_minutes=1 / 60)
    n_epochs = len(run.metrics("epoch"))
    assert n_epochs < 900
    again = train(images, tmp_path, backbone=tiny(2), resume=True, epochs=2000, max_minutes=1e-3)
    assert len(again.metrics("epoch")) == n_epochs
    spent = f"max_minutes=0.001 is spent after {n_epochs} of 2000 epochs; more minutes go on"
    assert again.metrics("event")[-1]["text"] == f"nothing is left to do: {spent}"
    final = train(images, tmp_path, backbone=tiny(2), resume=True, epochs=n_epochs + 4, max_minutes=10)
    assert len(final.metrics("epoch")) == n_epochs + 4
    assert final.metrics("step")[-1]["learning_rate"] < 0.1 * SETTINGS["learning_rate"]
