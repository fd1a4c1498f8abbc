"""What the page says in words: whether to trust the run, what its groups follow, what to do with it."""

from __future__ import annotations

import math
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from coke.explore import Groups, share_between
from coke.report.record import Record, finite

_FOLLOWED = 0.5  # share of the variance between groups from which on these are said to follow a thing
STATES = {  # a verdict's name, for people who do not know the figures behind it
    "learning": "It learned: images of a group have come to look alike to the network.",
    "clustering": "It has sorted the images once and learned nothing yet.",
    "starting": "Too little training to trust: look around, but do not rely on these groups.",
    "collapsing": "It is collapsing: one group swallows most images.",
    "unbalanced": "Many groups stayed empty, so the others mix what does not belong together.",
    "noise": "The groups are noise: images change theirs as if by lot.",
    "guessing": "It does not learn: the network still guesses which group an image is in.",
    "constant": "Nothing here can be trusted: all images look the same to the network.",
    "narrow": "It went narrow: the network tells images apart by very few properties.",
    "trivial": "There is one group alone, so there was nothing to learn.",
    "diverging": "Training went wrong: its loss ran away.",
    "nuisance": "The groups follow something other than the labels, more so than before training.",
}


def number(value: Any) -> str:
    """A number as people write it: whole numbers with separators, others to three digits.

    >>> number(50000), number(0.123456), number(412.6), number(float("nan")), number(None), number(-2.5)
    ('50,000', '0.123', '413', 'not a number', '–', '−2.5')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if math.isnan(value):
        return "not a number"
    whole = 100 <= abs(value) < 1e15 or value == int(value) if math.isfinite(value) else False
    return (f"{value:,.0f}" if whole and abs(value) < 1e15 else f"{value:.3g}").replace("-", "−", 1)


def percent(share: Any) -> str:
    """A share in [0, 1] as a percentage.

    >>> percent(0.5), percent(None)
    ('50.0 %', '–')
    """
    return number(share) if finite(share) is None else f"{100 * share:.1f} %"


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "image"), plural(1200, "image")
    ('1 image', '1,200 images')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def for_people(record: Record) -> str:
    """The sentence before all figures."""
    verdict = record.verdict
    if not verdict:
        return "No epoch has ended, so there is no verdict yet."
    said = str(verdict.get("text") or "There is no verdict.")
    return STATES.get(str(verdict.get("state")), said[:1].upper() + said[1:])


def follows(record: Record, heads: list[Groups]) -> str:
    """Whether groups go by mere brightness or colour: how much of their variance lies between groups."""
    names = ["red", "green", "blue"]
    if record.map is None or not heads or not set(names) <= set(record.map.column_names):
        return ""
    inside = heads[0].clusters >= 0
    colours = np.stack([record.map[name].to_numpy().astype(np.float64) for name in names], axis=1)[inside]
    brightness = colours @ np.array([[0.299], [0.587], [0.114]])  # luma of ITU-R BT.601
    kinds = {"brightness": brightness, "colour": colours - brightness}
    shares = {name: share_between(values, heads[0].clusters[inside]) for name, values in kinds.items()}
    followed = " and ".join(name for name, share in shares.items() if share >= _FOLLOWED)
    figures = " and ".join(
        f"{100 * share:.0f} % of the differences in {name}" for name, share in shares.items()
    )
    start = f"Groups follow {followed}" if followed else "Groups follow neither brightness nor colour alone"
    return f"{start}: {figures} lie between them, the rest within."


def incomplete(record: Record) -> list[str]:
    """A sentence about a run that has not done all its epochs."""
    planned, done = finite(record.config.get("epochs")), len(record.of_kind("epoch"))
    if planned is None or done >= planned:
        return []
    if record.run.backbone.is_file():
        return [f"Training ended after {done:,} of {planned:,.0f} epochs."]
    said = f"{done:,} of {planned:,.0f} epochs are recorded: the run was interrupted or is still going."
    worth_it = record.verdict.get("healthy") is not False  # else to go on would repeat what the verdict says
    return [said + (" The same coke pretrain command with --resume continues it." if worth_it else "")]


def sizes_in_words(head: Groups) -> str:
    """Largest and smallest cluster, empty ones, and those below the bound."""
    sizes, total = head.sizes, max(int(head.sizes.sum()), 1)
    largest, smallest = int(sizes.max(initial=0)), int(sizes.min(initial=total))
    said = [
        f"The largest cluster holds {plural(largest, 'image')} ({percent(largest / total)}), the smallest {smallest:,}."
    ]
    if (sizes == 0).any():
        said.append(f"Empty: {plural(int((sizes == 0).sum()), 'cluster')}.")
    if head.bound is None:
        said.append("The bound is not recorded in this run folder.")
    else:
        short = [int(cluster) for cluster in np.flatnonzero(sizes < head.bound)]
        named = ", ".join(map(str, short[:10])) + (", ..." if len(short) > 10 else "")
        broken = f"The bound of {number(head.bound)} is broken by {plural(len(short), 'cluster')}: {named}."
        said.append(broken if short else f"Every cluster holds at least the bound of {number(head.bound)}.")
    if (head.clusters < 0).any():
        said.append(f"Without a cluster: {plural(int((head.clusters < 0).sum()), 'image')}.")
    return " ".join(said)


def gain(scores: dict[str, dict[str, Any]]) -> str:
    """What training was worth, against both baselines, in points of k-NN and cluster accuracy.

    >>> gain({"untrained": {"knn": 0.2}, "trained": {"knn": 0.45}})
    'k-NN accuracy: trained 45.0 %, 25.0 points above untrained.'
    """
    sentences = []
    for column, name in (("knn", "k-NN accuracy"), ("accuracy", "Cluster accuracy")):
        trained = finite(scores.get("trained", {}).get(column))
        if trained is None:
            continue
        said = f"{name}: trained {percent(trained)}"
        for baseline in ("raw pixels", "untrained"):
            score = finite(scores.get(baseline, {}).get(column))
            if score is not None:
                side = "above" if trained >= score else "below"
                said += f", {100 * abs(trained - score):.1f} points {side} {baseline}"
        sentences.append(f"{said}.")
    return " ".join(sentences)


def to_use(record: Record) -> dict[str, str]:
    """What can be done with the run next, a sentence each: a line to copy, quoted for a shell."""
    path, data = record.run.path.resolve(), str(record.config.get("data") or "DATA")
    run, images = shlex.quote(str(path)), shlex.quote(os.path.abspath(data) if Path(data).exists() else data)
    features, new, following = (
        shlex.quote(f"{path}-{name}") for name in ("features.parquet", "new.parquet", "next")
    )
    again = {"Write this page again, when the images lie elsewhere": f"coke report {run} --data {images}"}
    if not record.run.backbone.is_file():
        return {"Go on with this run": f"coke pretrain {images} --out {run} --resume", **again}
    load = "Load it in Python, for features and clusters of any images"
    other = "Predict: other images, which lie at NEW, into these clusters"
    return {
        load: f"import coke; run = coke.load({str(path)!r})",
        "Embed: the features of all images": f"coke embed {run} {images} --out {features}",
        other: f"coke predict {run} NEW --out {new}",
        "Continue with images that came or went": f"coke pretrain NEW --continue {run} --out {following}",
        "Score it on other images, with labels": f"coke evaluate {run} --data NEW",
        **again,
    }
