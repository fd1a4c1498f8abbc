"""Vectors that a program yields batch by batch, as often as it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from coke.errors import DataError
from coke.vectors.arrays import as_tensor, check_type, to_numbers, usable_tensor
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
        n_rows, head, dtype = 0, None, None
        passed = self._iterator(name)
        for number, item in enumerate(passed):
            batch = read_batch(item, f"batch {number} of {name}")
            if head is None:
                if len(batch) == 0:
                    continue
                head = batch[0].clone()
                device = batch.device if device is None else device
            self._check_width(batch, len(head), n_rows, name)
            dtype = batch.dtype if dtype is None else torch.promote_types(dtype, batch.dtype)
            n_rows += len(batch)
        if head is None or dtype is None:
            raise DataError(
                f"{name} has 0 sample(s): its batches hold no rows, while a minimum of 1 is required"
            )
        self._head, self._n_all = head, n_rows
        super().__init__(name, n_rows, len(head), dtype, device)
        if not isinstance(source, Iterable) and self._iterator(name) is passed:
            raise DataError(
                f"{name} returns the same iterator again, which is spent: let it return a new one"
            )

    def _iterator(self, name: str) -> Iterator[Any]:
        made = self._source if isinstance(self._source, Iterable) else self._source()
        if not isinstance(made, Iterable):
            raise DataError(
                f"{name}() must return an iterator over batches [b, D], got {type(made).__name__}"
            )
        return iter(made)

    @staticmethod
    def _check_width(batch: Tensor, n_features: int, row: int, name: str) -> None:
        if len(batch) and batch.shape[1] != n_features:
            raise DataError(
                f"{name} changes its shape: {batch.shape[1]} features from row {row:,} on, {n_features} before"
            )

    def _batches(self, wanted_rows: int) -> Iterator[Tensor]:
        if self.n_rows == 0:
            return
        row, stop = 0, self._start + self.n_rows
        for number, item in enumerate(self._iterator(self.name)):
            batch = read_batch(item, f"batch {number} of {self.name}")
            self._check_width(batch, self.n_features, row, self.name)
            if row == 0 and len(batch):
                self._check_head(batch[0])
            first, row = row, row + len(batch)
            if row > self._n_all:
                raise self._changed(f"at least {row:,}")
            part = batch[max(self._start - first, 0) : max(stop - first, 0)]
            if len(part):
                yield part.to(self.dtype)
            if row >= stop < self._n_all:
                return  # what follows belongs to others
        if row != self._n_all:
            raise self._changed(f"{row:,}")

    def _check_head(self, row: Tensor) -> None:
        now, before = row.double().cpu(), self._head.double().cpu()
        known = now.isfinite() & before.isfinite()
        far = (now - before)[known].norm() > _SAME_ROW * before[known].norm()
        if far or not torch.equal(now.isfinite(), before.isfinite()):
            raise DataError(
                f"{self.name} starts with another row than when it was opened: every pass must give the same "
                "rows in the same order (shuffle=False, no random augmentation)"
            )

    def _changed(self, rows: str) -> DataError:
        return DataError(
            f"{self.name} gave {rows} rows in this pass and {self._n_all:,} when it was opened: every pass must "
            "give the same rows in the same order"
        )


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
        array = to_numbers(item, name)
        check_type(array.dtype, name)
        item = as_tensor(array)
    batch = usable_tensor(item, name)
    if batch.ndim != 2 or len(batch):
        check_shape(tuple(batch.shape), name)
    return batch
