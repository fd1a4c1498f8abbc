"""What `coke explore` does: check what is asked, place all rows on a map beside their neighbours, write, serve."""

from __future__ import annotations

import math
import signal
import time
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from coke.atomic import atomic
from coke.bounded.places import places
from coke.errors import BoundsError, ConfigError, DataError
from coke.explore import atlas
from coke.explore.items import Items, check_directions, items_of_embeddings, items_of_run
from coke.explore.map import map_of
from coke.explore.neighbours import ALL_PAIRS, Neighbours, find_neighbours, sums_of_directions
from coke.explore.table import center_labels, write_table
from coke.model.predict import columns_of
from coke.output import check_output, is_writable
from coke.progress import progress_bar
from coke.run import Run, is_run
from coke.vectors import open_vectors

Array = np.ndarray[Any, Any]
_BLOCK = 1 << 14  # rows
N_NEIGHBOURS = 15
_PAIRS_OF_A_ROW = 8  # times the square root of N: what clusters may cost, else groups are made that cost less


def explore(options: Namespace) -> int:
    """`coke explore`; returns its exit code. Raises `CokeError` before any work."""
    console, began = Console(highlight=False, markup=False, soft_wrap=True), time.monotonic()
    check(options)
    command = atlas.find_explorer() if options.export is not None or not options.no_serve else []
    items = _items(options)
    if options.k is not None and not 1 <= options.k <= items.n_rows:
        raise BoundsError(f"--k {options.k}: there are {items.n_rows:,} rows, so 1 ... {items.n_rows:,}")
    console.print(f"{items.name}: {items.n_rows:,} rows")
    with TemporaryDirectory(prefix="coke-explore-") as folder:
        out = options.out or Path(folder) / "table.parquet"
        columns = make_table(items, out, options, console)
        labels = labels_file(out) if "cluster" in columns else None
        if options.out is not None:
            written = str(out) if labels is None else f"{out}, {labels}"
            console.print(f"{written}: {time.monotonic() - began:.1f} s")
        told = atlas.arguments(out, columns, labels)
        if options.export is not None:
            atlas.export(command, told, options.export)
            server = f"python -m http.server --bind {atlas.LOOPBACK[0]}"
            console.print(f"{options.export}: {server} --directory {options.export}")
        elif not options.no_serve:
            port = atlas.free_port(options.port)
            ready = f"http://{atlas.LOOPBACK[0]}:{port}\nCtrl-C ends it"
            number = atlas.serve(command, told, port, ready)
            return 0 if number == signal.SIGINT else 128 + number
    return 0


def check(options: Namespace) -> None:
    """Raise `ConfigError` for what cannot be written or served, before anything is read."""
    out, folder = options.out, options.export
    atlas.check_host(options.host)
    if not options.no_serve and folder is None:
        atlas.free_port(options.port)
    if options.no_serve and out is None and folder is None:
        raise ConfigError("--no-serve leaves nothing to do: name --out FILE.parquet or --export FOLDER")
    if out is not None:
        read = [path for path in (options.what, options.clusters) if path is not None]
        for file in (out, labels_file(out)):
            check_output(file, ".parquet", overwrite=options.overwrite, reads=read)
    if folder is not None and (folder.is_file() or (folder.is_dir() and any(folder.iterdir()))):
        raise ConfigError(f"--export {folder}: it is not empty: name a new folder")
    if folder is not None and not is_writable(folder):
        raise ConfigError(f"--export {folder} cannot be written: nothing can be made in {folder.parent}")
    if options.map == "umap" and find_spec("umap") is None:
        remedy = "pip install 'coke-ssl[map]', or --map pca"
        raise ConfigError(f"--map umap: umap-learn is not installed: {remedy}")
    if options.k is not None and options.clusters is not None:
        raise ConfigError("--k makes clusters and --clusters names some: leave out one of them")


def labels_file(out: Path) -> Path:
    """Where labels at clusters' places go, beside a table."""
    return out.with_name(f"{out.stem}.labels.parquet")


def _items(options: Namespace) -> Items:
    what = options.what
    asked = {"head": options.head, "data": options.data, "image_column": options.image_column}
    of_embeddings = {"clusters": options.clusters, "column": options.column}
    if is_run(what):
        for name, value in {**of_embeddings, "k": options.k}.items():
            if value is not None:
                own = f"{what} is a run, which has clusters of its own"
                raise ConfigError(f"--{name} is for embeddings; {own}")
        return items_of_run(Run(what), **asked)
    if not what.exists():
        raise DataError(f"{what}: there is no such run folder, and no such file or folder of embeddings")
    return items_of_embeddings(what, **asked, **of_embeddings)


def make_table(items: Items, out: Path, options: Namespace, console: Console) -> Sequence[str]:
    """Write the table, and labels beside it where there are clusters; returns the columns' names."""
    where, near = items.map, items.near
    for sentence in items.said:
        console.print(sentence)
    if items.vectors is not None:
        with progress_bar(console, "vectors") as progress:
            vectors = items.vectors(progress)
        check_directions(vectors, items.name, zeros=True)
        if options.k is not None:
            items.clusters = _clustered(vectors, options.k, options.seed)
        near, words = neighbours_of(vectors, items.clusters.get("cluster"))
        console.print(f"neighbours: {words}")
        if where is None or options.map is not None:
            where = map_of(vectors, near, method=options.map, seed=options.seed)
    elif options.map is not None:
        raise ConfigError(
            f"--map {options.map}: {items.name} has its own map alone, for want of images: --data"
        )
    if where is None or near is None:
        raise DataError(f"{items.name}: there are neither vectors nor a map")
    is_best = "UMAP" in where.words or find_spec("umap") is not None
    console.print(f"map: {where.words}{'' if is_best else '; UMAP: pip install coke-ssl[map]'}")
    with progress_bar(console, "rows") as progress:
        missing = write_table(out, items, where, near, progress)
    if missing:
        row, why = next(iter(missing.items()))
        name = items.images.keys[row] if items.images is not None else row
        console.print(
            f"{len(missing):,} of {items.n_rows:,} rows have no picture, the first is {name}: {why}"
        )
    labels_file(out).unlink(missing_ok=True)
    if items.clusters:
        with atomic(labels_file(out), "wb") as stream:
            pq.write_table(center_labels(where, items.clusters, items.names.get("label")), stream)
    return pq.read_schema(out).names


def neighbours_of(vectors: Array, cluster: Any | None) -> tuple[Neighbours, str]:
    """The 15 most similar rows of each of N, and among which they were looked for."""
    n_rows = len(vectors)
    k = max(1, min(N_NEIGHBOURS, n_rows - 1))
    if n_rows <= ALL_PAIRS:
        return find_neighbours(vectors, k), f"the {k} most similar of all rows"
    words = f"the {k} most similar of its own cluster and the 3 nearest ones"
    if cluster is not None and not cluster.null_count:
        _, labels = np.unique(cluster.to_numpy(), return_inverse=True)
        sizes = np.bincount(labels)
        if (sizes.astype(float) ** 2).sum() <= _PAIRS_OF_A_ROW * n_rows**1.5:
            centers = sums_of_directions(vectors, labels, len(sizes))
            return find_neighbours(vectors, k, labels=labels, centers=centers), words
    n_groups, labels = math.isqrt(n_rows), np.zeros(n_rows, np.int64)
    blocks = (vectors[first : first + _BLOCK] for first in range(0, n_rows, _BLOCK))
    known = np.concatenate([(block != 0).any(axis=1) for block in blocks])  # zeros are like no other anywhere
    km = _fitted(vectors if known.all() else vectors[known], n_groups, 0, max_size_ratio=2, max_iter=5)
    labels[known] = km.labels_
    found = find_neighbours(vectors, k, labels=labels, centers=km.cluster_centers_)
    return found, f"the {k} most similar of one of {n_groups:,} groups, made for this, and the 3 nearest ones"


def _fitted(vectors: Array, k: int, seed: int, **settings: Any) -> Any:
    from coke.bounded import ConstrainedKMeans

    return ConstrainedKMeans(k, metric="cosine", random_state=seed, **settings).fit(vectors)


def _clustered(vectors: Array, k: int, seed: int) -> dict[str, Any]:
    """K clusters by cosine, with a row's cosine to its center and its margin to the nearest other one."""
    km = _fitted(vectors, k, seed)
    place = places(open_vectors(vectors), km.labels_, km.cluster_centers_, km.metric)
    return {name.removesuffix("_0"): pa.array(column) for name, column in columns_of(0, place).items()}
