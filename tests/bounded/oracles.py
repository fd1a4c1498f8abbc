"""Independent answers for size-constrained assignment: HiGHS, brute force, and problems to ask them.

Legend: N rows, K clusters; a problem is costs [N, K], lower and upper bounds [K], perhaps size weights [N].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_matrix

from coke.bounded.sizes import SizeBounds


@dataclass(frozen=True)
class Problem:
    """Costs [N, K] and what each cluster may hold."""

    costs: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    weights: np.ndarray | None = None

    @property
    def bounds(self) -> SizeBounds:
        return SizeBounds(torch.from_numpy(self.lower.copy()), torch.from_numpy(self.upper.copy()))

    @property
    def total(self) -> float:
        return float(len(self.costs) if self.weights is None else self.weights.sum())

    @property
    def scale(self) -> float:
        """What rounding errors of a sum of costs are relative to."""
        return float(np.abs(self.costs).max(1).sum()) + 1e-300

    def sizes(self, labels: np.ndarray) -> np.ndarray:
        return np.bincount(np.asarray(labels), self.weights, len(self.lower)).astype(np.float64)

    def cost(self, labels: np.ndarray) -> float:
        return float(self.costs[np.arange(len(self.costs)), np.asarray(labels)].sum())

    def excess(self, labels: np.ndarray) -> float:
        """The largest violation of a bound."""
        sizes = self.sizes(labels)
        return float(np.maximum(self.lower - sizes, sizes - self.upper).max())

    def _constraints(self) -> LinearConstraint:
        """Each row in one cluster, each cluster within its bounds; variables in the order of ``costs.ravel()``."""
        n_rows, n_clusters = self.costs.shape
        row, cluster = np.divmod(np.arange(n_rows * n_clusters), n_clusters)
        size = np.ones(n_rows) if self.weights is None else self.weights
        every = np.arange(n_rows * n_clusters)
        matrix = coo_matrix(
            (
                np.concatenate([np.ones(len(every)), size[row]]),
                (np.concatenate([row, n_rows + cluster]), np.concatenate([every, every])),
            )
        ).tocsr()
        ones = np.ones(n_rows)
        return LinearConstraint(
            matrix, np.concatenate([ones, self.lower]), np.concatenate([ones, self.upper])
        )

    def optimum(self) -> float:
        """The least cost of whole rows. Unit sizes: HiGHS's corner of the linear programme, which is whole."""
        if self.weights is not None:
            return self._milp()
        labels = self._corner().argmax(1)
        assert self.excess(labels) <= 0
        return self.cost(labels)

    def relaxed_optimum(self) -> float:
        """The least cost where rows may be split."""
        return float((self._corner() * self.costs).sum())

    def _prices(self) -> np.ndarray:
        """Costs beyond each row's least, of size 1: HiGHS's tolerances are absolute."""
        beyond = self.costs - self.costs.min(1, keepdims=True)
        return (beyond / (beyond.max() or 1.0)).ravel()

    def _corner(self) -> np.ndarray:
        rule, n_rows = self._constraints(), len(self.costs)
        matrix, has_upper = rule.A[n_rows:], np.isfinite(self.upper)
        solved = linprog(
            self._prices(),
            A_eq=rule.A[:n_rows],
            b_eq=np.ones(n_rows),
            A_ub=coo_matrix(np.concatenate([-matrix.toarray(), matrix.toarray()[has_upper]])),
            b_ub=np.concatenate([-self.lower, self.upper[has_upper]]),
            bounds=(0, 1),
            method="highs-ds",
        )
        assert solved.success, solved.message
        return solved.x.reshape(self.costs.shape)

    def _milp(self) -> float:
        """The least cost of whole rows by branch and bound; infinite where no whole rows hold the bounds."""
        solved = milp(
            self._prices(),
            constraints=self._constraints(),
            integrality=np.ones(self.costs.size),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
        if solved.x is None:
            return np.inf
        return self.cost(solved.x.reshape(self.costs.shape).argmax(1))

    def dual_bound(self, duals: np.ndarray) -> float:
        """LB(rho) from its formula, over all rows and all clusters."""
        size = np.ones(len(self.costs)) if self.weights is None else self.weights
        rows = (self.costs - size[:, None] * duals).min(1).sum()
        slack = sum(
            low * max(dual, 0.0) - (high * -dual if dual < 0 else 0.0)
            for low, high, dual in zip(self.lower, self.upper, duals, strict=True)
        )
        return float(rows + slack)


KINDS = (
    "random",
    "normal",
    "integers",
    "few values",
    "duplicates",
    "constant",
    "distances",
    "weighted",
    "offset",
)


def draw_costs(random: np.random.Generator, kind: str, n_rows: int, n_clusters: int) -> np.ndarray:
    """Costs [N, K] of a kind: among them ties, duplicate rows and clusters, and negative values."""
    shape = (n_rows, n_clusters)
    if kind == "random":
        return random.random(shape)
    if kind == "normal":
        return random.normal(size=shape) * 10.0 ** random.integers(-3, 4)
    if kind == "integers":
        return random.integers(-5, 6, shape).astype(np.float64)
    if kind == "few values":
        return random.integers(0, 2, shape).astype(np.float64)
    if kind == "duplicates":
        few = random.normal(size=(1 + n_rows // 5, 1 + n_clusters // 2))
        return few[random.integers(0, len(few), n_rows)][:, random.integers(0, few.shape[1], n_clusters)]
    if kind == "constant":
        return np.full(shape, float(random.integers(-1, 2)))
    if kind == "offset":
        return 1e6 + random.normal(size=shape)
    rows, centers = (
        random.normal(size=(n_rows, 3)),
        random.normal(size=(n_clusters, 3)) + random.normal(size=3),
    )
    costs = ((rows[:, None] - centers[None]) ** 2).sum(-1)
    if kind == "weighted":  # sample weights multiply a row's costs, some by nothing
        costs *= (random.exponential(size=n_rows) * (random.random(n_rows) < 0.8))[:, None]
    return costs


BOUNDS = (
    "minimum",
    "maximum",
    "both",
    "equal",
    "per cluster",
    "exact per cluster",
    "minimum takes all",
    "free",
)


def draw_bounds(
    random: np.random.Generator, kind: str, n_rows: int, n_clusters: int
) -> tuple[np.ndarray, np.ndarray]:
    """Feasible bounds [K] twice, as floats; a missing maximum is N."""
    share = n_rows / n_clusters
    lower, upper = np.zeros(n_clusters), np.full(n_clusters, float(n_rows))
    if kind in ("minimum", "both"):
        lower[:] = random.integers(0, int(share) + 1)
    if kind in ("maximum", "both"):
        upper[:] = random.integers(int(np.ceil(share)), int(np.ceil(2 * share)) + 1)
    if kind == "equal":
        lower[:], upper[:] = np.floor(share), np.ceil(share)
    if kind == "minimum takes all":  # min_size K = N but for a remainder
        lower[:] = np.floor(share)
    if "per cluster" in kind:
        witness = random.multinomial(n_rows, random.dirichlet(np.ones(n_clusters))).astype(np.float64)
        slack = 0 if kind == "exact per cluster" else random.integers(0, 4, (2, n_clusters))
        both = np.array([witness, witness])
        lower, upper = np.maximum(both[0] - slack[0] if np.ndim(slack) else both[0], 0), both[1]
        upper = np.minimum(upper + (slack[1] if np.ndim(slack) else 0), n_rows)
    return lower, upper


@st.composite
def problems(draw, max_rows=25, max_clusters=6, min_rows=1):
    """A problem of unit sizes, small enough for an independent solver in milliseconds."""
    n_rows, n_clusters = draw(st.integers(min_rows, max_rows)), draw(st.integers(1, max_clusters))
    kind, bounds = draw(st.sampled_from(KINDS)), draw(st.sampled_from(BOUNDS))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    costs = draw_costs(random, kind, n_rows, n_clusters)
    return Problem(costs, *draw_bounds(random, bounds, n_rows, n_clusters))


@st.composite
def weighted_problems(draw, max_rows=14, max_clusters=4):
    """A problem whose sizes are sums of weights; rows fit if they may be split, whole ones perhaps not."""
    n_rows, n_clusters = draw(st.integers(2, max_rows)), draw(st.integers(1, max_clusters))
    kind = draw(st.sampled_from(KINDS))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    costs = draw_costs(random, kind, n_rows, n_clusters)
    weights = draw(
        st.sampled_from(
            [
                random.random(n_rows),
                random.integers(1, 5, n_rows).astype(np.float64),
                random.pareto(1.5, n_rows) + 0.1,
                random.integers(0, 3, n_rows) + (np.arange(n_rows) == 0.0),
            ]
        )
    )
    share = weights.sum() / n_clusters
    lower = np.full(n_clusters, share * draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])))
    upper = np.full(n_clusters, share * draw(st.sampled_from([1.0, 1.1, 1.8, float(n_clusters)])))
    if (weights > 0).sum() < n_clusters:
        lower[:] = 0
    return Problem(costs, lower, np.maximum(np.maximum(upper, lower), weights.max()), weights)


any_problems = st.one_of(problems(), weighted_problems())
seeds = st.integers(0, 2**32 - 1)


def duals_of(problem: Problem, seed: int) -> np.ndarray:
    """Duals on the scale of the costs, some of them 0, some far off, some on a grid where ties are common."""
    random = np.random.default_rng(seed)
    spread = np.ptp(problem.costs) + 1e-3
    duals = random.normal(size=len(problem.lower)) * spread * 10.0 ** random.integers(-3, 2)
    duals = np.where(random.random(len(duals)) < 0.2, 0.0, duals)
    return np.round(duals) if random.random() < 0.3 else duals
