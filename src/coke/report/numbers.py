"""The figures behind the curves, for those who want them exact or cannot see one; and the events."""

from __future__ import annotations

from typing import Any

from coke.report.markup import Markup, definitions, join, number, plural, table, tag
from coke.report.record import Record

MAX_TABLE_ROWS = 400
EPOCH_FIGURES = (
    "epoch",
    "loss",
    "learning_rate",
    "churn",
    "label_agreement",
    "prediction_agreement",
    "feature_spread",
    "effective_rank",
    "data_wait",
    "images_per_second",
    "seconds",
)


def numbers(record: Record) -> Markup:
    """The figures behind the charts as a table, folded away, and the events of the run."""
    epochs = record.epochs[-MAX_TABLE_ROWS:]
    rows = [[_cell(epoch.get(name)) for name in EPOCH_FIGURES] for epoch in epochs]
    header = [name.replace("_", " ") for name in EPOCH_FIGURES]
    left = len(record.epochs) - len(epochs)
    caption = (
        f"The last {plural(len(epochs), 'epoch')}; {left:,} earlier ones are in metrics.jsonl"
        if left
        else "Every epoch of the run"
    )
    parts = [
        tag("details", tag("summary", "The numbers behind the curves"), table(header, rows, caption=caption))
    ]
    if record.events:
        said = [
            (f"epoch {event['epoch']}" if "epoch" in event else "run", str(event.get("text", "")))
            for event in record.events
        ]
        name = f"What happened along the way ({plural(len(said), 'event')})"
        parts.append(tag("details", tag("summary", name), definitions(said)))
    return join(parts)


def _cell(value: Any) -> str:
    """A figure of the table, or the word that stands in its place."""
    return number(value) if isinstance(value, int | float) else "–" if value is None else str(value)
