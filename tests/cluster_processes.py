"""One of several processes that ``tests/bounded/test_many_processes.py`` starts, without torchrun between."""

from __future__ import annotations

import contextlib
import io
import json
import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from coke.cli import main


def run(rank: int, n_processes: int, folder: Path, commands: list[list[str]], apart: bool) -> None:
    """Run commands one after the other in one process group, and note each one's exit code and stderr.

    apart: each process in a folder of its own, ``0``, ``1``, ..., as machines have.
    """
    torch.set_num_threads(1)
    os.chdir(folder / str(rank) if apart else folder)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",  # so one call a folder
        rank=rank,
        world_size=n_processes,
        timeout=timedelta(minutes=2),
    )
    ends = []
    for command in commands:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            ends.append([main(command), said.getvalue()])
    (folder / f"ends {rank}.json").write_text(json.dumps(ends))
    dist.destroy_process_group()
