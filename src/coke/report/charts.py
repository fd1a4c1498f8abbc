"""What happened during training: the lines of each chart, with a sentence that says how to read it."""

from __future__ import annotations

from typing import Any

from coke.explore import Groups
from coke.report import words
from coke.report.record import Record, finite

_OF_EPOCHS = {  # title: unit, fields of an epoch by the names of their lines, factor, how to read it
    "Loss": (
        "cross-entropy, nats",
        {"loss": "loss", "a guess (ln K)": "ln_clusters"},
        1,
        "Below the dashed line the network predicts its pseudo-labels better than a guess. On the line it learns "
        "nothing; far below it at once, the labels may have become trivial.",
    ),
    "Pseudo-labels": (
        "share, %",
        {"churn": "churn", "kept beyond chance": "label_agreement", "predicted": "prediction_agreement"},
        100,
        "Churn is the share of images whose cluster changed since the epoch before: it should fall. The labels kept "
        "beyond chance, and those that the network predicts, should rise.",
    ),
    "Effective rank": (
        "dimensions",
        {"effective rank": "effective_rank"},
        1,
        "How many directions the features really use: it should stay well above one, and grow or level off.",
    ),
    "Feature spread": (
        "spread",
        {"feature spread": "feature_spread"},
        1,
        "How far features lie from their mean. A fall to zero means that all images look alike: collapse.",
    ),
    "Learning rate": ("learning rate", {"learning rate": "learning_rate"}, 1, "It climbs before it falls."),
    "Speed": (
        "images / s",
        {"images per second": "images_per_second"},
        1,
        "A drop points at a busy machine.",
    ),
}
_SIZES = (
    "Training holds the bound over an epoch, but for small violations, and from below only: a largest cluster that "
    "keeps growing is the first sign of collapse."
)
_KNN = (
    "How often the nearest images carry the right label, which training never sees. An early dip is usual; after it "
    "the curve should rise above the untrained network."
)


def curves(record: Record) -> list[dict[str, Any]]:
    """The charts that something was recorded for: title, axes, lines by name, a sentence."""
    epochs, knn, steps = (record.of_kind(kind) for kind in ("epoch", "knn", "step"))
    if not epochs:
        lines = {"loss": [finite(step.get("loss")) for step in steps]}
        return _drawn(_chart("Loss", "recorded step", list(range(len(steps))), lines, "nats", ""))
    numbers = [epoch.get("epoch", place) for place, epoch in enumerate(epochs)]
    charts = []
    for title, (unit, fields, factor, aid) in _OF_EPOCHS.items():
        lines = {name: [_times(epoch.get(key), factor) for epoch in epochs] for name, key in fields.items()}
        charts.append(_chart(title, "epoch", numbers, lines, unit, aid))
    for index in range(len(record.heads)):
        heads: list[Any] = [dict(enumerate(epoch.get("heads") or ())).get(index, {}) for epoch in epochs]
        lines = {key: [finite(head.get(key)) for head in heads] for key in ("largest", "smallest", "bound")}
        title = f"Sizes during training, head {index}"
        charts.append(_chart(title, "epoch", numbers, lines, "images", _SIZES))
    accuracies = {"k-NN": [_times(line.get("accuracy"), 100) for line in knn]}
    clustering = finite(record.config.get("clustering_epochs"))  # which leave the network as it was
    if knn and clustering is not None and knn[0].get("epoch") == clustering - 1:
        accuracies["untrained"] = accuracies["k-NN"][:1] * len(knn)
    asked = [line.get("epoch") for line in knn]
    charts.insert(1, _chart("Nearest neighbours", "epoch", asked, accuracies, "accuracy, %", _KNN))
    return _drawn(*charts)


def sizes(head: Groups) -> dict[str, Any]:
    """The clusters of a head by size, beside the bound and the equal share."""
    ordered = sorted((int(size) for size in head.sizes), reverse=True)
    levels = {"bound": head.bound, "equal share": sum(ordered) / max(len(ordered), 1)}
    lines = {"images": ordered, **{name: [level] * len(ordered) for name, level in levels.items() if level}}
    numbers, said = list(range(1, len(ordered) + 1)), words.sizes_in_words(head)
    return _chart(f"Head {head.index}", "clusters, the largest first", numbers, lines, "images", said)


def _times(value: Any, factor: float) -> float | None:
    known = finite(value)
    return None if known is None else factor * known


def _chart(title: str, across: str, x: list[Any], lines: Any, unit: str, aid: str) -> dict[str, Any]:
    return {"title": title, "across": across, "unit": unit, "x": x, "lines": lines, "aid": aid}


def _drawn(*charts: dict[str, Any]) -> list[dict[str, Any]]:
    """Charts without the lines of which nothing is known, and without those that have no line left."""
    for chart in charts:
        lines = chart["lines"].items()
        chart["lines"] = {name: line for name, line in lines if any(value is not None for value in line)}
    return [chart for chart in charts if chart["lines"]]
