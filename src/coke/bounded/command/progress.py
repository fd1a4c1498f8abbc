"""How far a pass over the rows has come, as a bar on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from coke.vectors import Vectors

if TYPE_CHECKING:
    from rich.console import Console


class WatchedVectors(Vectors):
    """Vectors that tell, block by block, how many rows a pass has behind it.

    Args:
        vectors: the rows.
        tell: called with that number and the number of all rows.

    >>> from coke.vectors import open_vectors
    >>> watched = WatchedVectors(open_vectors([[0.0], [1.0], [2.0]]), lambda done, total: print(done, "of", total))
    >>> for _ in watched.blocks(2):
    ...     pass
    2 of 3
    3 of 3
    """

    def __init__(self, vectors: Vectors, tell: Callable[[int, int], None]) -> None:
        super().__init__(vectors.name, vectors.n_rows, vectors.n_features, vectors.dtype, vectors.device)
        self.kind, self._vectors, self._tell = vectors.kind, vectors, tell

    def blocks(self, block_rows: int) -> Iterator[tuple[int, Tensor]]:
        """See `Vectors`."""
        for first, block in self._vectors.blocks(block_rows):
            yield first, block
            self._tell(first + len(block), self.n_rows)

    def slice(self, start: int, stop: int) -> Vectors:
        """See `Vectors`."""
        return WatchedVectors(self._vectors.slice(start, stop), self._tell)

    def to(self, device: Any) -> Vectors:
        """See `Vectors`."""
        return WatchedVectors(self._vectors.to(device), self._tell)

    def take(self, rows: Tensor | np.ndarray[Any, Any]) -> Tensor:
        """See `Vectors`."""
        return self._vectors.take(rows)

    def _batches(self, wanted_rows: int) -> Iterator[Tensor]:
        return self._vectors._batches(wanted_rows)


@contextmanager
def watched(vectors: Vectors, console: Console | None) -> Iterator[Vectors]:
    """The same vectors, with a bar over each pass where the console is a terminal."""
    if console is None or not console.is_terminal:
        yield vectors
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("pass {task.fields[number]}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=vectors.n_rows, number=1)
        number, before = 1, 0

        def tell(done: int, total: int) -> None:
            nonlocal number, before
            number += done < before
            before = done
            bar.update(task, completed=done, total=total, number=number)

        yield WatchedVectors(vectors, tell)
