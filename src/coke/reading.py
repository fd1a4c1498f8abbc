"""Files and folders of whatever origin: what is opened is a regular file, and every folder is entered once."""

from __future__ import annotations

import errno
import heapq
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from coke.errors import CokeError, DataError
from coke.memory import require_memory

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}
_LARGE = 1 << 26  # bytes from which on a look at the free memory takes no time beside the reading


def require_file(path: str | os.PathLike[str]) -> None:
    """Refuse what is no regular file, links followed: a pipe would be waited for, a device read without an end.

    Raises `DataError`, also where there is nothing.

    >>> require_file("/dev/null")
    Traceback (most recent call last):
    coke.errors.DataError: /dev/null is a device, no regular file
    """
    try:
        _refuse_other(path, os.stat(path))
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except DataError:
        raise
    except (OSError, ValueError) as error:  # it may not be looked at, its name is too long or has a NUL
        raise DataError(f"{str(path)[:200]} cannot be opened: {_reason(error)}") from error


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file, as many as it had when it was opened.

    Raises `DataError` for anything else, and for more than fits into memory; `OSError` where it cannot be opened.
    """
    try:
        _refuse_other(path, os.stat(path))  # to open a device may already do something
        opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path} cannot be opened: {error}") from error
    with open(opened, "rb") as stream:
        status = os.fstat(opened)
        _refuse_other(path, status)
        if status.st_size > _LARGE:
            require_memory(status.st_size, str(path), "make it smaller")
        return stream.read(status.st_size)


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a regular file in UTF-8, without a byte order mark, lines ended by ``\\n``.

    Raises as `read_file` does, and `DataError` for other encodings.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def reading_as(kind: str | Callable[[], str], path: str | os.PathLike[str]) -> Iterator[None]:
    """What a library raises that reads ``path`` in the block, a regular file, as a `DataError` of one line.

    Of damaged files libraries raise almost anything, so the block should hold little else. kind: what the file is to
    be, or what says it then.
    """
    require_file(path)
    try:
        yield
    except CokeError:
        raise
    except Exception as error:
        kind = kind if isinstance(kind, str) else kind()
        raise DataError(f"{path} cannot be read as {kind}: {_reason(error)}") from error


def files_below(folder: str | os.PathLike[str], *, hidden: bool = False) -> list[str]:
    """All that is no folder below a folder, sorted posix paths; links followed.

    Each folder is entered once: under its own path where that lies below, else under the first link to it. Those that
    ``folder`` itself lies in are not. hidden: also names that begin with a dot. Raises `DataError` where a folder
    cannot be listed.
    """
    found: list[str] = []
    folders, links = [""], list[str]()
    try:
        entered = {_identity(place) for place in Path(folder).resolve().parents}
        while folders or links:
            prefix = folders.pop() if folders else heapq.heappop(links)
            place = os.path.join(folder, prefix)
            if (identity := _identity(place)) in entered:
                continue
            entered.add(identity)
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.startswith(".") and not hidden:
                        continue
                    if not _is_folder(entry):
                        found.append(prefix + entry.name)
                    elif entry.is_symlink():
                        heapq.heappush(links, f"{prefix}{entry.name}/")
                    else:
                        folders.append(f"{prefix}{entry.name}/")
    except (OSError, ValueError) as error:
        deep = getattr(error, "errno", None) == errno.ENAMETOOLONG
        what = "the folders in it are nested too deep for their paths" if deep else _reason(error)
        raise DataError(f"{folder} cannot be listed: {what}") from error
    return sorted(found)


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, which nobody can open
        return False


def _refuse_other(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise DataError(f"{path} is {kind}, no regular file")


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    said = " ".join((getattr(error, "strerror", None) or str(error)).split())
    return said[:400] or type(error).__name__
