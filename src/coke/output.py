"""Where something is to be written: asked before any work is done for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from coke.errors import ConfigError


def is_writable(path: Path) -> bool:
    """Whether a file or folder could be made under ``path``, with the folders above it that are not there yet."""
    above = next(place for place in path.absolute().parents if place.exists())
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)


def check_output(file: Path, *suffixes: str, overwrite: bool = False, reads: Iterable[Path] = ()) -> None:
    """Raise `ConfigError` where a file cannot be written, exists already, or is or lies in what is read."""
    if file.suffix not in suffixes:
        kinds, ends = " or ".join(suffix[1:] for suffix in suffixes), " or ".join(suffixes)
        raise ConfigError(f"{file}: it is written as {kinds}, so let its name end in {ends}")
    if file.is_dir():
        raise ConfigError(f"{file} is a folder: name a file in it")
    if not is_writable(file):
        raise ConfigError(f"{file} cannot be written: nothing can be made in {file.parent}")
    for source in (path.resolve() for path in reads):
        if source == file.resolve() or source in file.resolve().parents:
            raise ConfigError(f"{file} lies among what is read: choose another --out")
    if file.exists() and not overwrite:
        raise ConfigError(f"{file} exists: choose another --out, or --overwrite it")
