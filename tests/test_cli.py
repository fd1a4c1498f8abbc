"""What a person at the desk meets: words in any order, errors in one line, and help that does not load torch."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml

import coke
import coke.backbones
from coke.cli import main, parser
from coke.run import Run
from coke.training.recipes import RECIPES
from tiny_runs import write_textures

QUICK = [
    *("backbone=coke_conv5_w16", "n_clusters=[4,6]", "dim=16", "batch_size=40", "epochs=2"),
    *("views.size=16", "tensorboard=false", "linear_probe=false", "workers=0"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_textures(tmp_path_factory.mktemp("images"))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr of a command that is refused with exit code 1."""
    assert main(list(words)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("coke: ")
    return line


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["pretrain", "--help"], ["evaluate", "--help"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    heavy = {
        "torch",
        "pydantic",
        "lightning_fabric",
        "torchvision",
        "timm",
        "sklearn",
        "pyarrow",
        "tensorboard",
        "rich",
    }
    code = (
        f"import sys\nsys.argv = ['coke', *{words!r}]\nfrom coke.cli import main\n"
        f"try: main()\nexcept SystemExit as stop: print('code', stop.code)\n"
        f"print('loaded', sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["code 0", "loaded []"]
    assert ("usage: coke" if "--help" in words else f"coke {coke.__version__}") in done.stdout


def help_of(*words: str) -> str:
    """What --help prints."""
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
        main([*words, "--help"])
    return said.getvalue()


def test_help_leads_from_one_verb_to_the_next() -> None:
    """The first page has a way through them; each verb has an example that parses, and names another verb."""
    verbs = re.findall(r"^    (\w+) {2,}\w", help_of(), re.M)
    model_verbs = ["embed", "predict", "export", "import"]
    assert verbs == ["pretrain", "evaluate", "recipes", *model_verbs, "cluster", "assign", "curate"]
    pages = {verb: help_of(verb) for verb in verbs}
    for page in (help_of(), *pages.values()):
        assert max(map(len, page.splitlines())) <= 120
        for words in re.findall(r"^(?: +|(?!usage)\w+: +)coke (\w+ [^;,\n]*?)(?: {3,}.*|,.*)?$", page, re.M):
            _, rest = parser().parse_known_args(shlex.split(words))
            assert not [word for word in rest if word.startswith("-")]
    for verb, page in pages.items():
        epilog = page[-500:]
        assert f"coke {verb} " in epilog
        assert any(f"coke {other}" in epilog for other in verbs if other != verb)
    assert all(f"coke {verb}" in help_of() for verb in verbs if verb != "assign")


def test_words_in_any_order(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DATA and key=value before, between and after the options."""
    orders: list[list[str]] = [
        [str(images), "--out", "OUT", *QUICK],
        [*QUICK[:3], "--out", "OUT", str(images), *QUICK[3:]],
        [*QUICK, str(images), "--out", "OUT"],
        ["--out", "OUT", *QUICK[:2], "--recipe", "auto", *QUICK[2:], str(images)],
    ]
    configs = []
    for index, order in enumerate(orders):
        out = str(tmp_path / str(index))
        assert main(["pretrain", *(out if word == "OUT" else word for word in order)]) == 0
        configs.append(Run(out).config)
        printed = capsys.readouterr().out
        assert "\x1b" not in printed  # plain lines in a pipe
        assert f"report: {out}/report.html" in printed
        (loads,) = re.findall(r"for timm: (.*)\)$", printed, re.M)
        model = eval(loads.split("; ")[1].replace("backbone.safetensors", f"{out}/backbone.safetensors"))
        found = timm.data.resolve_model_data_config(model)
        assert found["input_size"] == (3, 16, 16)
        assert found["mean"] == pytest.approx(Run(out).config["mean"], abs=1e-4)
        assert found["std"] == pytest.approx(Run(out).config["std"], abs=1e-4)
        assert "epoch 1/1  loss" in printed
    assert all(config == configs[0] for config in configs)
    assert configs[0]["n_clusters"] == [4, 6]
    assert configs[0]["data"] == str(images)


def test_path_with_an_equals_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_textures(tmp_path / "seed=3")
    assert main(["pretrain", str(data), "--dry-run", *QUICK]) == 0
    assert "200 readable" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["textures", "epoch=3"], "unknown key epoch (did you mean 'epochs'?)"),
        (["textures", "views.sizes=3"], "did you mean 'size'?"),
        (["textures", "objective.temprature=3"], "did you mean 'temperature'?"),
        (["textures", "--recipe", "cifar"], "unknown recipe 'cifar' (did you mean 'cifar10'?)"),
        (["textures", "backbone=resnet81"], "unknown backbone 'resnet81' (did you mean"),
        (["textures", "epochs=many"], "epochs must be a whole number"),
        (["textures", "epochs=1"], "epochs"),
        (["textures", "precision=8"], "precision must be '32-true'"),
        (["textures", "n_clusters=3000"], "n_clusters=3000 is too many for 5,000 images"),
        (["textures", "min_size_ratio=1.5"], "min_size_ratio must lie in 0 ... 1"),
        (["textures", "seed=x"], "seed must be a whole number"),
        (["textures", "accelerator=warp"], "warp"),
        (["textures", "init=nowhere.safetensors"], "nowhere.safetensors"),
        (["texture"], "did you mean 'textures'?"),
        (["textures", "other"], "one DATA at a time, got textures, other"),
        (["textures", "=5"], "expected key=value, got '=5': the key is missing"),
        (["textures", "recipe=cifar10"], "recipe is given as --recipe NAME"),
        (["textures", "data=other"], "data is given as DATA, not as a key"),
        (["data=other"], "data is given as DATA, not as a key"),
        (["textures", "--resume"], "config.yaml is missing; start it without --resume"),
        (["MNIST:nowhere"], "nowhere"),
    ],
)
def test_refusals_are_one_line(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any work: nothing is written."""
    out = tmp_path / "run"
    assert expected in refused(capsys, "pretrain", *words, "--out", str(out))
    assert not out.exists()


def test_settings_are_checked_before_images_are_read(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typing error must not cost the scan of a million images."""

    def read(*arguments: Any, **keys: Any) -> None:
        raise AssertionError("images were read")

    monkeypatch.setattr("coke.training.plan.open_data", read)
    for word, expected in (
        ("epoch=3", "did you mean 'epochs'?"),
        ("momentum=2", "momentum must lie in 0 ... 1"),
    ):
        assert expected in refused(capsys, "pretrain", str(images), word, "--out", str(tmp_path))


@pytest.mark.parametrize("words", [[], ["fly"], ["pretrain", "--fast"], ["evaluate"], ["recipes", "a", "b"]])
def test_malformed_command_lines(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: coke" in capsys.readouterr().err


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    recipes, networks = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    assert [line.split()[0] for line in recipes] == list(RECIPES)
    assert sorted(line.split()[0] for line in networks[1:]) == sorted(timm.list_models("coke_*"))
    assert all("features, " in line and "FLOP forward at 32 px" in line for line in networks[1:])
    required = {"textures", "cifar10", "cifar10-2view", "cifar10-multicrop", "auto"}
    assert required | {f"imagenet-{views}" for views in ("1view", "2view", "multicrop")} <= set(RECIPES)
    assert "did you mean 'cifar10'?" in refused(capsys, "recipes", "cifar1")


@pytest.mark.parametrize("name", ["textures", "cifar10-multicrop", "imagenet-2view", "auto"])
def test_recipe_is_yaml_of_every_key(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", name]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["recipe"] == name
    for key in ("epochs", "n_clusters", "views", "objective", "backbone", "optimizer", "checkpoint_minutes"):
        assert key in printed


def test_evaluate_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no run" in refused(capsys, "evaluate", str(tmp_path / "nothing"))


def test_dry_run_writes_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (images / "broken.png").write_bytes(b"no image")
    words = ["backbone=coke_conv5_w16", "epochs=3", "max_unreadable_share=0.1", "max_minutes=1"]
    try:
        assert main(["pretrain", str(images), "--dry-run", *words]) == 0
    finally:
        (images / "broken.png").unlink()
    assert list(tmp_path.iterdir()) == []
    printed = capsys.readouterr().out
    for expected in (
        "images: 200 readable, 1 unreadable",
        "16 x 16 px; held in memory",
        "splits: no labels: no probes",
        "K = 7, 9, 12",
        "because: 200 images are few: below 5,000 a network hardly learns from scratch",
        "memory beside network and optimizer: images 0.1 MiB",
        "s per epoch measured on cpu",
        "3 epochs in about",
        "feasible",
        "run folder: runs/",
    ):
        assert expected in printed, printed


def test_folder_that_cannot_be_written(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    said = refused(capsys, "pretrain", str(images), *QUICK, "--out", str(tmp_path / "file" / "run"))
    assert "no run folder can be written there" in said


def test_label_column_is_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the errors advise; kept with the run, so that probes and `coke evaluate` find it."""
    images = write_textures(tmp_path / "images", 200)
    names = sorted(path.name for path in images.iterdir())
    table = tmp_path / "table.csv"
    rows = [f"images/{name},{number % 2}" for number, name in enumerate(names)]
    table.write_text("\n".join(["path,kind", *rows]))
    out = str(tmp_path / "run")
    assert main(["pretrain", str(table), "--out", out, "label_column=kind", *QUICK]) == 0
    assert "2 classes" in capsys.readouterr().out
    assert main(["evaluate", out]) == 0
    labelled = write_textures(tmp_path / "folder", 200, labelled=True)
    assert main(["evaluate", out, "--data", str(labelled)]) == 0  # which has no columns
    said = refused(capsys, "pretrain", str(images), *QUICK, "label_column=kind", "--out", f"{out}2")
    assert "has no columns" in said


def test_errors_of_the_system_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*arguments: Any, **keys: Any) -> None:
        raise PermissionError(13, "Permission denied", "locked/in")

    monkeypatch.setattr("coke.training.plan.open_data", read)
    assert "Permission denied: 'locked/in'" in refused(capsys, "pretrain", "--out", "runs/never")


@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [(["recipes"], ""), (["recipes"], "1"), (["--help"], ""), (["DATA", "--dry-run", *QUICK], "")],
)
def test_closed_pipe_ends_silently(words: list[str], unbuffered: str, images: Path) -> None:
    """As in `coke ... | head`: no traceback, neither from printing nor from the flush at exit."""
    if words[0] == "DATA":
        words = ["pretrain", str(images), *words[1:]]
    command = [sys.executable, "-m", "coke", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert said == ""
    assert process.returncode == 141


def test_interrupt_outside_of_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While images are read or probes run there is nothing to save: one line, no traceback."""

    def read(*arguments: Any, **keys: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coke.training.plan.open_data", read)
    assert main(["pretrain", "--out", "runs/never"]) == 130
    assert capsys.readouterr().err == "coke: interrupted\n"


def test_schema_of_a_recipe_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "cifar10", "--schema"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["properties"]["epochs"]["default"] == 200
    assert found["properties"]["momentum"]["maximum"] == 1
    assert "--schema goes with the name of a recipe" in refused(capsys, "recipes", "--schema")


def test_auto_and_names_of_old_on_the_command_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "backbone=coke_conv5_w16",
        "views.size=auto",
        "batch_size=auto",
        "objective.turning=0.5",
        "dual_lr=auto",
    ]
    given = ["--recipe", "cifar10-companions", "n_clusters=[4,6]", "epochs=2", "mean=auto"]
    assert main(["pretrain", str(images), *given, *words, "--dry-run", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    for expected in (
        "recipe cifar10-auxiliary, backbone coke_conv5_w16, 1 clustered view(s) of 16 px",
        "because: view size 16 px: the median",
        "because: batch 16: ",
        "because: mean [",
    ):
        assert expected in printed
    assert "std [" not in printed
    assert "objective.rotation must not be negative" in refused(
        capsys, "pretrain", str(images), "objective.turning=-1"
    )
