"""Anonymous memory of a process: what it allocated itself, without the pages of files that it has mapped.

A thread reads ``RssAnon`` of /proc/self/status every few milliseconds; what is allocated and freed between two
readings stays unseen, which for blocks of a few MiB does not matter.
"""

from __future__ import annotations

import threading
from pathlib import Path

INTERVAL = 0.005  # seconds


def anonymous(status: str | None = None) -> int:
    """RssAnon in bytes, of this process or of the text of a status file (Linux).

    >>> anonymous("VmRSS:\\t  30 kB\\nRssAnon:\\t  20 kB\\n")
    20480
    """
    text = (
        Path("/proc/self/status").read_text(encoding="ascii", errors="replace") if status is None else status
    )
    for line in text.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("RssAnon is not in /proc/self/status: memory is measured on Linux only")


class AnonymousPeak:
    """The largest `anonymous` memory while the block runs.

    Attributes:
        before: bytes at the start.
        peak: bytes, at the end.
    """

    def __enter__(self) -> AnonymousPeak:
        self.before = self.peak = anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous())

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL):
            self.peak = max(self.peak, anonymous())
