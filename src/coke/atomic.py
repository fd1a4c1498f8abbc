"""Files that are there whole or not at all, however a program ends."""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any


@contextmanager
def atomic(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears under ``path`` only when it is whole: temporary file, fsync, rename.

    A full disk is an `OSError` that names the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_names(path.parent)


def remove(*paths: Path) -> None:
    """Remove files that belong together, on the disk too, before new ones take their place one by one.

    Whenever the program ends in between, none of the new ones lies beside one of the old.
    """
    for path in paths:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in paths if path.parent.exists()}:
        _sync_names(folder)


def remove_left_over(folder: Path, name: str = "*") -> None:
    """Remove temporary files and folders of ``name`` that a process left which was killed on this machine.

    >>> folder = Path(TemporaryDirectory().name)
    >>> folder.mkdir()
    >>> for process in (os.getpid(), 2**22 + 1):  # no process has so large a number
    ...     _ = (folder / f".file.{process}.tmp").write_text("half")
    >>> remove_left_over(folder)
    >>> [path.name for path in folder.iterdir()] == [f".file.{os.getpid()}.tmp"]
    True
    """
    for left in folder.glob(f".{name}.*.tmp"):
        process = re.fullmatch(r"\..*\.(\d+)(\.\w+)?\.tmp", left.name)
        if process and not _is_alive(int(process[1])):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # where this would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of somebody else
        return True
    return True


@contextmanager
def atomic_place(path: Path) -> Iterator[Path]:
    """Where to write a file or a folder that is to appear under ``path`` once the block has ended without an error.

    What was there is replaced. The place has the same last name, in a folder beside ``path`` that goes away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left_over(path.parent, glob.escape(path.name))
    prefix = f".{path.name}.{os.getpid()}."
    with TemporaryDirectory(prefix=prefix, suffix=".tmp", dir=path.parent) as folder:
        place = Path(folder) / path.name
        yield place
        for file in [place, *place.rglob("*")]:
            if file.is_file():
                with open(file, "rb+") as stream:
                    os.fsync(stream.fileno())
        if path.is_dir():  # no folder is renamed over another
            os.replace(path, Path(folder) / "replaced")
        os.replace(place, path)
    _sync_names(path.parent)


def _sync_names(folder: Path) -> None:
    """A rename must reach the disk too."""
    if os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
