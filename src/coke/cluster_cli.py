"""The verbs for vectors that are there already: `coke cluster` and `coke assign`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coke.bounded.command.job import Job

_SIZES = ("min_size", "max_size", "min_size_ratio", "max_size_ratio")


def add_verbs(verbs: Any) -> None:
    """Add both to the subparsers of `coke.cli`."""
    cluster = verbs.add_parser(
        "cluster",
        help="cluster vectors, with sizes that hold",
        description="Cluster vectors by k-means whose cluster sizes hold, and say how far from optimal it can be.",
        epilog="With several processes or machines: torchrun --nproc-per-node=4 -m coke cluster ...",
    )
    _add_data(cluster, "DATA")
    cluster.add_argument("--k", type=int, metavar="K", help="how many clusters")
    _add_sizes(cluster)
    cluster.add_argument("--metric", choices=("euclidean", "cosine"), help="default: euclidean")
    cluster.add_argument("--init", choices=("k-means++", "random"), help="how to start; default: k-means++")
    cluster.add_argument(
        "--start",
        type=Path,
        metavar="FILE",
        help="go on from an earlier clustering (.safetensors): its numbers stay",
    )
    cluster.add_argument(
        "--n-init",
        type=int,
        metavar="N",
        help="starts, of which the best is kept; default: 1, or 10 random ones",
    )
    cluster.add_argument(
        "--max-iter", type=int, metavar="N", help="moves of the centers, at most; default: 300"
    )
    cluster.add_argument(
        "--tol", type=float, metavar="T", help="when centers count as at rest; default: 1e-4"
    )
    cluster.add_argument("--seed", type=int, default=0, metavar="S", help="of the start; default: 0")
    _add_out(cluster)
    cluster.add_argument(
        "--centers", type=Path, metavar="FILE", help="centers and duals, .safetensors; default: beside --out"
    )
    cluster.set_defaults(run=_cluster)

    assign = verbs.add_parser(
        "assign",
        help="put other vectors into the clusters of an earlier run",
        description="Put other vectors into the clusters of an earlier run: each into the nearest, or, where sizes "
        "are given, so that these hold among the new vectors.",
    )
    assign.add_argument(
        "file", type=Path, metavar="FILE", help="the .safetensors file that `coke cluster` wrote"
    )
    _add_data(assign, "NEW_DATA")
    _add_sizes(assign)
    _add_out(assign)
    assign.set_defaults(run=_assign)


def _add_data(verb: argparse.ArgumentParser, name: str) -> None:
    verb.add_argument("data", type=Path, metavar=name, help=".npy, .parquet or a folder of them")
    verb.add_argument(
        "--column", metavar="NAME", help="of parquet: where the vectors are, if there are several"
    )
    verb.add_argument("--device", metavar="D", help="cpu (default) or cuda")


def _add_sizes(verb: argparse.ArgumentParser) -> None:
    sizes = verb.add_argument_group("sizes, of every cluster")
    for side, word in (("min", "at least"), ("max", "at most")):
        sizes.add_argument(f"--{side}-size", type=int, metavar="N", help=f"rows, {word}")
        sizes.add_argument(f"--{side}-size-ratio", type=float, metavar="R", help=f"{word} R times rows / K")
    sizes.add_argument(
        "--sizes",
        type=Path,
        dest="sizes_file",
        metavar="FILE",
        help=".npy, .csv or .txt with a line for each cluster: what it may hold, or what it must and what it may",
    )


def _add_out(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help=".parquet: row, cluster, distance to its center, margin to the nearest other, which that is",
    )
    verb.add_argument("--overwrite", action="store_true", help="replace files that exist")


def _job(options: argparse.Namespace) -> Job:
    from rich.console import Console

    from coke.bounded.command.job import Job

    return Job(
        data=options.data,
        out=options.out,
        sizes={name: getattr(options, name) for name in _SIZES},
        sizes_file=options.sizes_file,
        column=options.column,
        device=options.device,
        overwrite=options.overwrite,
        console=Console(),
    )


def _cluster(options: argparse.Namespace) -> int:
    from coke.bounded.command.verbs import cluster

    names = ("init", "n_init", "max_iter", "tol")
    settings = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    with _terminable():
        cluster(
            _job(options),
            options.k,
            metric=options.metric,
            start=options.start,
            centers=options.centers,
            seed=options.seed,
            **settings,
        )
    return 0


def _assign(options: argparse.Namespace) -> int:
    from coke.bounded.command.verbs import assign

    with _terminable():
        assign(_job(options), options.file)
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, as schedulers send it, ends like Ctrl-C, so that half-written files are removed.

    Under torchrun it ends at once as ever, since the others are ended too and none can be waited for.
    """
    if "RANK" in os.environ or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        print("coke: terminated", file=sys.stderr)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
