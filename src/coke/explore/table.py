"""The table that explorers take: a row for each item, in parquet; and labels at the clusters' places on the map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coke.atomic import atomic
from coke.explore.items import Items
from coke.explore.map import Map
from coke.explore.neighbours import Neighbours
from coke.explore.thumbnails import thumbnails

Array = np.ndarray[Any, Any]
_ROW_GROUP = 4096  # rows, whose pictures are held at a time
NEIGHBOURS = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))])
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_table(
    out: Path, items: Items, where: Map, near: Neighbours, progress: Callable[[int, int], None]
) -> dict[int, str]:
    """Write it by row groups, and return why pictures are missing, by row.

    | column | |
    |---|---|
    | image | {bytes, path}: a small JPEG, and its key; null where it cannot be read |
    | key, label | its name (a path, or "row 17") and its class, as far as there are any |
    | cluster, score or distance, margin, second | as `coke predict` and `coke cluster` write them, if there are any |
    | cluster_name | the same cluster in words, which explorers colour by |
    | similarity | float32, the highest cosine to another row |
    | row | int64, its number, which neighbours go by |
    | projection_x, projection_y | float32, its place on the map; the metadata say under "map" how it came there |
    | neighbors | {ids, distances}: the most similar other rows, and 1 - cosine |
    """
    names, label = {**items.names, **items.clusters}, items.names.get("label")
    if items.clusters:
        names["cluster_name"] = cluster_names(items.clusters, label)
    lone = near.rows[:, 0] < 0
    table = pa.table(
        {
            **names,
            "similarity": pa.array(near.similarity[:, 0], pa.float32(), mask=lone),
            "row": np.arange(items.n_rows),
            "projection_x": where.places[:, 0],
            "projection_y": where.places[:, 1],
        }
    )
    schema = table.schema.append(pa.field("neighbors", NEIGHBOURS)).with_metadata({"map": where.words})
    images, missing = items.images, dict[int, str]()
    pictures: Iterator[bytes | str] = iter(())
    if images is not None:
        schema = schema.insert(0, pa.field("image", PICTURE))
        pictures = thumbnails(images, range(items.n_rows))
    with atomic(out, "wb") as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for first in range(0, items.n_rows, _ROW_GROUP):
            part = table.slice(first, _ROW_GROUP)
            stop = first + part.num_rows
            columns = [*part.columns, _neighbours(near, first, stop)]
            if images is not None:
                found = list(islice(pictures, stop - first))
                missing |= {row: why for row, why in enumerate(found, first) if isinstance(why, str)}
                content = pa.array([None if isinstance(one, str) else one for one in found], pa.binary())
                values, unknown = [content, pa.array(images.keys[first:stop])], content.is_null()
                columns.insert(0, pa.StructArray.from_arrays(values, fields=list(PICTURE), mask=unknown))
            writer.write_table(pa.table(columns, schema=schema))
            progress(stop, items.n_rows)
    return missing


def _neighbours(near: Neighbours, first: int, stop: int) -> Any:
    rows = near.rows[first:stop]
    known = rows >= 0
    offsets = pa.array(np.concatenate([[0], known.sum(axis=1).cumsum()]), pa.int32())
    distances = (1 - near.similarity[first:stop][known]).clip(0).astype(np.float32)
    lists = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (rows[known], distances)]
    return pa.StructArray.from_arrays(lists, fields=list(NEIGHBOURS))


def cluster_names(clusters: dict[str, Any], label: Any | None) -> pa.Array:
    """Of each row that of its cluster: the cluster's number, and its most frequent class where classes are known.

    As words, since explorers take numbers for amounts. Null where a row has no cluster.

    >>> cluster_names({"cluster": pa.array([7, 7, None])}, pa.array(["cat", "cat", "dog"])).to_pylist()
    ['7 cat', '7 cat', None]
    """
    names = {cluster: _name(cluster, rows, label) for cluster, rows in _members(clusters)}
    return pa.array([names.get(cluster) for cluster in clusters["cluster"].to_pylist()], pa.string())


def center_labels(where: Map, clusters: dict[str, Any], label: Any | None) -> pa.Table:
    """A label for each cluster on the map: x, y, text (its name), and its size as priority, for each zoom (level 0).

    embedding-atlas 0.26 documents ``text`` and reads ``content``: both are there. A label stands at that one of the
    cluster's rows which lies nearest to the median of their places, so that it never stands between islands.
    """
    found = []
    for cluster, rows in _members(clusters):
        places = where.places[rows]
        x, y = places[((places - np.median(places, axis=0)) ** 2).sum(axis=1).argmin()].tolist()
        name = _name(cluster, rows, label)
        found.append({"x": x, "y": y, "text": name, "priority": len(rows), "content": name, "level": 0})
    kinds = {"x": pa.float64(), "y": pa.float64(), "text": pa.string(), "priority": pa.int64()}
    schema = pa.schema({**kinds, "content": pa.string(), "level": pa.int64()})
    return pa.Table.from_pylist(found, schema)


def _members(clusters: dict[str, Any]) -> Iterator[tuple[int, Array]]:
    """Each cluster that has rows, and these."""
    numbers = clusters["cluster"].fill_null(-1).to_numpy()
    order = np.argsort(numbers, kind="stable")
    shown, starts = np.unique(numbers[order], return_index=True)
    for cluster, rows in zip(shown.tolist(), np.split(order, starts[1:]), strict=True):
        if cluster >= 0:
            yield cluster, rows


def _name(cluster: int, rows: Array, label: Any | None) -> str:
    counts = [] if label is None else pc.value_counts(label.take(pa.array(rows)).drop_null()).to_pylist()
    if not counts:
        return str(cluster)
    most = max(counts, key=lambda one: (one["counts"], one["values"]))["values"]
    return f"{cluster} {most}"
