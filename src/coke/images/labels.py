"""Labels of any usable kind as int64 0..C-1 with names, -1 where there is none."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from coke.errors import DataError

UNLABELLED = -1


def number_labels(values: Sequence[object], where: str) -> tuple[Tensor | None, list[str] | None]:
    """Number labels that are all whole numbers or all names: int64 [N] and the C class names in sorted order.

    None, an empty string and whole numbers below 0 mean "no label" (-1). Without a single label both results
    are None. Raises `DataError`, starting with ``where``, for fractions, lists and mixtures.

    >>> number_labels(["cat", "dog", None, "cat"], "pets")
    (tensor([ 0,  1, -1,  0]), ['cat', 'dog'])
    >>> number_labels([5, 900, 5], "codes")
    (tensor([0, 1, 0]), ['5', '900'])
    >>> number_labels([0.5], "scores")
    Traceback (most recent call last):
    coke.errors.DataError: scores: labels must be whole numbers or names, got a float (0.5)
    """
    known: list[int | str | None] = [_one(value, where) for value in values]
    kinds = {type(value) for value in known if value is not None}
    if len(kinds) > 1:
        number = next(value for value in known if isinstance(value, int))
        name = next(value for value in known if isinstance(value, str))
        raise DataError(f"{where}: labels must be of one kind, got numbers and names ({number!r}, {name!r})")
    if not kinds:
        return None, None
    distinct = sorted({value for value in known if value is not None})
    index = {value: place for place, value in enumerate(distinct)}
    numbers = [UNLABELLED if value is None else index[value] for value in known]
    return torch.tensor(numbers, dtype=torch.int64), [str(value) for value in distinct]


def number_text(values: Sequence[str], where: str) -> tuple[Tensor | None, list[str] | None]:
    """Number labels of a text file: read as whole numbers where all of them are, else as names.

    Raises `DataError` where all are numbers but some have fractions: those are measurements, not classes.

    >>> number_text(["10", "9", ""], "list.csv")
    (tensor([ 1,  0, -1]), ['9', '10'])
    """
    texts = [value.strip() for value in values]
    present = [text for text in texts if text]
    if all(_is_whole(text) for text in present):
        return number_labels([int(text) if text else None for text in texts], where)
    if all(_is_number(text) for text in present):
        fraction = next(text for text in present if not _is_whole(text))
        raise DataError(f"{where}: labels must be whole numbers or names, got {fraction[:40]!r}")
    mixed = next((text for text in present if _is_number(text)), None)
    if mixed is not None:
        name = next(text for text in present if not _is_number(text))
        both = f"{mixed[:40]!r}, {name[:40]!r}"
        raise DataError(f"{where}: labels must be of one kind, got numbers and names ({both})")
    return number_labels([text or None for text in texts], where)


def align(classes: list[str], labels: Tensor, names: list[str]) -> tuple[Tensor, list[str], list[str]]:
    """Express ``labels`` (int64 [N], numbers of ``names``) as numbers of ``classes``.

    Returns the labels, the classes with names that were missing appended, and the names appended.

    >>> align(["cat", "dog"], torch.tensor([0, 1, -1]), ["ant", "dog"])
    (tensor([ 2,  1, -1]), ['cat', 'dog', 'ant'], ['ant'])
    """
    used = [names[number] for number in torch.unique(labels[labels >= 0]).tolist()]
    known = set(classes)
    added = [name for name in used if name not in known]
    together = [*classes, *added]
    index = {name: number for number, name in enumerate(together)}
    table = torch.tensor([*(index.get(name, UNLABELLED) for name in names), UNLABELLED])
    return table[labels], together, added  # -1 picks the table's last entry


def _one(value: object, where: str) -> int | str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    whole = getattr(value, "__index__", None)  # int, bool and numpy's integers, not floats
    if whole is None or isinstance(value, Tensor):
        raise DataError(
            f"{where}: labels must be whole numbers or names, "
            f"got a {type(value).__name__} ({str(value)[:40]})"
        )
    number = int(whole())
    return None if number < 0 else number


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d{1,4000}", text) is not None  # more digits Python does not convert


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False
