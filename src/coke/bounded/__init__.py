"""Clustering whose cluster sizes hold: of use by itself, for vectors from anywhere. Needs no images.

Names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coke.bounded.balanced import assign_balanced
    from coke.bounded.estimator import ConstrainedKMeans
    from coke.bounded.files import load_clustering
    from coke.bounded.sizes import check_sizes

_HOMES = {
    "ConstrainedKMeans": "estimator",
    "assign_balanced": "balanced",
    "check_sizes": "sizes",
    "load_clustering": "files",
}
__all__ = ["ConstrainedKMeans", "assign_balanced", "check_sizes", "load_clustering"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'coke.bounded' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"coke.bounded.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
