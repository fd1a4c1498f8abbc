"""Several processes on one clustering: how they meet, which rows are whose, and that all refuse what one cannot do."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from coke import distributed
from coke.errors import CokeError, ConfigError, DataError
from coke.vectors import Vectors, open_vectors

TIMEOUT = timedelta(
    minutes=30
)  # that a process waits for another one: a pass over its rows, with much to spare


@contextmanager
def joined(device: str) -> Iterator[str]:
    """The process group that torchrun describes, or none; gives this process's device, of "cuda" one each."""
    if dist.is_initialized() or os.environ.get("WORLD_SIZE", "1") == "1":
        yield device
        return
    if ":" in device:
        raise ConfigError(f"device={device!r} would be that of every process: pass 'cuda', one for each")
    gpu = device == "cuda"
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if gpu else device
    try:
        if gpu:
            torch.cuda.set_device(own)
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=TIMEOUT)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"the processes cannot meet on {own}: {str(error).splitlines()[0]}") from error
    try:
        with distributed.naming_the_lost(lambda: ""):
            yield own
    finally:
        dist.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """What is refused inside on one process is refused on all: see `coke.distributed.fail_together`."""
    error: Exception | None = None
    try:
        yield
    except (CokeError, OSError, TypeError) as met:
        error = met if isinstance(met, CokeError) else DataError(str(met))
    distributed.fail_together(error)


def open_together(data: Any, column: str | None, device: str) -> Vectors:
    """`open_vectors` on every process; `DataError` where they do not all see the same rows."""
    with together():
        vectors = open_vectors(data, column=column, device=device)
        own = f"{vectors.n_rows:,} rows of {vectors.n_features} {str(vectors.dtype)[6:]} features"
        if distributed.active():  # three rows are enough to notice another version of a file
            rows = vectors.take(torch.tensor([0, vectors.n_rows // 2, vectors.n_rows - 1])).cpu().contiguous()
            own += f", checksum {hashlib.sha256(rows.view(torch.uint8).numpy().tobytes()).hexdigest()[:8]}"
    with together():
        first = [own]
        if distributed.active():
            dist.broadcast_object_list(first)
        if own != first[0]:
            same = "every process must find the same data there"
            raise DataError(f"{vectors.name} holds {own}, on process 0 {first[0]}: {same}")
    return vectors


@contextmanager
def own_rows(vectors: Vectors, console: Console) -> Iterator[Vectors]:
    """This process's part of the rows, with a bar over each pass on a terminal; warnings inside become notes."""
    part, hidden = distributed.shard(vectors.n_rows), console.quiet or not console.is_terminal
    with warnings.catch_warnings(), Progress(console=console, transient=True, disable=hidden) as bar:
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: console.print(f"note: {message}")
        yield Watched(vectors.slice(part.start, part.stop), bar)


class Watched(Vectors):
    """Vectors that show on a bar how far a pass over them has come."""

    def __init__(self, vectors: Vectors, bar: Progress) -> None:
        shape = vectors.n_rows, vectors.n_features
        super().__init__(vectors.name, shape, vectors.dtype, vectors.device)
        self.kind, self._vectors, self._bar = vectors.kind, vectors, bar
        self._task, self._passes = bar.add_task(""), count(1)

    def _read(self, start: int, stop: int, wanted_rows: int) -> Iterator[Tensor]:
        self._bar.reset(self._task, total=stop - start, description=f"pass {next(self._passes)}")
        for _, block in self._vectors.slice(start, stop).blocks(wanted_rows):
            yield block
            self._bar.advance(self._task, len(block))

    def _take(self, ids: Tensor) -> Tensor:
        return self._vectors.take(ids)


def collected(records: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """All processes' records in the order of the rows, on rank 0; on the others only their own."""
    if not distributed.active():
        return records
    parts: list[Any] | None = [None] * distributed.world_size() if distributed.rank() == 0 else None
    dist.gather_object(records, parts)
    return records if parts is None else np.concatenate(parts)
