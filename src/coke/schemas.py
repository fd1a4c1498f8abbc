"""What each file of a run folder holds: one schema a file, asked where the file is read, before any work.

What a schema does not name may be there too: older and newer cokes write less and more. A file that is damaged is
refused in one line, which says where; one of a newer coke is called that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from coke.errors import ResumeError

Count = Annotated[int, Field(ge=0, lt=2**63)]
Tensors = dict[str, Tensor]
_Width = Annotated[int, Field(ge=1, le=1 << 20)]


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True)


class _Images(_File):
    name: str = ""
    place: str = ""
    fingerprint: str = ""
    n_images: Count = 0


class Environment(_File):
    """environment.json."""

    format_version: Count = 1
    command: str = ""
    commands: list[str] = []
    decisions: list[str] = []
    finished_epochs: Count | None = None
    backbone: dict[str, str] = {}
    data: _Images = _Images()


class Verdict(_File):
    """verdict.json."""

    state: str
    healthy: bool
    text: str
    action: str


class Evaluation(_File):
    """evaluation.json."""

    representations: dict[str, dict[str, Any]] = {}
    others: dict[str, dict[str, Any]] = {}


class Line(_File):
    """A line of metrics.jsonl."""

    kind: str
    epoch: Count = 0
    step: Count = 0


class _Head(_File):
    n_clusters: Count
    used: Count
    smallest: Count
    largest: Count
    largest_share: float
    bound: float


class Epoch(Line):
    """What a verdict asks of an epoch's line."""

    loss: float | None
    ln_clusters: float
    heads: Annotated[list[_Head], Field(min_length=1)]
    churn: float | None
    label_agreement: float | None
    chance_agreement: float
    images: Count
    feature_spread: float
    effective_rank: float


class Knn(Line):
    """A line of kind "knn"."""

    accuracy: float


LINES = {"epoch": Epoch, "knn": Knn}


class _Schedule(_File):
    n_epochs: Annotated[Count, Field(ge=1)]
    trained_steps: Count
    progress: Annotated[float, Field(ge=0, le=1)]


class _Random(_File):
    cpu: Tensor
    cuda: Tensor | None


class _Data(_File):
    fingerprint: str
    n_images: Count


class _Guard(_File):
    skipped: Count
    in_a_row: Count


class Checkpoint(_File):
    """A file of checkpoints/."""

    format_version: Count
    epoch: Count
    step: Count
    network: Tensors
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    clusterings: Annotated[list[Tensors], Field(min_length=1)]
    memory: Tensors
    schedule: _Schedule
    figures: Tensors
    random: _Random
    config: dict[str, Any]
    data: _Data
    elapsed: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    guard: _Guard | None = None
    processes: Annotated[Count, Field(ge=1)] | None = None
    steps_per_epoch: Annotated[Count, Field(ge=1)] | None = None


class Preprocessing(_File):
    """How images are to be seen, in the metadata of backbone.safetensors."""

    input_size: tuple[int, int, Annotated[int, Field(ge=1, le=1 << 16)]]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: Annotated[float, Field(gt=0, le=16)] | None
    interpolation: str


class Projector(_File):
    """Widths F, hidden and D of the layers, in the metadata of projector.safetensors."""

    widths: tuple[_Width, _Width, _Width]


def damaged(path: Path, why: object, advice: str = "") -> ResumeError:
    """The error of a file that cannot be used, on one line."""
    said = " ".join(str(why).split())
    return ResumeError(f"{path} is damaged: {said[:300]}{f'; {advice}' if advice else ''}")


def newer(path: Path, version: int, known: int) -> ResumeError:
    """The error of a file that a newer coke wrote."""
    return ResumeError(f"{path} has format {version}, this coke reads up to {known}: install a newer coke")


def read(
    path: Path, parse: Callable[[], Any], schema: type[BaseModel] | None = None, advice: str = ""
) -> Any:
    """The mapping that a file holds, as its parser gives it. Raises `ResumeError` where the schema does not agree."""
    try:
        found = parse()
    except (ValueError, TypeError, RecursionError, MemoryError, yaml.YAMLError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}", advice) from None
    if not isinstance(found, dict):
        raise damaged(path, f"a mapping is expected, not {str(found)[:60]!r}", advice)
    return found if schema is None else checked(path, found, schema, advice)


def checked(path: Path, found: Any, schema: type[BaseModel], advice: str = "") -> Any:
    """The same, where the schema agrees. Raises `ResumeError` with the first place where it does not."""
    try:
        schema.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        came = "" if first["type"] == "missing" else f", not {str(first['input'])[:60]!r}"
        raise damaged(path, f"{where}: {first['msg'].lower()}{came}", advice) from None
    except RecursionError:
        raise damaged(path, "nested too deeply", advice) from None
    return found
