"""Everything a run folder says, read once and tolerantly: what is missing or broken becomes a sentence.

A report is wanted most of all for the run that went wrong: interrupted in its first epoch, killed while a
line was being written, with a loss that is not a number, or never evaluated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from coke.errors import ResumeError
from coke.run import Run


@dataclass(frozen=True)
class Record:
    """The run folder in memory; ``problems`` are sentences about parts that could not be read."""

    run: Run
    config: dict[str, Any]
    environment: dict[str, Any]
    verdict: dict[str, Any]
    evaluation: dict[str, Any]
    metrics: list[dict[str, Any]]
    unreadable: list[list[str]]  # key, reason
    assignments: pyarrow.Table | None
    map: pyarrow.Table | None
    thumbnails: pyarrow.Table | None
    problems: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The metrics of a kind: "step", "epoch", "knn" or "event"."""
        return [line for line in self.metrics if line.get("kind") == kind]

    @property
    def heads(self) -> list[dict[str, Any]]:
        """Figures of the heads in the last epoch."""
        heads = next((epoch.get("heads") for epoch in reversed(self.of_kind("epoch"))), None)
        return [head for head in heads if isinstance(head, dict)] if isinstance(heads, list) else []

    @property
    def data(self) -> dict[str, Any]:
        """What environment.json says of the images."""
        found = self.environment.get("data")
        return found if isinstance(found, dict) else {}


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

    def attempt(path: Path, read: Callable[[], Any], default: Any) -> Any:
        try:
            return read() if path.is_file() else default
        except (ValueError, TypeError, OSError, RecursionError, pyarrow.ArrowException) as error:
            if isinstance(error, ResumeError) and "newer coke" in str(error):
                raise
            problems.append(
                f"{path.name} could not be read ({error}): what it says is missing from this page."
            )
            return default

    def table(path: Path) -> Any:
        return attempt(path, lambda: pyarrow.parquet.read_table(path), None)

    metrics = attempt(run.metrics_file, lambda: _metrics(run.metrics_file, problems), [])
    last: dict[str, Any] = next((line for line in reversed(metrics) if line.get("kind") == "epoch"), {})
    assignments, places = table(run.assignments), table(run.map)
    if places is not None and (assignments is None or len(places) != len(assignments)):
        problems.append(f"{run.map.name} has other rows than {run.assignments.name} and is not used.")
        places = None
    return Record(
        run,
        config=attempt(run.config_file, lambda: run.config, {}),
        environment=attempt(run.environment_file, lambda: run.environment, {}),
        verdict=attempt(run.verdict_file, lambda: run.verdict, {}) or last.get("verdict") or {},
        evaluation=attempt(run.evaluation_file, lambda: run.evaluation, {}),
        metrics=metrics,
        unreadable=attempt(run.unreadable_file, run.unreadable, []),
        assignments=assignments,
        map=places,
        thumbnails=table(run.thumbnails),
        problems=problems,
    )


def _metrics(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; half-written ones are counted in a sentence."""
    records, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records += [dict(json.loads(line))] if line.strip() else []
        except (ValueError, TypeError, RecursionError):
            broken += 1
    if broken:
        lines = "1 line" if broken == 1 else f"{broken:,} lines"
        problems.append(f"{lines} of {path.name} could not be read, as after a kill while writing.")
    return records
