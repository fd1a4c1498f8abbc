"""One page that shows a choice: duplicates beside what stays, clusters with what was taken of them. Opens from disk."""

from __future__ import annotations

import base64
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from coke.atomic import atomic
from coke.curation.choose import Choice
from coke.curation.duplicates import N_NEAR
from coke.curation.sources import Pictures, Rows
from coke.curation.write import outputs
from coke.errors import DataError
from coke.explore.thumbnails import thumbnail

_GROUPS, _OF_A_GROUP = 30, 6  # of duplicates that are shown, and how many that go of each
_CLUSTERS, _OF_A_CLUSTER = 40, 8  # that are shown, and how many that were taken of each
_THUMBNAIL = 128  # px of the longer side
_TEMPLATE = "page.html.jinja"


def write_page(rows: Rows, choice: Choice, out: Path) -> None:
    """The page of the list ``out``, beside it: at most 30 groups of duplicates and 40 clusters, at most 550 images."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("coke.curation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    with atomic(outputs(out)[2]) as stream:
        stream.write(environment.get_template(_TEMPLATE).render(shown(rows, choice, out)))


def shown(rows: Rows, choice: Choice, out: Path) -> dict[str, Any]:
    """What the page's template is filled with."""
    n_rows = len(rows)
    pictures = rows.pictures
    list_of = shlex.quote(str(out))
    use = f"coke pretrain {list_of}" if pictures is not None else f"pyarrow.parquet.read_table({str(out)!r})"
    return {
        "title": f"{len(choice.rows):,} of {n_rows:,} rows of {rows.name}",
        "sentence": choice.sentence(),
        "stays": choice.words_on_order,
        "threshold": choice.words_on_similarity,
        "n_near": N_NEAR,
        "counts": [
            {
                "similarity": f"{similarity:.6g}",
                "goes": f"{goes:,}",
                "left": f"{n_rows - goes:,}",
                "taken": similarity == choice.similarity,
            }
            for similarity, goes in sorted(choice.counts.items(), reverse=True)
        ],
        "groups": (groups := _duplicates(rows, choice)),
        "groups_note": f"{'All' if len(groups) < _GROUPS else 'The'} {len(groups)} "
        f"{'groups' if len(groups) < _GROUPS else 'largest groups'}; of each at most {_OF_A_GROUP} that go, "
        "the least similar first.",
        **_clusters(rows, choice),
        "use": use,
        "dropped": str(outputs(out)[1]),
    }


def _duplicates(rows: Rows, choice: Choice) -> list[dict[str, Any]]:
    """The largest groups: what stays, and of what goes the least similar, where a mistake would show."""
    copies = np.flatnonzero(choice.instead >= 0)
    stays, counts = np.unique(choice.instead[copies], return_counts=True)
    found = []
    for place in np.argsort(-counts, kind="stable")[:_GROUPS].tolist():
        kept = int(stays[place])
        members = copies[choice.instead[copies] == kept]
        members = members[np.argsort(choice.alike[members], kind="stable")][:_OF_A_GROUP]
        figures = [_figure(rows, kept, "stays", "stays")]
        figures += [_figure(rows, row, "goes", f"{choice.alike[row]:.3f}") for row in members.tolist()]
        number = int(counts[place])
        found.append(
            {"title": f"{number:,} {'go' if number > 1 else 'goes'} for one that stays", "figures": figures}
        )
    return found


def _clusters(rows: Rows, choice: Choice) -> dict[str, Any]:
    """The smallest and the largest clusters that something was taken of."""
    used = np.flatnonzero(choice.taken)
    order = used[np.argsort(choice.sizes[used], kind="stable")]
    half = _CLUSTERS // 2
    ends = order if len(order) <= _CLUSTERS else np.concatenate([order[:half], order[-half:]])
    which = "All" if len(ends) == len(used) else f"The {half} smallest and the {half} largest"
    whole = int((choice.taken[used] == choice.sizes[used]).sum())
    note = (
        f"{len(used):,} of {len(choice.taken):,} clusters give something, {whole:,} of them all they have. {which} are "
        f"shown, the smallest first, with at most {_OF_A_CLUSTER} that were taken of each."
    )
    found = []
    for cluster in ends.tolist():
        members = choice.rows[choice.labels[choice.rows] == cluster]
        figures = [_figure(rows, row, "", "") for row in members[:_OF_A_CLUSTER].tolist()]
        title = f"Cluster {cluster}: {choice.taken[cluster]:,} of {choice.sizes[cluster]:,}"
        found.append({"title": title, "figures": figures})
    return {"clusters": found, "clusters_note": note}


def _figure(rows: Rows, row: int, kind: str, word: str) -> dict[str, str]:
    picture = "" if rows.pictures is None else _thumbnail(rows.pictures, row)
    return {"key": rows.key(row), "kind": kind, "word": word, "picture": picture}


def _thumbnail(pictures: Pictures, row: int) -> str:
    """A small JPEG as an address that holds it; empty where the image cannot be read any more."""
    try:
        picture = thumbnail(pictures.pixels(row), _THUMBNAIL, _THUMBNAIL)
    except (DataError, OSError):
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode()
