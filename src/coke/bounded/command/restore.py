"""An estimator out of the file that `coke cluster` wrote, as if it had just been fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coke.bounded.command.files import Clustering, read_clustering
from coke.bounded.estimator import ConstrainedKMeans


def load_clustering(path: str | Path) -> ConstrainedKMeans:
    """The estimator of a safetensors file of `coke cluster`: predict, assign, transform work at once.

    ``fit`` and ``partial_fit`` go on from its centers and duals, so that clusters keep their numbers. Sizes belong to a
    set of rows, not to the file: give them to `assign`, or set them before `fit`.

    Raises:
        DataError: nothing there, another kind of file or a later version, or tensors that do not fit together.

    >>> import tempfile
    >>> import torch
    >>> from coke.bounded.command.files import write_clustering
    >>> path = Path(tempfile.mkdtemp()) / "clusters.safetensors"
    >>> write_clustering(path, Clustering(torch.tensor([[0.0], [8.0]]), torch.zeros(2), torch.tensor([3, 4])))
    >>> load_clustering(path).predict([[7.0], [1.0]]).tolist()
    [1, 0]
    """
    return restored(read_clustering(Path(path)))


def restored(known: Clustering, **settings: Any) -> ConstrainedKMeans:
    """A fitted estimator with further settings, that starts warm."""
    km = ConstrainedKMeans(len(known.centers), metric=known.metric, warm_start=True, **settings)
    km.cluster_centers_, km.duals_, km.counts_ = (
        values.numpy() for values in (known.centers, known.duals, known.counts)
    )
    km._weights = known.counts.double()  # `partial_fit` goes on from these
    km.inertia_ = float(known.facts.get("inertia", 0.0))
    km.n_features_in_, km._n_features_out = known.centers.shape[1], len(known.centers)
    return km
