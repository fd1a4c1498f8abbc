"""Files of a run folder appear whole or not at all."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from coke.errors import ResumeError
from coke.run import FORMAT_VERSION, Run, atomic

VERDICT = {"state": "learning", "healthy": True, "text": "", "action": ""}


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_failed_writer_leaves_the_old_file(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with atomic(path, mode) as stream:
            stream.write("half" if mode == "w" else b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_seen_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with atomic(path) as stream:
        stream.write("whole")
        stream.flush()
        assert not path.exists()
        assert list(tmp_path.rglob("file")) == []
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_text_is_utf8(tmp_path: Path) -> None:
    with atomic(tmp_path / "file") as stream:
        stream.write("Größe — 大")
    assert (tmp_path / "file").read_bytes() == "Größe — 大".encode()


def test_readers_never_see_half(tmp_path: Path) -> None:
    """A reader that looks all the time sees whole versions only, never older after newer."""
    path, size, seen = tmp_path / "file", 20_000, []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            if path.exists():
                seen.append(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for version in range(30):
        with atomic(path) as stream:
            for _ in range(size):
                stream.write(chr(ord("A") + version))
    stop.set()
    reader.join()
    assert seen
    assert {len(text) for text in seen} == {size}
    versions = [text[0] for text in seen]
    assert versions == sorted(versions)
    assert all(len(set(text)) == 1 for text in seen)


def test_metrics_by_kind_and_cut(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.metrics() == []
    written = [
        {"kind": "step", "step": 0},
        {"kind": "other", "loss": float("nan")},
        {"kind": "step", "step": 1},
    ]
    run.metrics_file.write_text("".join(json.dumps(record) + "\n" for record in written))
    assert [record["step"] for record in run.metrics("step")] == [0, 1]
    assert len(run.metrics()) == 3
    run.cut_metrics(lambda record: record.get("step") != 1)
    assert [record["kind"] for record in run.metrics()] == ["step", "other"]


def test_half_a_line_at_the_end(tmp_path: Path) -> None:
    """What a machine that lost power leaves: the record that was not finished is not there."""
    run = Run(tmp_path)
    run.metrics_file.write_text('{"kind": "step", "step": 0}\n{"kind": "st')
    assert [record["step"] for record in run.metrics()] == [0]


def test_folder_without_a_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert (run.verdict, run.evaluation, run.environment, run.latest_checkpoint()) == ({}, {}, {}, None)
    with pytest.raises(ResumeError, match=r"holds no run: config\.yaml is missing"):
        _ = run.config


def test_newer_format_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_json(run.environment_file, {"format_version": FORMAT_VERSION + 1})
    with pytest.raises(ResumeError, match=f"format {FORMAT_VERSION + 1}.*install a newer coke"):
        _ = run.environment


def test_config_is_read_as_written(tmp_path: Path) -> None:
    run = Run(tmp_path)
    config = {
        "data": "/Bilder/größe",
        "mean": [0.1, 1e-05],
        "init": None,
        "views": [{"size": 16}],
        "flag": True,
    }
    run.write_config(config)
    assert run.config == config
    assert list(run.config) == list(config)


def test_a_folder_is_written_by_one_at_a_time(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with run.alone():
        with pytest.raises(ResumeError, match="written by another run"), Run(run.path).alone():
            pass
        run.write_json(run.verdict_file, VERDICT)
    with run.alone():  # released
        pass
    assert run.verdict == VERDICT
    with Run(tmp_path / "nothing written").alone():
        pass
    assert not (tmp_path / "nothing written").exists()


@pytest.mark.parametrize("text", ["", "[1, 2]", "{"])
def test_damaged_configuration_is_named(tmp_path: Path, text: str) -> None:
    run = Run(tmp_path)
    run.config_file.write_text(text)
    with pytest.raises(ResumeError, match=r"config\.yaml is damaged"):
        _ = run.config
