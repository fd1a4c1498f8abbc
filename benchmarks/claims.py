"""The claims of docs/evidence.md on CIFAR-10: every contender on the same images, backbone, loop and probe.

``--scale small`` is five convolutions (13 MFLOP an image), 12,600 images and 12 epochs, for one CPU thread;
``--scale full`` is the small-stem ResNet-18 on the pool of 45,000 images for a GPU. One JSON per run under
``results/claims/SCALE``; a run whose file is there is not run again. ``--dry-run`` shows that every run of a scale
starts, steps, and is probed, on 256 images, and writes nothing. ``benchmarks/evidence_page.py`` makes the tables.

    python benchmarks/claims.py sizes views study                   # needs: pip install --no-deps lightly
    python benchmarks/claims.py table --scale full
    python benchmarks/claims.py --dry-run --scale full
    python benchmarks/claims.py sizes --share 0/2 --threads 1       # the first of two halves, to run side by side
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _common as common

if TYPE_CHECKING:
    from contest.entries import Entry

DATA = Path("../shared/data/cifar10")
DRY_IMAGES, DRY_BATCH, DRY_CLUSTERS = 256, 16, 100


def parse() -> argparse.Namespace:
    """The options; exits with a message where the images are not there."""
    from contest.entries import CLAIMS, SCALES

    parser = common.arguments(__doc__)
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help=f"of {', '.join(CLAIMS)}; default all")
    parser.add_argument("--scale", default="small", choices=sorted(SCALES))
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of parquet files; default {DATA}")
    parser.add_argument("--seeds", default=None, help="comma-separated; default the claim's")
    parser.add_argument("--minutes", type=float, default=None, help="of training each, instead of epochs")
    parser.add_argument("--compile", action="store_true", help="torch.compile for all contenders")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--share", default="0/1", help="i/n: every n-th run from the i-th on")
    parser.add_argument(
        "--dry-run", action="store_true", help=f"{DRY_IMAGES} images, two epochs, nothing written"
    )
    parser.add_argument("--list", action="store_true", help="name the runs and stop")
    options = parser.parse_args()
    options.dry_run |= options.quick
    unknown = sorted(set(options.claims) - set(CLAIMS))
    if unknown:
        sys.exit(f"unknown claim {', '.join(unknown)}: there are {', '.join(CLAIMS)}")
    if not options.data.exists():
        sys.exit(
            f"{options.data} is not there: give --data, a folder of CIFAR-10 as parquet (train-*, test-*)"
        )
    return options


def planned(options: argparse.Namespace) -> list[tuple[Entry, int]]:
    """Each (entry, seed) once, in the order of the claims."""
    from contest.entries import CLAIMS, ONE_SEED_WHEN_SMALL, SCALES, entries

    scale = SCALES[options.scale]
    runs: dict[str, tuple[Entry, int]] = {}
    for claim in options.claims or CLAIMS:
        seeds = scale.seeds[:1] if options.scale == "small" and claim in ONE_SEED_WHEN_SMALL else scale.seeds
        if options.seeds is not None:
            seeds = tuple(int(seed) for seed in options.seeds.split(","))
        for seed in seeds[:1] if options.dry_run else seeds:
            for entry in entries(claim, scale):
                runs.setdefault(file_name(entry.name, seed), (entry, seed))
    first, step = (int(number) for number in options.share.split("/"))
    return list(runs.values())[first::step]


def file_name(entry: str, seed: int) -> str:
    """The result's file.

    >>> file_name("coke, r = 0.2", 1)
    'coke-r-0.2-seed1.json'
    """
    return f"{re.sub(r'[^a-z0-9.]+', '-', entry.lower()).strip('-')}-seed{seed}.json"


def tamed(settings: dict[str, Any]) -> dict[str, Any]:
    """An entry's settings, made to fit the few images of a dry run."""
    found = {key: value for key, value in settings.items() if key != "batch_size"}
    if "n_clusters" in found:
        found["n_clusters"] = [min(k, DRY_CLUSTERS) for k in found["n_clusters"]]
    return found


def main() -> None:
    """Run what is missing."""
    options = parse()
    runs = planned(options)
    if options.list:
        print(*(file_name(entry.name, seed) for entry, seed in runs), sep="\n")
        return
    import torch

    from contest.data import load
    from contest.entries import SCALES
    from contest.loop import baselines, run

    cuda = torch.cuda.is_available()
    if not cuda:
        torch.set_num_threads(options.threads)
    where = common.environment("cuda" if cuda else "cpu")
    common.print_environment(where)
    scale, data = SCALES[options.scale], load(options.data)
    if options.dry_run:
        scale, data = replace(scale, n_images=None, epochs=2), data.first(DRY_IMAGES)
        scale.base.update(batch_size=DRY_BATCH, n_clusters=[5, 10], warmup_epochs=1)
    if options.compile:
        scale.base["compile"] = True
    folder = common.RESULTS / "claims" / options.scale
    if options.minutes is not None:
        folder = folder.with_name(f"{folder.name}-{options.minutes:g}-minutes")
    for entry, seed in runs:
        if options.dry_run:
            entry = replace(entry, settings=tamed(entry.settings))
        path = folder / file_name(entry.name, seed)
        if path.exists() and not options.dry_run:
            print(f"{path.stem}: there already", flush=True)
            continue
        began = time.perf_counter()
        result = run(entry, scale, data, seed, options.minutes)
        scores = "  ".join(f"{key} {100 * value:.1f}" for key, value in result["scores"].items())
        print(
            f"{path.stem}: {scores}; {result['seconds']['compute']:.0f} s of training, "
            f"{time.perf_counter() - began:.0f} s in all",
            flush=True,
        )
        if not options.dry_run:
            common.write_json(path, {"environment": where, **result})
    for seed in sorted({seed for _, seed in runs}):
        path = folder / f"baselines-seed{seed}.json"
        if not path.exists() and not options.dry_run:
            common.write_json(path, {"environment": where, "scores": baselines(scale, data, seed)})


if __name__ == "__main__":
    main()
