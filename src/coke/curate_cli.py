"""The verb that chooses, `coke curate`: its arguments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from coke.interrupt import cleaning_up


def add_verbs(verbs: Any) -> None:
    """Add it to the subparsers of `coke.cli`."""
    verb = verbs.add_parser(
        "curate",
        help="choose images: even over clusters, without near-duplicates",
        description="Choose M images or rows, even over bounded clusters: near-duplicates go, rare clusters stay. "
        "Writes the list, a table of what went and why, and a page that shows both.",
        epilog="""\
examples:  coke curate runs/photos --n 5000 --out chosen.parquet
           coke curate photos.parquet --data photos --n 5000 --out chosen.parquet
next:      coke pretrain chosen.parquet
before:    coke pretrain, or coke embed""",
    )
    add = verb.add_argument
    add("source", metavar="RUN|EMBEDDINGS", help="a run folder, or .npy, .parquet or a folder of them")
    add("--n", type=int, required=True, metavar="M", help="how many to choose")
    out = ".parquet: row, key, image, cluster, priority, why; beside it NAME.dropped.parquet and NAME.html"
    add("--out", type=Path, required=True, metavar="FILE", help=out)
    add(
        "--data",
        metavar="DATA",
        help="the images of EMBEDDINGS, for pictures and paths; of RUN: their new place",
    )
    add(
        "--similarity",
        type=float,
        metavar="C",
        help="cosine from which a row is a duplicate; above 1 none is; default: what the data say",
    )
    add("--clusters", type=int, metavar="K", help="default: those of RUN, else the root of N")
    add("--column", metavar="NAME", help="of parquet: where the vectors are, if there are several")
    add("--seed", type=int, default=0, metavar="S", help="the same gives the same choice; default: 0")
    add("--overwrite", action="store_true", help="replace files that exist")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from coke.curation import curate

    with cleaning_up():
        curate(
            options.source,
            options.n,
            options.out,
            images=options.data,
            similarity=options.similarity,
            n_clusters=options.clusters,
            column=options.column,
            seed=options.seed,
            overwrite=options.overwrite,
            console=Console(highlight=False, markup=False, soft_wrap=True),
        )
    return 0
