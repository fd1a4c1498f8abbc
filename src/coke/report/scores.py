"""The evaluation: the trained representation beside raw pixels and the untrained network."""

from __future__ import annotations

from typing import Any

from coke.report.markup import Markup, join, number, percent, plural, table, tag
from coke.report.record import Record, finite, flatten

COLUMNS = {
    "knn": "k-NN",
    "linear": "linear probe",
    "linear_augmented": "linear probe, augmented",
    "accuracy": "cluster ACC",
    "nmi": "NMI",
    "ari": "ARI",
}
HEAD_COLUMNS = {"n_clusters": "K", "used": "clusters used"}
ROWS = ("raw pixels", "untrained", "trained")
PROTOCOL = (
    "Nearest neighbours (k-NN): weighted vote of the 20 nearest bank images by cosine (T = 0.07). Linear "
    "probe: logistic "
    "regression on "
    "frozen features, its strength chosen on a part of the bank. Clusters: k-means with as many clusters as "
    "classes and 10 starts, matched to the classes one to one (ACC); NMI and ARI need no matching. The same "
    "procedure for each row."
)


def representations(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The scored representations by name, baselines first and the trained one last.

    They are the mappings with a known score, at the top of evaluation.json or one level below.

    >>> list(representations({"scores": {"trained": {"knn": 0.5}, "raw pixels": {"knn": 0.3}}, "seed": 0}))
    ['raw pixels', 'trained']
    """
    for level in (evaluation, *(value for value in evaluation.values() if isinstance(value, dict))):
        found = {
            name: value
            for name, value in level.items()
            if isinstance(value, dict) and any(column in value for column in COLUMNS)
        }
        if found:
            order = [*ROWS[:2], *(name for name in found if name not in ROWS), ROWS[2]]
            return {name: found[name] for name in order if name in found}
    return {}


def scores(record: Record) -> Markup:
    """The table side by side with its protocol, or a sentence where the run was not evaluated."""
    if not record.evaluation:
        said = "This run has not been evaluated: it has no labels to ask about, or stopped before its end. "
        command = tag("code", f"coke evaluate {record.path}")
        return tag("p", said, command, " scores it when there are labels.", class_="missing")
    found = representations(record.evaluation)
    if not found:
        said = "evaluation.json holds no scores: without labels there is nothing to compare with."
        return join([tag("p", said, class_="missing"), *_notes(record.evaluation, found)])
    columns = [column for column in COLUMNS if any(column in row for row in found.values())]
    best = {column: _best(found, column) for column in columns}
    header = ["representation", *(COLUMNS[column] for column in columns)]
    rows = [
        [name, *(_score(row.get(column), best[column]) for column in columns)] for name, row in found.items()
    ]
    body = table(
        header, rows, caption="Higher is better; the best of each column is in colour", class_="scores"
    )
    return join([tag("p", gain_in_words(found)), body, *_notes(record.evaluation, found), *_heads(record)])


def gain_in_words(found: dict[str, dict[str, Any]]) -> str:
    """What training was worth, against both baselines, in points of k-NN and cluster accuracy.

    >>> gain_in_words({"untrained": {"knn": 0.2}, "trained": {"knn": 0.45}})
    'k-NN accuracy: trained 45.0 %, 25.0 points above untrained.'
    """
    sentences = []
    for column, name in (("knn", "k-NN accuracy"), ("accuracy", "Cluster accuracy")):
        trained = finite(found.get("trained", {}).get(column))
        if trained is None:
            continue
        against = []
        for baseline in ROWS[:2]:
            score = finite(found.get(baseline, {}).get(column))
            if score is not None:
                points = 100 * (trained - score)
                against.append(f"{abs(points):.1f} points {'above' if points >= 0 else 'below'} {baseline}")
        sentences.append(
            f"{name}: trained {percent(trained)}" + "".join(f", {text}" for text in against) + "."
        )
    return " ".join(sentences) or "The trained representation has no scores."


def _best(found: dict[str, dict[str, Any]], column: str) -> float | None:
    """The highest finite score of a column."""
    values = [finite(row.get(column)) for row in found.values()]
    return max((value for value in values if value is not None), default=None)


def _score(value: Any, best: float | None) -> Markup | str:
    """A score as a percentage, marked where it is the best."""
    score = finite(value)
    if score is None:
        return "–" if value is None else str(value)
    return tag("td", percent(score), class_="best" if score == best else None)


def _notes(evaluation: dict[str, Any], found: dict[str, dict[str, Any]]) -> list[Markup]:
    """The protocol and the split in words, then every other plain value of evaluation.json."""
    skip = {name for name, value in evaluation.items() if value in found.values() or name == "heads"}
    words, values = [], []
    for key, value in flatten({key: value for key, value in evaluation.items() if key not in skip}):
        if any(key == name or f"{name}." in key for name in found):
            continue
        if isinstance(value, str) and " " in value:
            words.append(f"{_spaced(key)}: {value.rstrip('.')}.")
        elif isinstance(value, str | int | float):
            values.append(f"{_spaced(key)} {value if isinstance(value, str | bool) else number(value)}")
    protocol = [] if any("protocol" in key for key in evaluation) or not found else [PROTOCOL]
    sentences = [*_asked(found), *words, *protocol]
    if values:
        sentences.append(f"{', '.join(values)}.")
    return [tag("p", sentence[:1].upper() + sentence[1:], class_="note") for sentence in sentences]


def _asked(found: dict[str, dict[str, Any]]) -> list[str]:
    """How many images were asked of how many, as the scores themselves say."""
    row = next((row for row in found.values() if "query_images" in row and "bank_images" in row), None)
    if row is None:
        return []
    said = (
        f"{number(row['query_images'])} query images were asked of {number(row['bank_images'])} bank images"
    )
    classes = finite(row.get("n_classes"))
    if classes:
        said += f", {number(classes)} classes (chance {percent(1 / classes)})"
    if "clustered" in row:
        count = f"{number(row['clustered_images'])} " if "clustered_images" in row else ""
        said += f"; clustering scores are those of the {count}images of the {row['clustered']}"
    return [f"{said}."]


def _spaced(key: str) -> str:
    """A key in words: its last part with spaces."""
    return key.rsplit(".", 1)[-1].replace("_", " ")


def _heads(record: Record) -> list[Markup]:
    """How far each head's own clusters agree with the labels."""
    heads = record.evaluation.get("heads")
    if not isinstance(heads, list) or not heads or not all(isinstance(head, dict) for head in heads):
        return []
    columns = [name for name, value in heads[0].items() if finite(value) is not None and name != "head"]
    rows = [
        [
            f"head {head.get('head', index)}",
            *(
                percent(finite(head.get(name))) if name in COLUMNS else number(finite(head.get(name)))
                for name in columns
            ),
        ]
        for index, head in enumerate(heads)
    ]
    header = [
        "head",
        *(HEAD_COLUMNS.get(name) or COLUMNS.get(name) or _spaced(name) for name in columns),
    ]
    caption = (
        f"The run's own clusters against the labels, {plural(len(heads), 'head')}; "
        "NMI grows with K, so compare heads with care"
    )
    return [tag("div", table(header, rows, caption=caption), class_="heads")]
