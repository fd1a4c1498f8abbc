"""`max_minutes` ends a run in time with its schedule completed; a folder says what it was made with."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import coke
from coke.errors import ConfigError
from coke.run import Run
from coke.training import checkpoint
from coke.training.auto import check_settings
from coke.training.config import chosen
from coke.training.dry_run import describe
from coke.training.loop import Training
from coke.training.monitor import Monitor
from coke.training.schedule import faster
from tiny_runs import SETTINGS, Tiny, tiny, write_textures


class Slow(Tiny):
    """Takes a given time for every training pass, and more after some of them."""

    def __init__(self, seconds: float, later: float | None = None, from_call: int = 0) -> None:
        super().__init__()
        self.seconds, self.later, self.from_call = seconds, later, from_call

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            slow = self.later is not None and self.calls >= self.from_call
            time.sleep(self.later if slow and self.later else self.seconds)
        return super().forward(images)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_textures(tmp_path_factory.mktemp("images"))


def train(images: Path, out: Path, backbone: Tiny, **keys: Any) -> Run:
    return coke.pretrain(images, out=out, backbone=backbone, overrides={**SETTINGS, **keys})


def test_fewer_epochs_in_time(images: Path, tmp_path: Path) -> None:
    """1000 epochs of 0.25 s or more in four seconds: fewer, and the cosine ends near 0 all the same."""
    began = time.monotonic()
    run = train(images, tmp_path, Slow(0.05), epochs=1000, max_minutes=4 / 60)
    seconds = time.monotonic() - began
    n_epochs = len(run.metrics("epoch"))
    assert 4 <= n_epochs <= 16
    assert checkpoint.load(run)["elapsed"] < 6
    assert seconds < 20
    rates = [record["learning_rate"] for record in run.metrics("step")]
    assert max(rates) > 0.8 * SETTINGS["learning_rate"]
    assert rates[-1] < 0.05 * SETTINGS["learning_rate"]
    assert any("of 1000 epochs" in record["text"] for record in run.metrics("event"))


def test_enough_time_changes_nothing(images: Path, tmp_path: Path) -> None:
    """Measuring leaves no trace in what is learned."""
    plain = train(images, tmp_path / "plain", tiny(1, dropout=0.2))
    timed = train(images, tmp_path / "timed", tiny(1, dropout=0.2), max_minutes=60)
    losses = [[record["loss"] for record in run.metrics("step")] for run in (plain, timed)]
    assert losses[0] == losses[1]


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that takes three seconds for an epoch, whatever else it does."""
    monkeypatch.setattr(Training, "measure", lambda self: 3.0)


@pytest.mark.usefixtures("trial")
def test_too_little_time_names_the_way_out(images: Path, tmp_path: Path) -> None:
    """And minutes that are enough for one epoch are enough."""
    with pytest.raises(
        ConfigError, match=r"max_minutes=0.001 is too short: one epoch takes 0.05 "
    ) as refused:
        train(images, tmp_path, Slow(0.05), max_minutes=0.001)
    said = re.search(r"max_minutes=([\d.]+) is enough for one, ([\d.]+) for 20", str(refused.value))
    assert said
    assert "less time is taken with a smaller backbone or fewer images" in str(refused.value)
    run = train(images, tmp_path, Slow(0.05), max_minutes=float(said[1]), epochs=40)
    few, *_ = [record["text"] for record in run.metrics("event") if "of 40 epochs" in record["text"]]
    assert "of 40 epochs: too few to learn much; more fit with a smaller backbone or fewer images" in few
    assert 2 <= int(few.split("allows ")[1].split()[0]) <= 4
    assert len(run.metrics("epoch")) >= 2


@pytest.mark.parametrize(
    ("backbone", "size", "said"),
    [
        ("coke_resnet18_small", 32, "backbone=coke_conv5_w24 or fewer images"),
        ("coke_conv5_w24", 64, "views.size=32, backbone=coke_conv5_w16 or fewer images"),
        ("coke_conv5_w16", 32, "fewer images"),
        ("resnet50", 224, "views.size=112, backbone=resnet18 or fewer images"),
        ("resnet18", 128, "views.size=64, backbone=coke_conv5_w24 beside it or fewer images"),
    ],
)
def test_what_makes_an_epoch_shorter(backbone: str, size: int, said: str) -> None:
    config = check_settings(
        chosen({"recipe": "auto", "data": "x", "views": [{"size": size}], "backbone": backbone})
    )
    assert faster(config) == said


TIME = re.compile(
    r"time: ([\d.]+) s per epoch measured on cpu \(\d+ threads\), 4 epochs in about ([\d.]+) minutes.*"
)


@pytest.mark.usefixtures("trial")
def test_the_run_says_the_time_that_the_dry_run_says(images: Path, tmp_path: Path) -> None:
    """The same sentence, by the same trial."""
    words = {**SETTINGS, "backbone": "coke_conv5_w16", "epochs": 4, "max_minutes": 5}
    (foretold,) = [line for line in describe(str(images), None, words) if TIME.match(line)]
    run = coke.pretrain(images, out=tmp_path, overrides=words)
    told = [record["text"] for record in run.metrics("event") if TIME.match(record["text"])]
    assert told == [foretold]


def test_without_a_limit_the_first_epoch_says_the_time(images: Path, tmp_path: Path) -> None:
    words = {**SETTINGS, "backbone": "coke_conv5_w16", "epochs": 4}
    assert sum(bool(TIME.match(line)) for line in describe(str(images), None, words)) == 1
    run = coke.pretrain(images, out=tmp_path, overrides=words)
    (told,) = [found for record in run.metrics("event") if (found := TIME.match(record["text"]))]
    first = run.metrics("epoch")[1]["seconds"]  # of training: the pass before it only clusters
    assert float(told[1]) == pytest.approx(first, abs=0.051)
    assert float(told[2]) == pytest.approx(first * (4 - 2 / 3) / 60, abs=0.051)


def test_folder_after_too_little_time_can_be_used(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too short"):
        train(images, tmp_path, Slow(0.05), max_minutes=0.001)
    assert train(images, tmp_path, tiny()).report.is_file()


def test_environment_says_what_it_was_made_with(images: Path, tmp_path: Path) -> None:
    run = train(images, tmp_path, tiny())
    environment = run.environment
    assert environment["versions"]["coke"] == coke.__version__
    assert environment["data"]["n_images"] == 200
    assert environment["data"]["splits"] == "no labels: no probes"
    assert environment["backbone"]["architecture"] == "custom:Tiny"
    assert environment["processes"] == 1
    assert any(reason.startswith("mean ") for reason in environment["decisions"])
    assert run.config["backbone"] == "custom:Tiny"
    assert run.config["mean"] == pytest.approx([0.5, 0.49, 0.46], abs=0.03)


def test_slower_on_the_way(images: Path, tmp_path: Path) -> None:
    """Another program takes half of the machine: the cosine is completed in fewer epochs."""
    run = train(images, tmp_path, Slow(0.03, later=0.15, from_call=40), epochs=1000, max_minutes=6 / 60)
    assert any("epochs, not" in record["text"] for record in run.metrics("event"))
    assert checkpoint.load(run)["elapsed"] < 7.5
    rates = [record["learning_rate"] for record in run.metrics("step")]
    assert rates[-1] < 0.1 * max(rates)


def test_a_slow_start_costs_no_epochs(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling and the first probes take an eighth of the time each, and are not taken for what an epoch takes."""
    end_epoch = Monitor.end_epoch

    def slow_at_first(self: Monitor, *args: Any, epoch: int, **keys: Any) -> Any:
        time.sleep(0.5 if epoch < 2 else 0.0)
        return end_epoch(self, *args, epoch=epoch, **keys)

    monkeypatch.setattr(Monitor, "end_epoch", slow_at_first)
    run = train(images, tmp_path, Slow(0.02), epochs=1000, max_minutes=4 / 60)
    elapsed = checkpoint.load(run)["elapsed"]
    assert 3 < elapsed < 5
    rates = [record["learning_rate"] for record in run.metrics("step")]
    assert max(rates) > 0.9 * SETTINGS["learning_rate"]
    assert rates[-1] < 0.1 * SETTINGS["learning_rate"]


def test_float16_on_a_cpu_is_said_to_be_bfloat16(images: Path, tmp_path: Path) -> None:
    run = train(images, tmp_path, tiny(), precision="16-mixed", epochs=2, accelerator="cpu")
    assert run.metrics("event")[1]["text"].endswith("2 epochs on cpu, in bf16-mixed")
    plain = train(images, tmp_path / "plain", tiny(), epochs=2)
    assert plain.metrics("event")[1]["text"].endswith("2 epochs on cpu")


def test_start_is_told_and_kept(images: Path, tmp_path: Path) -> None:
    """What the images decided and why: in the record from the start, in the folder after a resumption too."""
    run = train(images, tmp_path, tiny())
    decisions = run.environment["decisions"]
    told = [record["text"] for record in run.metrics("event")]
    assert "200 images; no labels: no probes" in told[0]
    assert set(decisions) <= set(told)
    coke.pretrain(images, out=tmp_path, backbone=tiny(), resume=True, overrides=SETTINGS)
    assert run.environment["resumed"]
    assert run.environment["decisions"] == decisions


def test_a_compiled_network_keeps_the_names_of_its_weights(images: Path, tmp_path: Path) -> None:
    """What is compiled is left to the GPU machine: here Dynamo runs the network as it is."""
    with torch.compiler.set_stance("force_eager"):
        compiled = train(images, tmp_path / "compiled", tiny(1), compile=True)
    plain = train(images, tmp_path / "plain", tiny(1))
    ours, theirs = load_file(compiled.backbone), load_file(plain.backbone)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert checkpoint.load(compiled)["network"].keys() == checkpoint.load(plain)["network"].keys()
