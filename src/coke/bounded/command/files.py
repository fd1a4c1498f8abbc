"""What a clustering leaves on disk: the names, formats and versions of its two files.

    NAME.parquet       a line for each row of the data, in its order: row, cluster, distance, margin, second
    NAME.safetensors   centers [K, D], duals [K], counts [K]: all that a later assignment or fit needs

Both hold in their metadata, under "coke clustering", how they came about, as JSON: format_version, coke_version,
metric, and facts such as bounds, gap and seed. They appear under their names only when they are whole, and the
same clustering gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coke import __version__
from coke.atomic import atomic
from coke.bounded.costs import COSINE, EUCLIDEAN
from coke.errors import ConfigError, DataError

KIND = "coke clustering"
FORMAT_VERSION = 1

PLACE = np.dtype([("cluster", "<i4"), ("distance", "<f4"), ("margin", "<f4"), ("second", "<i4")])
"""A row's place among the clusters, see `coke.bounded.command.places`; ``second`` is -1 where there is one only."""

_ROW_GROUP = 2**18  # rows: 6 MiB in memory before they are compressed


@dataclass(frozen=True, eq=False)
class Clustering:
    """Centers and all that goes with them.

    Attributes:
        centers: [K, D], as the fit returned them.
        duals: float64 [K], what was added to each cluster's attraction to hold the bounds.
        counts: int64 [K], rows of each cluster.
        metric: ``"euclidean"`` or ``"cosine"``.
        facts: what else is known: bounds, gap, inertia, n_rows, n_iter, seed. Anything JSON holds.
    """

    centers: Tensor
    duals: Tensor
    counts: Tensor
    metric: str = "euclidean"
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_clustering(path: Path, clustering: Clustering) -> None:
    """Write the safetensors file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "clusters.safetensors"
    >>> written = Clustering(torch.eye(2), torch.zeros(2), torch.tensor([3, 4]), facts={"gap": 0.5})
    >>> write_clustering(path, written)
    >>> read_clustering(path).counts.tolist(), read_clustering(path).facts["gap"]
    ([3, 4], 0.5)
    """
    with clustering_file(path, clustering):
        pass


@contextmanager
def clustering_file(path: Path, clustering: Clustering) -> Iterator[None]:
    """The safetensors file, written at once and under its name only where what happens inside has succeeded."""
    from safetensors.torch import save

    tensors = {
        "centers": clustering.centers.detach().cpu().contiguous(),
        "duals": clustering.duals.detach().cpu().double().contiguous(),
        "counts": clustering.counts.detach().cpu().long().contiguous(),
    }
    with atomic(path, "wb") as stream:
        stream.write(save(tensors, _about(clustering.metric, clustering.facts)))
        stream.flush()  # a full disk is noticed here
        yield


def read_clustering(path: Path) -> Clustering:
    """Read the safetensors file.

    Raises:
        DataError: nothing there, another kind of file or a later version, or tensors that do not fit together.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        with safe_open(path, "pt") as file:
            about = _checked(path, (file.metadata() or {}).get(KIND))
            missing = {"centers", "duals", "counts"} - set(file.keys())
            if missing:
                raise DataError(f"{path} is not whole, it lacks {', '.join(sorted(missing))}: write it anew")
            tensors = {name: file.get_tensor(name) for name in ("centers", "duals", "counts")}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read as safetensors: {_one_line(error)}") from error
    _check_tensors(path, tensors)
    return Clustering(**tensors, metric=about.pop("metric"), facts=about)


def _about(metric: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """Metadata. In one entry: safetensors writes several in whatever order."""
    own = {"format_version": FORMAT_VERSION, "coke_version": __version__, "metric": metric}
    return {KIND: json.dumps({**own, **facts})}


def _checked(path: Path, text: str | None) -> dict[str, Any]:
    """Metric and facts out of the metadata."""
    try:
        about = dict(json.loads(text or ""))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path} holds no clustering: it is safetensors of another kind; name the file that "
            "`coke cluster` wrote beside its parquet"
        ) from error
    version, writer = about.pop("format_version", "?"), about.pop("coke_version", "?")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format {version!r} (of coke {writer}), this coke ({__version__}) reads "
            f"{FORMAT_VERSION}: install the coke that wrote it, or write it anew"
        )
    if isinstance(inertia := about.get("inertia", 0.0), bool) or not isinstance(inertia, int | float):
        raise DataError(f"{path} is damaged: inertia {inertia!r} is no number")
    metric, known = about.get("metric"), (EUCLIDEAN, COSINE)
    if metric not in known:
        raise DataError(f"{path} has metric {metric!r}, this coke knows {' and '.join(known)}")
    return dict(about)


def _check_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    centers, n_clusters = tensors["centers"], len(tensors["duals"])
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    kinds = [tensors[name].dtype for name in ("centers", "duals", "counts")]
    if kinds[0] not in (torch.float32, torch.float64) or kinds[1:] != [torch.float64, torch.int64]:
        raise DataError(f"{path} is damaged: its tensors are of {', '.join(map(str, kinds))}")
    fits = centers.ndim == 2 and min(centers.shape) > 0
    if not fits or any(shapes[name] != [len(centers)] for name in ("duals", "counts")):
        raise DataError(f"{path} is damaged: its tensors have shapes {shapes}, not [K, D], [K] and [K]")
    if not all(bool(torch.isfinite(tensors[name]).all()) for name in ("centers", "duals")):
        raise DataError(f"{path} is damaged: NaN or infinity among its {n_clusters} centers or duals")
    if bool((tensors["counts"] < 0).any()):
        raise DataError(f"{path} is damaged: negative counts")


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def assignments_file(
    path: Path, metric: str, facts: Mapping[str, Any]
) -> Iterator[Callable[[np.ndarray[Any, Any]], None]]:
    """A parquet file that grows by what is passed to the function given: `PLACE` records [b], in order.

    Args:
        path: where it appears at the end.
        metric, facts: what goes into its metadata.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [("row", pa.int64()), ("cluster", pa.int32()), ("distance", pa.float32())]
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns]
    fields += [pa.field("margin", pa.float32()), pa.field("second", pa.int32())]
    schema = pa.schema(fields, _about(metric, facts))
    held: list[np.ndarray[Any, Any]] = []
    n_written = 0

    with atomic(path, "wb") as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:

        def flush() -> None:
            nonlocal n_written
            places = np.concatenate(held)
            held.clear()
            alone = places["second"] < 0
            rows = np.arange(n_written, n_written + len(places))
            arrays = [pa.array(rows), *(pa.array(places[name].copy()) for name in ("cluster", "distance"))]
            arrays += [pa.array(places[name].copy(), mask=alone) for name in ("margin", "second")]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=len(places))
            n_written += len(places)

        def write(places: np.ndarray[Any, Any]) -> None:
            held.append(places)
            if sum(map(len, held)) >= _ROW_GROUP:
                flush()

        yield write
        if held:
            flush()


def check_out(path: Path, suffix: str, flag: str, *, overwrite: bool = False) -> None:
    """Raise `ConfigError` where a file cannot or must not be written, before any work.

    >>> check_out(Path("clusters.csv"), ".parquet", "--out")
    Traceback (most recent call last):
    coke.errors.ConfigError: --out clusters.csv: it is written as parquet, so let its name end in .parquet
    """
    if path.suffix != suffix:
        raise ConfigError(f"{flag} {path}: it is written as {suffix[1:]}, so let its name end in {suffix}")
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{flag} {os.fsencode(path)!r} is not UTF-8, and could not be read again"
        ) from error
    if path.is_dir():
        raise ConfigError(f"{flag} {path} is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise ConfigError(f"{flag} {path} exists: pass --overwrite to replace it, or name another file")
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} {path}: there is no folder {path.parent}, make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{flag} {path}: nothing can be written to {path.parent}, name another folder")
