"""The one face that every kind of input shows: rows in order, in blocks of any size, never all at once.

Legend: N rows, D features, b rows of a block.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke.errors import ConfigError, DataError

PASS_ROWS = 16_384  # rows read at a time where rows are searched by a pass


class Vectors(ABC):
    """N vectors of D features, wherever they lie. Open them with `coke.vectors.open_vectors`.

    Attributes:
        n_rows: N.
        n_features: D.
        dtype: torch type of the values as they are stored, which is also that of every block.
        device: where blocks arrive.
        kind: ``"numpy"``, ``"tensor"``, ``"file"`` or ``"stream"``.
        name: what errors call them: a path, or ``X``.
        files: where they lie in files: these, in the order of the rows.
    """

    kind = "numpy"
    files: Sequence[Path] = ()
    _start = 0  # of a slice: where it begins among all rows of the source

    def __init__(self, name: str, shape: tuple[int, int], dtype: torch.dtype, device: Any) -> None:
        self.name, self.dtype, self.device = name, dtype, usable_device(device)
        self.n_rows, self.n_features = shape
        self._ends = torch.tensor([self.n_rows])  # of the pieces of the source that can be read alone

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        return f"<{self.n_rows:,} x {self.n_features} {self.dtype} vectors of {self.name} ({self.kind})>"

    def blocks(self, block_rows: int) -> Iterator[tuple[int, Tensor]]:
        """All rows in order, as (index of the first row, rows [b, D]).

        Every block but the last has ``block_rows`` rows, however the source itself is cut. A block may be a
        view of the source: do not write to it.
        """
        if block_rows < 1:
            raise ConfigError(f"block_rows must be at least 1, got {block_rows}")
        first, stop = 0, self._start + self.n_rows
        for block in recut(self._read(self._start, stop, block_rows) if self.n_rows else (), block_rows):
            yield first, block.to(self.device)
            first += len(block)

    def take(self, rows: Tensor | np.ndarray[Any, Any]) -> Tensor:
        """The rows of these indices, [n, D], on `device`: by index where that is possible, else by a pass.

        Args:
            rows: [n] in ascending order; an index may stand there twice.

        Raises:
            DataError: an index outside 0 ... N-1, or not in order.
        """
        ids = torch.as_tensor(rows).cpu().long()
        if len(ids) == 0:
            return torch.empty(0, self.n_features, dtype=self.dtype, device=self.device)
        if int(ids.min()) < 0 or int(ids.max()) >= self.n_rows:
            raise DataError(
                f"row {int(ids.min())} ... {int(ids.max())} of {self.n_rows:,} rows of {self.name}"
            )
        if bool((ids.diff() < 0).any()):
            raise DataError(f"rows to take from {self.name} must be in ascending order: sort them first")
        return self._take(ids + self._start).to(self.device)

    def slice(self, start: int, stop: int) -> Vectors:
        """Rows start ... stop-1 as vectors of their own, numbered from 0; nothing is read or copied."""
        if not 0 <= start <= stop <= self.n_rows:
            raise DataError(f"no rows {start:,} ... {stop:,} among the {self.n_rows:,} of {self.name}")
        part = copy.copy(self)
        part._start, part.n_rows = self._start + start, stop - start
        return part

    def to(self, device: Any) -> Vectors:
        """The same vectors, with blocks arriving on another device."""
        moved = copy.copy(self)
        moved.device = usable_device(device)
        return moved

    @abstractmethod
    def _read(self, start: int, stop: int, wanted_rows: int) -> Iterator[Tensor]:
        """Rows start ... stop-1 of the whole source, at least one, in `dtype`, cut as suits the source."""

    def _take(self, ids: Tensor) -> Tensor:
        """Rows of the whole source, out of a pass over those of its pieces that hold any of them."""
        found = []
        for _, own in by_piece(ids, self._ends):
            first = int(own[0])
            for batch in self._read(first, int(own[-1]) + 1, PASS_ROWS):
                low, high = torch.searchsorted(own, torch.tensor([first, first + len(batch)])).tolist()
                found.append(batch[(own[low:high] - first).to(batch.device)])
                first += len(batch)
        return torch.cat(found)


def by_piece(ids: Tensor, ends: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Indices in ascending order, as (number of a piece, those in it), where pieces end before the rows ``ends``.

    >>> [(piece, own.tolist()) for piece, own in by_piece(torch.tensor([0, 5, 6]), torch.tensor([3, 5, 9]))]
    [(0, [0]), (2, [5, 6])]
    """
    pieces, counts = torch.searchsorted(ends, ids, right=True).unique_consecutive(return_counts=True)
    return zip(pieces.tolist(), ids.split(counts.tolist()), strict=True)


def recut(batches: Iterable[Tensor], block_rows: int) -> Iterator[Tensor]:
    """Batches of any sizes as blocks of ``block_rows`` (the last may be shorter): views where one batch suffices.

    >>> [len(block) for block in recut([torch.zeros(5, 1), torch.zeros(0, 1), torch.zeros(4, 1)], 4)]
    [4, 4, 1]
    """
    held: list[Tensor] = []
    missing = block_rows
    for batch in batches:
        done = 0
        while len(batch) - done >= missing:
            held.append(batch[done : done + missing])
            done += missing
            yield held[0] if len(held) == 1 else torch.cat(held)
            held, missing = [], block_rows
        if done < len(batch):
            held.append(batch[done:])
            missing -= len(batch) - done
    if held:
        yield held[0] if len(held) == 1 else torch.cat(held)


def check_shape(shape: tuple[int, ...], name: str, may_be_empty: bool = False) -> tuple[int, int]:
    """N and D; raise `DataError` for what is not N >= 1 rows of D >= 1 features, in the words scikit-learn uses.

    >>> check_shape((0, 3), "X", may_be_empty=True)
    (0, 3)
    >>> check_shape((0, 3), "X")
    Traceback (most recent call last):
    coke.errors.DataError: X has 0 sample(s) (shape=(0, 3)) while a minimum of 1 is required.
    """
    if len(shape) != 2:
        raise DataError(
            f"{name} must be rows of features, [N, D], got shape {tuple(shape)}. Reshape your data: "
            "X.reshape(-1, 1) for a single feature, X.reshape(1, -1) for a single row, X.reshape(len(X), -1) for images"
        )
    n_rows, n_features = shape
    if not (n_rows and n_features) and not (may_be_empty and n_rows == 0):
        missing = "feature(s)" if n_rows else "sample(s)"
        raise DataError(f"{name} has 0 {missing} (shape={tuple(shape)}) while a minimum of 1 is required.")
    return n_rows, n_features


def usable_device(device: Any) -> torch.device:
    """The device asked for; `ConfigError` where torch cannot use it here."""
    try:
        wanted = torch.device("cpu" if device is None else device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={str(device)!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
    return wanted
