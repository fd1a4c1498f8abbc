"""Clusters of one head as the run left them: sizes, and who stands in the middle and at the border."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from coke.report.markup import Markup, number, percent, plural, tag
from coke.report.record import Record, finite
from coke.report.svg import bar_chart


@dataclass(frozen=True)
class Head:
    """One head's columns of assignments.parquet: cluster, score and margin of every image, [N] each."""

    index: int
    clusters: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    margins: npt.NDArray[np.float64]
    n_clusters: int

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """How many images each cluster holds, [K]; images without a cluster (-1) count nowhere."""
        return np.bincount(self.clusters[self.clusters >= 0], minlength=self.n_clusters)

    @property
    def n_unassigned(self) -> int:
        """How many images have no cluster."""
        return int((self.clusters < 0).sum())

    @cached_property
    def by_size(self) -> npt.NDArray[np.int64]:
        """Clusters that hold an image, the largest first; ties by number."""
        order = np.argsort(-self.sizes, kind="stable")
        return order[self.sizes[order] > 0]

    @cached_property
    def _by_score(self) -> npt.NDArray[np.int64]:
        return np.lexsort((-self.scores, self.clusters))

    @cached_property
    def _by_margin(self) -> npt.NDArray[np.int64]:
        return np.lexsort((self.margins, self.clusters))

    def central(self, cluster: int, count: int) -> npt.NDArray[np.int64]:
        """Rows of the cluster's images with the highest scores, highest first."""
        return self._slice(self._by_score, cluster)[:count]

    def borderline(self, cluster: int, count: int) -> npt.NDArray[np.int64]:
        """Rows of the cluster's images with the smallest margins, smallest first."""
        return self._slice(self._by_margin, cluster)[:count]

    def rows(self, cluster: int) -> npt.NDArray[np.int64]:
        """All rows of the cluster."""
        return self._slice(self._by_score, cluster)

    def _slice(self, order: npt.NDArray[np.int64], cluster: int) -> npt.NDArray[np.int64]:
        start = self.n_unassigned + int(self.sizes[:cluster].sum())
        return order[start : start + int(self.sizes[cluster])]


def read_heads(record: Record) -> list[Head]:
    """The heads of assignments.parquet, in order; empty where there is none.

    A head without a column of scores or margins has NaN there."""
    table = record.assignments
    if table is None:
        return []
    indices = sorted(
        int(name.removeprefix("cluster_"))
        for name in table.column_names
        if name.removeprefix("cluster_").isdigit() and name.startswith("cluster_")
    )
    recorded = record.epochs[-1].get("heads") or [] if record.epochs else []
    heads = []
    for index in indices:
        clusters = table[f"cluster_{index}"].to_numpy().astype(np.int64)
        known = finite(recorded[index].get("n_clusters")) if index < len(recorded) else None
        count = max(int(known or 0), int(clusters.max(initial=-1)) + 1)
        figures = [
            table[name].to_numpy().astype(np.float64)
            if name in table.column_names
            else np.full(len(clusters), np.nan)
            for name in (f"score_{index}", f"margin_{index}")
        ]
        heads.append(Head(index, clusters, figures[0], figures[1], count))
    return heads


def bound_of(record: Record, head: Head) -> float | None:
    """The least size asked of a cluster: as recorded in the last epoch, else ratio times N / K, else None."""
    recorded = record.epochs[-1].get("heads") or [] if record.epochs else []
    if head.index < len(recorded) and finite(recorded[head.index].get("bound")) is not None:
        return finite(recorded[head.index]["bound"])
    ratio = finite(record.find("min_size_ratio"))
    return ratio * len(head.clusters) / head.n_clusters if ratio is not None and head.n_clusters else None


def size_bars(record: Record, heads: list[Head]) -> Markup:
    """Sorted sizes of each head against the bound, or a sentence where the run has not written them."""
    if not heads:
        sentence = (
            "The run folder has no assignments.parquet: it is written when training ends. "
            "The curves above show the sizes during training."
        )
        return tag("p", sentence, class_="missing")
    return tag("div", *(_bars(record, head) for head in heads), class_="charts")


def _bars(record: Record, head: Head) -> Markup:
    """One head's bars and what they say in words."""
    bound = bound_of(record, head)
    sizes = sorted((int(size) for size in head.sizes), reverse=True)
    title = f"Head {head.index}: {plural(head.n_clusters, 'cluster')}"
    share = (len(head.clusters) - head.n_unassigned) / head.n_clusters if head.n_clusters else 0.0
    chart = bar_chart(
        sizes, title=title, x_label="clusters, largest first", y_label="images", bound=bound, share=share
    )
    sentences = []
    if sizes:
        largest = (
            f"The largest cluster holds {number(sizes[0])} images ({percent(sizes[0] / max(sum(sizes), 1))})"
        )
        sentences.append(f"{largest}, the smallest {number(sizes[-1])}.")
    empty = head.n_clusters - len(head.by_size)
    if empty:
        sentences.append(f"Empty: {plural(empty, 'cluster')}.")
    if bound is None:
        sentences.append("The bound is not recorded in this run folder.")
    else:
        short = sum(size < bound for size in sizes)
        sentences.append(
            f"Below the bound of {number(bound)}: {plural(short, 'cluster')}."
            if short
            else f"Every cluster holds at least the bound of {number(bound)}."
        )
    if head.n_unassigned:
        sentences.append(f"Without a cluster: {plural(head.n_unassigned, 'image')}.")
    lines = [("bound", "bound", bound), ("share", "equal share N / K", share)]
    keys = (
        tag("span", tag("i", class_=f"swatch level-{kind} dashed"), f"{name} ", tag("b", number(value)))
        for kind, name, value in lines
        if value is not None
    )
    return tag(
        "figure",
        tag("h3", title),
        tag("div", *keys, class_="keys"),
        chart,
        tag("figcaption", tag("p", " ".join(sentences))),
    )


def majority(labels: npt.NDArray[np.object_], names: list[str] | None) -> tuple[str, float] | None:
    """The most frequent label and its share of the labelled images; None where none has a label.

    >>> majority(np.array([1, 1, 0, -1], dtype=object), ["cat", "dog"])
    ('dog', 0.6666666666666666)
    """
    known = Counter(label for label in labels.tolist() if label is not None and label != -1)
    if not known:
        return None
    label, count = known.most_common(1)[0]
    named = isinstance(label, int) and names is not None and 0 <= label < len(names)
    return (names[label] if named and names is not None else str(label)), count / known.total()
