"""Errors that a user can act on: each says what was asked, what came, and what to do.

All are `ValueError`s, so that code which guards a call with ``except ValueError`` keeps working.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def printable(sentence: str) -> str:
    """A sentence in one line that a terminal shows as it is: names of files and classes may hold anything.

    >>> printable("lists\\nno \\x1b[31m.png")
    'lists no \\\\x1b[31m.png'
    """
    in_one_line = re.sub(r"[\t\n\r]+", " ", sentence)
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in in_one_line
    )


class CokeError(ValueError):
    """Anything coke refuses: the message is meant for the user, without a traceback on the command line."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(CokeError):
    """An unknown recipe or key, or a value of the wrong type or outside its range."""


class DataError(CokeError):
    """Images, labels or files that cannot be used as asked."""


class UnreadableError(DataError):
    """More images that cannot be read than may be: ``unreadable`` has the key and the reason of every one."""

    def __init__(self, message: str, unreadable: list[tuple[str, str]]) -> None:
        super().__init__(message)
        self.unreadable = unreadable


class BoundsError(CokeError):
    """Cluster sizes or numbers of clusters that cannot hold for the data given."""


class ResumeError(CokeError):
    """A run folder that does not belong to what was asked, or whose files do not fit together."""


def did_you_mean(asked: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name.

    >>> did_you_mean("epoch", ["epochs", "batch_size"])
    " (did you mean 'epochs'?)"
    >>> did_you_mean("zzz", ["epochs"])
    ''
    """
    close = difflib.get_close_matches(asked, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
