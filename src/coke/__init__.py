"""Representation learning and size-constrained clustering by online constrained k-means (CoKe).

Names load on first use: ``import coke`` costs nothing, and the clustering half never loads the image half.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coke.api import evaluate, pretrain, write_report
    from coke.bounded.balanced import assign_balanced
    from coke.bounded.estimator import ConstrainedKMeans
    from coke.bounded.files import load_clustering
    from coke.bounded.sizes import check_sizes
    from coke.curation.curate import curate
    from coke.errors import CokeError
    from coke.method.dual_step import auto_dual_lr
    from coke.method.kmeans import OnlineConstrainedKMeans
    from coke.method.labels import LabelMemory
    from coke.method.objective import Objective
    from coke.model.export import export
    from coke.model.files import load
    from coke.run import Run

__version__ = "0.1.0"

_HOMES = {
    "CokeError": "coke.errors",
    "ConstrainedKMeans": "coke.bounded.estimator",
    "LabelMemory": "coke.method.labels",
    "Objective": "coke.method.objective",
    "OnlineConstrainedKMeans": "coke.method.kmeans",
    "Run": "coke.run",
    "assign_balanced": "coke.bounded.balanced",
    "auto_dual_lr": "coke.method.dual_step",
    "check_sizes": "coke.bounded.sizes",
    "curate": "coke.curation.curate",
    "evaluate": "coke.api",
    "export": "coke.model.export",
    "load": "coke.model.files",
    "load_clustering": "coke.bounded.files",
    "pretrain": "coke.api",
    "write_report": "coke.api",
}
__all__ = [
    "CokeError",
    "ConstrainedKMeans",
    "LabelMemory",
    "Objective",
    "OnlineConstrainedKMeans",
    "Run",
    "assign_balanced",
    "auto_dual_lr",
    "check_sizes",
    "curate",
    "evaluate",
    "export",
    "load",
    "load_clustering",
    "pretrain",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'coke' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
