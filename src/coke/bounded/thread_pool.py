"""Blocks worked on by as many threads as torch has, each of them alone.

A pass is one large product a block and some thirty small operations behind it. Two threads that share every operation
wait for each other at each of them; two threads with a block of their own do not. Torch releases the interpreter
while it works, so plain threads suffice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Block = TypeVar("Block")
_guard = threading.Lock()
_left: list[int] = []  # how many threads torch had, told by each of those who have taken them from it


@contextmanager
def torch_alone() -> Iterator[None]:
    """Have torch work on one thread, and leave its others to passes.

    After an operation that they share, they wait for the next one at full speed, in the way of what comes between.
    torch counts threads for a thread and for those that start later: so each of several callers puts back its own.
    """
    with _guard:
        number = n_threads()
        _left.append(number)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        with _guard:
            _left.remove(number)
        torch.set_num_threads(number)


def n_threads() -> int:
    """How many threads a pass may have."""
    return _left[0] if _left else torch.get_num_threads()


def work_through(
    blocks: Iterator[Block], begin: Callable[[], Callable[[Block], None]], n_threads: int
) -> None:
    """Have every block worked on once, in any order.

    Args:
        blocks: read by one thread at a time.
        begin: makes the work of one thread, with buffers of its own.
        n_threads: with 1 nothing is started and blocks are taken in order.

    >>> found = []
    >>> work_through(iter(range(5)), lambda: found.append, n_threads=2)
    >>> sorted(found)
    [0, 1, 2, 3, 4]
    """
    if n_threads < 2:
        work = begin()
        for block in blocks:
            work(block)
        return
    turn, end = threading.Lock(), object()
    shared = torch.get_num_threads()

    def run() -> None:
        torch.set_num_threads(1)
        work = begin()
        while True:
            with turn:
                block = next(blocks, end)
            if block is end:
                return
            work(block)  # type: ignore[arg-type]

    try:
        with ThreadPoolExecutor(n_threads, thread_name_prefix="coke") as pool:
            for done in [pool.submit(run) for _ in range(n_threads)]:
                done.result()
    finally:
        torch.set_num_threads(shared)  # the product's library counts threads for all of them together
