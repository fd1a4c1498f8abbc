"""What happened during training, as charts with a sentence each that says how to read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from coke.report.markup import Markup, join, number, plural, tag
from coke.report.numbers import numbers
from coke.report.record import Record, finite
from coke.report.svg import Line, line_chart

MAX_SIZE_CHARTS = 6  # heads whose sizes get a chart of their own outside the fold
N_TONES = 6


def curves(record: Record) -> Markup:
    """All charts of a run; sentences where a figure was never recorded."""
    if not record.epochs:
        return tag("div", *_first_epoch(record))
    charts = [
        _loss(record.epochs),
        _chart(
            record.epochs,
            "Learning rate",
            [("learning rate", _field("learning_rate"))],
            "learning rate",
            "It should climb over several epochs before it falls; in the first epoch it is zero, because "
            "that "
            "epoch only clusters.",
            zero=True,
        ),
        _knn(record),
        _chart(
            record.epochs,
            "Pseudo-labels",
            [
                ("churn", _field("churn", 100)),
                ("agreement with last epoch", _field("label_agreement", 100)),
                ("predicted", _field("prediction_agreement", 100)),
            ],
            "share, %",
            "Churn is the share of images whose cluster changed since the epoch before: it should fall. "
            "Agreement "
            "(the same, corrected for chance) and the share of labels that the network predicts should rise.",
            zero=True,
        ),
        _used(record),
        *_sizes(record),
        _chart(
            record.epochs,
            "Feature spread",
            [("feature spread", _field("feature_spread"))],
            "spread",
            "How far features lie from their common mean. A line that falls to zero means that all "
            "images look "
            "alike to the network: collapse.",
            zero=True,
        ),
        _chart(
            record.epochs,
            "Effective rank",
            [("effective rank", _field("effective_rank"))],
            "dimensions",
            "How many directions the features really use. It should stay well above one, and grow or "
            "level off.",
            zero=True,
        ),
        _chart(
            record.epochs,
            "Speed",
            [("images per second", _field("images_per_second"))],
            "images / s",
            _waiting(record.epochs),
            zero=True,
        ),
    ]
    return join([tag("div", *charts, class_="charts"), numbers(record)])


def figure(title: str, chart: Markup, lines: Sequence[Line], *sentences: str) -> Markup:
    """A chart with its name, the key to its lines with their newest values, and how to read it."""
    keys = (
        tag(
            "span",
            tag("i", class_=f"swatch tone-{line.tone}" + (" dashed" if line.dashed else "")),
            f"{line.name} ",
            tag("b", line.words(line.last)),
            " (last known)" if line.y and line.y[-1] is None else None,
        )
        for line in lines
    )
    reading = (tag("p", sentence) for sentence in sentences)
    return tag(
        "figure", tag("h3", title), tag("div", *keys, class_="keys"), chart, tag("figcaption", *reading)
    )


Reader = Callable[[dict[str, Any]], "float | None"]


def _field(name: str, scale: float = 1.0) -> Reader:
    """A reader of one figure of an epoch record."""

    def read(epoch: dict[str, Any]) -> float | None:
        value = finite(epoch.get(name))
        return None if value is None else value * scale

    return read


def _head(index: int, name: str, per: str | None = None) -> Reader:
    """A reader of one figure of one head; as a percentage of another of its figures if ``per`` is given."""

    def read(epoch: dict[str, Any]) -> float | None:
        heads = epoch.get("heads") or []
        head = heads[index] if index < len(heads) else {}
        value, whole = finite(head.get(name)), finite(head.get(per)) if per else 1.0
        if value is None or not whole:
            return None
        return 100 * value / whole if per else value

    return read


def _median(index: int) -> Reader:
    """A reader of the middle one of a head's recorded quantiles of sizes."""

    def read(epoch: dict[str, Any]) -> float | None:
        heads = epoch.get("heads") or []
        quantiles = heads[index].get("size_quantiles") if index < len(heads) else None
        return finite(quantiles[len(quantiles) // 2]) if quantiles and len(quantiles) % 2 else None

    return read


def _line(
    records: Sequence[dict[str, Any]], name: str, read: Reader, tone: int = 0, dashed: bool = False
) -> Line:
    """A figure over the epochs."""
    across = [finite(record.get("epoch")) for record in records]
    places = [float(index) if x is None else x for index, x in enumerate(across)]
    return Line(name, places, [read(record) for record in records], tone, dashed)


def _chart(
    records: Sequence[dict[str, Any]],
    title: str,
    figures: Sequence[tuple[str, Reader]],
    y_label: str,
    aid: str,
    *,
    zero: bool = False,
) -> Markup:
    """A chart of the figures that were recorded, or a sentence that none was."""
    lines = [_line(records, name, read, tone % N_TONES) for tone, (name, read) in enumerate(figures)]
    lines = [replace(line, unit=" %" if y_label.endswith("%") else "") for line in lines]
    lines = [line for line in lines if line.last is not None]
    if not lines:
        return _missing(title, "This figure was not recorded in this run.")
    chart = line_chart(lines, title=title, x_label="epoch", y_label=y_label, zero=zero)
    return figure(title, chart, lines, aid)


def _missing(title: str, sentence: str) -> Markup:
    """The place of a chart that cannot be drawn."""
    return tag("figure", tag("h3", title), tag("p", sentence, class_="missing"), class_="empty")


def _loss(epochs: Sequence[dict[str, Any]]) -> Markup:
    """Loss beside ln K, the loss of a network that has no idea."""
    loss = _line(epochs, "loss", _field("loss"))
    chance = _line(epochs, "ln K (knows nothing)", _field("ln_clusters"), 1, dashed=True)
    wrong = [
        str(epoch.get("epoch", index))
        for index, epoch in enumerate(epochs)
        if epoch.get("loss") is not None and finite(epoch["loss"]) is None
    ]
    sentences = []
    if wrong:
        sentences.append(
            f"The loss was not a finite number in {plural(len(wrong), 'epoch')}, first in epoch {wrong[0]}: "
            "those points are missing from the line."
        )
    if loss.last is None:
        return _missing("Loss", " ".join(sentences) or "No epoch has recorded a loss.")
    lines = [loss, chance] if chance.last is not None else [loss]
    chart = line_chart(lines, title="Loss", x_label="epoch", y_label="cross-entropy, nats")
    aid = (
        "Below the dashed line the network predicts its pseudo-labels better than a guess. "
        "On the line it learns nothing; far below it at once, the labels may have become trivial."
    )
    return figure("Loss", chart, lines, *sentences, aid)


def _knn(record: Record) -> Markup:
    """Accuracy of the nearest neighbours, where there are labels."""
    if not record.knn:
        return _missing(
            "Nearest neighbours",
            "No k-NN accuracy was recorded during training: the data has no labels to ask about, or the "
            "first "
            "probe was still to come.",
        )
    lines = [_line(record.knn, "k-NN accuracy", _field("accuracy", 100))]
    start = record.knn[0]
    clustering = finite(record.find("clustering_epochs"))
    if clustering is not None and start.get("epoch") == clustering - 1 and lines[0].y[0] is not None:
        untrained = [lines[0].y[0]] * len(lines[0].x)  # epochs that only cluster leave the network as it was
        lines.append(Line("untrained", lines[0].x, untrained, 1, dashed=True))
    lines = [replace(line, unit=" %") for line in lines]
    chart = line_chart(lines, title="Nearest neighbours", x_label="epoch", y_label="accuracy, %")
    aid = (
        "How often the nearest images of the bank carry the right label. Training never sees these labels. "
        "An early dip is usual; after it the curve should rise."
    )
    if "query" in start and "bank" in start:
        aid += f" {number(start['query'])} images were asked of {number(start['bank'])}."
    return figure("Nearest neighbours", chart, lines, aid)


def _head_name(record: Record, index: int) -> str:
    """A head's name with its number of clusters."""
    heads = record.epochs[-1].get("heads") or [] if record.epochs else []
    count = finite(heads[index].get("n_clusters")) if index < len(heads) else None
    return f"head {index}" + (f" (K = {number(count)})" if count else "")


def _used(record: Record) -> Markup:
    """Clusters that hold at least one image, for each head."""
    figures = [
        (_head_name(record, index), _head(index, "used", "n_clusters")) for index in range(record.n_heads)
    ]
    aid = (
        "The share of clusters that received an image in the epoch. Anything below 100 % is room left unused."
    )
    return _chart(record.epochs, "Used clusters", figures, "clusters, %", aid, zero=True)


def _sizes(record: Record) -> list[Markup]:
    """Smallest and largest cluster beside the bound, one chart a head."""
    charts = []
    for index in range(record.n_heads):
        title = f"Cluster sizes, {_head_name(record, index)}"
        lines = [
            _line(record.epochs, "largest", _head(index, "largest"), 2),
            _line(record.epochs, "median", _median(index), 3),
            _line(record.epochs, "smallest", _head(index, "smallest"), 0),
            _line(record.epochs, "bound", _head(index, "bound"), 1, dashed=True),
        ]
        lines = [line for line in lines if line.last is not None]
        if not lines:
            charts.append(_missing(title, "Sizes of clusters were not recorded in this run."))
            continue
        chart = line_chart(
            lines, title=title, x_label="epoch", y_label="images (log scale)", zero=True, logarithmic=True
        )
        aid = (
            "The smallest cluster should settle near the bound or above it; online, small violations are "
            "normal. "
            "The bound holds from below only: a largest cluster that keeps growing is the first sign of "
            "collapse."
        )
        charts.append(figure(title, chart, lines, aid))
    if len(charts) > MAX_SIZE_CHARTS:
        rest = charts[MAX_SIZE_CHARTS:]
        name = f"The sizes of the other {plural(len(rest), 'head')}"
        folded = tag("details", tag("summary", name), tag("div", *rest, class_="charts"), class_="wide")
        charts = [*charts[:MAX_SIZE_CHARTS], folded]
    return charts


def _waiting(epochs: Sequence[dict[str, Any]]) -> str:
    """How to read the speed, with the newest share of time spent waiting for images."""
    waits = [finite(epoch.get("data_wait")) for epoch in epochs]
    wait = next((share for share in reversed(waits) if share is not None), None)
    aid = "Images processed per second; a drop points at a busy machine or a slow disk."
    if wait is None:
        return aid
    return f"{aid} In the last epoch {100 * wait:.1f} % of the time went into waiting for images."


def _first_epoch(record: Record) -> list[Markup]:
    """The losses of the steps of a run whose first epoch never ended, or a sentence."""
    sentence = tag("p", "No epoch has ended yet, so there are no curves by epoch.", class_="missing")
    values = [finite(step.get("loss")) for step in record.steps]
    if not any(value is not None for value in values):
        return [sentence]
    line = Line("loss", [float(index) for index in range(len(values))], values)
    chart = line_chart([line], title="Loss", x_label="recorded step", y_label="cross-entropy, nats")
    drawn = figure("Loss", chart, [line], "The losses of the steps recorded before the run stopped.")
    return [sentence, tag("div", drawn, class_="charts")]
