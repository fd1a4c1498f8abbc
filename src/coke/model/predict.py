"""Images into a head's clusters: the nearest, or the best within sizes. The one place where this is done.

Shapes: N images, D dimensions, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coke.atomic import atomic
from coke.bounded.places import places
from coke.model.embed import Embedded, Partial, Progress
from coke.model.listed import Listed
from coke.output import check_output
from coke.vectors import open_vectors

if TYPE_CHECKING:
    from coke.bounded.estimator import ConstrainedKMeans
    from coke.model.model import Model

Array = np.ndarray[Any, Any]


def placed(km: ConstrainedKMeans, projections: Any, **sizes: Any) -> tuple[Array, Array]:
    """Where unit vectors [N, D] lie among a head's clusters: records `coke.bounded.places.PLACE` [N], and prices [K].

    Without sizes each is in the nearest cluster (prices are 0); with any (`ConstrainedKMeans.assign`) all are where
    these hold and the sum of 1 - cosine is least.
    """
    if any(size is not None for size in sizes.values()):
        within = km.assignment(projections, **sizes)
        labels, prices = within.labels, within.prices.value
    else:
        labels, prices = km.predict(projections), np.zeros(km.n_clusters)
    return places(open_vectors(projections), labels, km.cluster_centers_, km.metric), prices


def columns_of(head: int, place: Array) -> dict[str, Any]:
    """A head's columns of a table: cluster, cosine to its center, the nearest other, and how much smaller its is."""
    lone = place["second"] < 0
    return {
        f"cluster_{head}": place["cluster"],
        f"score_{head}": 1 - place["distance"],
        f"margin_{head}": pa.array(place["margin"], mask=lone),
        f"second_{head}": pa.array(place["second"], mask=lone),
    }


def predict_data(
    model: Model,
    data: str | Path | Listed,
    out: str | Path,
    *,
    heads: Iterable[int] = (0,),
    sizes: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    progress: Progress = lambda done, total: None,
) -> Embedded:
    """Write the clusters of every image of a data set, in its order: `placed` for each head.

    Args:
        model: from `coke.load`, with projector and clusters.
        data, batch_size, workers, progress: as for `embed_data`.
        out: a .parquet file: ``key``, ``label`` where there are any, and per head cluster, score, margin, second.
        heads: which of the model's.
        sizes: ``min_size`` and the like; they hold among these images.
    """
    out, heads = Path(out), list(heads)
    check_output(out, ".parquet", overwrite=True)
    for head in heads or [0]:
        model.check_head(head)
    batch_size, images = model.images_of_a_pass(batch_size), Listed.of(data)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent) as folder:
        partial = Partial(Path(folder) / "projections", {}, "float32")
        for pixels, failed, stop in images.batches(model.preprocessing, batch_size, workers):
            partial.add(model.features(pixels, "projection") if len(pixels) else None, failed, stop)
            progress(stop, len(images))
        unreadable = images.left_out(partial.failed, out)
        table: dict[str, Any] = {**images.columns(partial.failed)}
        projections = partial.rows()
        for head in heads:
            table |= columns_of(head, placed(model.heads[head], projections, **(sizes or {}))[0])
        with atomic(out, "wb") as stream:
            pq.write_table(pa.table(table), stream, compression="zstd")
    return Embedded(partial.n_rows, partial.shape, unreadable)
