"""The verbs for vectors that are there already, `coke cluster` and `coke assign`: their arguments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from coke.interrupt import cleaning_up


def add_verbs(verbs: Any) -> None:
    """Add both to the subparsers of `coke.cli`."""
    cluster = verbs.add_parser(
        "cluster",
        help="cluster vectors, with sizes that hold",
        description="Cluster vectors by k-means whose cluster sizes hold, and say how far from optimal it can be.",
        epilog="""\
example:  coke cluster photos.parquet --k 20 --max-size-ratio 2 --metric cosine --out clusters.parquet
next:     coke assign clusters.safetensors new.parquet --out new-clusters.parquet
before:   coke embed, for images
With several processes or machines: torchrun --nproc-per-node=4 -m coke cluster ...""",
    )
    add = cluster.add_argument
    add("--k", type=int, metavar="K", help="how many clusters")
    add("--metric", choices=("euclidean", "cosine"), help="default: euclidean")
    add("--init", choices=("k-means++", "random"), help="how to start; default: k-means++")
    add(
        "--start",
        type=Path,
        dest="file",
        metavar="FILE",
        help="go on from earlier clusters, by their numbers",
    )
    add("--n-init", type=int, metavar="N", help="starts, of which the best is kept; default: 1, or 10 random")
    add("--max-iter", type=int, metavar="N", help="moves of the centers, at most; default: 300")
    add("--tol", type=float, metavar="T", help="end before the fixed point; default: 0, at it")
    add("--seed", type=int, default=0, metavar="S", help="of the start; default: 0")
    add("--centers", type=Path, metavar="FILE", help="where clusters go, .safetensors; default: beside --out")
    _add_common(cluster, "DATA")

    assign = verbs.add_parser(
        "assign",
        help="put other vectors into the clusters of an earlier run",
        description="Put other vectors into the clusters of an earlier run: each into the nearest, or, where sizes "
        "are given, so that these hold among the new vectors.",
        epilog="""\
example:  coke assign clusters.safetensors new.parquet --out new-clusters.parquet --max-size-ratio 2
before:   coke cluster, or coke pretrain, which write clusters.safetensors; coke predict is for images""",
    )
    assign.add_argument(
        "file", type=Path, metavar="FILE", help="what `coke cluster` or `coke pretrain` wrote"
    )
    assign.set_defaults(centers=None)
    _add_common(assign, "NEW_DATA")


def _add_common(verb: argparse.ArgumentParser, data: str) -> None:
    add = verb.add_argument
    add("data", type=Path, metavar=data, help=".npy, .parquet or a folder of them")
    add("--head", type=int, default=0, metavar="H", help="of clusters that coke pretrain wrote; default: 0")
    add("--column", metavar="NAME", help="of parquet: where the vectors are, if there are several")
    add(
        "--id",
        metavar="NAME",
        help="of parquet: a column that goes into --out beside each row; default: key, if any",
    )
    add("--device", default="cpu", metavar="D", help="cpu (default) or cuda")
    columns = "row, cluster, distance to its center, margin to the nearest other, which that is"
    add("--out", type=Path, required=True, metavar="FILE", help=f".parquet: {columns}")
    add("--overwrite", action="store_true", help="replace files that exist")
    add = verb.add_argument_group("sizes, of every cluster").add_argument
    for side, word in (("min", "at least"), ("max", "at most")):
        add(f"--{side}-size", type=int, metavar="N", help=f"rows, {word}")
        add(f"--{side}-size-ratio", type=float, metavar="R", help=f"{word} R times rows / K")
    lines = "a line for each cluster: what it may hold, or what it must and what it may"
    add("--sizes", type=Path, metavar="FILE", help=f".npy, or text with {lines}")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from coke.bounded.command import run

    with cleaning_up():
        run(options)
    return 0
