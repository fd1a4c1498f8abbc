"""The run folder: the names, formats and version of every file that a run leaves behind.

    config.yaml            the resolved configuration, one key a line
    environment.json       versions, machine, command, data (name, fingerprint, splits), backbone name
    metrics.jsonl          one JSON object a line: {"kind": "step" | "epoch" | "knn" | "event", ...}
    unreadable.csv         images left out: key, reason (only where there are any); also where they were too many
    checkpoints/           epoch-EEEE-step-SSSSSS.pt, the newest last by name; initial.safetensors
    not-finite.pt          of a run that stopped at numbers that were not finite: as a checkpoint, the state before the
                           last step that was tried, and the keys of its images
    backbone.safetensors   the trained backbone, for timm or any nn.Module of the same shape
    projector.safetensors  the trained projector: with clusters.safetensors what `coke.load` makes a model of
    assignments.parquet    key, content (a hash), and per head h: cluster_h, score_h, margin_h, second_h, trained_h
    clusters.safetensors   per head h: centers_h, trained_centers_h [K, D], duals_h, counts_h [K] (load_clustering)
    map.parquet            rows of assignments: x, y, nearest (a row), similarity, mean red, green, blue
    thumbnails.parquet     small pictures of the images that the report shows: row, key, picture (WebP)
    evaluation.json        scores of the trained backbone beside raw pixels and the untrained network; under
                           "others" those on other images, by their name
    evaluation.unreadable.csv   of the images that it was evaluated on last, as unreadable.csv
    drift.json             of a run that goes on from another: how far clusters of known images moved
    verdict.json           {"state": ..., "healthy": bool, "text": ..., "action": ...}
    report.html            all of it in one page
    tensorboard/           the same metrics for TensorBoard

Every file is written to a temporary name, synced and renamed: a reader never sees half of one. Only
metrics.jsonl and tensorboard/ grow as the run goes; a last line that a crash cut short is not read.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from coke.atomic import atomic, remove_left_over
from coke.errors import ResumeError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Run:
    """A run folder and what it holds.

    Attributes:
        path: the folder, whether it is there yet or not. Every file of it is an attribute, too:
        backbone: path of the trained weights.
        assignments: path of each image's clusters.
        clusters: path of centers, duals and counts.
        report: path of the page that shows it all.
        checkpoints: folder of them.

    Examples:
        >>> run = Run("runs/textures")
        >>> run.report.name
        'report.html'
    """

    path: Path

    def __init__(self, path: str | os.PathLike[str]) -> None:
        object.__setattr__(self, "path", Path(path))

    config_file = property(lambda self: self.path / "config.yaml")
    environment_file = property(lambda self: self.path / "environment.json")
    metrics_file = property(lambda self: self.path / "metrics.jsonl")
    unreadable_file = property(lambda self: self.path / "unreadable.csv")
    checkpoints = property(lambda self: self.path / "checkpoints")
    capsule = property(lambda self: self.path / "not-finite.pt")
    initial = property(lambda self: self.path / "checkpoints" / "initial.safetensors")
    backbone = property(lambda self: self.path / "backbone.safetensors")
    assignments = property(lambda self: self.path / "assignments.parquet")
    projector = property(lambda self: self.path / "projector.safetensors")
    clusters = property(lambda self: self.path / "clusters.safetensors")
    map = property(lambda self: self.path / "map.parquet")
    thumbnails = property(lambda self: self.path / "thumbnails.parquet")
    evaluation_file = property(lambda self: self.path / "evaluation.json")
    evaluation_unreadable_file = property(lambda self: self.path / "evaluation.unreadable.csv")
    drift_file = property(lambda self: self.path / "drift.json")
    verdict_file = property(lambda self: self.path / "verdict.json")
    report = property(lambda self: self.path / "report.html")
    tensorboard = property(lambda self: self.path / "tensorboard")

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration.

        Raises:
            ResumeError: the folder holds no run, or a damaged one.
        """
        if not self.config_file.is_file():
            raise ResumeError(f"{self.path} holds no run: {self.config_file.name} is missing")
        found = _schemas().read(self.config_file, lambda: _parsed(self.config_file, yaml.safe_load))
        return dict(found)

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, machine, command, data. Refuses a folder written by a newer coke."""
        environment = self.read_json(self.environment_file, "Environment")
        version = environment.get("format_version", FORMAT_VERSION)
        if version > FORMAT_VERSION:
            raise _schemas().newer(self.environment_file, version, FORMAT_VERSION)
        return environment

    @property
    def fingerprint(self) -> str:
        """Of its images: what tells whether others are the same; empty where environment.json does not say."""
        return str(self.environment.get("data", {}).get("fingerprint", ""))

    @property
    def data(self) -> str:
        """Where its images lie: the absolute place of its beginning, while there is one; else as it was said."""
        said = str(self.config.get("data", ""))
        place = self.environment.get("data", {}).get("place", said)
        return place if Path(_path_in(place)).exists() else said

    @property
    def evaluation(self) -> dict[str, Any]:
        """The scores on the run's own images, under ``others`` those on other images; empty before there are any."""
        return self.read_json(self.evaluation_file, "Evaluation")

    @property
    def verdict(self) -> dict[str, Any]:
        """Whether it learned, in words; empty before the first epoch has ended."""
        return self.read_json(self.verdict_file, "Verdict")

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, all or of one kind, oldest first."""
        if not self.metrics_file.is_file():
            return []
        *lines, _torn = _parsed(self.metrics_file, str).split("\n")  # a crash may cut the last
        schemas, records = _schemas(), []
        for number, line in enumerate(lines, 1):
            if line:
                file, advice = Path(f"{self.metrics_file}, line {number},"), "delete that line"
                record = schemas.read(file, lambda: json.loads(line), schemas.Line, advice)  # noqa: B023
                schema = schemas.LINES.get(record["kind"], schemas.Line)
                records.append(schemas.checked(file, record, schema, advice))
        return [record for record in records if kind in (None, record["kind"])]

    def unreadable(self) -> list[list[str]]:
        """The images left out: key and reason."""
        if not self.unreadable_file.is_file():
            return []
        lines = _parsed(self.unreadable_file, str).splitlines(keepends=True)
        try:
            rows = [[row[0], ", ".join(row[1:])] for row in csv.reader(lines) if row]
        except csv.Error as error:
            raise _schemas().damaged(self.unreadable_file, error) from None
        return rows[1:] if rows[:1] == [["key", "reason"]] else rows

    def read_json(self, path: Path, schema: str | None = None) -> dict[str, Any]:
        """A JSON object of the folder, empty where the file is not there yet; ``schema`` is of `coke.schemas`."""
        if not path.is_file():
            return {}
        schemas = _schemas()
        asked = getattr(schemas, schema) if schema else None
        return dict(schemas.read(path, lambda: _parsed(path, json.loads), asked))

    def read_assignments(self, columns: list[str] | None = None) -> Any:
        """The table of assignments.parquet, or some of its columns.

        Raises `ResumeError` where it is missing, damaged, or lacks a column.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.assignments.is_file():
            raise ResumeError(f"{self.path} is not finished: {self.assignments.name} is missing")
        try:
            schema = pq.read_schema(self.assignments)
            names = schema.names
            wrong = [name for name in columns or ["key"] if name not in names]
            wrong += [name for name in names if names.count(name) > 1]
            kinds = {"key": pa.types.is_string, "content": pa.types.is_fixed_size_binary}
            number = dict.fromkeys(("cluster", "second", "trained"), pa.types.is_integer)
            number |= dict.fromkeys(("score", "margin"), pa.types.is_floating)
            for field in schema:
                kind = kinds.get(field.name, number.get(re.sub(r"_\d+$", "", field.name)))
                wrong += [field.name] if kind is not None and not kind(field.type) else []
            if wrong:
                raise ValueError(f"column {wrong[0]} is missing, doubled or of another type")
            return pq.read_table(self.assignments, columns=columns)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _schemas().damaged(self.assignments, error, "--resume writes it again") from None

    def write_json(self, path: Path, value: dict[str, Any]) -> None:
        """Write a JSON object of the folder, whole or not at all."""
        with atomic(path) as stream:
            json.dump(value, stream, indent=2, allow_nan=True, default=str)
            stream.write("\n")

    def write_config(self, config: dict[str, Any]) -> None:
        """Write the resolved configuration."""
        with atomic(self.config_file) as stream:
            yaml.safe_dump(config, stream, sort_keys=False, allow_unicode=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from writing this folder, until the end of this one at the latest.

        Raises `ResumeError` where one of them does. Of a job's processes the first speaks for all.
        """
        if fcntl is None or os.environ.get("RANK", "0") != "0":
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path, os.O_RDONLY)
        try:
            with suppress(OSError):  # of a file system without locks
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ResumeError(
                        f"{self.path} is being written by another run: wait for its end, or choose another --out"
                    ) from error
            for written in (self.path, self.checkpoints):
                remove_left_over(written)
            try:
                yield
            finally:
                with suppress(OSError):
                    self.path.rmdir()  # where nothing was written
        finally:
            os.close(folder)

    def check_there(self) -> None:
        """Raise `ResumeError` where somebody removed the folder of a run that is being written."""
        if not self.config_file.is_file():
            raise ResumeError(
                f"{self.config_file} is gone: the run folder was removed or moved while the run wrote to it; bring it "
                "back and go on with --resume, or start anew"
            )

    def clear(self) -> None:
        """Remove what a run left that ended before its first checkpoint."""
        for file in (self.metrics_file, self.verdict_file):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.tensorboard, ignore_errors=True)

    def latest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        found = sorted(self.checkpoints.glob("epoch-*-step-*.pt"))
        return found[-1] if found else None

    def cut_metrics(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the records that a resumed run will write again."""
        kept = [record for record in self.metrics() if keep(record)]
        with atomic(self.metrics_file) as stream:
            stream.writelines(json.dumps(record) + "\n" for record in kept)


def _schemas() -> Any:
    """`coke.schemas`, when a file is read: pydantic takes a moment."""
    from coke import schemas

    return schemas


def _parsed(path: Path, parse: Callable[[str], Any]) -> Any:
    return parse(path.read_text(encoding="utf-8", errors="replace"))


def is_run(data: Any) -> bool:
    """Whether it is a folder that holds a run."""
    return isinstance(data, str | os.PathLike) and Run(data).config_file.is_file()


def absolute(data: str) -> str:
    """DATA as it can be found from any folder: a path, or the ROOT of NAME:ROOT, made absolute where there is such.

    >>> absolute("textures"), absolute("CIFAR10:/data")
    ('textures', 'CIFAR10:/data')
    """
    path = _path_in(data)
    return data[: len(data) - len(path)] + os.path.abspath(path) if os.path.exists(path) else data


def _path_in(data: str) -> str:
    """The path in DATA: all of it, or what follows the name of a data set."""
    return data if os.path.exists(data) or ":" not in data else data.partition(":")[2]
