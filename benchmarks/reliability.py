"""Damaged files by the hundred thousand: what becomes of them, counted. `docs/reliability.md` states the figures.

Input: files that a reader takes are damaged at random (`tests/fuzz/readers.py` says how, and lists the readers) and
read in processes of their own. Each is read, refused in one printable line of `coke.errors`, or a fault: another
exception, a process that ends, one that says nothing for 30 s. Wanted: no fault.

    python benchmarks/reliability.py --minutes 5

Results of other parts that the result file holds already stay in it.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import _common as common

sys.path.insert(0, str(common.ROOT / "tests" / "fuzz"))
from readers import READERS, damage, outcome, seeds_of

SILENT_S = 30.0  # without a word a process hangs
START_S = 300.0  # more, until it has begun
TURN = 100  # files of a kind in a row
_VARIABLE = re.compile(
    r"'[^']*'|\"[^\"]*\"|\(.*\)|[\d,.]*\d|\\\w+"
)  # parts of a sentence that come from the file


def case_of(name: str, seed: int) -> bytes:
    """The damaged file of a number."""
    chance = random.Random(f"{name} {seed}")
    edits = [
        (chance.randrange(7), chance.random() ** chance.choice((1, 0.2)), chance.randrange(2**16))
        for _ in range(chance.randrange(9))
    ]
    return damage(chance.choice(seeds_of(name)), edits)


def read_files(first: int, step: int, say: Connection) -> None:
    """A process: every ``step``-th number from ``first`` on, all readers in turn, with a word after each turn."""
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # whatever is loaded on first use is, before a limit and the clock
        for name, reader in READERS.items():
            for content in seeds_of(name):
                (Path(folder) / reader.name).write_bytes(content)
                outcome(reader, Path(folder) / reader.name)
    soft = 8 << 30
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + soft, resource.getrlimit(resource.RLIMIT_AS)[1]))
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        seed = first
        while True:
            for name, reader in READERS.items():
                say.send(("began", name, seed))
                path, said, faults, slowest = Path(folder) / reader.name, Counter[str](), [], 0.0
                for number in range(seed, seed + TURN * step, step):
                    path.write_bytes(case_of(name, number))
                    began = time.perf_counter()
                    try:
                        sentence = outcome(reader, path)
                        said["read" if sentence is None else _VARIABLE.sub("*", sentence)[:120]] += 1
                    except Exception as error:
                        where = traceback.extract_tb(error.__traceback__)[-1]
                        place = f"{Path(where.filename).name}:{where.lineno}"
                        faults.append((number, f"{type(error).__name__} at {place}: {str(error)[:200]}"))
                    slowest = max(slowest, time.perf_counter() - began)
                say.send(("done", name, said, faults, slowest))
            seed += TURN * step


class Process:
    """One of the processes, and what it said last."""

    def __init__(self, number: int, step: int) -> None:
        context = multiprocessing.get_context("spawn")  # threads of libraries do not outlive a fork
        self.hears, says = context.Pipe(duplex=False)
        self.process = context.Process(target=read_files, args=(number, step, says), daemon=True)
        self.process.start()
        says.close()
        self.heard, self.at = time.monotonic() + START_S, ("start", 0)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def soak_input(minutes: float, n_processes: int) -> dict[str, Any]:
    """Read damaged files for so long; counts by reader and in all."""
    said = {name: Counter[str]() for name in READERS}
    raw, ended, hung = Counter[str](), [], []
    slowest, examples = dict.fromkeys(READERS, 0.0), {}
    until, begun = time.monotonic() + 60 * minutes, n_processes
    processes = [Process(number, 1000) for number in range(n_processes)]
    while time.monotonic() < until:
        multiprocessing.connection.wait([one.hears for one in processes], timeout=1)
        for place, one in enumerate(processes):
            try:
                while one.hears.poll():
                    what, name, *rest = one.hears.recv()
                    one.heard = time.monotonic()
                    if what == "began":
                        one.at = (name, rest[0])
                        continue
                    counts, faults, longest = rest
                    said[name] += counts
                    slowest[name] = max(slowest[name], longest)
                    for number, fault in faults:
                        raw[f"{name}: {fault}"] += 1
                        examples.setdefault(f"{name}: {fault}", number)
            except EOFError:
                one.process.join()
                ended.append((*one.at, one.process.exitcode))
            else:
                if time.monotonic() - one.heard < SILENT_S:
                    continue
                hung.append(one.at)
            one.stop()
            processes[place], begun = Process(begun, 1000), begun + 1
    for one in processes:
        one.stop()
    readers = {
        name: {
            "executions": counts.total()
            + sum(n for fault, n in raw.items() if fault.startswith(f"{name}: ")),
            "read": counts["read"],
            "refused": counts.total() - counts["read"],
            "distinct_errors": len(counts.keys() - {"read"}),
            "slowest_s": slowest[name],
        }
        for name, counts in said.items()
    }
    totals = {key: sum(row[key] for row in readers.values()) for key in ("executions", "read", "refused")}
    totals["distinct_errors"] = sum(row["distinct_errors"] for row in readers.values())
    faults = {"raw_errors": raw.total(), "ended_processes": len(ended), "hangs": len(hung)}
    found = [{"fault": fault, "count": n, "first": examples[fault]} for fault, n in raw.most_common(50)]
    return {
        "minutes": minutes,
        **totals,
        **faults,
        "readers": readers,
        "faults": {"raw_errors": found, "ended_processes": ended[:50], "hangs": hung[:50]},
    }


def main() -> int:
    parser = common.arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long files are read")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    environment = common.environment()
    common.print_environment(environment)
    found = soak_input(0.1 if options.quick else options.minutes, options.processes)
    for name, row in found["readers"].items():
        print(f"  {name:20} " + "  ".join(f"{key} {value:,}" for key, value in row.items()))
    counts = ("executions", "read", "refused", "distinct_errors", "raw_errors", "ended_processes", "hangs")
    print("input: " + ", ".join(f"{key} {found[key]:,}" for key in counts))
    for kind, faults in found["faults"].items():
        for fault in faults:
            print(f"  {kind}: {fault}")
    path = options.out or common.RESULTS / "reliability.json"
    others = json.loads(path.read_text())["results"] if path.is_file() else {}
    common.write_result(
        "reliability", options, {"environment": environment, "results": {**others, "input": found}}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
