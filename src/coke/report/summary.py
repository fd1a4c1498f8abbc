"""What was run, on what, for how long: the rows of the summary, and everything else folded away."""

from __future__ import annotations

from typing import Any

from coke.report.markup import Markup, definitions, duration, join, number, plural, table, tag
from coke.report.record import Record, finite, flatten

UNREADABLE_SHOWN = 20

# what to call it, and the keys of environment.json and config.yaml that may say it, best first
ROWS: list[tuple[str, tuple[str, ...]]] = [
    ("Recipe", ("recipe",)),
    ("Data", ("data.name", "dataset", "data")),
    ("Images", ("data.n_images", "n_images", "n_samples", "train_images")),
    ("Splits", ("data.note", "splits.note", "note", "splits")),
    ("Fingerprint", ("data.fingerprint", "fingerprint")),
    ("Backbone", ("backbone.name", "backbone_name", "backbone")),
    ("Batch size", ("batch_size",)),
    ("Device", ("device_name", "device", "accelerator")),
    ("Precision", ("precision",)),
    ("Processes", ("world_size", "processes")),
    ("Seed", ("seed",)),
    ("Command", ("command",)),
]


def summary(record: Record) -> Markup:
    """The description list of the run; rows that no file knows are left out, and all of both files follow."""
    rows: list[tuple[str, object]] = []
    for name, keys in ROWS:
        value = record.find(*keys)
        if name == "Images" and value is None and record.assignments is not None:
            value = record.assignments.num_rows
        if value is not None and not isinstance(value, dict) and len(_words(value)) <= 200:
            rows.append(
                (name, tag("code", _words(value)) if name in ("Command", "Fingerprint") else _words(value))
            )
    rows.insert(3, ("Clusters (K)", heads_in_words(record)))
    views = _views(record.find("views"))
    if views:
        rows.append(("Views", views))
    rows += [("Epochs", epochs_in_words(record)), ("Time", time_in_words(record))]
    versions = _versions(record)
    if versions:
        rows.append(("Versions", ", ".join(versions)))
    return join([definitions(rows), _everything(record)])


def n_images(record: Record) -> int | None:
    """How many images training saw, as far as any file says."""
    known = finite(record.find("data.n_images", "n_images", "n_samples", "train_images"))
    if known is not None:
        return int(known)
    return record.assignments.num_rows if record.assignments is not None else None


def cluster_counts(record: Record) -> list[int]:
    """K of each head: of the last epoch, else of the configuration; empty where neither says."""
    heads = record.epochs[-1].get("heads") or [] if record.epochs else []
    counts: Any = [head.get("n_clusters") for head in heads] or record.find("n_clusters", "clusters", "heads")
    counts = counts if isinstance(counts, list) else [counts]
    return [int(count) for count in counts if finite(count) is not None]


def heads_in_words(record: Record) -> str:
    """K of each head as a phrase."""
    counts = cluster_counts(record)
    if not counts:
        return "not recorded yet"
    return f"{', '.join(f'{count:,}' for count in counts)} ({plural(len(counts), 'head')})"


def planned_epochs(record: Record) -> int | None:
    """How many epochs the run was to have."""
    planned = finite(record.find("epochs", "n_epochs", "max_epochs"))
    return int(planned) if planned is not None else None


def epochs_in_words(record: Record) -> str:
    """Epochs done, of those planned where that is known."""
    planned = planned_epochs(record)
    done = f"{len(record.epochs):,}"
    return f"{done} of {planned:,}" if planned is not None else f"{done} (the plan is not recorded)"


def total_seconds(record: Record) -> float | None:
    """Seconds spent in the recorded epochs."""
    seconds = [finite(epoch.get("seconds")) for epoch in record.epochs]
    known = [value for value in seconds if value is not None]
    return sum(known) if known else None


def time_in_words(record: Record) -> str:
    """The training time, from the recorded epochs."""
    total = total_seconds(record)
    if total is None:
        return "not recorded yet"
    each = duration(total / len(record.epochs))
    return f"{duration(total)} for {plural(len(record.epochs), 'epoch')} ({each} each)"


def _views(views: Any) -> str | None:
    """The views of an image: how many of which size, and whether they are clustered.

    >>> _views([{"size": 96, "count": 2, "clusters": True}, {"size": 48, "count": 6, "clusters": False}])
    '2 of 96 px, 6 of 48 px (not clustered)'
    """
    if not isinstance(views, list) or not all(isinstance(view, dict) and "size" in view for view in views):
        return None
    return ", ".join(
        f"{view.get('count', 1)} of {view['size']} px"
        + ("" if view.get("clusters", True) else " (not clustered)")
        for view in views
    )


def _versions(record: Record) -> list[str]:
    """Names and versions of the software, from a mapping called versions or keys that end so."""
    versions = record.environment.get("versions")
    if isinstance(versions, dict):
        return [f"{name} {version}" for name, version in versions.items()]
    names = ("coke", "python", "torch", "timm", "lightning_fabric", "numpy")
    return [f"{name} {record.environment[name]}" for name in names if name in record.environment]


def _words(value: Any) -> str:
    """A value of a file as text: whole numbers with separators, lists with commas."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int | float):
        return number(value, 6)
    if isinstance(value, list):
        return ", ".join(_words(item) for item in value)
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_words(item)}" for key, item in value.items())
    return str(value)


def _everything(record: Record) -> Markup:
    """The whole configuration and environment, folded away."""
    parts = []
    sources = (
        ("configuration", "config.yaml", record.config),
        ("environment", "environment.json", record.environment),
    )
    for name, file, content in sources:
        if not content:
            parts.append(tag("p", f"{file} is not in the run folder, or empty.", class_="missing"))
            continue
        rows = [(tag("code", key), _words(value)) for key, value in flatten(content)]
        listed = table(["key", "value"], rows, caption=f"Everything in {file}", class_="text")
        parts.append(tag("details", tag("summary", f"The whole {name}"), listed))
    return join(parts)


def unreadable(record: Record) -> Markup:
    """Images that were left out: how many, and the first of them."""
    rows = record.unreadable
    if not rows:
        return tag("p", "Every image that was found could be read.")
    shown = rows[:UNREADABLE_SHOWN]
    rest = len(rows) - len(shown)
    said = f"{plural(len(rows), 'image')} could not be read and took no part in training."
    more = f" The first {len(shown)} are listed here, all of them in unreadable.csv." if rest else ""
    listed = table(["image", "reason"], shown, caption="Images left out, and why", class_="text")
    return join([tag("p", said + more), listed])
