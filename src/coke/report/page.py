"""The page: verdict, summary, scores, curves, sizes, clusters in pictures, and images left out.

One file that opens from disk: styles and pictures are inside, nothing is loaded, no script is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coke.report.clusters import Head, read_heads, size_bars
from coke.report.curves import curves
from coke.report.gallery import Gallery
from coke.report.markup import Markup, duration, join, percent, plural, tag
from coke.report.record import Record, finite, read_record
from coke.report.scores import representations, scores
from coke.report.style import STYLE
from coke.report.summary import (
    cluster_counts,
    n_images,
    planned_epochs,
    summary,
    total_seconds,
    unreadable,
)
from coke.run import Run, atomic

if TYPE_CHECKING:
    from coke.images.image_set import ImageSet

MAX_BYTES = 12_000_000


def write_page(run: Run, images: ImageSet | None, *, max_bytes: int = MAX_BYTES) -> Path:
    """Write the run's report.html and return where it lies.

    Args:
        run: the run folder; parts that are missing or broken in it become sentences on the page.
        images: the images that were trained on, for pictures of clusters, matched by key; None where they
            are not at hand, and the page says so.
        max_bytes: how large the file may become; pictures fill what the rest of the page leaves.

    Raises:
        ResumeError: the folder holds no run at all, or one written by a newer coke.
    """
    record = read_record(run)
    heads = read_heads(record)
    before = [
        _section("Summary", "What was run.", summary(record)),
        _section("Scores", "What the representation is worth where labels are known.", scores(record)),
        _section(
            "Curves", "What happened during training. Hover over a line for its values.", curves(record)
        ),
        _section(
            "Cluster sizes",
            "Where training ended: a bar is a cluster, the bound is the least size asked of each.",
            size_bars(record, heads),
        ),
    ]
    after = [_section("Images left out", None, unreadable(record))]
    used = sum(len(part.encode("utf-8")) for part in (_shell(record, []), *before, *after))
    pictures = _section(
        "Clusters in pictures",
        "Hover over a number for the image's name. The score is the cosine between an image and its "
        "cluster's center; the margin is how much smaller the cosine to the nearest other one is (negative where "
        "the bound moved the image). Pictures show the central square.",
        _pictures(record, heads, images, max_bytes - used - 1000),
    )
    page = _shell(record, [*before, pictures, *after])
    with atomic(run.report) as stream:
        stream.write(page)
    return run.report


def _section(title: str, lead: str | None, body: Markup) -> Markup:
    """A section that can be linked to."""
    name = title.lower().replace(" ", "-")
    heading = tag("h2", title, id=f"{name}-title")
    note = tag("p", lead, class_="lead") if lead else None
    return tag("section", heading, note, body, id=name, aria_labelledby=f"{name}-title")


def _shell(record: Record, sections: Sequence[Markup]) -> Markup:
    """The whole document around the sections."""
    name = record.path.resolve().name
    data = record.find("data.name")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{name}: coke report"),
        tag("style", Markup(STYLE)),
    )
    when = (
        record.finished.strftime("%d %B %Y, %H:%M UTC").lstrip("0")
        if record.finished
        else "at an unknown time"
    )
    places = ("Summary", "Scores", "Curves", "Cluster sizes", "Clusters in pictures", "Images left out")
    links = (tag("a", place, href=f"#{place.lower().replace(' ', '-')}") for place in places)
    top = tag(
        "header",
        tag("h1", name),
        tag("p", f"{data}, " if data else None, f"as of {when}", class_="when"),
        tag("nav", *links, aria_label="On this page"),
    )
    main = tag("main", _verdict(record), _tiles(record), *sections)
    foot = tag("footer", "Written by coke from the run folder ", tag("code", str(record.path)), ".")
    return Markup(f"<!DOCTYPE html>\n{tag('html', head, tag('body', top, main, foot), lang='en')}\n")


def _verdict(record: Record) -> Markup:
    """Whether it learned, in words, with the next action; then what is incomplete about the run."""
    verdict = record.verdict
    healthy = verdict.get("healthy")
    state = str(verdict.get("state") or "no verdict")
    tone = "bad" if healthy is False else "good" if state == "learning" else "flat"
    text = str(verdict.get("text") or "No epoch has ended, so there is no verdict yet.")
    action = verdict.get("action")
    following = tag("p", tag("b", "Next: "), str(action), class_="action") if action else None
    notes = (tag("p", sentence) for sentence in (*_incomplete(record), *record.problems))
    return tag(
        "section",
        tag("p", state, class_="state"),
        tag("p", text[:1].upper() + text[1:], class_="text"),
        following,
        *notes,
        class_=f"verdict {tone}",
        aria_label="Verdict",
    )


def _incomplete(record: Record) -> list[str]:
    """Sentences about a run that has not done all its epochs."""
    planned, done = planned_epochs(record), len(record.epochs)
    if planned is None or done >= planned:
        return []
    if Run(record.path).backbone.is_file():
        return [f"Training ended after {done:,} of {planned:,} epochs."]
    recorded = f"{done:,} of {planned:,} epochs are recorded: the run was interrupted or is still going."
    if (
        record.verdict.get("healthy") is False
    ):  # to continue as it was would only repeat what the verdict says
        return [recorded]
    return [f"{recorded} The same coke pretrain command with --resume continues it."]


def _tiles(record: Record) -> Markup:
    """The handful of figures that one asks for first."""
    found = representations(record.evaluation)
    tiles: list[tuple[str, str]] = []
    trained = finite(found.get("trained", {}).get("knn"))
    others = [f"{percent(finite(row.get('knn')))} {name}" for name, row in found.items() if name != "trained"]
    if trained is not None:
        tiles.append((percent(trained), "k-NN" + (f"; {', '.join(others)}" if others else "")))
    elif record.knn and finite(record.knn[-1].get("accuracy")) is not None:
        tiles.append(
            (percent(record.knn[-1]["accuracy"]), f"k-NN in epoch {record.knn[-1].get('epoch', '?')}")
        )
    images, counts, seconds = n_images(record), cluster_counts(record), total_seconds(record)
    if images is not None:
        left = f", {len(record.unreadable):,} left out" if record.unreadable else ""
        tiles.append((f"{images:,}", f"images{left}"))
    if counts:
        tiles.append(
            (
                ", ".join(f"{count:,}" for count in counts),
                "clusters" if len(counts) == 1 else "clusters per head",
            )
        )
    planned = planned_epochs(record)
    tiles.append((f"{len(record.epochs):,}", f"of {planned:,} epochs" if planned is not None else "epochs"))
    if seconds is not None:
        tiles.append((duration(seconds), "training time"))
    return tag(
        "ul", *(tag("li", tag("b", value), tag("span", name)) for value, name in tiles), class_="tiles"
    )


def _pictures(record: Record, heads: Sequence[Head], images: ImageSet | None, budget: int) -> Markup:
    """Each cluster's most central and most borderline images, or a sentence why there are none."""
    if not heads:
        sentence = (
            "There are no assignments yet, so there are no clusters to show: training writes them at its end."
        )
    elif "key" not in (record.assignments.column_names if record.assignments is not None else []):
        sentence = "assignments.parquet has no column key, so its rows cannot be matched with images."
    elif images is None:
        sentence = (
            "The images were not at hand when this page was written, so none is shown. Who is in which "
            "cluster, "
            "with score and margin, is in assignments.parquet for all "
            f"{plural(n_images(record) or 0, 'image')}."
        )
    else:
        return Gallery(record, images).sections(heads, budget)
    return join([tag("p", sentence, class_="missing")])
