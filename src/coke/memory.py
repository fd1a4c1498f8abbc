"""What this machine gives: memory that is free, processors that may be used."""

from __future__ import annotations

import os
from pathlib import Path

from coke.errors import DataError

MEGABYTE, GIGABYTE = 1e6, 1e9
_SHARE = 4  # of the memory that is free, a quarter is for what makes training faster
_UNKNOWN = 1 << 30  # bytes where nothing says how much is free


def usable_cpus() -> int:
    """How many processors this process may use: its affinity where the system has one."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that can be had without swapping, limits of container and process included; None where nothing says.

    >>> available = available_memory()
    >>> available is None or available > 0
    True
    """
    free = [bytes_free for bytes_free in (_system(), _container(), _limit()) if bytes_free is not None]
    return min(free, default=None)


def memory_share(n_processes: int = 1) -> int:
    """Bytes that one of the machine's processes may spend on what it could do without: a quarter of what is free.

    >>> memory_share(2) <= memory_share() + (1 << 30)
    True
    """
    available = available_memory()
    return (_UNKNOWN if available is None else available // _SHARE) // n_processes


def require_memory(needed: int, what: str, instead: str) -> None:
    """Refuse ``needed`` bytes that are not free, before they are used. Raises `DataError`.

    >>> require_memory(10**18, "photos", "use fewer")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    coke.errors.DataError: photos: 1000000000.0 GB must stay in memory, ... GB are free; use fewer
    """
    available = available_memory()
    if available is not None and needed > available:
        raise DataError(
            f"{what}: {needed / GIGABYTE:.1f} GB must stay in memory, "
            f"{available / GIGABYTE:.1f} GB are free; {instead}"
        )


def _system() -> int | None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def _container() -> int | None:
    """The limit of the control group less its use that cannot be given back (page cache can)."""
    group = Path("/sys/fs/cgroup")
    limit, used, statistics = group / "memory.max", group / "memory.current", group / "memory.stat"
    if not (limit.is_file() and used.is_file() and statistics.is_file()):
        return None
    bound = limit.read_text().strip()
    if bound == "max":
        return None
    cached = dict(line.split() for line in statistics.read_text().splitlines()).get("inactive_file", "0")
    return max(0, int(bound) - int(used.read_text()) + int(cached))


def _limit() -> int | None:
    """What `ulimit -v` leaves of the addresses that a process may use."""
    used = Path("/proc/self/statm")
    if not used.is_file():
        return None
    import resource

    bound, _ = resource.getrlimit(resource.RLIMIT_AS)
    if bound == resource.RLIM_INFINITY:
        return None
    return max(0, bound - int(used.read_text().split()[0]) * resource.getpagesize())
