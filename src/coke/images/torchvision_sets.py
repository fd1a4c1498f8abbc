"""A torchvision data set that lies on disk already, as ``NAME:ROOT``: never downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from coke.errors import DataError, did_you_mean
from coke.images.decode import Content
from coke.images.labels import number_labels
from coke.images.table import Rows, Table, row_keys

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


def find_torchvision(name: str, root: Path) -> Table:
    """The train split of a torchvision data set, and its test or val split where it has one.

    Splits are asked for as the class takes them: ``train=True``, or ``split="train"``; a class with neither
    is learned from whole. Labels are used where every target is a whole number. Raises `DataError` for an
    unknown name, a class that needs more than a root, and files that are not there.
    """
    build, parameters = _class(name)
    if "train" in parameters:
        opened = {split: _open(build, name, root, train=split == "train") for split in ("train", "test")}
    elif "split" in parameters:
        opened = {"train": _open(build, name, root, split="train")}
        for split in ("test", "val"):
            try:
                opened[split] = _open(build, name, root, split=split)
                break
            except DataError as error:
                if not isinstance(error.__cause__, ValueError):  # with one the class says which splits it has
                    raise
    else:
        opened = {"": _open(build, name, root)}
    if set(opened) == {"train"}:
        opened = {"": opened["train"]}
    return Table(name, {split: partial(_rows, dataset) for split, dataset in opened.items()})


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


def _rows(dataset: Any, name: str) -> Rows:
    keys, source = row_keys(len(dataset)), Items(dataset)
    try:
        labels, classes = number_labels(_targets(dataset), name)
    except DataError as error:
        return Rows(name, keys, source, remarks=(f"no labels: {error}",))
    except Exception as error:  # each data set reads its files in its own way
        return Rows(name, keys, source, remarks=(f"labels cannot be read ({type(error).__name__}: {error})",))
    return Rows(name, keys, source, labels, _names(dataset, classes))


def _targets(dataset: Any) -> Sequence[Any]:
    """The target of each image: all at once where the data set holds them, else by decoding every image."""
    for targets in (getattr(dataset, key, None) for key in _TARGETS):
        if isinstance(targets, Sized) and len(targets) == len(dataset):
            return targets.tolist() if hasattr(targets, "tolist") else list(targets)  # type: ignore[call-overload]
    return [dataset[row][1] for row in range(len(dataset))]


def _names(dataset: Any, classes: list[str] | None) -> list[str] | None:
    """The data set's own names of its classes, where it has one for each number."""
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple) or classes is None:
        return classes
    if not all(name.isdecimal() and int(name) < len(names) for name in classes):
        return classes
    return [str(names[int(number)]) for number in classes]
