"""What people see while they wait: lines, and on a terminal a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from coke.errors import printable


def say(console: Console | None, text: str) -> None:
    """Print a text in however long lines, without what would steer a terminal; None is silent."""
    if console is not None:
        text = "\n".join(printable(line) for line in text.split("\n"))
        console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress_bar(console: Console | None, name: str) -> Iterator[Callable[[int, int], None]]:
    """Gives what is called with how many are done, and how many there are in all."""
    with changeable_bar(console, name, total=None) as update:
        yield lambda done, total: update(completed=done, total=total)


@contextmanager
def changeable_bar(console: Console | None, name: str, **task: Any) -> Iterator[Callable[..., None]]:
    """Gives what changes a bar, as rich's ``Progress.update`` does; ``said`` stands at its end."""
    if console is None or not console.is_terminal:
        yield lambda **changes: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[said]}"))
    with Progress(TextColumn(name), *columns, console=console, transient=True) as bar:
        number = bar.add_task("", said="", **task)
        yield lambda **changes: bar.update(number, **changes)
