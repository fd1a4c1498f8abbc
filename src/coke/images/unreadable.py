"""Images that cannot be read: which, why, how many may be, and the list of them that is left behind."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coke.atomic import atomic
from coke.errors import UnreadableError

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
    named = "; ".join(f"{bad.key}: {bad.reason}" for bad in unreadable[:_NAMED])
    more = f"; and {n_unreadable - _NAMED} more" if n_unreadable > _NAMED else ""
    instead = ", or allow more with max_unreadable_share" if n_unreadable < n_rows else ""
    raise UnreadableError(
        f"{name}: {n_unreadable} of {n_rows} images cannot be read "
        f"({share:.1%}, allowed {max_share:.1%}). {named}{more}. Repair or remove them{instead}",
        [(bad.key, bad.reason) for bad in listed],
    )


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
