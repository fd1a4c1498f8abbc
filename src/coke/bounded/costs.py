"""What it costs to put a row into a cluster, and which clusters a row may be offered to, block by block.

All N x K pairs go through one float32 product, whose last digits depend on how rows are cut into blocks. So a score
comes with a bound on its error and only says which pairs are looked at; what is decided, and every cost that leaves
here, is float64, pair by pair, in an order that no block changes (`coke.bounded.kernels`; on other devices torch).

Costs are squared Euclidean distances, or 1 - cosine = half the squared distance of unit vectors.
Legend: N rows, D features, K clusters, b rows of a block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from coke.bounded import kernels
from coke.bounded.kernels import GROUP, Array, Block, Found, Groups, Known
from coke.bounded.seen import Errors, Seen, ungrouped
from coke.vectors import Vectors

EUCLIDEAN, COSINE = "euclidean", "cosine"
_UNIT_ROUNDING = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}
_CPU_PAIRS, _DEVICE_PAIRS = (
    2**20,
    2**27,
)  # scores of a part: what a cache holds; of a block: what a device is busy with
_CPU_PARTS = 4  # of a block
_DEVICE_VALUES = 2**26  # float64 values that exact costs take at a time on a device


class Prices(NamedTuple):
    """What a sweep works under, float64 [K] each.

    Attributes:
        value: the dual of each cluster.
        width, reach: a row at its best cluster b is offered to k if that is worse by at most width[k] + reach[b].
    """

    value: Any
    width: Any
    reach: Any


class Costs(ABC):
    """Costs of a process's rows for every cluster.

    Attributes:
        n_rows, n_clusters: N of this process, and K.
        device: where the rows are worked on.
        first_row: number of the process's first row among all rows.
        size_weight: float64 [N], what a row counts for in a size, or None for 1.
    """

    n_rows: int
    n_clusters: int
    device: torch.device
    first_row: int = 0
    size_weight: Tensor | None = None
    least: float = -np.inf
    """No row costs less."""
    magnitude: float
    """How far costs of a row may lie apart, roughly."""
    rounding: float = 0.0
    """By how much a cost may be off, relative to itself: float64 sums of D terms."""

    def block_rows(self) -> int:
        """Rows of a block: as many as scores of them stay close to the processor."""
        if self.device.type == "cpu":
            part = _part_rows(self.n_clusters)
            return part * int(np.clip(self.n_rows // (8 * part), 1, _CPU_PARTS))
        return int(min(max(2 ** int(np.log2(max(_DEVICE_PAIRS // self.n_clusters, 1))), 128), 2**14))

    @abstractmethod
    def blocks(self, block_rows: int) -> Iterator[tuple[int, Tensor]]:
        """All rows in order, as (index of the first, rows)."""

    @abstractmethod
    def under(self, prices: Prices, block_rows: int) -> Callable[[], Look]:
        """What a sweep looks at blocks with, each thread with one of its own, for offers as wide as ``prices`` say."""

    def keep(self, own: Array) -> None:  # noqa: B027
        """Told at the end of a sweep what rows cost, float64 [N]; the search may still write to it."""

    @abstractmethod
    def some(self, count: int) -> tuple[Array, Array]:
        """Rough costs of some ``count`` rows spread over all, [count, K], and what these count for in a size."""

    def sizes(self, start: int, count: int) -> Array:
        """What rows ``start`` ... count for in a size: float64 [count]."""
        if self.size_weight is None:
            return np.ones(count)
        return self.size_weight[start : start + count].cpu().numpy()


class Look(ABC):
    """Finds the best cluster of a block's rows, and their offers; keeps buffers of its own."""

    @abstractmethod
    def offers(self, start: int, rows: Tensor, label: Array) -> Iterator[Found]:
        """Of rows ``start`` ..., with the clusters ``label`` int32 [b] they are in; in parts, in order."""


class DistanceCosts(Costs):
    """Distances of `Vectors` to centers.

    Args:
        vectors: N rows.
        centers: float64 [K, D] on the vectors' device; unit vectors for cosine.
        metric: ``"euclidean"`` or ``"cosine"``.
        shift: float64 [D], an origin near the data: float32 resolves what is left. Not for cosine.
        sample_weight: float64 [N] that multiplies a row's costs, or None for 1.
        size_weight: float64 [N], or None for 1.
        seen: of the same rows, with other centers.
    """

    def __init__(
        self,
        vectors: Vectors,
        centers: Tensor,
        metric: str = EUCLIDEAN,
        shift: Tensor | None = None,
        sample_weight: Tensor | None = None,
        size_weight: Tensor | None = None,
        seen: Seen | None = None,
    ) -> None:
        self.vectors, self.centers, self.metric, self.shift = vectors, centers, metric, shift
        self.sample_weight, self.size_weight = sample_weight, size_weight
        self.n_rows, self.n_clusters, self.device = vectors.n_rows, len(centers), vectors.device
        self.scale = 0.5 if metric == COSINE else 1.0
        moved = centers if shift is None else centers - shift
        self.moved, self.doubled = moved, (2 * moved).float()
        self.squares = moved.square().sum(1)
        self.longest = float(self.squares.max().sqrt())
        precision = "highest" if self.device.type == "cpu" else torch.get_float32_matmul_precision()
        self.unit = _UNIT_ROUNDING[precision]
        self.least = 0.0
        self.magnitude = 4 * self.scale * self.longest**2
        self.rounding = (vectors.n_features + 8) * 2.0**-53
        unweighted = sample_weight is None and size_weight is None and self.device.type == "cpu"
        if seen is None and unweighted and Seen.helps(self.n_rows, self.n_clusters):
            seen = Seen(self.n_rows, moved)
        self.seen = seen

    def blocks(self, block_rows: int) -> Iterator[tuple[int, Tensor]]:
        """See `Costs`."""
        return self.vectors.blocks(block_rows)

    def under(self, prices: Prices, block_rows: int) -> Callable[[], Look]:
        """See `Costs`."""
        if self.device.type != "cpu":
            return partial(_DistancesElsewhere, self, prices)
        level = prices.value - prices.value.mean()  # a common shift decides nothing
        errors, known = self.errors(float(np.abs(level).max())), None
        if self.seen is not None:
            known, errors = self.seen.turn(self.moved, level, self.scale, errors)
        return partial(_DistancesHere, self, prices, block_rows, self._groups(prices, level), errors, known)

    def _groups(self, prices: Prices, level: Array) -> Groups:
        order = ungrouped(self.n_clusters) if self.seen is None else self.seen.order
        present = order >= 0
        columns = np.zeros((4, len(order)), np.float32)
        columns[0] = 3e38
        columns[:, present] = np.stack([self.squares.numpy(), level, *prices[1:]])[:, order[present]]
        group = np.empty(self.n_clusters, np.int32)
        group[order[present]] = np.flatnonzero(present) % (len(order) // GROUP)
        centers = np.zeros((len(order), self.doubled.shape[1]), np.float32)
        centers[present] = self.doubled.numpy()[order[present]]
        beside = np.ascontiguousarray(centers.reshape(GROUP, -1, centers.shape[1]).swapaxes(0, 1))
        square, flat, width, reach = columns
        return Groups(order, group, square, flat, width, reach, width.reshape(GROUP, -1).max(0), beside)

    def keep(self, own: Array) -> None:
        """See `Costs`."""
        if self.seen is not None:
            self.seen.keep(own)

    def some(self, count: int) -> tuple[Array, Array]:
        """See `Costs`."""
        chosen = np.arange(0, self.n_rows, -(-self.n_rows // count))
        rows = self.vectors.take(chosen).double()
        rows = rows * self.factors(rows)[:, None]
        rows = rows if self.shift is None else rows - self.shift
        cost = self.scale * torch.cdist(rows.float(), self.moved.float()).square_().cpu().numpy()
        weights, sizes = self.weights(0, self.n_rows)[chosen], self.sizes(0, self.n_rows)[chosen]
        return cost * weights[:, None].astype(np.float32), sizes

    def weights(self, start: int, count: int) -> Array:
        """What costs of rows ``start`` ... are multiplied by: float64 [count]."""
        if self.sample_weight is None:
            return np.ones(count)
        return self.sample_weight[start : start + count].cpu().numpy()

    def prepared(self, start: int, rows: Tensor) -> Block:
        """Rows ``start`` ... as the kernels take them."""
        exact = (rows if rows.dtype in (torch.float32, torch.float64) else as_floats(rows)).contiguous()
        shift = None if self.shift is None else self.shift.numpy()
        rough = exact.float().numpy() if shift is None else kernels.shifted(exact.numpy(), shift)
        weights, sizes = self.weights(start, len(rows)), self.sizes(start, len(rows))
        return Block(exact.numpy(), rough, self.factors(exact).numpy(), weights, sizes)

    def factors(self, rows: Tensor) -> Tensor:
        """See `row_factors`."""
        return row_factors(rows, self.metric)

    def errors(self, highest: float) -> Errors:
        """By how much a reduced cost may be off at most, where float32 rows are multiplied.

        It is ``costs * (e[0] * length + e[1]) + e[2] * size + e[3] * (1 + length)``, of a row's length and weights.
        highest: the largest absolute price.
        """
        return kernels.error_terms(self.vectors.n_features, self.unit, self.longest, highest)


class _DistancesHere(Look):
    """By the compiled kernels, on this thread."""

    def __init__(
        self,
        costs: DistanceCosts,
        prices: Prices,
        block_rows: int,
        groups: Groups,
        errors: Errors,
        known: Known | None,
    ) -> None:
        n_groups = len(groups.widest)
        self.costs, self.prices, self.groups, self.errors, self.known = costs, prices, groups, errors, known
        self.columns = torch.from_numpy(groups.centers).transpose(0, 1).reshape(len(groups.order), -1).t()
        self.scores = torch.empty(min(_part_rows(len(groups.order)), block_rows), len(groups.order))
        self.near = np.empty((n_groups, GROUP), np.float32)
        self.centers = costs.centers.contiguous().numpy()
        self.found = _room(block_rows, costs.n_clusters)
        self.nothing = Known(
            np.zeros(0, np.float32), np.zeros((0, n_groups), np.uint16), np.zeros((1, n_groups), np.float32),
            *np.zeros((2, n_groups), np.float32),
        )  # fmt: skip

    def offers(self, start: int, rows: Tensor, label: Array) -> Iterator[Found]:
        """See `Look`."""
        costs, done = self.costs, 0
        block = costs.prepared(start, rows)
        rough = torch.from_numpy(block.rough)
        again, stop = self.known is not None, 0
        while done < len(rows):
            if not again and done == stop:
                stop = min(done + len(self.scores), len(rows))
                torch.mm(rough[done:stop], self.columns, out=self.scores[: stop - done])
                scores = self.scores[: stop - done]
            part = slice(done, len(rows) if again else stop)
            left, found = Block(*(values[part] for values in block)), _part(self.found, label[part])
            n_listed, n_rows, n_looked = kernels.offers_by_distance(
                self.near if again else scores[len(scores) - len(left.rough) :].numpy(), left, self.centers,
                costs.scale, self.errors, self.groups, *self.prices, self._known(start + part.start, start + part.stop),
                again, found,
            )  # fmt: skip
            if (
                again
                and n_rows < len(left.rough)
                and kernels.is_too_much(n_looked, n_rows, len(self.groups.widest))
            ):
                again, stop = False, done + n_rows
            yield _used(found, n_listed, n_rows)
            done += n_rows

    def _known(self, start: int, stop: int) -> Known:
        """What is known of some rows."""
        known, seen = self.known, self.costs.seen
        if seen is None:
            return self.nothing
        base, above = seen.base[start:stop], seen.above[start:stop]
        if known is None:
            return self.nothing._replace(base=base, above=above)
        return known._replace(base=base, above=above, distance=known.distance[start:stop])


class _DistancesElsewhere(Look):
    """By torch, on the rows' device; what is found comes to this one."""

    def __init__(self, costs: DistanceCosts, prices: Prices) -> None:
        self.costs = costs
        self.prices = Prices(*(torch.from_numpy(values).to(costs.device) for values in prices))
        self.errors = costs.errors(float(np.abs(prices.value - prices.value.mean()).max()))

    def offers(self, start: int, rows: Tensor, label: Array) -> Iterator[Found]:
        """See `Look`."""
        costs, device, count = self.costs, self.costs.device, len(rows)
        exact = as_floats(rows)
        rough = (exact if costs.shift is None else exact - costs.shift).float()
        factors = costs.factors(exact)
        weights = torch.from_numpy(costs.weights(start, count)).to(device)
        sizes = torch.from_numpy(costs.sizes(start, count)).to(device)
        length, e = torch.linalg.vector_norm(rough, dim=1).double() * factors, self.errors
        errors = costs.scale * weights * (e[0] * length + e[1]) + e[2] * sizes + e[3] * (1 + length)
        prices, widths, reaches = self.prices
        level = (prices - prices.mean()).float()
        product = rough @ costs.doubled.t()
        reduced = costs.squares.float() - product.mul_(factors.float()[:, None])
        reduced.mul_((costs.scale * weights).float()[:, None]).sub_(sizes.float()[:, None] * level)
        bar = reduced.amin(1) + 2 * errors.float()
        reach = torch.where(reduced <= bar[:, None], reaches.float(), 0).amax(
            1
        )  # of all that may be the best
        offered = torch.where(sizes[:, None] > 0, sizes[:, None] * widths, 0).float()
        near = reduced - offered <= (bar + sizes.float() * reach)[:, None]
        former = torch.from_numpy(label).to(device).long()
        known = (former >= 0).nonzero()[:, 0]
        near[known, former[known]] = True
        row, cluster = near.nonzero(as_tuple=True)
        step = max(1, _DEVICE_VALUES // rows.shape[1])
        parts = [
            (exact[i].double() * factors[i, None] - costs.centers[k]).square_().sum(1)
            for i, k in zip(row.split(step), cluster.split(step), strict=True)
        ]
        cost = torch.cat(parts) * (costs.scale * weights[row])
        yield _settled(row, cluster, cost, former, sizes, self.prices)


class MatrixCosts(Costs):
    """Costs that are given: ``cost`` [N, K], any finite values."""

    def __init__(self, cost: Tensor, size_weight: Tensor | None = None) -> None:
        self.cost, self.size_weight = cost, size_weight
        self.n_rows, self.n_clusters = cost.shape
        self.device = torch.device("cpu")
        self.magnitude = float(cost.abs().max())

    def blocks(self, block_rows: int) -> Iterator[tuple[int, Tensor]]:
        """See `Costs`."""
        for start in range(0, self.n_rows, block_rows):
            yield start, self.cost[start : start + block_rows].cpu().double()

    def under(self, prices: Prices, block_rows: int) -> Callable[[], Look]:
        """See `Costs`."""
        return partial(_Given, self, prices, block_rows)

    def some(self, count: int) -> tuple[Array, Array]:
        """See `Costs`."""
        step = -(-self.n_rows // count)
        return self.cost[::step].cpu().double().numpy(), self.sizes(0, self.n_rows)[::step]


class _Given(Look):
    def __init__(self, costs: MatrixCosts, prices: Prices, block_rows: int) -> None:
        self.costs, self.prices = costs, prices
        self.found = _room(block_rows, costs.n_clusters)

    def offers(self, start: int, rows: Tensor, label: Array) -> Iterator[Found]:
        """See `Look`."""
        cost, done = rows.contiguous().numpy(), 0
        while done < len(rows):
            found = _part(self.found, label[done:])
            sizes = self.costs.sizes(start + done, len(rows) - done)
            n_listed, n_rows = kernels.offers_by_cost(cost[done:], *self.prices, sizes, found)
            yield _used(found, n_listed, n_rows)
            done += n_rows


def _part_rows(n_columns: int) -> int:
    """Rows whose scores stay close to the processor."""
    return int(min(max(2 ** int(np.log2(max(_CPU_PAIRS // n_columns, 1))), 128), 2**14))


def _room(block_rows: int, n_clusters: int) -> Found:
    """Buffers for a block: of its offers as many as are likely, though at least those of two rows."""
    most = max(min(block_rows * n_clusters, 2**22), 2 * n_clusters)
    label, n_offers = np.empty((2, block_rows), np.int32)
    former_cost, cost = np.empty((2, block_rows))
    return Found(label, former_cost, cost, n_offers, np.empty(most, np.int32), np.empty(most))


def _part(room: Found, label: Array) -> Found:
    """The buffers for so many rows, with the clusters they are in."""
    found = _used(room, len(room.cluster), len(label))
    found.label[:] = label
    return found


def _used(found: Found, n_listed: int, n_rows: int) -> Found:
    of_rows = [values[:n_rows] for values in (found.label, found.former_cost, found.cost, found.n_offers)]
    return Found(*of_rows, *(values[:n_listed] for values in (found.cluster, found.offer)))


def _settled(
    row: Tensor, cluster: Tensor, cost: Tensor, former: Tensor, sizes: Tensor, prices: Prices
) -> Found:
    """What the kernels make of exact costs of listed pairs (in order of rows, then clusters), in torch."""
    count = len(former)
    reduced = cost - sizes[row] * prices.value[cluster]
    best = torch.full_like(sizes, torch.inf).scatter_reduce_(0, row, reduced, "amin")
    ties, place = reduced == best[row], torch.arange(len(row), device=row.device)
    order = torch.where(cluster == former[row], -1, place)  # of equals the cluster it is in, else the lowest
    chosen = torch.full_like(former, len(row)).scatter_reduce_(0, row[ties], order[ties], "amin")
    own = torch.full_like(former, len(row)).scatter_(
        0, row[cluster == former[row]], place[cluster == former[row]]
    )
    chosen = torch.where(chosen < 0, own, chosen)
    label = cluster[chosen]
    former_cost = cost[torch.where(former >= 0, own, chosen)]
    kept = reduced <= best[row] + sizes[row] * (prices.width[cluster] + prices.reach[label[row]])
    n_offers = torch.bincount(row[kept], minlength=count)
    n_offers[(n_offers < 2) | (sizes <= 0)] = 0
    listed = kept & (n_offers[row] > 0)
    found = [label.int(), former_cost, cost[chosen], n_offers.int(), cluster[listed].int(), cost[listed]]
    return Found(*[values.cpu().numpy() for values in found])


def as_floats(rows: Tensor) -> Tensor:
    """Rows in float32 where that holds their values, else in float64.

    >>> as_floats(torch.tensor([1], dtype=torch.float16)).dtype, as_floats(torch.tensor([1])).dtype
    (torch.float32, torch.float64)
    """
    narrow = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16)
    return rows.float() if rows.dtype in narrow else rows.double()


def distances(vectors: Vectors, centers: Tensor, metric: str) -> Tensor:
    """Distance of every row to each center [K, D]: [N, K], Euclidean (not squared) or 1 - cosine."""
    parts = []
    for _, block in vectors.blocks(max(1, 2**20 // len(centers))):
        cosine = metric == COSINE
        found = 1 - unit_rows(block) @ centers.t() if cosine else torch.cdist(block.double(), centers)
        parts.append(found.to(returned_dtype(vectors.dtype)))
    return torch.cat(parts)


def exact_costs(rows: Tensor, centers: Tensor, metric: str = EUCLIDEAN) -> Tensor:
    """Cost of each row [P, D] for the center beside it, float64 [P, D]: float64 [P].

    >>> exact_costs(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0]]).double()).item()
    4.0
    >>> exact_costs(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]]).double(), "cosine").item()
    1.0
    """
    if metric == COSINE:
        return (unit_rows(rows) - centers).square_().sum(-1) / 2
    return torch.sub(rows, centers).square_().sum(-1)  # float64, as the centers are


def row_factors(rows: Tensor, metric: str) -> Tensor:
    """What rows [b, D] are multiplied by, float64 [b]: 1 over their length for cosine, else 1."""
    if metric != COSINE:
        return torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    return 1 / torch.linalg.vector_norm(rows.double(), dim=1)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows over their length, float64."""
    rows = rows.double()
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)


def returned_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of centers for rows of a type: float64 for float64 and integers, else float32.

    >>> returned_dtype(torch.float16), returned_dtype(torch.int64)
    (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 or not dtype.is_floating_point else torch.float32
