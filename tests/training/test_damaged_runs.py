"""Whatever is wrong with a file of a run, it is said in one line before any work, and never in a traceback."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import coke
from coke.errors import CokeError
from coke.run import Run
from tiny_runs import SETTINGS, write_textures

DEEP = "[" * 100_000
HUGE = "9" * 400


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_textures(tmp_path_factory.mktemp("images"), 60, labelled=True)


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with a file of every kind."""
    settings = {
        **SETTINGS,
        "backbone": "coke_conv5_w16",
        "epochs": 3,
        "batch_size": 30,
        "checkpoint_epochs": 1,
    }
    run = coke.pretrain(images, out=tmp_path_factory.mktemp("whole") / "run", overrides=settings)
    run.unreadable_file.write_text("key,reason\nimage.png,truncated\n")
    return run


@pytest.fixture
def run(whole: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(whole.path, tmp_path / "run"))


def said(call: Callable[[], Any]) -> str:
    """What a call refuses, in one line; empty where it works after all."""
    try:
        call()
    except CokeError as error:
        (line,) = str(error).splitlines()
        assert len(line) < 1000
        return line
    return ""


def resumed(run: Run, images: Path) -> str:
    return said(lambda: coke.pretrain(images, out=run.path, resume=True))


TEXTS = ["", "{", "[]", "null", "3", DEEP, "\0", '{"a": ' + HUGE * 20 + "}", "\udcff\udcfe"]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "verdict.json", "evaluation.json"])
def test_text_that_is_none(run: Run, name: str, text: str) -> None:
    file = run.path / name
    file.write_bytes(text.encode(errors="surrogateescape"))
    read = {"config.yaml": "config", "environment.json": "environment"}.get(name, name.partition(".")[0])
    line = said(lambda: getattr(run, read))
    assert line.startswith(f"{file} is damaged: ")
    coke.write_report(run.path)  # a report is wanted most of all for the run that went wrong


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("environment.json", {"format_version": 99}, "has format 99, this coke reads up to 1: install a newer coke"),
        ("environment.json", {"format_version": "two"}, "is damaged: format_version: "),
        ("environment.json", {"data": []}, "is damaged: data: "),
        ("environment.json", {"data": {"fingerprint": 3}}, "is damaged: data.fingerprint: "),
        ("environment.json", {"commands": "coke pretrain"}, "is damaged: commands: "),
        ("environment.json", {"finished_epochs": "all"}, "is damaged: finished_epochs: "),
        ("environment.json", {"backbone": {"loads_with": None}}, "is damaged: backbone.loads_with: "),
        ("verdict.json", {"text": None}, "is damaged: text: "),
        ("evaluation.json", {"representations": [1]}, "is damaged: representations: "),
        ("evaluation.json", {"others": {"more": 3}}, "is damaged: others.more: "),
    ],
)  # fmt: skip
def test_entries_of_another_kind(
    run: Run, images: Path, name: str, changes: dict[str, Any], words: str
) -> None:
    file = run.path / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    calls = {
        "environment.json": [
            lambda: coke.evaluate(run.path),
            lambda: coke.pretrain(images, out=run.path, resume=True),
        ],
        "verdict.json": [lambda: run.verdict],
        "evaluation.json": [lambda: run.evaluation],
    }
    for call in calls[name]:
        assert f"{file} {words}" in said(call)


@pytest.mark.parametrize("key", ["views", "mean", "epochs", "objective", "n_clusters", "data", "seed"])
def test_settings_that_are_missing_or_wrong(run: Run, images: Path, key: str) -> None:
    for value in (None, "x", -1, [[]], {"a": 1}):
        config = {**run.config, key: value}
        run.write_config(config)
        line = resumed(run, images)
        assert key in line or (key == "data" and not line) or value == -1, (key, value, line)
    del config[key]
    run.write_config(config)
    line = resumed(run, images)
    assert f"{key} is missing" in line or key in ("objective", "seed", "data")
    coke.write_report(run.path)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"kind": 3}', DEEP, '{"kind": "epoch"}', '{"kind": "step", "epoch": "x"}']
)
def test_a_line_in_the_middle(run: Run, images: Path, line: str) -> None:
    lines = run.metrics_file.read_text().splitlines()
    run.metrics_file.write_text("\n".join([*lines[:4], line, *lines[4:], ""]))
    assert "metrics.jsonl" in resumed(run, images)
    coke.write_report(run.path)


@pytest.mark.parametrize(
    "content", [b"\0\0", b"\xff\xfe", b'key,reason\n"' + b"a" * 200_000, b"key,reason\n\0,a\n"]
)
def test_list_of_unreadable_images(run: Run, content: bytes) -> None:
    """Read as far as it can be, or refused by its name; the page is made all the same."""
    run.unreadable_file.write_bytes(content)
    assert (
        said(run.unreadable).startswith(f"{run.unreadable_file} is damaged: ") or len(run.unreadable()) <= 1
    )
    assert coke.write_report(run.path).is_file()


def doubled(table: pa.Table) -> pa.Table:
    return table.append_column("cluster_0", table["cluster_0"])


def as_text(table: pa.Table) -> pa.Table:
    return table.set_column(
        table.column_names.index("cluster_0"), "cluster_0", table["cluster_0"].cast("string")
    )


@pytest.mark.parametrize(
    "change",
    [
        doubled,
        as_text,
        lambda table: table.drop_columns(["key"]),
        lambda table: table.set_column(1, "content", pa.array(["a"] * len(table))),
        None,
    ],
)
def test_assignments(run: Run, images: Path, change: Callable[[pa.Table], pa.Table] | None) -> None:
    if change is None:
        run.assignments.write_bytes(run.assignments.read_bytes()[:-9])
    else:
        pq.write_table(change(pq.read_table(run.assignments)), run.assignments)
    assert "assignments.parquet is damaged: " in said(run.read_assignments)
    for call in (
        lambda: coke.evaluate(run.path),
        lambda: coke.pretrain(images, out=run.path.parent / "more", overrides={"continues": str(run.path)}),
    ):
        assert "assignments.parquet is damaged: " in said(call)
    coke.write_report(run.path)


def rewritten(path: Path, metadata: Callable[[dict[str, str]], Any], **changes: Any) -> None:
    """A safetensors file with other metadata and tensors."""
    with safe_open(path, "pt") as file:
        stated = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no mapping
    metadata(stated)
    save_file({**tensors, **changes}, path, stated)


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("backbone", "format_version", "9", "has format 9, this coke reads up to 1: install a newer coke"),
        ("backbone", "format_version", "new", "is damaged"),
        ("backbone", "mean", "[1, 2]", "is damaged: mean"),
        ("backbone", "std", '"x"', "is damaged: std"),
        ("backbone", "input_size", "[3, 16, 1000000000]", "is damaged: input_size"),
        ("backbone", "input_size", "3", "is damaged: input_size"),
        ("backbone", "crop_pct", "-1", "is damaged: crop_pct"),
        ("backbone", "interpolation", "{}", "is damaged: interpolation"),
        ("backbone", "architecture", "no_such_net", "no_such_net"),
        ("projector", "widths", "[1000000, 1000000, 1000000]", "is damaged: its weights"),
        ("projector", "widths", "[3]", "is damaged: widths"),
        ("projector", "widths", DEEP, "is damaged"),
        ("clusters", "coke clustering", '{"format_version": 9, "metric": "cosine"}', "install a newer coke"),
        ("clusters", "coke clustering", f'{{"format_version": 2, "metric": "cosine", "inertia": {HUGE}}}', "damaged"),
        ("clusters", "coke clustering", DEEP, "cannot be read"),
    ],
)  # fmt: skip
def test_files_of_the_model(run: Run, name: str, key: str, value: str, words: str) -> None:
    rewritten(run.path / f"{name}.safetensors", lambda stated: stated.update({key: value}))
    line = said(lambda: coke.load(run.path))
    assert words in line
    assert name in line or words == "no_such_net"


KEYS = (
    "epoch",
    "step",
    "network",
    "optimizer",
    "scaler",
    "clusterings",
    "memory",
    "schedule",
    "figures",
    "random",
)


def newest(run: Run) -> Path:
    path = run.latest_checkpoint()
    assert path is not None
    return path


@pytest.mark.parametrize("key", [*KEYS, "config", "data", "elapsed"])
def test_entries_of_a_checkpoint(run: Run, images: Path, key: str) -> None:
    """Missing, of another kind, empty."""
    path = newest(run)
    state = torch.load(path)
    empty = type(state[key])()
    for value in (
        None,
        "text",
        [1],
        torch.ones(2),
        *([empty] if key not in ("epoch", "step", "scaler", "elapsed") else []),
    ):
        torch.save({**state, key: value}, path)
        assert resumed(run, images), value
    del state[key]
    torch.save(state, path)
    assert f"{path} is damaged: {key}: field required; delete it to resume from the one before" in resumed(
        run, images
    )


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 99},
        {"epoch": -1},
        {"step": 10**6},
        {"step": -1},
        {"step": 1},
        {"elapsed": float("nan")},
        {"format_version": 99},
    ],
    ids=str,
)
def test_places_that_cannot_be(run: Run, images: Path, change: dict[str, Any]) -> None:
    path = newest(run)
    torch.save({**torch.load(path), **change}, path)
    line = resumed(run, images)
    assert ("install a newer coke" if "format_version" in change else "is damaged: ") in line


def test_values_that_cannot_be(run: Run, images: Path) -> None:
    path = newest(run)
    for change in (
        lambda state: state["memory"]["labels"].fill_(100),
        lambda state: next(iter(state["network"].values())).fill_(torch.nan),
        lambda state: state["memory"].update(labels=torch.zeros(3)),
        lambda state: state["clusterings"].pop(),
        lambda state: state["clusterings"][0].pop("centers"),
        lambda state: state["optimizer"].pop("param_groups"),
        lambda state: state["optimizer"].update(state=3),
        lambda state: state["random"].update(cpu=torch.zeros(3)),
        lambda state: state["schedule"].update(progress=7.0),
        lambda state: state["figures"].update(steps=torch.zeros(2, 2, 2, 2)),
        lambda state: state["config"].update(epochs="x"),
        lambda state: state["config"].clear(),
    ):
        state = torch.load(path)
        before = path.read_bytes()
        change(state)
        torch.save(state, path)
        assert resumed(run, images), inspect.getsource(change)
        path.write_bytes(before)
    assert not resumed(run, images)
