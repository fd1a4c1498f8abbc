"""Runs killed with SIGKILL at random moments and resumed, until they end: equal to the bit to one that nobody killed?

Every start is a fork of this process, which has imported everything and computed nothing: so a kill falls into the
run, not into the imports. After each kill every file of the folder that is there must be whole. `coke cluster` is
killed likewise, and must not leave rows of one fit beside centers of another.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors import safe_open

import _common as common
import coke.api
import coke.bounded.command
import coke.report
import coke.training.session  # noqa: F401 loaded before the forks
from coke.cli import main as coke_main
from coke.run import Run
from coke.training import checkpoint

SETTINGS = (
    "epochs=4 batch_size=20 n_clusters=[4,6] dim=16 views.size=16 backbone=coke_conv5_w16 learning_rate=0.05"
)
ALWAYS = (
    "workers=0 log_every=1 checkpoint_minutes=0 checkpoint_epochs=1 accelerator=cpu seed=3 tensorboard=false"
)
CLOCK = {"seconds", "data_wait", "images_per_second"}
FIGURES = ("backbone", "projector", "clusters", "assignments", "initial")


def started(words: list[str], log: Path) -> int:
    """The process of a fork that runs a command, its output in a file."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        with open(log, "ab") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        torch.set_num_threads(1)
        code = coke_main(words)
        sys.stdout.flush()
    finally:
        os._exit(code)


def finished(process: int, seconds: float | None) -> bool:
    """Whether it ended by itself, well, before so many seconds; else it is killed. Raises for any other end."""
    until = None if seconds is None else time.monotonic() + seconds
    while until is None or time.monotonic() < until:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            if status:
                raise SystemExit(f"a start ended with status {status}")
            return True
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1] == 0


def learned(run: Run) -> dict[str, Any]:
    """What a finished run measured and learned, without what the clock said."""
    found = {name: hashlib.sha256(getattr(run, name).read_bytes()).hexdigest() for name in FIGURES}
    records = [
        {key: value for key, value in record.items() if key not in CLOCK}
        for record in run.metrics()
        if record["kind"] != "event"
    ]
    state = checkpoint.load(run)
    kept = {key: value for key, value in state.items() if key not in ("elapsed", "config")}
    return {**found, "metrics": json.dumps(records), "state": _bits(kept)}


def _bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), list(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _bits(item) for key, item in value.items()}
    return [_bits(item) for item in value] if isinstance(value, (list, tuple)) else value


def torn(run: Run) -> list[str]:
    """Files of a run that are there and cannot be read."""
    readers = {
        run.config_file: lambda: run.config if run.config_file.is_file() else None,
        run.environment_file: lambda: run.environment,
        run.metrics_file: run.metrics,
        run.verdict_file: lambda: run.verdict,
        run.evaluation_file: lambda: run.evaluation,
        run.checkpoints: lambda: checkpoint.load(run) if run.latest_checkpoint() else None,
        run.assignments: lambda: run.read_assignments() if run.assignments.is_file() else None,
        run.map: lambda: pq.read_table(run.map) if run.map.is_file() else None,
    }
    bad = []
    for path, read in readers.items():
        try:
            read()
        except Exception as error:
            bad.append(f"{path.name}: {error}")
    return bad


def kill_runs(folder: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """Chains of kills, each until a run ends by itself, until there were so many; early ones are likelier."""
    images, log = folder / "images", folder / "log"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(images / f"{number}.png")

    def words(run: Run) -> list[str]:
        resume = ["--resume"] if run.latest_checkpoint() else []
        return ["pretrain", str(images), "--out", str(run.path), *resume, *SETTINGS.split(), *ALWAYS.split()]

    whole, began = Run(folder / "whole"), time.monotonic()
    assert finished(started(words(whole), log), None)
    seconds, wanted = time.monotonic() - began, learned(whole)
    print(f"a run takes {seconds:.1f} s", flush=True)
    done = Counter[str]()
    unequal: Counter[str] = Counter()
    while done["kills"] < kills:
        run = Run(folder / f"run {done['runs']}")
        while not finished(started(words(run), log), seconds * draw.random() ** 2):
            done["kills"] += 1
            print(f"kill {done['kills']}: {run.latest_checkpoint()}", flush=True)
            done["torn files"] += len(torn(run))
            stage = "before a checkpoint" if run.latest_checkpoint() is None else "in training"
            done["kills " + ("while the outputs are written" if _all_trained(run) else stage)] += 1
        done["runs"] += 1
        unequal.update(key for key, value in learned(run).items() if value != wanted[key])
        done["temporary files left"] += len([*run.path.rglob("*.tmp")])
        shutil.rmtree(run.path)
        print(f"{done['kills']} kills, {done['runs']} runs, unequal: {dict(unequal)}", flush=True)
    return {"seconds_of_a_run": seconds, **done, "runs unequal in": dict(unequal)}


def _all_trained(run: Run) -> bool:
    path = run.latest_checkpoint()
    return path is not None and path.name.startswith("epoch-00004")


def kill_clusters(folder: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """`coke cluster --overwrite`, killed again and again, with another seed each time."""
    rows, log, done = folder / "rows.npy", folder / "log", Counter[str]()
    np.save(rows, np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32))
    out, centers = folder / "c.parquet", folder / "c.safetensors"

    def words(seed: int) -> list[str]:
        sizes = ["--k", "5", "--min-size", "20", "--seed", str(seed)]
        return ["cluster", str(rows), "--out", str(out), "--overwrite", *sizes]

    assert finished(started(words(0), log), None)  # compiles
    began = time.monotonic()
    assert finished(started(words(0), log), None)
    seconds = time.monotonic() - began
    while done["kills"] < kills:
        if finished(started(words(done["starts"]), log), seconds * draw.uniform(0.6, 1.1)):
            done["ended by itself"] += 1
        else:
            done["kills"] += 1
        done["starts"] += 1
        seeds = []
        if out.exists():
            seeds.append(json.loads(pq.read_schema(out).metadata[b"coke clustering"])["seed"])
        if centers.exists():
            with safe_open(centers, "pt") as file:
                seeds.append(json.loads(file.metadata()["coke clustering"])["seed"])
        done["rows beside other centers"] += len(set(seeds)) > 1
        done["one of two missing"] += len(seeds) == 1
    assert finished(started(words(0), log), None)
    left = [path for path in folder.iterdir() if path.name.endswith(".tmp")]
    return {"seconds_of_a_fit": seconds, **done, "temporary files left": len(left)}


def main() -> None:
    """Kill, count, write."""
    parser = common.arguments(__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of runs; of clusterings half as many")
    options = parser.parse_args()
    kills = 3 if options.quick else options.kills
    where = common.environment()
    common.print_environment(where)
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        for name in ("runs", "clusters"):
            (Path(place) / name).mkdir()
        runs = kill_runs(Path(place) / "runs", kills, draw)
        clusters = kill_clusters(Path(place) / "clusters", (kills + 1) // 2, draw)
    for name, found in (("coke pretrain", runs), ("coke cluster", clusters)):
        print(f"\n{name}\n" + "\n".join(f"  {key}: {value}" for key, value in found.items()))
    common.write_result("kills", options, {"environment": where, "runs": runs, "clusterings": clusters})


if __name__ == "__main__":
    main()
