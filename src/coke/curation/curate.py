"""`coke.curate`: from a run or embeddings to a list that `coke pretrain` takes, checked before any work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from coke.curation.choose import Choice, choose
from coke.curation.sources import Candidates, open_candidates
from coke.curation.write import outputs, write_dropped, write_list
from coke.errors import ConfigError
from coke.output import check_output
from coke.progress import progress_bar
from coke.run import is_run


def curate(
    data: Any,
    n: int,
    out: str | os.PathLike[str] | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    similarity: float | None = None,
    n_clusters: int | None = None,
    column: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    console: Console | None = None,
) -> Choice:
    """Choose ``n`` rows, even over bounded clusters: near-duplicates go, rare clusters stay.

    Rows are clustered by direction (bounded k-means) and the clusters again, level after level. Rows that are as
    similar as is stated to an earlier one of their cluster or the three nearest go. Every group of the coarsest level
    then gives the same number, and so on down; what small ones cannot give is shared by the others. Of a cluster the
    row nearest its center is taken first, then whichever is farthest from those taken.

    Args:
        data: a run folder: its own images, in its own clusters; or embeddings: an array [N, D], .npy, .parquet (with
            keys, as `coke embed` writes it) or a folder of them.
        n: how many are wanted, M.
        out: a .parquet file for the list, which `coke pretrain` takes where images are at hand; beside it come
            NAME.dropped.parquet, what went and why, and NAME.html, which shows both. None writes nothing.
        images: the images of embeddings, as `coke embed` took them, for paths and pictures; of a run: their new place,
            or other images.
        similarity: cosine from which a row is a duplicate, above 0; above 1 none is. None: where more rows lie close
            together than their neighbourhoods let expect.
        n_clusters: of the finest level; default: a run's own, else the root of N.
        column: of parquet: where the vectors are, if there are several.
        seed: the same gives the same choice.
        overwrite: replace files that exist.
        console: where progress goes; None is silent.

    Returns:
        The choice: rows, clusters, and what stays in place of each duplicate.

    Raises:
        ConfigError: n above N, or above what is left without duplicates; files that exist.
        DataError: rows without direction (NaN, zeros), images that are not there.

    Examples:
        >>> draw = np.random.default_rng(0)
        >>> groups = np.repeat([0, 1], [200, 10])  # 200 rows about one direction, 10 about another
        >>> rows = 9 * np.eye(8)[groups] + draw.normal(size=(210, 8))
        >>> choice = curate(np.concatenate([rows, rows[:50]]), 20)  # 50 of them once more
        >>> int((choice.instead >= 0).sum()), np.bincount(groups[choice.rows]).tolist()
        (50, [10, 10])
    """
    _check(data, n, similarity, n_clusters, seed)
    if out is not None:
        reads = [Path(data)] if isinstance(data, str | os.PathLike) else []
        for file, suffix in zip(outputs(Path(out)), (".parquet", ".parquet", ".html"), strict=True):
            check_output(file, suffix, overwrite=overwrite, reads=reads)
    console = console or Console(quiet=True)
    with progress_bar(console, "images") as progress:
        rows = open_candidates(data, images, column, progress)
    for flag, asked in (("--n", n), ("--clusters", n_clusters or 1)):
        if asked > len(rows):
            raise ConfigError(f"{flag} {asked:,} of {len(rows):,} rows of {rows.name}: lower {flag}")
    console.print(f"{rows.name}: {len(rows):,} rows of {rows.vectors.shape[1]:,} features")
    choice = choose(rows, n, similarity, n_clusters, seed)
    if out is not None:
        from coke.curation.page import write_page

        write_list(Path(out), rows, choice)
        write_dropped(outputs(Path(out))[1], rows, choice)
        write_page(rows, choice, Path(out))
        lines = _summary(rows, choice, Path(out))
        width = max(map(len, lines))
        console.print("\n".join(f"{name:{width}}  {text}" for name, text in lines.items()))
    return choice


def _check(data: Any, n: int, similarity: float | None, n_clusters: int | None, seed: int) -> None:
    for flag, asked in (("--n", n), ("--clusters", n_clusters)):
        if asked is not None and asked < 1:
            raise ConfigError(f"{flag} must be at least 1, got {asked}")
    if similarity is not None and not similarity > 0:
        wanted = "a cosine above 0 (above 1 nothing is a duplicate)"
        raise ConfigError(f"--similarity is {wanted}, got {similarity}")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed must lie in 0 ... 2^32 - 1, got {seed}")
    if not isinstance(data, str | os.PathLike):
        return
    path = Path(data)
    if not path.exists():
        raise ConfigError(
            f"{path}: there is no such run folder or file of embeddings; `coke embed` writes one"
        )
    kinds = {file.suffix.lower() for file in path.iterdir()} if path.is_dir() else {".npy"}
    if not is_run(path) and not kinds & {".npy", ".parquet"}:
        raise ConfigError(f"{path} holds neither a run nor embeddings: make these with `coke embed`")


def _summary(rows: Candidates, choice: Choice, out: Path) -> dict[str, str]:
    """What came of it, name by name."""
    n_rows, used = len(rows), choice.taken > 0
    copies, shares = int((choice.instead >= 0).sum()), choice.taken[used]
    why = choice.words_on_similarity
    lines = {
        "chosen": f"{len(choice.rows):,} of {n_rows:,}, out of {len(shares):,} of {len(used):,} clusters",
        "duplicates": f"{copies:,} from a cosine of {choice.similarity:.6g} on"
        + (f" ({why[0].lower()}{why[1:-1]})" if choice.by_data else ""),
        "or from": "  ".join(
            f"{at:.6g}: {count:,}" for at, count in sorted(choice.counts.items(), reverse=True)
        ),
        "clusters": f"{int((shares == choice.sizes[used]).sum()):,} taken whole; "
        f"shares {shares.min():,} to {shares.max():,}, median {np.median(shares):g}",
        "went": f"{copies:,} duplicates, {n_rows - copies - len(choice.rows):,} beyond their cluster's share",
        "written": ", ".join(map(str, outputs(out))),
    }
    if rows.images is not None:
        return {**lines, "next": f"coke pretrain {out}"}
    return {
        **lines,
        "images": "not at hand: name them with --data, for pictures and a list that `coke pretrain` takes",
    }
