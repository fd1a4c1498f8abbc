"""A fit in a process of its own, whose memory is then nothing but the fit's.

python benchmarks/_fit_elsewhere.py ORDER      ORDER: JSON, see `fit_elsewhere`; prints the result as JSON
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import _machine
from _anonymous import AnonymousPeak, anonymous
from _candidates import Problem, coke
from _verdicts import BASE, audit
from _work import Work


def fit_elsewhere(
    path: Path, n_rows: int, work: Work, centers: Any, *, threads: int, audited: bool, here: bool = False
) -> dict[str, Any]:
    """Fit the first rows of a .npy file in a new process: seconds, bytes, and if asked for the audited result.

    The rows are a memory map where the work says so, else an array in memory. here: in this process after all, which
    is quicker and says nothing of memory.
    """
    starts = path.with_name("centers.npy")
    np.save(starts, centers)
    order = {"path": str(path), "centers": str(starts), "n_rows": n_rows, "iterations": work.iterations}
    order |= {"sizes": work.sizes(n_rows), "mapped": work.mapped, "audited": audited, "threads": threads}
    if here:
        return carry_out(order)
    command = [sys.executable, str(Path(__file__)), json.dumps(order)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def carry_out(order: dict[str, Any]) -> dict[str, Any]:
    """What the new process does."""
    _machine.set_threads(order["threads"])
    centers = np.load(order["centers"])
    sizes = None if order["sizes"] is None else (int(order["sizes"][0]), int(order["sizes"][1]))
    few = np.load(order["path"], mmap_mode="r")[:2_000].copy()
    coke(Problem(few, centers, 2, sizes).part(2_000, 8))  # what is loaded on first use does not count
    rows = np.load(order["path"], mmap_mode="r" if order["mapped"] else None)[: order["n_rows"]]
    problem = Problem(rows, centers, order["iterations"], sizes)
    before = anonymous()
    with AnonymousPeak() as memory:
        found = coke(problem)
    result: dict[str, Any] = {"seconds": found.laps[BASE], "before": before, "peak": memory.peak}
    result |= {"data": rows.nbytes, **found.figures}
    return result | (audit(problem, found) if order["audited"] else {})


if __name__ == "__main__":
    print(json.dumps(carry_out(json.loads(sys.argv[1]))))
