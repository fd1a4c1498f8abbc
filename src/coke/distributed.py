"""Collectives over rows that are identities without a process group: one code path for one and many.

Every process sees the same gathered rows in the same order (rank 0's first), so state that each process
updates from them stays equal everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from coke.errors import CokeError, DataError

_alone = False
_LOST = re.compile(r"gloo|nccl|Connection (closed|reset|refused)|Broken pipe|[Tt]imed? ?out|TCPStore")


def active() -> bool:
    """Whether a process group is initialised, and this process is not working `alone`."""
    return not _alone and dist.is_available() and dist.is_initialized()


@contextmanager
def alone() -> Iterator[None]:
    """What every process does for itself, on the same data: collectives inside are identities."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """How many processes there are, 1 without a process group."""
    return dist.get_world_size() if active() else 1


def shard(n_rows: int, index: int | None = None, count: int | None = None) -> slice:
    """The rows of a batch that a process owns: contiguous, sizes differing by at most one.

    >>> [shard(10, index, 4) for index in range(4)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None), slice(8, 10, None)]
    """
    index = rank() if index is None else index
    count = world_size() if count is None else count
    base, extra = divmod(n_rows, count)
    start = index * base + min(index, extra)
    return slice(start, start + base + (index < extra))


def gather_rows(rows: Tensor, n_rows: int) -> Tensor:
    """All processes' `shard`s of a batch of ``n_rows`` rows, put together: [n_rows, ...].

    No gradient flows. Shards are padded to one length for the exchange and cut again, so a batch need not
    divide by the number of processes.
    """
    if not active():
        return rows.detach()
    longest = -(-n_rows // world_size())
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows.detach()
    gathered = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(gathered, padded)
    lengths = [shard(n_rows, index) for index in range(world_size())]
    return torch.cat([part[: s.stop - s.start] for part, s in zip(gathered, lengths, strict=True)])


def gather_to_learn(rows: Tensor, n_rows: int) -> Tensor:
    """`gather_rows` that gradients flow through: those that any process has for a row reach the one it is of."""
    return _Gather.apply(rows, n_rows) if active() else rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, n_rows: int) -> Tensor:
        return gather_rows(rows, n_rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return sum_over_processes(gradients[0])[shard(len(gradients[0]))], None


def sum_over_processes(values: Tensor) -> Tensor:
    """The element-wise sum of ``values`` over all processes."""
    if active():
        values = values.clone()
        dist.all_reduce(values)
    return values


def any_process(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether any process raised the flag: how all agree to stop at the same step."""
    if not active():
        return flag
    return bool(sum_over_processes(torch.tensor(float(flag), device=device)).item())


def broadcast_state(module: nn.Module) -> None:
    """Give every process rank 0's buffers, so that rounding on different devices cannot drift apart."""
    if active():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


@contextmanager
def naming_the_lost(where: Callable[[], str]) -> Iterator[None]:
    """Where another process has died or hangs, `DataError` names this one and where it stood."""
    try:
        yield
    except RuntimeError as error:
        if not active() or not _LOST.search(str(error)):
            raise
        reason = str(error).splitlines()[0]
        raise DataError(
            f"process {rank()} of {world_size()} lost another one{where()}, whose own words say why: {reason}"
        ) from error


def barrier() -> None:
    """Wait until every process has come here."""
    if active():
        dist.barrier()


def smallest(value: float, device: torch.device | str = "cpu") -> float:
    """The smallest of all processes' values."""
    if not active():
        return value
    shared = torch.tensor(float(value), device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)
    return float(shared)


def largest(value: float, device: torch.device | str = "cpu") -> float:
    """The largest of all processes' values."""
    return -smallest(-value, device)


def offset(n_rows: int) -> int:
    """How many rows the processes before this one hold, if this one holds ``n_rows``."""
    counts = torch.zeros(world_size(), dtype=torch.int64)
    counts[rank()] = n_rows
    return int(sum_over_processes(counts)[: rank()].sum())


def gather_uneven(columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """All processes' rows of several tensors, rank 0's first; every process may bring another number of rows."""
    if not active():
        return columns
    counts = torch.zeros(world_size(), dtype=torch.int64, device=columns[0].device)
    counts[rank()] = len(columns[0])
    dist.all_reduce(counts)
    lengths = counts.tolist()
    gathered = []
    for values in columns:
        padded = values.new_zeros((max(lengths), *values.shape[1:]))
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        gathered.append(torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)]))
    return tuple(gathered)


def fail_together(error: Exception | None) -> None:
    """Raise everywhere when any process met an error, so that no other waits for one that is gone.

    Call it on every process after work of its own that can fail (reading a file, say) and before the next
    collective. Where all processes met the same error, or there is only one, it is raised as it is.

    Args:
        error: what this process met, or None.

    Raises:
        DataError: naming each process that failed, by its rank, and what it said.

    >>> fail_together(None)
    >>> fail_together(DataError("rows.npy: there is no such file or folder"))
    Traceback (most recent call last):
    coke.errors.DataError: rows.npy: there is no such file or folder
    """
    if not active():
        if error is not None:
            raise error
        return
    said: list[str | None] = [None] * world_size()
    dist.all_gather_object(said, None if error is None else _in_words(error))
    if error is not None and set(said) == {_in_words(error)}:
        raise error
    failed = [
        f"process {index} of {len(said)}: {text}" for index, text in enumerate(said) if text is not None
    ]
    if failed:
        raise DataError("; ".join(failed)) from error


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, CokeError) else f"{type(error).__name__}: {error}"
