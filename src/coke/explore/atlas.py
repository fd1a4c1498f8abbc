"""embedding-atlas, the explorer that `coke explore` hands its table to: found, told what is there, served or copied.

All that it would compute is in the table, so that it starts without a model, a projection or a page rank: places are
named (--x, --y), and so is the column by which pictures are chosen for a label (--pagerank COLUMN), for which it would
load torch otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from coke.atomic import atomic_place
from coke.errors import CokeError, ConfigError
from coke.interrupt import Interrupt

LOOPBACK = ("127.0.0.1", "localhost")
_WANTED = "embedding-atlas>=0.26"
_FIRST_PORT, _LAST_LINES, _WAIT = 5055, 15, 0.2


class ExplorerError(CokeError):
    """The explorer ended by itself."""


def find_explorer() -> list[str]:
    """The command that starts it: of this environment, on the PATH, or through uvx, which fetches it.

    Raises `ConfigError` where it is to be had in none of these ways.
    """
    if find_spec("embedding_atlas") is not None:
        return [sys.executable, "-m", "embedding_atlas.cli"]
    if (there := shutil.which("embedding-atlas")) is not None:
        return [there]
    if (uvx := shutil.which("uvx")) is not None:
        return [uvx, "--from", _WANTED, "embedding-atlas"]
    raise ConfigError(
        "the explorer is not installed: pip install 'coke-ssl[explore]', or pip install uv, whose uvx then fetches "
        "it; --no-serve --out FILE.parquet writes the table without it"
    )


def check_host(host: str) -> None:
    """Raise `ConfigError` for anything but this machine's own address: the explorer asks nobody for a password."""
    if host not in LOOPBACK:
        raise ConfigError(
            f"--host {host}: it shows all images to whoever reaches it, so it is served to this machine alone "
            f"({LOOPBACK[0]}); from another one: ssh -L PORT:{LOOPBACK[0]}:PORT"
        )


def free_port(asked: int | None) -> int:
    """The port asked for, or the first free one from 5055 on. Raises `ConfigError` where the former is in use."""
    if asked is not None:
        if not 1 <= asked < 2**16:
            raise ConfigError(f"--port must lie in 1 ... 65535, got {asked}")
        if not _is_free(asked):
            remedy = "name another, or leave it out for any that is free"
            raise ConfigError(f"--port {asked} cannot be had: {remedy}")
        return asked
    free = next((port for port in range(_FIRST_PORT, 2**16) if _is_free(port)), None)
    if free is None:
        raise ConfigError(f"no port from {_FIRST_PORT} on is free: name another with --port")
    return free


def _is_free(port: int) -> bool:
    with socket.socket() as tried, suppress(OSError):
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that a server has just left
        tried.bind((LOOPBACK[0], port))
        return True
    return False


def arguments(table: Path, columns: Sequence[str], labels: Path | None) -> list[str]:
    """What it is told of a table with these columns."""
    shown = {"x": "projection_x", "y": "projection_y", "neighbors": "neighbors"}
    shown["importance"] = "margin" if "margin" in columns else "similarity"
    if "image" in columns or "key" in columns:
        shown |= {"image": "image"} if "image" in columns else {"text": "key"}
    told = [str(table), "--disable-projection", "--state", _charts(shown, columns)]
    for name, column in shown.items():
        told += ["--pagerank" if name == "importance" else f"--{name}", column]
    return told if labels is None else [*told, "--labels", str(labels)]


def _charts(shown: Mapping[str, str], columns: Sequence[str]) -> str:
    """What a page begins with: the map, coloured by cluster, the rows, and a chart of what is worth filtering by."""
    coloured = {"category": "cluster_name"} if "cluster_name" in columns else {}
    charts = [
        {"type": "embedding", "title": "Map", "data": {**shown, **coloured}},
        {"type": "predicates", "title": "SQL predicates"},
        {"type": "instances", "title": "Rows"},
    ]
    counted = [name for name in ("cluster_name", "label") if name in columns]
    charts += [{"type": "count-plot", "title": name, "data": {"field": name}} for name in counted]
    charts += [_histogram(name) for name in ("score", "distance", "margin", "similarity") if name in columns]
    return json.dumps({"charts": {str(number): chart for number, chart in enumerate(charts, 1)}})


def _histogram(column: str) -> dict[str, Any]:
    """All rows in the background, the chosen ones before them; a brush chooses."""
    counted = {"mark": "bar", "encoding": {"x": {"field": column}, "y": {"aggregate": "count"}}}
    layers = [{**counted, "style": {"fillColor": "$markColorFade"}}, {**counted, "filter": "$filter"}]
    return {"title": column, "layers": layers, "selection": {"brush": {"encoding": "x"}}}


def export(command: Sequence[str], told: Sequence[str], folder: Path) -> None:
    """A copy that needs no program but a server of files. Raises `ExplorerError` with its last words if it fails."""
    with atomic_place(folder) as place, TemporaryFile("w+") as log:
        with _running([*command, *told, "--export-application", str(place)], log) as process:
            process.wait()
        if process.returncode or not place.exists():
            raise _ended(process, log)


def serve(command: Sequence[str], told: Sequence[str], port: int, ready: str) -> int:
    """Serve until Ctrl-C or SIGTERM, whose number is returned; ``ready`` is printed once it answers.

    Raises `ExplorerError` with its last words where it ends by itself.
    """
    told = [*told, "--host", LOOPBACK[0], "--port", str(port), "--no-auto-port"]
    with TemporaryFile("w+") as log, Interrupt() as interrupt, _running([*command, *told], log) as process:
        answered = False
        while interrupt.signal is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_WAIT)
                raise _ended(process, log)
            if not answered and _answers(port):
                print(ready, flush=True)
                answered = True
    return interrupt.signal


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection((LOOPBACK[0], port), 1):
        return True
    return False


@contextmanager
def _running(command: Sequence[str], log: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """The explorer in a group of its own, which is ended at the end: Ctrl-C reaches this program alone."""
    fetches = Path(command[0]).name == "uvx"  # says on stderr what it downloads
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=None if fetches else log,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                if os.name == "posix":  # also what it started
                    os.killpg(process.pid, number)
                else:
                    process.terminate()
                process.wait(5)
                break


def _ended(process: subprocess.Popen[str], log: IO[str]) -> ExplorerError:
    log.seek(0)
    words = "".join(log.readlines()[-_LAST_LINES:]).strip()
    return ExplorerError(
        f"the explorer ended by itself (exit code {process.returncode}; {_WANTED} is wanted). Its last words:\n{words}"
    )
