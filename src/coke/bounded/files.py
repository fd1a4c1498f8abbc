"""clusters.safetensors: the one format in which clusters are kept, by `coke cluster` and by `coke pretrain`.

    centers_h [K, D], duals_h float64 [K], counts_h int64 [K]    for every head h = 0, 1, ...
    trained_centers_h [K, D]    of `coke pretrain`: those of its last epoch, of augmented views, to go on from

Its metadata say under "coke clustering", as JSON: format_version, coke_version, metric, and facts such as bounds,
gap and seed. The same clusters give the same bytes. Format 1 had one head, without a number in its names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coke import __version__
from coke.errors import DataError
from coke.reading import reading_as

if TYPE_CHECKING:
    from coke.bounded.estimator import ConstrainedKMeans

KIND, FORMAT_VERSION = "coke clustering", 2


def about(metric: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """Metadata. In one entry: safetensors writes several in whatever order."""
    own = {"format_version": FORMAT_VERSION, "coke_version": __version__, "metric": metric}
    return {KIND: json.dumps({**own, **facts})}


def as_bytes(
    heads: Sequence[Sequence[Tensor]],
    metric: str,
    facts: Mapping[str, Any],
    more: Mapping[str, Tensor] | None = None,
) -> bytes:
    """The file's content.

    heads: of each its centers [K, D], duals [K] and counts [K]; facts: what JSON holds; more: other tensors by name.
    """
    from safetensors.torch import save

    tensors = dict(more or {})
    for head, (centers, duals, counts) in enumerate(heads):
        values = {"centers": centers, "duals": duals.double(), "counts": counts.long()}
        tensors |= {f"{name}_{head}": each.detach().cpu().contiguous() for name, each in values.items()}
    return save(tensors, about(metric, facts))


def load_clustering(path: str | Path, head: int = 0) -> ConstrainedKMeans:
    """The estimator of a file of `coke cluster` or `coke pretrain`: predict, assign, transform work at once.

    ``fit`` and ``partial_fit`` go on from its centers and duals, so that clusters keep their numbers. Sizes belong to
    a set of rows, not to the file: give them to `assign`, or set them before `fit`. ``predict`` gives the nearest
    center; pretraining put an image where ``transform(X) - duals_`` is smallest.

    Args:
        path: the safetensors file.
        head: which of several clusterings that `coke pretrain` learned at once.

    Raises:
        DataError: nothing there, another kind of file, a later version, no such head, or damaged tensors.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "clusters.safetensors"
        >>> head = (torch.tensor([[0.0], [8.0]]), torch.zeros(2), torch.tensor([3, 4]))
        >>> _ = path.write_bytes(as_bytes([head], "euclidean", {}))
        >>> load_clustering(path).predict([[7.0], [1.0]]).tolist()
        [1, 0]
    """
    facts, heads = _read(Path(path))
    if not 0 <= head < len(heads):
        raise DataError(f"{path} has no head {head}: it has {len(heads)}, numbered from 0")
    return estimator_of(*heads[head], metric=facts["metric"], inertia=facts["inertia"])


def load_clusterings(path: str | Path) -> list[ConstrainedKMeans]:
    """The estimators of all heads of a file, read once. Raises as `load_clustering` does."""
    facts, heads = _read(Path(path))
    return [estimator_of(*head, metric=facts["metric"], inertia=facts["inertia"]) for head in heads]


def estimator_of(
    centers: Tensor, duals: Tensor, counts: Tensor, *, metric: str, inertia: float = float("nan")
) -> ConstrainedKMeans:
    """An estimator with these clusters, as if it had been fitted: centers [K, D], duals [K], counts [K]."""
    from coke.bounded.estimator import ConstrainedKMeans

    km = ConstrainedKMeans(len(centers), metric=metric, warm_start=True)
    km.cluster_centers_, km.duals_, km.counts_ = centers.numpy(), duals.double().numpy(), counts.numpy()
    km._weights = counts.double()  # `partial_fit` goes on from these
    km.inertia_ = inertia
    km.n_features_in_, km._n_features_out = centers.shape[1], len(centers)
    return km


def _read(path: Path) -> tuple[dict[str, Any], list[tuple[Tensor, Tensor, Tensor]]]:
    """The facts of a file, and of each head its centers [K, D], duals [K] and counts [K]."""
    from safetensors import safe_open

    with reading_as("safetensors", path), safe_open(path, "pt") as file:
        facts = json.loads((file.metadata() or {}).get(KIND, "null"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no mapping
    if not isinstance(facts, dict):
        raise DataError(f"{path} holds no clustering: name a file of `coke cluster` or `coke pretrain`")
    version, metric = facts.get("format_version"), facts.get("metric")
    inertia = facts.setdefault("inertia", float("nan"))
    if isinstance(inertia, int) and abs(inertia) < 1e308:
        inertia = facts["inertia"] = float(inertia)
    if isinstance(version, int) and version > FORMAT_VERSION:
        came = f"format {version} (of coke {facts.get('coke_version', '?')})"
        raise DataError(f"{path} has {came}, this coke reads up to {FORMAT_VERSION}: install a newer coke")
    if version not in (1, FORMAT_VERSION) or metric not in ("euclidean", "cosine"):
        came = f"format {version!r} (of coke {facts.get('coke_version', '?')}) and metric {metric!r}"
        wanted = f"format {FORMAT_VERSION} and euclidean or cosine"
        raise DataError(f"{path} has {came}, this coke ({__version__}) reads {wanted}: write it anew")
    n_heads = sum(name.startswith("centers") for name in tensors)
    heads = []
    for head in range(n_heads):
        names = [name if version == 1 else f"{name}_{head}" for name in ("centers", "duals", "counts")]
        centers, duals, counts = found = [tensors.get(name, torch.empty(0)) for name in names]
        sound = (
            (isinstance(inertia, float) or (isinstance(inertia, int) and abs(inertia) <= sys.float_info.max))
            and centers.dtype in (torch.float32, torch.float64)
            and (duals.dtype, counts.dtype) == (torch.float64, torch.int64)
            and centers.ndim == 2
            and 0 not in centers.shape
            and duals.shape == counts.shape == centers.shape[:1]
            and all(bool(values.isfinite().all()) for values in found)
            and not bool((counts < 0).any())
        )
        if not sound:
            came = ", ".join(
                f"{name} {v.dtype} {list(v.shape)}" for name, v in zip(names, found, strict=True)
            )
            wanted = "[K, D] float, [K] float64, [K] int64, all finite and no count negative"
            raise DataError(
                f"{path} is damaged: it has {came}, inertia {inertia!s:.20}, not {wanted}: write it anew"
            )
        heads.append((centers, duals, counts))
    return facts, heads
