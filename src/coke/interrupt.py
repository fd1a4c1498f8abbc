"""What Ctrl-C, a scheduler's SIGTERM and a terminal that closes mean to a program with something to finish first."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

HANGUP: int | None = getattr(signal, "SIGHUP", None)  # Windows has none


class Interrupt:
    """While entered, the first SIGINT, SIGTERM or SIGHUP is only remembered; a second one acts at once.

    A hang-up is ignored where the program was started so (nohup). Does nothing outside the main thread, where Python
    cannot receive signals.

    >>> with Interrupt() as interrupt:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interrupt.signal
    15
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._terminals = _terminals()

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, HANGUP):
                if number is None or (number == HANGUP and signal.getsignal(number) == signal.SIG_IGN):
                    continue
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if number == HANGUP:
            _forget(self._terminals)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _terminals() -> list[int]:
    """Which of output and errors go to a terminal: once it is closed nobody can tell."""
    return [stream for stream in (1, 2) if os.isatty(stream)]


def _forget(terminals: list[int]) -> None:
    """What is still printed goes nowhere: to print on a terminal that was closed is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in terminals:
        os.dup2(nowhere, stream)
    os.close(nowhere)


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP end the program as Ctrl-C does, so that half-written files are removed.

    Under torchrun it ends at once as ever, since the others are ended too and none can be waited for.
    """

    def stop(number: int, frame: Any) -> None:
        if number == HANGUP:
            _forget(terminals)
        print("coke: terminated", file=sys.stderr)
        raise SystemExit(128 + number)

    before, terminals = {}, _terminals()
    if "RANK" not in os.environ:
        for number in filter(None, (signal.SIGTERM, HANGUP)):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
