"""Six short runs whose outcome is kept in ``tests/training/goldens/runs.json``, made through public names only.

Where numbers are meant to change, and only there, this writes them anew (15 seconds on two cores):

    PYTHONPATH=src python tests/golden_runs.py
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

import coke
from coke import Run
from tiny_runs import SETTINGS, tiny, write_textures

GOLDENS = Path(__file__).parent / "training" / "goldens" / "runs.json"
EVALUATED = "one view"  # the run whose scores are kept, too
DISTRIBUTED = "two processes"
SCORES = ("knn", "linear", "accuracy", "nmi", "ari")
FIGURES = ("loss", "prediction_agreement", "churn", "feature_spread", "effective_rank")

KEYS: dict[str, Any] = {**SETTINGS, "epochs": 3, "learning_rate": 0.01, "min_size_ratio": 0.9}
LARGE: list[dict[str, Any]] = [{"size": 16}, {"size": 16, "invert": 0.2}]
SMALL = {"size": 8, "crop": [0.05, 0.15], "clusters": False, "count": 2}
TWO_LOSSES: dict[str, Any] = {
    "objective.temperature": 0.05,
    "objective.label_weight": 0.2,
    "objective.prediction_share": 0.5,
}
RUNS: dict[str, dict[str, Any]] = {
    "one view": {"seed": 1, "linear_probe": True},
    "two views": {"views": LARGE, **TWO_LOSSES, "optimizer": "lars", "seed": 4},
    "multi-crop": {"views": [*LARGE, SMALL], **TWO_LOSSES, "learning_rate": 0.005},
    "averaging": {"averaging_share": 0.5, "epochs": 4, "count_carry": 0.5, "seed": 12},
    "accumulation": {"accumulate": 2, "batch_size": 30, "seed": 10},
    "two processes": {"seed": 2},
}
"""Chosen so that rounding stays small on other processors (see `test_goldens.py`): slow learning, no threshold on
pixels, no crop larger than its view (torch shrinks bytes in another way where there is no AVX2), and of a dozen seeds
one of those under which no image lies between two clusters."""


def make_runs(folder: Path) -> dict[str, tuple[Run, Run]]:
    """Every run as a whole, and once more in two parts: interrupted within an epoch, and resumed."""
    images = folder / "images"
    write_textures(folder / "unlabelled")
    for split, n_images, seed in (("train", 200, 0), ("test", 60, 1)):
        write_textures(images / split, n_images, seed=seed, labelled=True)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        __file__,
    ]
    search = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    both = subprocess.Popen(
        [*launch, str(images), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": search},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        runs = {
            name: train_twice(images if name == EVALUATED else folder / "unlabelled", folder, name)
            for name in RUNS
            if name != DISTRIBUTED
        }
        said, _ = both.communicate(timeout=300)
    finally:
        both.kill()
    assert both.returncode == 0, said[-3000:]
    places = (folder / DISTRIBUTED, folder / f"{DISTRIBUTED}, resumed")
    return {**runs, DISTRIBUTED: (Run(places[0]), Run(places[1]))}


def train_twice(images: Path, folder: Path, name: str) -> tuple[Run, Run]:
    """A run as a whole, and once more with an interruption."""
    overrides = {**KEYS, **RUNS[name]}
    out, parts = folder / name, folder / f"{name}, resumed"
    backbone = tiny(1)
    whole = coke.pretrain(images, out=out, backbone=backbone, overrides=overrides)
    interrupted = tiny(1, interrupt_at=round(0.63 * backbone.calls))
    try:
        coke.pretrain(images, out=parts, backbone=interrupted, overrides=overrides)
    except Exception as stopped:
        if "--resume continues exactly there" not in str(stopped):
            raise
    else:
        raise AssertionError("the signal did not stop the run")
    return whole, coke.pretrain(images, out=parts, backbone=tiny(2), resume=True, overrides=overrides)


def outcome(run: Run) -> dict[str, Any]:
    """What a run learned: losses, rates and figures as they went; labels, centers and duals at the end, by head."""
    steps, epochs = run.metrics("step"), run.metrics("epoch")
    clusters, assignments = load_file(run.clusters), pq.read_table(run.assignments)
    heads = range(len(run.config["n_clusters"]))
    return {
        "steps": {name: [record[name] for record in steps] for name in ("loss", "learning_rate")},
        "epochs": {name: [record[name] for record in epochs] for name in FIGURES},
        "smallest": [[head["smallest"] for head in record["heads"]] for record in epochs],
        "largest": [[head["largest"] for head in record["heads"]] for record in epochs],
        "labels": ["".join(map(str, assignments[f"cluster_{head}"].to_pylist())) for head in heads],
        "centers": [clusters[f"centers_{head}"].tolist() for head in heads],
        "duals": [clusters[f"duals_{head}"].tolist() for head in heads],
    }


def scores(run: Run) -> dict[str, Any]:
    """Of `coke.evaluate`: each representation's, and how far the heads agree with the labels."""
    found = run.evaluation
    found["heads"] = {f"head {head.pop('head')}": head for head in found["heads"]}
    kept = {**found["representations"], **found["heads"]}
    return {name: {key: of[key] for key in SCORES if key in of} for name, of in kept.items()}


def rounded(value: Any) -> Any:
    """Seven digits of every number: what float32 holds."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def processor() -> dict[str, str]:
    """What decides the order in which float32 products are summed; training amplifies it."""
    release = ".".join(torch.__version__.split(".")[:2])
    return {
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "torch": release,
    }


def write_goldens() -> None:
    """Make the runs and keep their outcome, one line for each of a run's entries."""
    with tempfile.TemporaryDirectory() as folder:
        runs = make_runs(Path(folder))
        kept = {name: outcome(whole) for name, (whole, _) in runs.items()}
        kept["evaluation"], kept["processor"] = scores(runs[EVALUATED][0]), processor()
    blocks = []
    for name, entries in rounded(kept).items():
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items())
        blocks.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    GOLDENS.parent.mkdir(exist_ok=True)
    GOLDENS.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:  # one of the two processes: IMAGES OUT
        train_twice(Path(sys.argv[1]), Path(sys.argv[2]), DISTRIBUTED)
    else:
        write_goldens()
