"""The work behind `coke cluster` and `coke assign`: check everything, open, share out, fit, write, say.

With torchrun every process runs this, on its own part of the rows; the first one writes and speaks.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from coke import distributed
from coke.bounded.command.files import Clustering, assignments_file, clustering_file, read_clustering
from coke.bounded.command.job import Job
from coke.bounded.command.places import places
from coke.bounded.command.processes import in_order, joined, open_together, together
from coke.bounded.command.progress import watched
from coke.bounded.command.restore import restored
from coke.bounded.command.summary import aligned, gap_line, size_lines
from coke.bounded.estimator import ConstrainedKMeans
from coke.bounded.sizes import resolve_bounds
from coke.bounded.sweep import count_labels
from coke.errors import ConfigError, DataError
from coke.vectors import Vectors

if TYPE_CHECKING:
    from rich.console import Console

Lines = list[tuple[str, str]]


def cluster(
    job: Job,
    n_clusters: int | None = None,
    *,
    metric: str | None = None,
    start: Path | None = None,
    centers: Path | None = None,
    seed: int = 0,
    **settings: Any,
) -> Clustering:
    """Cluster the vectors of a file or folder, and write what came of it.

    Args:
        job: data, output and sizes.
        n_clusters: K; may be left out with ``start``.
        metric: ``"euclidean"`` or ``"cosine"``; default: that of ``start``, else Euclidean.
        start: an earlier clustering, whose centers and duals to go on from: clusters keep their numbers.
        centers: safetensors, to be written: centers and duals; default: beside ``job.out``.
        seed: of the start.
        settings: further parameters of `ConstrainedKMeans`: ``init``, ``n_init``, ``max_iter``, ``tol``.

    Raises:
        CokeError: whatever cannot work, before any work.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> np.save(folder / "rows.npy", np.random.default_rng(0).normal(size=(100, 4)))
    >>> job = Job(folder / "rows.npy", folder / "clusters.parquet", {"min_size": 15})
    >>> bool((cluster(job, 5).counts >= 15).all())
    True
    >>> sorted(path.name for path in folder.iterdir())
    ['clusters.parquet', 'clusters.safetensors', 'rows.npy']
    """
    began = time.monotonic()
    centers = job.out.with_suffix(".safetensors") if centers is None else centers
    with joined(job.device) as device:
        console = job.console if distributed.rank() == 0 else None
        with together():
            if distributed.rank() == 0:
                job.check_files(centers)
            earlier = None if start is None else read_clustering(start)
            if earlier is not None:
                n_clusters = _as_before("--k", n_clusters, len(earlier.centers), start)
                metric = _as_before("--metric", metric, earlier.metric, start)
                if "init" in settings:
                    raise ConfigError("--init and --start both say where to begin: leave out one of them")
            if n_clusters is None:
                raise ConfigError(
                    "--k is missing: say how many clusters, or name an earlier clustering with --start"
                )
            if not 0 <= seed < 2**32:
                raise ConfigError(f"--seed must lie in 0 ... 2^32 - 1, got {seed}")
            sizes = job.all_sizes()
        vectors = open_together(job.data, column=job.column, device=device)
        bounds = resolve_bounds(vectors.n_rows, n_clusters, **sizes)
        settings |= {**sizes, "random_state": seed}
        if earlier is None:
            km = ConstrainedKMeans(n_clusters, metric=metric or "euclidean", **settings)
        else:
            _check_features(earlier, start, vectors)
            km = restored(earlier, **settings)
        _say(console, f"{_described(vectors)}; {_clusters(n_clusters)}, {km.metric}")
        with _own_rows(vectors, console) as rows:
            km.set_params(verbose=int(console is not None)).fit(rows)
            facts = {**_in_json(sizes), "n_rows": vectors.n_rows, "seed": seed, "n_iter": km.n_iter_}
            facts |= {"inertia": km.inertia_, "lower_bound": km.lower_bound_, "gap": km.gap_}
            tensors = [torch.from_numpy(values) for values in (km.cluster_centers_, km.duals_, km.counts_)]
            found = Clustering(tensors[0], tensors[1], tensors[2], km.metric, facts)
            lines = _write(job.out, torch.from_numpy(km.labels_), rows, found, facts, centers)
        at_rest = "" if km.n_iter_ < km.max_iter else ", the most allowed: --max-iter sets it"
        summary = [*size_lines(found.counts, bounds), *([gap_line(km.gap_)] if sizes else []), *lines]
        summary += [("inertia", f"{km.inertia_:.6g}"), ("iterations", f"{km.n_iter_}{at_rest}")]
        _conclude(console, summary, began, job.out, centers)
    return found


def assign(job: Job, file: Path) -> Tensor:
    """Put other vectors into the clusters of a file: the nearest, or within sizes that hold on these vectors.

    Args:
        job: data, output and sizes.
        file: safetensors of an earlier clustering.

    Returns:
        Rows of each cluster, int64 [K].

    Raises:
        CokeError: whatever cannot work, before any work.
    """
    began = time.monotonic()
    with joined(job.device) as device:
        console = job.console if distributed.rank() == 0 else None
        with together():
            if distributed.rank() == 0:
                job.check_files()
            known = read_clustering(file)
            sizes = job.all_sizes()
        vectors = open_together(job.data, column=job.column, device=device)
        n_clusters = len(known.centers)
        bounds = resolve_bounds(vectors.n_rows, n_clusters, **sizes)
        _check_features(known, file, vectors)
        km = restored(known)
        _say(console, f"{_described(vectors)}; {_clusters(n_clusters)} of {file}, {known.metric}")
        cost: Lines = []
        with _own_rows(vectors, console) as rows:
            facts = {**_in_json(sizes), "n_rows": vectors.n_rows, "centers": file.name}
            if sizes:
                found = km.assignment(rows, **sizes)
                labels = found.labels.cpu()
                facts |= {"inertia": found.cost, "lower_bound": found.lower_bound, "gap": found.gap}
                cost = [gap_line(found.gap), ("inertia", f"{found.cost:.6g}")]
            else:
                labels = torch.from_numpy(km.predict(rows))
            counts = count_labels(labels, n_clusters)
            lines = _write(job.out, labels, rows, known, facts)
        _conclude(console, [*size_lines(counts, bounds), *cost[:1], *lines, *cost[1:]], began, job.out)
    return counts


def _check_features(known: Clustering, file: Path | None, vectors: Vectors) -> None:
    if known.centers.shape[1] != vectors.n_features:
        raise DataError(
            f"{vectors.name} has {vectors.n_features} features, the centers of {file} have "
            f"{known.centers.shape[1]}: both must come from the same embedding"
        )


def _as_before(flag: str, asked: Any, known: Any, start: Path | None) -> Any:
    """What an earlier clustering has, which must not be asked for differently."""
    if asked not in (None, known):
        raise ConfigError(
            f"{flag} {asked} does not go with --start {start}, which has {known}: leave {flag} out"
        )
    return known


@contextmanager
def _own_rows(vectors: Vectors, console: Console | None) -> Iterator[Vectors]:
    """This process's part of the rows, with a bar on a terminal; warnings inside become notes."""
    part = distributed.shard(vectors.n_rows)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        with watched(vectors.slice(part.start, part.stop), console) as rows:
            yield rows
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            _say(console, f"note: {warning.message}")


def _write(
    out: Path,
    labels: Tensor,
    rows: Vectors,
    known: Clustering,
    facts: Mapping[str, Any],
    centers: Path | None = None,
) -> Lines:
    """Write the files on rank 0, from the places that every process finds for its rows; what there is to say."""
    n_rows, distance, n_moved = facts["n_rows"], 0.0, 0
    records = in_order(places(rows, labels, known.centers, known.metric), n_rows)
    with together():
        try:
            if distributed.rank() == 0:
                beside = nullcontext() if centers is None else clustering_file(centers, known)
                with beside, assignments_file(out, known.metric, facts) as write:
                    for block in records:
                        write(block)
                        distance += float(block["distance"].sum(dtype=np.float64))
                        n_moved += int((block["margin"] < 0).sum())
            _exhaust(records)
        except OSError as error:
            _exhaust(records)  # the others are still sending
            raise DataError(f"{out} cannot be written: {error}") from error
    moved = f"{n_moved:,} rows ({n_moved / n_rows:.2%}) out of their nearest cluster, for the bounds' sake"
    return [("distance", f"{distance / n_rows:.6g} on average"), *([("moved", moved)] if n_moved else [])]


def _exhaust(records: Iterator[Any]) -> None:
    for _ in records:
        pass


def _in_json(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes as JSON holds them."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in sizes.items()}


def _described(vectors: Vectors) -> str:
    shape = f"{vectors.n_rows:,} rows of {vectors.n_features:,} features, {str(vectors.dtype)[6:]}"
    count = distributed.world_size()
    return f"{vectors.name}: {shape}" + (f", on {count} processes" if count > 1 else "")


def _clusters(count: int) -> str:
    return f"{count:,} cluster{'s' if count > 1 else ''}"


def _conclude(console: Console | None, lines: Lines, began: float, *written: Path) -> None:
    ends = [("time", f"{time.monotonic() - began:.1f} s"), ("written", ", ".join(map(str, written)))]
    _say(console, aligned([*lines, *ends]))


def _say(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)
