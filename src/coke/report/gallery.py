"""Clusters in pictures: the most central and the most borderline images of each, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from coke.report.clusters import Head, majority
from coke.report.markup import Markup, number, percent, plural, tag
from coke.report.record import Record
from coke.report.thumbnails import missing_tile, montage, thumbnail, tile_size

if TYPE_CHECKING:
    from coke.images.image_set import ImageSet

PER_STRIP = 8
OPEN_CARDS = 12  # clusters of the first head shown without unfolding
FIRST_HEAD_SHARE = 0.7  # of the budget, where there are several heads; what it leaves goes to the others
FRAME_BYTES = 2000  # headings and sentences of one head


class Gallery:
    """Draws clusters of a run from its images; counts the images that could not be shown."""

    def __init__(self, record: Record, images: ImageSet) -> None:
        assert record.assignments is not None
        self.images = images
        self.table = record.assignments
        self.tile = tile_size(images.sizes)
        self.places = {key: place for place, key in enumerate(images.keys)}
        self.unknown: set[str] = set()
        self.failed: set[str] = set()
        labelled = "label" in self.table.column_names
        self.labels: npt.NDArray[np.object_] | None = (
            np.array(self.table["label"].to_pylist(), dtype=object) if labelled else None
        )

    def sections(self, heads: Sequence[Head], budget: int) -> Markup:
        """The heads one after another, together at most ``budget`` bytes of HTML."""
        parts = []
        for head in heads:
            share = FIRST_HEAD_SHARE if head is heads[0] and len(heads) > 1 else 1.0
            section = self._head(head, int(budget * share) - FRAME_BYTES, first=head is heads[0])
            budget -= _weight(section)
            parts.append(section)
        return tag("div", *self._complaints(), *parts)

    def _complaints(self) -> Iterator[Markup]:
        """Sentences about images that could not be shown."""
        if self.unknown:
            example = min(self.unknown)
            yield tag(
                "p",
                f"{plural(len(self.unknown), 'image')} of the run, such as “{example}”, "
                "could not be found in the data at hand: grey tiles stand in their place.",
                class_="missing",
            )
        if self.failed:
            yield tag(
                "p",
                f"{plural(len(self.failed), 'image')}, such as “{min(self.failed)}”, could no longer be "
                "read: "
                "grey tiles stand in their place.",
                class_="missing",
            )

    def _head(self, head: Head, budget: int, *, first: bool) -> Markup:
        """One head's cards: from both ends of the sizes inwards until the budget is spent, then by size."""
        order = head.by_size
        ranks = sorted(self._affordable(head, budget), key=lambda pair: pair[0])
        cards = [card for _, card in ranks]
        n_largest = next((i for i, (rank, _) in enumerate(ranks) if rank != i), len(ranks))
        title = tag("h3", f"Head {head.index}: {plural(head.n_clusters, 'cluster')}")
        said = f"All {plural(len(order), 'cluster')} that hold images, the largest first."
        if not cards:
            said = (
                f"None of the {plural(len(order), 'cluster')} is shown: the page's budget is spent. "
                "All of them are in assignments.parquet."
            )
        elif len(cards) < len(order):
            said = (
                f"{len(cards):,} of {len(order):,} clusters are shown, the {n_largest:,} largest and the "
                f"{len(cards) - n_largest:,} smallest, to keep this page small. "
                "The rest is in assignments.parquet, with every image's cluster, score and margin."
            )
        shown = OPEN_CARDS if first else 0
        folded = cards[shown:]
        name = f"{'The other ' if shown else ''}{plural(len(folded), 'cluster')} shown here"
        rest = tag("details", tag("summary", name), *folded) if folded else None
        return tag("section", title, tag("p", said), *cards[:shown], rest)

    def _affordable(self, head: Head, budget: int) -> Iterable[tuple[int, Markup]]:
        """Cards with their rank by size, largest and smallest in turn, while they fit the budget."""
        order = head.by_size
        for turn in range(len(order)):
            rank = turn // 2 if turn % 2 == 0 else len(order) - 1 - turn // 2
            if budget <= 0:
                return
            card = self._card(head, int(order[rank]))
            budget -= _weight(card)
            if budget < 0:
                return
            yield rank, card

    def _card(self, head: Head, cluster: int) -> Markup:
        """One cluster: its name and size beside one strip, or two where it has more images than fit one."""
        rows = head.rows(cluster)
        facts = [tag("span", plural(len(rows), "image"))]
        most = majority(self.labels[rows], self.images.classes) if self.labels is not None else None
        if most:
            facts.append(tag("span", f"“{most[0]}” {percent(most[1])}", class_="label"))
        if len(rows) <= PER_STRIP:
            strips = [self._strip(head, head.central(cluster, PER_STRIP), f"all, cluster {cluster}", "all")]
        else:
            strips = [
                self._strip(
                    head, head.central(cluster, PER_STRIP), f"most central, cluster {cluster}", "central"
                ),
                self._strip(
                    head,
                    head.borderline(cluster, PER_STRIP),
                    f"most borderline, cluster {cluster}",
                    "borderline",
                ),
            ]
        return tag(
            "article", tag("header", tag("h4", f"Cluster {cluster}"), *facts), *strips, class_="cluster"
        )

    def _strip(self, head: Head, rows: npt.NDArray[np.int64], name: str, kind: str) -> Markup:
        """A montage with a number under each tile: margins at the border, scores elsewhere."""
        keys = [str(key) for key in self.table["key"].take(rows).to_pylist()]
        picture = montage([self._tile(key) for key in keys])
        figures = head.margins if kind == "borderline" else head.scores
        cells = []
        for key, row in zip(keys, rows.tolist(), strict=True):
            about = f"{key}\nscore {number(head.scores[row])}, margin {number(head.margins[row])}"
            cells.append(tag("span", _short(figures[row], 3 if kind == "borderline" else 2), title=about))
        width, tile = 100 * len(keys) / PER_STRIP, 100 * picture.tile / (picture.tile + picture.gap)
        image = tag(
            "img",
            src=picture.uri,
            alt=f"{plural(len(keys), 'image')}, {name}: {', '.join(keys)}",
            width=picture.width,
            height=picture.tile,
            style=f"width:{width:g}%;--n:{len(keys)};--tile:{tile:.1f}%",
            class_="exact" if picture.tile <= 32 else None,
            decoding="async",
        )
        overlay = tag("div", *cells, class_="cells")
        words = {
            "central": "most central, score",
            "borderline": "most borderline, margin",
            "all": "all, score",
        }
        return tag("div", tag("div", words[kind], class_="kind"), image, overlay, class_=f"strip {kind}")

    def _tile(self, key: str) -> Any:
        """An image's tile, grey where the image is unknown or can no longer be read."""
        place = self.places.get(key)
        if place is None:
            self.unknown.add(key)
            return missing_tile(self.tile)
        try:
            return thumbnail(self.images.read(place), self.tile)
        except (OSError, ValueError):
            self.failed.add(key)
            return missing_tile(self.tile)


def _short(value: float, decimals: int) -> str:
    """A figure under a tile, or a dash where it is not a number."""
    return f"{value:.{decimals}f}".replace("-", "−") if np.isfinite(value) else "–"


def _weight(part: Markup) -> int:
    """Bytes in the file."""
    return len(part.encode("utf-8"))
