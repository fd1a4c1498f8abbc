"""Vectors that a program yields batch by batch, as often as it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from coke.errors import DataError
from coke.vectors.arrays import as_tensor, to_numbers, torch_type, usable_tensor
from coke.vectors.source import Vectors, check_shape

_SAME_ROW = 0.01  # relative: embeddings computed anew differ by rounding, another row by far more


class StreamVectors(Vectors):
    """Rows of an iterable that can be gone through repeatedly, or of a function that returns an iterator.

    The rows are counted in one pass at opening. Later passes must give the same rows in the same order; one
    that has another number of rows, other features or another first row is an error.

    >>> stream = StreamVectors(lambda: (torch.full((2, 1), float(i)) for i in range(3)))
    >>> [(first, block.flatten().tolist()) for first, block in stream.blocks(4)]
    [(0, [0.0, 0.0, 1.0, 1.0]), (4, [2.0, 2.0])]
    """

    kind = "stream"

    def __init__(
        self, source: Iterable[Any] | Callable[[], Iterator[Any]], device: Any = None, name: str = "X"
    ) -> None:
        self._source = source
        passed = self._iterator(name)
        batches = _with_rows(passed, name)
        first = next(batches, None)
        if first is None:
            raise DataError(
                f"{name} has 0 sample(s): its batches hold no rows, while a minimum of 1 is required"
            )
        self._head, n_rows, dtype = first[0].clone(), len(first), first.dtype
        for batch in batches:
            n_rows, dtype = n_rows + len(batch), torch.promote_types(dtype, batch.dtype)
        if not isinstance(source, Iterable) and self._iterator(name) is passed:
            raise DataError(
                f"{name} returns the same iterator again, which is spent: let it return a new one"
            )
        super().__init__(name, (n_rows, len(self._head)), dtype, first.device if device is None else device)

    def _iterator(self, name: str) -> Iterator[Any]:
        made = self._source if isinstance(self._source, Iterable) else self._source()
        if not isinstance(made, Iterable):
            raise DataError(
                f"{name}() must return an iterator over batches [b, D], got {type(made).__name__}"
            )
        return iter(made)

    def _read(self, start: int, stop: int, wanted_rows: int) -> Iterator[Tensor]:
        row, n_all = 0, int(self._ends[-1])
        for batch in _with_rows(self._iterator(self.name), self.name, self.n_features):
            if row == 0:
                self._check_head(batch[0])
            first, row = row, row + len(batch)
            if row > n_all:
                break
            part = batch[max(start - first, 0) : max(stop - first, 0)]
            if len(part):
                yield part.to(self.dtype)
            if row >= stop < n_all:
                return  # what follows belongs to others
        if row != n_all:
            raise DataError(
                f"{self.name} gave {'at least ' if row > n_all else ''}{row:,} rows in this pass and {n_all:,} when "
                "it was opened: every pass must give the same rows in the same order"
            )

    def _check_head(self, row: Tensor) -> None:
        now, before = row.double().cpu(), self._head.double().cpu()
        known = now.isfinite() & before.isfinite()
        far = (now - before)[known].norm() > _SAME_ROW * before[known].norm()
        if far or not torch.equal(now.isfinite(), before.isfinite()):
            raise DataError(
                f"{self.name} starts with another row than when it was opened: every pass must give the same "
                "rows in the same order (shuffle=False, no random augmentation)"
            )


def _with_rows(items: Iterable[Any], name: str, n_features: int | None = None) -> Iterator[Tensor]:
    """The items that hold rows, as tensors [b, D]; `DataError` where D is not that of the first, or ``n_features``."""
    row = 0
    for number, item in enumerate(items):
        batch = read_batch(item, f"batch {number} of {name}")
        if len(batch) == 0:
            continue
        n_features = n_features or batch.shape[1]
        if batch.shape[1] != n_features:
            raise DataError(
                f"{name} changes its shape: {batch.shape[1]} features from row {row:,} on, {n_features} before"
            )
        row += len(batch)
        yield batch


def read_batch(item: Any, name: str) -> Tensor:
    """One batch as a tensor [b, D]: an array, a tensor, a list of rows, or one of these alone in a tuple.

    >>> read_batch((torch.zeros(2, 3),), "batch 0").shape
    torch.Size([2, 3])
    """
    if isinstance(item, list | tuple) and len(item) and getattr(item[0], "ndim", 1) == 2:
        if len(item) > 1:
            raise DataError(
                f"{name} is a {type(item).__name__} of {len(item)}: yield the vectors [b, D] alone"
            )
        item = item[0]
    if isinstance(item, dict | str | bytes):
        raise DataError(f"{name} must be an array or a tensor [b, D], got {type(item).__name__}")
    if not isinstance(item, Tensor):
        item = to_numbers(item, name)
        torch_type(item.dtype, name)
    batch = usable_tensor(as_tensor(item), name)
    check_shape(batch.shape, name, may_be_empty=True)
    return batch
