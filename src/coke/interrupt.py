"""What Ctrl-C and SIGTERM, as schedulers send it, mean to a program that has something to finish first."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """While entered, the first SIGINT or SIGTERM is only remembered; a second one acts at once.

    Does nothing outside the main thread, where Python cannot receive signals.

    >>> with Interrupt() as interrupt:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interrupt.signal
    15
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Inside, SIGTERM ends the program as Ctrl-C does, so that half-written files are removed.

    Under torchrun it ends at once as ever, since the others are ended too and none can be waited for.
    """

    def stop(number: int, frame: Any) -> None:
        print("coke: terminated", file=sys.stderr)
        raise SystemExit(128 + number)

    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before if "RANK" in os.environ else stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
