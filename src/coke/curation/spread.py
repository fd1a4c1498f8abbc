"""Which rows of a cluster are taken: the most typical first, then whatever is not yet stood for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from coke.explore.neighbours import unit_rows

Array = np.ndarray[Any, Any]


def spread_out(vectors: Any, rows: Array, center: Array, share: int) -> Array:
    """``share`` of a cluster's rows [n], in the order taken: nearest the center, then farthest from those taken.

    Farthest by cosine: Gonzalez' 2-approximation of the fewest balls that cover the cluster (Theoretical Computer
    Science 38, 1985). Of equals the first row is taken.

    >>> rows = np.array([[1.0, 0.0], [0.9, 0.1], [0.8, 0.3], [0.95, 0.05]])
    >>> spread_out(rows, np.arange(4), np.array([1.0, 0.1]), 2).tolist()
    [1, 2]
    """
    own = unit_rows(vectors, rows)
    middle = normalize(torch.as_tensor(np.asarray(center)).float(), dim=0)
    nearest = torch.full((len(rows),), -torch.inf)  # cosine of each row to those taken
    taken = [int((own @ middle).argmax())]
    while len(taken) < share:
        nearest = torch.maximum(nearest, own @ own[taken[-1]])
        nearest[taken[-1]] = torch.inf
        taken.append(int(nearest.argmin()))
    return rows[taken]
