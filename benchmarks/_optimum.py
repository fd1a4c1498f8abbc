"""The optimum of assignment with a minimum cluster size, by its dual in K variables.

online_theory.py compares with it. It shares no code with coke; tests/test_online_theory.py checks it against an
independent linear programme.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]

BLOCK = 4096  # rows of a sweep
TOLERANCE = 1e-9  # relative, per iteration: leaves less than 0.01 of a summed cosine of 1e3 ... 1e6 images


def sweep(scores: Array, duals: Array) -> tuple[Array, Array, Array]:
    """Best column of scores + duals [N, K], its value, and how far the second lies below it; float64."""
    n_rows = len(scores)
    labels, best, margin = np.empty(n_rows, np.intp), np.empty(n_rows), np.empty(n_rows)
    for start in range(0, n_rows, BLOCK):
        raised = scores[start : start + BLOCK] + duals
        part, rows = slice(start, start + len(raised)), np.arange(len(raised))
        labels[part] = raised.argmax(axis=1)
        best[part] = raised[rows, labels[part]]
        raised[rows, labels[part]] = -np.inf
        margin[part] = best[part] - raised.max(axis=1)
    return labels, best, margin


def optimum(scores: Array, ratio: float, duals: Array, radius: float) -> tuple[Array, float]:
    """Duals [K] that minimise sum_i max_k (s_ik + rho_k) - (r N / K) sum_k rho_k, and that minimum.

    The linear programme behind it is integral, so the minimum is the optimum, and whatever duals are reached give an
    upper bound on it. Rows whose best cluster leads by more than twice the radius cannot change within the radius
    around the duals to start from, so only the others are searched; again from a minimum that lies on the edge.
    """
    n_rows, n_clusters = scores.shape
    bound, lowest = ratio * n_rows / n_clusters, 0.0 if ratio < 1 else -np.inf
    value = np.inf
    while True:
        labels, best, margin = sweep(scores, duals)
        near = margin <= 2 * radius
        rows, numbers = scores[near].astype(np.float64), np.arange(int(near.sum()))
        fixed = np.bincount(labels[~near], minlength=n_clusters)
        constant = best[~near].sum() - fixed @ duals

        def objective(rho: Array, rows=rows, numbers=numbers, fixed=fixed, constant=constant) -> Any:
            raised = rows + rho
            chosen = raised.argmax(axis=1)
            sizes = np.bincount(chosen, minlength=n_clusters) + fixed
            total = constant + raised[numbers, chosen].sum() + (fixed - bound) @ rho
            return total / n_rows, (sizes - bound) / n_rows

        low, high = np.maximum(duals - radius, lowest), duals + radius
        found = minimize(
            objective,
            duals,
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(low, high, strict=True)),
            options={"maxiter": 1000, "maxfun": 2000, "ftol": TOLERANCE, "gtol": 1e-10},
        )
        gained, value = value - n_rows * found.fun, n_rows * found.fun
        on_edge = (found.x >= high) | ((found.x <= low) & (low > lowest))
        duals = found.x - (found.x.mean() if ratio == 1 else 0)  # equal sizes fix duals up to a constant
        if not on_edge.any() or gained < 1e-7 * n_rows:
            return duals, value
