"""Everything a run folder says, read once and tolerantly: what is missing or broken becomes a sentence.

A report is wanted most of all for the run that went wrong: interrupted in its first epoch, killed while a
line was being written, with a loss that is not a number, or never evaluated.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from coke.errors import ResumeError
from coke.run import Run


@dataclass(frozen=True)
class Record:
    """The run folder in memory; ``problems`` are sentences about parts that could not be read."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    verdict: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    knn: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    assignments: pyarrow.Table | None = None
    finished: datetime | None = None
    problems: list[str] = field(default_factory=list)

    def find(self, *names: str) -> Any:
        """The first of ``names`` that the environment or the configuration knows, at any depth, else None.

        A name is the last part of a key or the whole dotted key: ``device`` finds ``machine.device`` too,
        and the shallowest match wins.

        >>> Record(Path("."), config={"data": {"name": "textures"}}).find("n_images", "data.name")
        'textures'
        """
        for name in names:
            for source in (self.environment, self.config):
                matches = [
                    (key.count("."), value)
                    for key, value in flatten(source)
                    if key == name or key.endswith(f".{name}")
                ]
                if matches:
                    return min(matches, key=lambda match: match[0])[1]
        return None

    @property
    def n_heads(self) -> int:
        """How many heads the run has, from the epochs or the assignments; 0 where neither says."""
        last = self.epochs[-1].get("heads", []) if self.epochs else []
        if last or self.assignments is None:
            return len(last)
        return sum(name.startswith("cluster_") for name in self.assignments.column_names)


def flatten(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings under dotted keys.

    >>> list(flatten({"a": {"b": 1}, "c": [2]}))
    [('a.b', 1), ('c', [2])]
    """
    for key, child in value.items():
        if isinstance(child, dict):
            yield from flatten(child, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", child


def finite(value: Any) -> float | None:
    """A finite number, or None for anything else: a missing figure and a NaN both leave a gap in a curve.

    >>> finite(2), finite(float("nan")), finite(None), finite("0.5"), finite(True)
    (2.0, None, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def read_record(run: Run) -> Record:
    """Read a run folder.

    Raises:
        ResumeError: the folder does not exist, holds no file of a run, or was written by a newer coke.
    """
    marks = (run.config_file, run.metrics_file, run.verdict_file, run.assignments, run.environment_file)
    if not any(mark.is_file() for mark in marks):
        raise ResumeError(
            f"{run.path} holds no run to report: none of {', '.join(mark.name for mark in marks)} is there; "
            "give the folder that coke pretrain wrote"
        )
    problems: list[str] = []
    metrics = _metrics(run.metrics_file, problems)
    epochs = [line for line in metrics if line.get("kind") == "epoch"]
    verdict = _try(lambda: run.verdict, run.verdict_file, problems, {})
    files = [mark for mark in (run.metrics_file, run.verdict_file, run.config_file) if mark.is_file()]
    return Record(
        path=run.path,
        config=_try(lambda: run.config, run.config_file, problems, {}) if run.config_file.is_file() else {},
        environment=_try(lambda: run.environment, run.environment_file, problems, {}),
        verdict=verdict or (dict(epochs[-1].get("verdict") or {}) if epochs else {}),
        evaluation=_try(lambda: run.evaluation, run.evaluation_file, problems, {}),
        epochs=epochs,
        steps=[line for line in metrics if line.get("kind") == "step"],
        knn=[line for line in metrics if line.get("kind") == "knn"],
        events=[line for line in metrics if line.get("kind") == "event"],
        unreadable=_unreadable(run.unreadable_file, problems),
        assignments=_assignments(run.assignments, problems),
        finished=datetime.fromtimestamp(files[0].stat().st_mtime, UTC) if files else None,
        problems=problems,
    )


def _try(read: Callable[[], dict[str, Any]], path: Path, problems: list[str], default: Any) -> dict[str, Any]:
    """What ``read`` gives; a file that does not parse becomes a sentence (a newer format is refused)."""
    try:
        return read()
    except ResumeError:
        raise
    except (ValueError, TypeError, OSError) as error:
        problems.append(f"{path.name} could not be read ({error}); what it says is missing from this page.")
        return dict(default)


def _metrics(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; half-written ones are counted in a sentence."""
    if not path.is_file():
        return []
    records, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            broken += 1
    if broken:
        lines = "1 line" if broken == 1 else f"{broken:,} lines"
        problems.append(f"{lines} of {path.name} could not be read, as after a kill while writing.")
    return records


def _unreadable(path: Path, problems: list[str]) -> list[tuple[str, str]]:
    """The images left out: key and reason."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as stream:
        rows = list(csv.reader(stream))
    if rows and [cell.strip().lower() for cell in rows[0][:2]] == ["key", "reason"]:
        rows = rows[1:]
    else:
        problems.append(f"{path.name} has no header line key, reason; its lines are shown as they are.")
    return [(row[0], ", ".join(row[1:])) for row in rows if row]


def _assignments(path: Path, problems: list[str]) -> pyarrow.Table | None:
    """The table of assignments, or None with a sentence."""
    if not path.is_file():
        return None
    try:
        return pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        problems.append(f"{path.name} could not be read ({error}).")
        return None
