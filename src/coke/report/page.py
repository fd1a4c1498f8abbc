"""The page: a sentence for people, clusters in pictures, a map, then scores, curves and sizes, then what to do next.

One file that opens from disk: styles, pictures, data and the plotting library are inside, nothing is loaded.
"""

from __future__ import annotations

import base64
import functools
import gzip
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import quote

import numpy as np

from coke.explore import Groups, exact_copies, nearest_pairs, outliers
from coke.explore.groups import DOUBT, Kind
from coke.explore.pictures import FIRST, SHOWN, Pictures
from coke.report import charts, words
from coke.report.record import Record, finite, read_record
from coke.run import Run, atomic

if TYPE_CHECKING:
    from coke.images.image_set import ImageSet

MAX_BYTES = 12_000_000
_MAX_ROWS, _MAX_NUMBERS = 100_000, 2_000_000  # images that map, search and export know, and numbers on them
_LISTED = 24  # outliers, copies and pairs
_TEMPLATES = Path(__file__).parent / "templates"
_SCORES = {
    "knn": "k-NN",
    "linear": "linear probe",
    "linear_augmented": "linear probe, augmented",
    "accuracy": "cluster ACC",
    "nmi": "NMI",
    "ari": "ARI",
}


def write_page(
    run: Run,
    images: ImageSet | None,
    data: str | os.PathLike[str] | None = None,
    *,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Write the run's report.html and return where it lies; pictures that it shows are kept in thumbnails.parquet.

    Args:
        run: the run folder; parts that are missing or broken in it become sentences on the page.
        images: the images that were trained on, for pictures, known by content or key; None where they are not at
            hand: then those of an earlier page are shown.
        data: where they lie, to link to; default: where they lay in training.
        max_bytes: how large the file may become; pictures fill what the rest of the page leaves.

    Raises:
        ResumeError: the folder holds no run at all, or one written by a newer coke.
    """
    page = _Page(read_record(run), images, data)
    budget = max_bytes - len(page.render(0))
    text = page.render(budget)
    while len(text) > max_bytes and budget > 0:
        budget -= len(text) - max_bytes + 10_000
        text = page.render(budget)
    with atomic(run.report, "wb") as stream:
        stream.write(text)
    if images is not None and page.shown:
        page.pictures.keep(run.thumbnails, page.shown, page.classes)
    return run.report


class _Page:
    """What the templates show of a run."""

    def __init__(self, record: Record, images: ImageSet | None, data: str | os.PathLike[str] | None) -> None:
        import jinja2

        self.record, self.images = record, images
        place = record.environment.get("data", {}).get("place")
        self.data = Path(data or str(place or record.config.get("data") or ""))
        self.pictures = Pictures(record.assignments, images, record.thumbnails)
        self.keys = self.pictures.keys
        ratio = finite(record.config.get("min_size_ratio"))
        self.heads = Groups.read(record.assignments, record.heads, ratio) if self.keys else []
        self.labels = None
        if record.assignments is not None and self.keys and "label" in record.assignments.column_names:
            self.labels = record.assignments["label"].fill_null(-1).to_numpy()
        self.classes = images.classes if images is not None else self.pictures.classes
        self.shown, self.inlined, self.unknown = set[int](), set[int](), set[int]()
        self.curves, self.bars = charts.curves(record), [charts.sizes(head) for head in self.heads]
        self.lists = self._lists() if self.heads else []
        how: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
        self.templates = jinja2.Environment(loader=jinja2.FileSystemLoader(_TEMPLATES), **how)
        self.templates.policies["json.dumps_kwargs"] = {}  # in the order of the lines
        self.templates.filters |= {"number": words.number, "percent": words.percent, "plural": words.plural}

    def render(self, budget: float) -> bytes:
        """The page, with pictures for about so many bytes."""
        pictures = self.pictures
        listed = [row for _, _, entries in self.lists for rows, *_ in entries for row in rows if budget > 0]
        pictures.load(listed)
        budget -= sum(len(pictures.content.get(row, b"")) * 4 / 3 + 400 for row in listed)
        chosen, sufficed = pictures.choose(self.heads, budget)
        self.shown, self.inlined = {*listed, *(one.row for row in chosen.values() for one in row)}, set()
        self.unknown = self.shown - pictures.content.keys() - pictures.failed
        macro = self.templates.get_template("card.html").module.card  # type: ignore[attr-defined]
        cards: list[list[str]] = []
        for head in self.heads:
            shown = (self._card(head, cluster, chosen) for cluster in head.by_size)
            cards.append([macro(one, self, first=head is self.heads[0]) for one in shown])
        page = self.templates.get_template("report.html").render(
            page=self,
            record=self.record,
            words=words,
            cards=cards[0] if cards else [],
            sufficed=sufficed,
            scores=_scores(self.record.evaluation),
            first=FIRST,
            at_most=SHOWN,
            doubt=DOUBT,
            file=lambda name: (_TEMPLATES / name).read_text(encoding="utf-8"),
            data=lambda: self._data(cards[1:]),  # after what is inline
            plotly=_plotly(),
        )
        return page.encode("utf-8", "backslashreplace")

    def _card(self, head: Groups, cluster: int, chosen: dict[Any, Any]) -> dict[str, Any]:
        said = head.describe(cluster, self.labels)
        rows = {kind: chosen.get((head.index, cluster, kind)) for kind in get_args(Kind)}
        rows = rows if said["size"] > FIRST else {"all": rows["central"]}
        if self.classes and said["label"] is not None and said["label"] < len(self.classes):
            said["label"] = self.classes[said["label"]]
        return {**said, "head": head, "rows": {title: shown for title, shown in rows.items() if shown}}

    def _lists(self) -> list[tuple[str, str, list[Any]]]:
        """Outliers, exact copies and nearest pairs: title, sentence, and of each entry rows, words, rows to name."""
        pictures, plane = self.pictures, self.record.map
        what, similarity = "score", self.heads[0].scores
        if plane is not None:
            what, similarity = "cosine to any other image", plane["similarity"].fill_null(np.nan).to_numpy()
        lonely: list[Any] = [([row], f"{similarity[row]:.2f}", []) for row in outliers(similarity, _LISTED)]
        groups = exact_copies(pictures.copies, _LISTED)
        copies = [(rows[:1], f"{len(rows)} times", rows[:50]) for rows in groups]
        n_copies = len(pictures.copies) - len(np.unique(pictures.copies))
        lists: list[tuple[str, str, list[Any]]] = [
            ("Outliers", f"The images of the least {what}.", lonely),
            ("Exact copies", f"{n_copies:,} images are copies of others.", copies),
        ]
        if plane is not None:
            pairs = nearest_pairs(plane["nearest"].fill_null(-1).to_numpy(), similarity, pictures.copies)
            close = [sum(bool(similarity[row] >= level) for row, _ in pairs) for level in (0.99, 0.999)]
            said = f"Pairs nearest in the embedding: {close[0]:,} at 0.99 or more, {close[1]:,} at 0.999."
            pictures.load(row for pair in pairs[:_LISTED] for row in pair)
            entries: list[Any] = [(pair, self._distance(similarity, *pair), []) for pair in pairs[:_LISTED]]
            lists.append(("Near-duplicates", said, entries))
        return lists

    @property
    def map_words(self) -> str:
        """How the places of the map were found."""
        assert self.record.map is not None
        return str((self.record.map.schema.metadata or {}).get(b"map", b"unknown").decode())

    def _distance(self, similarity: Any, one: int, other: int) -> str:
        difference = self.pictures.difference(one, other)
        pixels = "" if difference is None else f"; pixels differ by {difference:.0f} of 255"
        return f"cosine {similarity[one]:.3f}{pixels}"

    def inline(self, row: int) -> str | None:
        """An image's thumbnail for the first place where it stands; elsewhere the script fills it in."""
        if row in self.inlined or row not in self.shown or row not in self.pictures.content:
            return None
        self.inlined.add(row)
        return "data:image/webp;base64," + base64.b64encode(self.pictures.content[row]).decode()

    def link(self, row: int) -> str | None:
        """The image's file as seen from the page, where it is a file."""
        place = self.pictures.places.get(row)
        key = self.keys[row] if self.images is None or place is None else self.images.keys[place]
        file = (self.data if self.data.is_dir() else self.data.parent) / key
        return quote(os.path.relpath(file, self.record.run.path)) if file.is_file() else None

    def _data(self, cards: list[list[str]]) -> str:
        """What the script works on: all images' names and numbers, or a sample's, other heads, pictures."""
        n_rows, rows = len(self.keys), np.arange(len(self.keys))
        n_most = min(_MAX_ROWS, _MAX_NUMBERS // (4 + 3 * len(self.heads)))
        if n_rows > n_most:
            sample = np.random.default_rng(0).choice(n_rows, n_most, replace=False)
            rows = np.union1d(sample, np.array(sorted(self.shown), int))
        plane = self.record.map
        packed = sorted(self.shown - self.inlined & self.pictures.content.keys())
        data = {
            "rows": rows.tolist(),
            "sampled": f"{len(rows):,} of {n_rows:,} images, drawn at random" if len(rows) < n_rows else None,
            "keys": [self.keys[row] for row in rows],
            "places": plane and [_scaled(plane[name].to_numpy()[rows]) for name in ("x", "y")],
            "labels": None if self.labels is None else self.labels[rows].tolist(),
            "classes": self.classes,
            "heads": [
                [_whole(column[rows]) for column in (h.clusters, 1000 * h.scores, 1000 * h.margins)]
                for h in self.heads
            ],
            "cards": cards,
            "pictures": {row: base64.b64encode(self.pictures.content[row]).decode() for row in packed},
        }
        return _zipped(json.dumps(data, separators=(",", ":")))


def _scores(evaluation: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What was scored, by the name of the images; the run's own, without a name, first."""
    others, found = evaluation.get("others"), []
    for name, said in [("", evaluation), *(others.items() if isinstance(others, dict) else ())]:
        rows = said.get("representations") if isinstance(said, dict) else None
        if isinstance(rows, dict) and rows and all(isinstance(row, dict) for row in rows.values()):
            columns = {key: _SCORES[key] for key in _SCORES if any(key in row for row in rows.values())}
            found.append((name, {**said, "columns": columns}))
    return found


def _scaled(values: Any) -> list[int]:
    """Places as whole numbers 0 ... 10,000."""
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    return [int(place) for place in np.round((values - low) / max(high - low, 1e-12) * 10_000)]


def _whole(values: Any) -> list[int | None]:
    return [round(value) if value == value else None for value in values.tolist()]


def _zipped(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode("utf-8", "backslashreplace"), 6, mtime=0)).decode()


@functools.cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return _zipped(get_plotlyjs())
