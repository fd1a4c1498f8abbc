"""One page that shows a choice: duplicates beside what stays, clusters with what was taken of them. Opens from disk."""

from __future__ import annotations

import base64
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np

from coke.atomic import atomic
from coke.curation.choose import Choice
from coke.curation.duplicates import N_NEAR
from coke.curation.sources import Candidates
from coke.curation.write import outputs
from coke.explore.thumbnails import thumbnails

_GROUPS, _OF_A_GROUP = 30, 6  # of duplicates that are shown, and how many that go of each
_CLUSTERS, _OF_A_CLUSTER = 40, 8  # that are shown, and how many that were taken of each
_THUMBNAIL = 128  # px of the longer side


class _Figure(NamedTuple):
    """A row that is shown, whether it "stays" or "goes", and a word beside its key."""

    row: int
    kind: str = ""
    word: str = ""


def write_page(rows: Candidates, choice: Choice, out: Path) -> None:
    """The page of the list ``out``, beside it: at most 30 groups of duplicates and 40 clusters, at most 550 images."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    groups, clusters = _duplicates(choice), _clusters(choice)
    shown = sorted({figure.row for _, figures in groups + clusters for figure in figures})
    small = thumbnails(rows.images, shown, _THUMBNAIL, _THUMBNAIL) if rows.images is not None else ()
    pictures = {  # none of an image that cannot be read any more
        row: f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
        for row, picture in zip(shown, small, strict=False)
        if isinstance(picture, bytes)
    }
    used = choice.taken > 0
    environment = Environment(
        loader=PackageLoader("coke.curation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    read = f"pyarrow.parquet.read_table({str(out)!r})"
    page = environment.get_template("page.html.jinja").render(
        rows=rows,
        choice=choice,
        groups=groups,
        at_most_groups=_GROUPS,
        of_a_group=_OF_A_GROUP,
        clusters=clusters,
        of_a_cluster=_OF_A_CLUSTER,
        n_used=int(used.sum()),
        n_whole=int((used & (choice.taken == choice.sizes)).sum()),
        n_near=N_NEAR,
        pictures=pictures,
        use=read if rows.images is None else f"coke pretrain {shlex.quote(str(out))}",
        dropped=outputs(out)[1],
    )
    with atomic(outputs(out)[2]) as stream:
        stream.write(page)


def _duplicates(choice: Choice) -> list[tuple[str, list[_Figure]]]:
    """The largest groups: what stays, and of what goes the least similar, where a mistake would show."""
    copies = np.flatnonzero(choice.instead >= 0)
    stays, counts = np.unique(choice.instead[copies], return_counts=True)
    found = []
    for place in np.argsort(-counts, kind="stable")[:_GROUPS].tolist():
        members = copies[choice.instead[copies] == stays[place]]
        members = members[np.argsort(choice.alike[members], kind="stable")][:_OF_A_GROUP]
        figures = [_Figure(int(stays[place]), "stays", "stays")]
        figures += [_Figure(row, "goes", f"{choice.alike[row]:.3f}") for row in members.tolist()]
        go = "go" if counts[place] > 1 else "goes"
        found.append((f"{counts[place]:,} {go} for one that stays", figures))
    return found


def _clusters(choice: Choice) -> list[tuple[str, list[_Figure]]]:
    """The smallest and the largest clusters that something was taken of."""
    used = np.flatnonzero(choice.taken)
    order, half = used[np.argsort(choice.sizes[used], kind="stable")], _CLUSTERS // 2
    found = []
    for cluster in order if len(order) <= _CLUSTERS else np.concatenate([order[:half], order[-half:]]):
        members = choice.rows[choice.labels[choice.rows] == cluster][:_OF_A_CLUSTER]
        title = f"Cluster {cluster}: {choice.taken[cluster]:,} of {choice.sizes[cluster]:,}"
        found.append((title, [_Figure(row) for row in members.tolist()]))
    return found
