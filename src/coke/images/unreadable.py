"""Images that cannot be read: which, why, how many may be, and the list of them that is left behind."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coke.atomic import atomic
from coke.errors import UnreadableError
from coke.images.decode import INSTALL, needs

_NAMED = 5
_ONE_OF = 10  # rows of which one may be unreadable, whatever its share


@dataclass(frozen=True)
class Unreadable:
    """An image that was left out, and why."""

    key: str
    reason: str


def refuse_too_many(
    name: str, unreadable: list[Unreadable], n_rows: int, max_share: float, listed: list[Unreadable]
) -> None:
    """Raise `UnreadableError`, with all that are ``listed``, where more of a split's rows than allowed are unreadable.

    Of ten rows or more one may be, unless the share is 0; but never all of them.
    """
    n_unreadable = len(unreadable)
    share = n_unreadable / max(n_rows, 1)
    one_at_least = 1 if max_share > 0 and n_rows >= _ONE_OF else 0
    if not unreadable or (share <= max_share and n_unreadable < n_rows) or n_unreadable <= one_at_least:
        return
    damaged = [bad for bad in unreadable if bad.reason not in map(needs, INSTALL)]
    more = [f"and {len(damaged) - _NAMED} more"] if len(damaged) > _NAMED else []
    named = "; ".join([*(f"{bad.key}: {bad.reason}" for bad in damaged[:_NAMED]), *more])
    told = ". ".join([*([named] if named else []), *to_install(bad.reason for bad in unreadable)])
    instead = ", or allow more with max_unreadable_share" if n_unreadable < n_rows else ""
    raise UnreadableError(
        f"{name}: {n_unreadable} of {n_rows} images cannot be read "
        f"({share:.1%}, allowed {max_share:.1%}). {told}. Repair or remove them{instead}",
        [(bad.key, bad.reason) for bad in listed],
    )


def to_install(reasons: Iterable[str]) -> list[str]:
    """For each format that cannot be read here, in a sentence: how many images have it, and what to install.

    >>> to_install(["HEIC needs pillow-heif (pip install 'coke-ssl[heic]')", "truncated"])
    ["1 HEIC image cannot be read here: install pillow-heif (pip install 'coke-ssl[heic]')"]
    """
    counts = Counter(reasons)
    found = [(form, counts[needs(form)]) for form in INSTALL]
    return [
        f"{count:,} {form} image{'s' if count > 1 else ''} cannot be read here: install {INSTALL[form]}"
        for form, count in found
        if count
    ]


def list_unreadable(path: Path, unreadable: Iterable[tuple[str, str]]) -> None:
    """Write keys and reasons as CSV; where there are none, remove what an earlier start may have left."""
    rows = list(unreadable)
    if not rows:
        path.unlink(missing_ok=True)
        return
    with atomic(path) as stream:
        csv.writer(stream).writerows([("key", "reason"), *rows])


@contextmanager
def listed_in(path: Path) -> Iterator[None]:
    """Should too many images be unreadable, list all of them in a file, which the error then names."""
    try:
        yield
    except UnreadableError as error:
        list_unreadable(path, error.unreadable)
        raise UnreadableError(f"{error}. All of them: {path}", error.unreadable) from None
