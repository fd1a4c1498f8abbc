"""The verb that opens an explorer, `coke explore`: its arguments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from coke.interrupt import cleaning_up


def add_verbs(verbs: Any) -> None:
    """Add it to the subparsers of `coke.cli`."""
    verb = verbs.add_parser(
        "explore",
        help="look at a run or at embeddings in a browser: map, pictures, neighbours, clusters",
        description="Place all rows on a map, with pictures, neighbours and clusters, and open them in the explorer of "
        "embedding-atlas, which this machine alone can reach. None is left out.",
        epilog="""\
examples:  coke explore runs/photos
           coke explore photos.parquet --data photos --clusters clusters.parquet
           coke explore runs/photos --export photos-explorer
before:    coke pretrain; or coke embed and coke cluster
needs:     pip install 'coke-ssl[explore]', or uvx on the PATH""",
    )
    add = verb.add_argument
    add(
        "what",
        type=Path,
        metavar="RUN|EMBEDDINGS",
        help="a run folder; or vectors: .parquet, .npy, a folder of them",
    )
    add("--data", metavar="DATA", help="the images, for pictures; of a run: where they lie now")
    add(
        "--clusters",
        type=Path,
        metavar="FILE",
        help="of embeddings: what `coke cluster` or `predict` wrote of them",
    )
    add("--head", type=int, metavar="H", help="whose clusters, if there are several heads; default: 0")
    add("--k", type=int, metavar="K", help="of embeddings: make K clusters by cosine; default: none")
    add("--map", choices=("umap", "pca"), help="default: umap where umap-learn is installed, else pca")
    add("--seed", type=int, default=0, metavar="S", help="of UMAP and of --k; default: 0")
    add("--column", metavar="NAME", help="of parquet: where the vectors are, if there are several")
    add("--image-column", metavar="NAME", help="of DATA in parquet or CSV; default: image")
    add = verb.add_argument_group("what becomes of it").add_argument
    add("--out", type=Path, metavar="FILE", help="keep the table, .parquet, and labels beside it")
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--export", type=Path, metavar="FOLDER", help="a static copy for any web server, in place of serving")
    add("--no-serve", action="store_true", help="write --out, and end")
    add("--host", default="127.0.0.1", metavar="H", help="127.0.0.1, and no other")
    add("--port", type=int, metavar="P", help="default: the first free one from 5055 on")
    verb.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from coke.explore.command import explore

    with cleaning_up():
        return explore(options)
