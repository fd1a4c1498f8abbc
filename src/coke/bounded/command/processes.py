"""Several processes on one clustering: how they meet, that they read the same rows, and who writes what they found."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from coke import distributed
from coke.bounded.command.files import PLACE
from coke.errors import CokeError, ConfigError, DataError
from coke.vectors import Vectors, open_vectors

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another one: a pass over its rows, with much to spare."""

_IN_MEMORY = 2**26  # bytes of records that wait their turn before they go to a temporary file
_LOST = re.compile(r"gloo|nccl|Connection (closed|reset|refused)|Broken pipe|[Tt]imed? ?out|TCPStore")


@contextmanager
def joined(device: str | None) -> Iterator[torch.device]:
    """The process group that torchrun describes in the environment, or none; gives this process's device.

    Tensors on the CPU go through gloo, those on a GPU through NCCL, to each process its own.

    Args:
        device: as asked for; of ``"cuda"`` each process of a machine takes its own.

    Raises:
        ConfigError: a device that is not here, or processes that cannot meet.
        DataError: another process was lost while this one waited for it.
    """
    own = _own_device(device)
    if dist.is_initialized() or not _under_torchrun():
        yield own
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo", timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"the processes cannot meet: {str(error).splitlines()[0]}") from error
    try:
        yield own
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        name = f"process {distributed.rank()} of {distributed.world_size()}"
        reason = str(error).splitlines()[0]
        raise DataError(f"{name} lost another one, whose own words say why: {reason}") from error
    finally:
        dist.destroy_process_group()


def _under_torchrun() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or {"RANK", "MASTER_ADDR"} <= set(os.environ)


def _own_device(asked: str | None) -> torch.device:
    try:
        device = torch.device(asked or "cpu")
    except RuntimeError as error:
        raise ConfigError(f"device={asked!r} is no device, as 'cpu', 'cuda' or 'cuda:1' are") from error
    if device.type != "cuda" or not torch.cuda.is_available():  # the reader refuses what is not here
        return device
    n_gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if here > 1 and device.index is not None:
        raise ConfigError(
            f"device={asked!r} would be the one of all {here} processes: pass 'cuda', one for each"
        )
    if here > n_gpus:
        raise ConfigError(f"{here} processes on a machine with {n_gpus} GPU: start {n_gpus}, or pass 'cpu'")
    if device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device.index < n_gpus:
        torch.cuda.set_device(device)
    return device


@contextmanager
def together() -> Iterator[None]:
    """What is refused inside on one process is refused on all: see `coke.distributed.fail_together`."""
    error: Exception | None = None
    try:
        yield
    except CokeError as met:
        error = met
    except OSError as met:
        error = DataError(str(met))
    distributed.fail_together(error)


def open_together(data: Any, *, column: str | None = None, device: Any = None) -> Vectors:
    """`open_vectors` on every process, which must all see the same rows.

    Raises:
        DataError: what any process met, on all of them; or processes that see different data.
    """
    with together():
        try:
            vectors = open_vectors(data, column=column, device=device)
        except TypeError as error:
            raise DataError(str(error)) from error
        shape = f"{vectors.n_rows:,} rows of {vectors.n_features} {str(vectors.dtype)[6:]} features"
        seen = (shape, _digest(vectors) if distributed.active() else "")
    if distributed.active():
        everywhere = [seen] * distributed.world_size()
        dist.all_gather_object(everywhere, seen)
        _check_same(everywhere, vectors.name)
    return vectors


def _digest(vectors: Vectors) -> str:
    """Of the first, the middle and the last row: enough to notice another version of a file."""
    rows = vectors.take(torch.tensor([0, vectors.n_rows // 2, vectors.n_rows - 1]))
    return hashlib.sha256(rows.cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _check_same(everywhere: list[tuple[str, str]], name: str) -> None:
    first = everywhere[0]
    for index, seen in enumerate(everywhere):
        if seen[0] != first[0]:
            raise DataError(
                f"process {index} of {len(everywhere)} reads {seen[0]} from {name}, process 0 {first[0]}: "
                "every process must find the same data there"
            )
        if seen != first:
            raise DataError(
                f"process {index} of {len(everywhere)} reads other values from {name} than process 0: "
                "every process must find the same data there"
            )


def in_order(records: Iterator[np.ndarray[Any, Any]], n_rows: int) -> Iterator[np.ndarray[Any, Any]]:
    """All processes' places, a block at a time and rank 0's first, on rank 0; nothing on the others.

    Each process finds its own at once, beside the others, and holds them (on disk where they are many) until
    rank 0 has come to them. Go through it to the end on every process.

    Args:
        records: `PLACE` [b] of this process's rows, which are its `coke.distributed.shard`.
        n_rows: of all processes.
    """
    if not distributed.active():
        yield from records
        return
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
        with together():
            for block in records:
                spool.write(block.tobytes())
        spool.seek(0)
        for index in range(distributed.world_size()):
            for n_piece in _pieces(n_rows, index):
                if index == distributed.rank():
                    piece = torch.frombuffer(
                        bytearray(spool.read(n_piece * PLACE.itemsize)), dtype=torch.uint8
                    )
                elif distributed.rank() == 0:
                    piece = torch.empty(n_piece * PLACE.itemsize, dtype=torch.uint8)
                    dist.recv(piece, src=index)
                else:
                    continue
                if distributed.rank() == 0:
                    yield piece.numpy().view(PLACE)
                else:
                    dist.send(piece, dst=0)


def _pieces(n_rows: int, index: int, most: int = 2**18) -> list[int]:
    """Rows of each message that a process sends."""
    shard = distributed.shard(n_rows, index)
    n_own = shard.stop - shard.start
    return [min(most, n_own - done) for done in range(0, n_own, most)]
