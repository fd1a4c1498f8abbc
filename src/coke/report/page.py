"""The page: a sentence for people, clusters in pictures, a map, then scores, curves and sizes, then what to do next.

One file that opens from disk: styles, pictures, data and the plotting library are inside, nothing is loaded.
"""

from __future__ import annotations

import base64
import functools
import gzip
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from coke.explore import Groups
from coke.explore.groups import DOUBT
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
_KINDS = {
    "central": "most central",
    "borderline": "most borderline",
    "random": "at random",
    "farthest": "farthest",
}
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

    def __init__(
        self, record: Record, images: ImageSet | None, data: str | os.PathLike[str] | None = None
    ) -> None:
        import jinja2

        self.record, self.images = record, images
        self.data = Path(data or str(record.config.get("data") or ""))
        self.pictures = Pictures(record.assignments, images, record.thumbnails)
        self.keys = self.pictures.keys
        ratio = finite(record.config.get("min_size_ratio"))
        self.heads = Groups.read(record.assignments, record.heads, ratio) if self.keys else []
        table: Any = record.assignments if self.keys else {}
        names = table.column_names if self.keys else []
        self.labels = table["label"].fill_null(-1).to_numpy() if "label" in names else None
        kept = record.thumbnails.schema.metadata if record.thumbnails is not None else None
        self.classes = (
            images.classes if images is not None else json.loads((kept or {}).get(b"classes", b"null"))
        )
        self.shown, self.inlined = set[int](), set[int]()
        self.curves, self.bars = charts.curves(record), [charts.sizes(head) for head in self.heads]
        self.lists = _lists(self.pictures, self.heads, record.map)
        loader = jinja2.FileSystemLoader(_TEMPLATES)
        self.templates = jinja2.Environment(
            loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        self.templates.policies["json.dumps_kwargs"] = {}  # in the order of the lines
        self.templates.filters |= {"number": words.number, "percent": words.percent, "plural": words.plural}

    def render(self, budget: float) -> bytes:
        """The page, with pictures for about so many bytes."""
        pictures, record = self.pictures, self.record
        listed = (
            [row for _, _, groups in self.lists for rows, *_ in groups for row in rows] if budget > 0 else []
        )
        self.shown, self.inlined = set(listed), set()
        pictures.load(listed)
        budget -= sum(len(pictures.content.get(row, b"")) * 4 / 3 + 400 for row in listed)
        chosen, sufficed = pictures.choose(self.heads, budget)
        self.shown |= {one.row for row in chosen.values() for one in row}
        of_heads = [[self._card(head, cluster, chosen) for cluster in head.by_size] for head in self.heads]
        card = self.templates.get_template("card.html").module.card  # type: ignore[attr-defined]
        files = (record.run.metrics_file, record.run.verdict_file, record.run.config_file)
        page = self.templates.get_template("report.html").render(
            page=self,
            record=record,
            words=words,
            name=record.run.path.resolve().name,
            when=next(
                (datetime.fromtimestamp(file.stat().st_mtime, UTC) for file in files if file.is_file()), None
            ),
            cards=[card(one, self, first=True) for one in of_heads[0]] if of_heads else [],
            sufficed=sufficed,
            scores=_scores(record.evaluation),
            texts={
                path.name: path.read_text(encoding="utf-8", errors="replace") for path in self._settings()
            },
            first=FIRST,
            at_most=SHOWN,
            doubt=DOUBT,
            plotly=_plotly(),
            data=lambda: _packed(
                self._data([[card(one, self, first=False) for one in cards] for cards in of_heads[1:]])
            ),
            file=lambda name: (_TEMPLATES / name).read_text(encoding="utf-8"),
        )
        return page.encode("utf-8", "backslashreplace")

    def _settings(self) -> list[Path]:
        run = self.record.run
        return [path for path in (run.config_file, run.environment_file) if path.is_file()]

    def _card(self, head: Groups, cluster: int, chosen: dict[Any, Any]) -> dict[str, Any]:
        said = head.describe(cluster, self.labels)
        rows = {_KINDS[kind]: chosen.get((head.index, cluster, kind), []) for kind in _KINDS}
        rows = rows if said["size"] > FIRST else {"all": rows["most central"]}
        if self.classes and said["label"] is not None and said["label"] < len(self.classes):
            said["label"] = self.classes[said["label"]]
        return {**said, "head": head, "rows": {title: shown for title, shown in rows.items() if shown}}

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

    def _data(self, cards: list[list[str]]) -> dict[str, Any]:
        """What the script works on: all images' names and numbers, or a sample's, other heads, pictures."""
        n_rows, rows = len(self.keys), np.arange(len(self.keys))
        n_most = min(_MAX_ROWS, _MAX_NUMBERS // (4 + 3 * len(self.heads)))
        if n_rows > n_most:
            sample = np.random.default_rng(0).choice(n_rows, n_most, replace=False)
            rows = np.union1d(sample, np.array(sorted(self.shown), int))
        plane = self.record.map
        packed = sorted(self.shown - self.inlined & self.pictures.content.keys())
        return {
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

    @property
    def missing(self) -> list[str]:
        """Sentences about pictures that could not be shown."""
        unknown, failed = self.pictures.unknown, self.pictures.failed
        if self.record.assignments is None:
            return [
                "There are no clusters to show yet: training writes them at its end, into assignments.parquet."
            ]
        if not self.keys:
            return ["assignments.parquet has no column key, so its rows cannot be matched with images."]
        said = []
        if unknown and self.images is None:
            said.append(
                "Images were not at hand when this page was written; coke report RUN --data DATA shows them."
            )
        elif unknown:
            which = f"{words.plural(len(unknown), 'image')}, such as “{self.keys[min(unknown)]}”,"
            said.append(f"{which} could not be found in the data at hand.")
        if failed:
            which = f"{words.plural(len(failed), 'image')}, such as “{self.keys[min(failed)]}”,"
            said.append(f"{which} could no longer be read.")
        return said


def _lists(pictures: Pictures, heads: list[Groups], plane: Any) -> list[tuple[str, str, list[Any]]]:
    """Outliers, exact copies, most alike pairs: title, sentence, and of each entry rows, words, and copies' rows."""
    if not heads:
        return []
    copies = pictures.copies
    loneliness = heads[0].scores if plane is None else plane["similarity"].fill_null(9).to_numpy()
    what = "score" if plane is None else "cosine to any other image"
    order = np.argsort(loneliness, kind="stable")[: min(_LISTED, len(loneliness) // 4)].tolist()
    outliers = [([row], f"{loneliness[row]:.2f}") for row in order]
    counts = np.bincount(copies)
    often = [int(code) for code in np.argsort(-counts, kind="stable")[:_LISTED] if counts[code] > 1]
    groups = [np.flatnonzero(copies == code).tolist() for code in often]
    exact = [(rows[:1], f"{len(rows)} times", rows[:50]) for rows in groups]
    n_copies = int((counts - 1).clip(0).sum())
    said = (
        f"{words.plural(n_copies, 'image')} too many: exact copies of others."
        if n_copies
        else "There are none."
    )
    lists: list[tuple[str, str, list[Any]]] = [("Outliers", f"The images of the least {what}.", outliers)]
    lists.append(("Exact copies", said, exact))
    if plane is not None:
        lists.append(
            _pairs(
                pictures,
                plane["nearest"].fill_null(-1).to_numpy(),
                plane["similarity"].fill_null(-9).to_numpy(),
            )
        )
    return lists


def _pairs(pictures: Pictures, nearest: Any, similarity: Any) -> tuple[str, str, list[Any]]:
    rows, copies = np.arange(len(nearest)), pictures.copies
    known = (nearest >= 0) & (copies != copies[nearest]) & ~((nearest[nearest] == rows) & (nearest < rows))
    best = rows[known][np.argsort(-similarity[known], kind="stable")[:_LISTED]]
    pairs = [(int(row), int(nearest[row])) for row in best]
    pictures.load(row for pair in pairs for row in pair)
    entries = []
    for one, other in pairs:
        difference = pictures.difference(one, other)
        pixels = "" if difference is None else f"; pixels differ by {difference:.0f} of 255"
        entries.append(((one, other), f"cosine {similarity[one]:.3f}{pixels}"))
    close = ", ".join(
        f"{int((similarity[known] >= level).sum()):,} at {level} or more" for level in (0.99, 0.999)
    )
    said = f"Pairs nearest to each other in the embedding, which may yet differ to the eye: {close}."
    return "Near-duplicates", said, entries


def _scores(evaluation: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What was scored, by the name of the images; the run's own, without a name, first."""
    others, found = evaluation.get("others"), []
    for name, said in [("", evaluation), *(others.items() if isinstance(others, dict) else ())]:
        rows = said.get("representations") if isinstance(said, dict) else None
        if isinstance(rows, dict) and rows and all(isinstance(row, dict) for row in rows.values()):
            columns = {
                key: title for key, title in _SCORES.items() if any(key in row for row in rows.values())
            }
            found.append((name, {**said, "columns": columns}))
    return found


def _scaled(values: Any) -> list[int]:
    """Places as whole numbers 0 ... 10,000."""
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    return [int(place) for place in np.round((values - low) / max(high - low, 1e-12) * 10_000)]


def _whole(values: Any) -> list[int | None]:
    return [round(value) if value == value else None for value in values.tolist()]


def _packed(value: Any) -> str:
    return _zipped(json.dumps(value, separators=(",", ":")))


def _zipped(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode("utf-8", "backslashreplace"), 9, mtime=0)).decode()


@functools.cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return _zipped(get_plotlyjs())
