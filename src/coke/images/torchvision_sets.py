"""A torchvision data set that lies on disk already, as ``NAME:ROOT``: never downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from coke.errors import DataError, did_you_mean
from coke.images.decode import Content
from coke.images.labels import number_labels
from coke.images.sources import Found, Rows

_TARGETS = ("targets", "labels", "_labels")


@dataclass(frozen=True, eq=False)
class Items:
    """The images of a torchvision data set, of which each item is (image, target)."""

    dataset: Any

    def load(self, row: int) -> Content:
        """A PIL image. Raises `DataError` with the reason where the data set cannot give it."""
        try:
            return self.dataset[row][0]
        except (OSError, MemoryError):
            raise
        except Exception as error:  # each data set reads its files in its own way
            raise DataError(f"{type(error).__name__}: {error}") from error


def find_torchvision(name: str, root: Path) -> Found:
    """The train split of a torchvision data set, and its test or val split where it has one.

    Splits are asked for as the class takes them: ``train=True``, or ``split="train"``; a class with neither
    is learned from whole. Labels are used where every target is a whole number. Raises `DataError` for an
    unknown name, a class that needs more than a root, and files that are not there.
    """
    build, parameters = _class(name)
    if "train" in parameters:
        train, query, asked = (
            _open(build, name, root, train=True),
            _open(build, name, root, train=False),
            "test",
        )
    elif "split" in parameters:
        train = _open(build, name, root, split="train")
        query, asked = None, "test"
        for asked in ("test", "val"):
            query = _open_other(build, name, root, asked)
            if query is not None:
                break
    else:
        train, query, asked = _open(build, name, root), None, "test"
    rows, remarks = _rows(f"{name}, train" if query is not None else name, train)
    if query is None:
        return Found(rows, None, remarks=remarks)
    asked_rows, more = _rows(f"{name}, {asked}", query)
    return Found(rows, asked_rows, asked, remarks + tuple(remark for remark in more if remark not in remarks))


def _class(name: str) -> tuple[Any, list[str]]:
    from torchvision import datasets

    known = {
        key: value
        for key, value in vars(datasets).items()
        if inspect.isclass(value) and "root" in inspect.signature(value).parameters
    }
    build = known.get(name) or {key.lower(): value for key, value in known.items()}.get(name.lower())
    if build is None:
        raise DataError(
            f"torchvision has no data set {name!r}{did_you_mean(name, known)}; write NAME:ROOT, "
            "for example CIFAR10:/data, or give an existing folder, list or parquet file"
        )
    signature = inspect.signature(build).parameters
    needed = [
        key
        for key, value in signature.items()
        if value.default is value.empty and value.kind in (value.POSITIONAL_ONLY, value.POSITIONAL_OR_KEYWORD)
    ]
    if needed != ["root"]:
        raise DataError(
            f"torchvision's {name} needs {', '.join(needed)}, not only a root; "
            "store its images in a folder or parquet instead"
        )
    return build, list(signature)


def _open(build: Any, name: str, root: Path, **choice: Any) -> Any:
    if "download" in inspect.signature(build).parameters:
        choice["download"] = False
    try:
        return build(root=str(root), **choice)
    except (RuntimeError, OSError, ValueError) as error:
        asked = ", ".join(f"{key}={value!r}" for key, value in choice.items() if key != "download")
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"torchvision's {name} cannot be opened in {root} ({asked or 'whole'}): {first} "
            "coke downloads nothing: fetch it once with "
            f"torchvision.datasets.{build.__name__}(..., download=True)"
        ) from error


def _open_other(build: Any, name: str, root: Path, split: str) -> Any | None:
    """A split that the class may not have: None where it says so (a ValueError that names the choices)."""
    try:
        return _open(build, name, root, split=split)
    except DataError as error:
        if isinstance(error.__cause__, ValueError):
            return None
        raise


def _rows(name: str, dataset: Any) -> tuple[Rows, tuple[str, ...]]:
    count = len(dataset)
    keys = [f"row {row}" for row in range(count)]
    targets = next(
        (found for found in (getattr(dataset, key, None) for key in _TARGETS) if _fits(found, count)), None
    )
    if targets is None:
        try:
            targets = [dataset[row][1] for row in range(count)]  # decodes every image once more
        except Exception as error:
            return Rows(name, keys, Items(dataset)), (
                f"labels cannot be read ({type(error).__name__}: {error})",
            )
    values = targets.tolist() if hasattr(targets, "tolist") else list(targets)
    try:
        labels, classes = number_labels(values, name)
    except DataError as error:
        return Rows(name, keys, Items(dataset)), (f"no labels: {error}",)
    return Rows(name, keys, Items(dataset), labels, _names(dataset, labels, classes)), ()


def _fits(targets: object, count: int) -> bool:
    return isinstance(targets, Sized) and len(targets) == count


def _names(dataset: Any, labels: Tensor | None, classes: list[str] | None) -> list[str] | None:
    """The data set's own names of its classes, where it has one for each number."""
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple) or labels is None or classes is None:
        return classes
    if not all(name.isdecimal() and int(name) < len(names) for name in classes):
        return classes
    return [str(names[int(number)]) for number in classes]
