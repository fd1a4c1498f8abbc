"""What `coke cluster` and `coke assign` do: check what is asked, open, fit or assign, write, say what came of it.

With torchrun every process runs this, on its own part of the rows; the first one writes and speaks.
"""

from __future__ import annotations

import glob
import os
import re
import time
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console

from coke import distributed
from coke.atomic import atomic, remove, remove_left_over
from coke.bounded.estimator import ConstrainedKMeans
from coke.bounded.files import about, as_bytes, load_clustering
from coke.bounded.places import places
from coke.bounded.processes import collected, joined, open_together, own_rows, together
from coke.bounded.sizes import SizeBounds, number, resolve_bounds
from coke.errors import ConfigError, DataError
from coke.reading import read_text, reading_as
from coke.vectors import Vectors
from coke.vectors.files import column_field, column_values, key_field

Array = np.ndarray[Any, Any]
COLUMNS = {"row": "int64", "cluster": "int32", "distance": "float32", "margin": "float32", "second": "int32"}
_ROW_GROUP = 2**18


def run(options: Namespace) -> None:
    """Carry out a verb, with the options of `coke.verbs`. Raises `CokeError` before any work."""
    began, fits = time.monotonic(), options.verb == "cluster"
    with joined(options.device) as device:
        console = Console(quiet=distributed.rank() > 0, highlight=False, markup=False, soft_wrap=True)
        with together():
            if fits and options.centers is None:
                options.centers = options.out.with_suffix(".safetensors")
            if distributed.rank() == 0:
                check_outputs(options)
            sizes = asked_sizes(options)
            km = asked_estimator(options, sizes) if fits else load_clustering(options.file, options.head)
        vectors = open_together(options.data, options.column, device)
        with together():
            key = key_field(vectors) if options.id is None else column_field(vectors, options.id)
        bounds = resolve_bounds(vectors.n_rows, km.n_clusters, **sizes)
        if options.file and vectors.n_features != km.n_features_in_:
            have = f"{vectors.n_features} features, the centers of {options.file} have {km.n_features_in_}"
            raise DataError(f"{vectors.name} has {have}: both must come from one embedding")
        shape = f"{vectors.n_rows:,} rows of {vectors.n_features:,} features, {str(vectors.dtype)[6:]}"
        shape += f", on {distributed.world_size()} processes" if distributed.active() else ""
        clusters = f"{km.n_clusters:,} cluster{'s' if km.n_clusters > 1 else ''}"
        console.print(
            f"{vectors.name}: {shape}; {clusters}{'' if fits else f' of {options.file}'}, {km.metric}"
        )
        facts: dict[str, Any] = {name: np.asarray(size).tolist() for name, size in sizes.items()}
        with own_rows(vectors, console) as rows:
            if fits:
                labels = km.set_params(verbose=int(not console.quiet)).fit(rows).labels_
                facts |= {"inertia": km.inertia_, "lower_bound": km.lower_bound_, "gap": km.gap_}
                facts |= {"seed": options.seed, "n_iter": km.n_iter_}
            elif sizes:
                within = km.assignment(rows, **sizes)
                labels = within.labels
                facts |= {"inertia": within.cost, "lower_bound": within.lower_bound, "gap": within.gap}
            else:
                labels = km.predict(rows)
            with together():
                own = places(rows, labels, km.cluster_centers_, km.metric)
            found = collected(own)
        facts |= {"n_rows": vectors.n_rows} | ({} if fits else {"centers": options.file.name})
        with together():
            if distributed.rank() == 0:
                write(options, km, facts, vectors, key, found)
        if distributed.rank() == 0:
            lines = summary(found, bounds, facts, km)
            lines["time"] = f"{time.monotonic() - began:.1f} s"
            lines["written"] = ", ".join(str(path) for path in (options.out, options.centers) if path)
            width = max(map(len, lines))
            console.print("\n".join(f"{name:{width}}  {text}" for name, text in lines.items()))


def check_outputs(options: Namespace) -> None:
    """Raise `ConfigError` where an output cannot be written, or would come between the inputs."""
    data = options.data.resolve()
    for flag, suffix in (("out", ".parquet"), ("centers", ".safetensors")):
        if (path := getattr(options, flag)) is None:
            continue
        folder, whole = path.parent, path.resolve()
        problems = {
            f"it is written as {suffix[1:]}, so let its name end in {suffix}": path.suffix != suffix,
            f"there is no folder {folder}, make it first": not folder.is_dir(),
            "its name is not UTF-8": os.fsencode(path) != str(path).encode(errors="replace"),
            "it is the data itself: name another file": whole == data,
            "it would be read as data the next time: name another folder": data in whole.parents,
            "it is a folder: name a file in it": path.is_dir(),
            "it exists: pass --overwrite, or name another file": path.exists() and not options.overwrite,
            f"nothing can be written to {folder}, name another": not os.access(folder, os.W_OK | os.X_OK),
        }
        for problem in [text for text, met in problems.items() if met]:
            raise ConfigError(f"--{flag} {path}: {problem}")
    if options.id in COLUMNS:
        raise ConfigError(f"--id {options.id}: --out has its own column of that name: rename yours")


def asked_sizes(options: Namespace) -> dict[str, Any]:
    """Sizes as `ConstrainedKMeans` takes them, those of a file among them."""
    names = ("min_size", "max_size", "min_size_ratio", "max_size_ratio")
    asked = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    of_file = {} if options.sizes is None else read_sizes(options.sizes)
    for name in asked:
        if (kind := name.removesuffix("_ratio")) in of_file:
            leave = f"leave out --{name.replace('_', '-')}"
            raise ConfigError(f"{options.sizes} holds {kind} of each cluster: {leave}")
    return asked | of_file


def read_sizes(path: Path) -> dict[str, Array]:
    """``min_size`` and ``max_size``, [K] each, or the latter alone, from .npy or text with a line for each cluster.

    In a text commas, semicolons, tabs or spaces stand between columns, a first line may name them, and ``#`` begins
    a comment. Without names one column is the maximum, two are both. ``inf`` is no maximum.
    """
    with reading_as("sizes", path):
        if path.suffix == ".npy":
            lines = [np.atleast_1d(row).tolist() for row in np.load(path, allow_pickle=False)]
        else:
            texts = read_text(path).replace('"', "").splitlines()
            lines = [re.split(r"\s*[,;\t]\s*|\s+", text.split("#")[0].strip()) for text in texts]
    rows = {index: words for index, words in enumerate(lines, 1) if words != [""]}
    first: list[Any] = next(iter(rows.values()), [])
    names, table = ["min_size", "max_size"][-len(first) :], []
    if first in (["max_size"], ["max_size", "min_size"], ["min_size", "max_size"]):
        names = rows.pop(min(rows))
    for index, words in rows.items():
        try:
            table.append([float(word) for word, _ in zip(words, names, strict=True)])
        except (TypeError, ValueError) as error:
            wanted = f"a number is expected for {' and '.join(names)}"
            raise DataError(f"{path}, line {index}: {', '.join(map(str, words))!r}, but {wanted}") from error
    if not table:
        raise DataError(f"{path} holds no sizes")
    columns = np.array(table).T
    if len(table) > 2 and len(columns) == 2 and np.array_equal(columns[0], range(len(table))):
        raise DataError(f"{path}: its first column counts 0, 1, 2, ...: leave the clusters' numbers out")
    return dict(zip(names, columns, strict=True))


def asked_estimator(options: Namespace, sizes: dict[str, Any]) -> ConstrainedKMeans:
    """The estimator of `coke cluster`: a new one, or that of the earlier clusters that --start names."""
    names = ("init", "n_init", "max_iter", "tol", "metric")
    settings = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    settings |= {**sizes, "random_state": options.seed}
    if not 0 <= options.seed < 2**32:
        raise ConfigError(f"--seed must lie in 0 ... 2^32 - 1, got {options.seed}")
    if options.file is None:
        if options.k is None:
            raise ConfigError("--k is missing: say how many clusters, or name earlier ones with --start")
        return ConstrainedKMeans(options.k, **settings)
    if options.init is not None:
        raise ConfigError("--init and --start both say where to begin: leave out one of them")
    km = load_clustering(options.file, options.head)
    for flag, asked, known in (("--k", options.k, km.n_clusters), ("--metric", options.metric, km.metric)):
        if asked not in (None, known):
            start = f"--start {options.file}, which has {known}: leave {flag} out"
            raise ConfigError(f"{flag} {asked} does not go with {start}")
    return km.set_params(**settings)


def write(
    options: Namespace, km: ConstrainedKMeans, facts: dict[str, Any], vectors: Vectors, key: Any, found: Array
) -> None:
    """Each row's place and, after a fit, the clusters: under their names only when both are whole.

    Should the program be killed between the two, the clusters are missing: none lie beside rows of another fit.
    """
    row, *fields = [pa.field(name, kind, name in ("margin", "second")) for name, kind in COLUMNS.items()]
    schema = pa.schema([row, *([key] if key else []), *fields], about(km.metric, facts))
    head = [torch.as_tensor(values) for values in (km.cluster_centers_, km.duals_, km.counts_)]
    pieces = column_values(vectors, key.name) if key else torch.arange(len(found)).split(_ROW_GROUP)
    done = 0
    for path in filter(None, (options.out, options.centers)):
        remove_left_over(path.parent, glob.escape(path.name))
    try:
        with ExitStack() as files:
            if options.centers is not None:
                stream = files.enter_context(atomic(options.centers, "wb"))
                stream.write(as_bytes([head], km.metric, facts))
                stream.flush()  # a full disk is noticed here
            stream = files.enter_context(atomic(options.out, "wb"))
            if options.centers is not None:
                files.push(lambda failed, *_: None if failed else remove(options.centers))
            writer = files.enter_context(pq.ParquetWriter(stream, schema, compression="zstd"))
            for values in pieces:
                part = found[done : done + len(values)]
                columns = {field.name: pa.array(part[field.name].copy()) for field in fields}
                if km.n_clusters == 1:
                    columns |= {name: pa.nulls(len(part), COLUMNS[name]) for name in ("margin", "second")}
                columns |= {"row": np.arange(done, done + len(part))} | ({key.name: values} if key else {})
                writer.write_table(pa.table(columns, schema))
                done += len(part)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{options.out} cannot be written: {error}") from error


def summary(found: Array, bounds: SizeBounds, facts: dict[str, Any], km: ConstrainedKMeans) -> dict[str, str]:
    """What came of it, name by name: sizes beside their bounds, and how good the rows' places are."""
    sizes, n_moved = np.bincount(found["cluster"], minlength=km.n_clusters), int((found["margin"] < 0).sum())
    figures = {"smallest": sizes.min(), "median": np.median(sizes), "largest": sizes.max()}
    lines = {"sizes": "  ".join(f"{name} {number(float(size))}" for name, size in figures.items())}
    lower, upper, asked = bounds.lower.cpu().numpy(), bounds.upper.cpu().numpy(), []
    for word, bound, binds in (("at least", lower, lower > 0), ("at most", upper, upper < len(found))):
        if binds.any():
            asked.append(f"{word} {' ... '.join(dict.fromkeys(map(number, (bound.min(), bound.max()))))}")
    n_broken = int(((sizes < lower) | (sizes > upper)).sum())
    asked.append(f"broken in {n_broken:,} of {len(sizes):,} clusters" if n_broken else "and they hold")
    lines["bounds"] = ", ".join(asked) if len(asked) > 1 else "none"
    if len(asked) > 1 and "gap" in facts:
        lines["gap"] = f"{facts['gap']:.2g} of the cost is all that other labels within the bounds could save"
    lines["distance"] = f"{found['distance'].mean(dtype=np.float64):.6g} on average"
    if n_moved:
        share = f"{n_moved:,} rows ({n_moved / len(found):.2%})"
        lines["moved"] = f"{share} out of their nearest cluster, for the bounds' sake"
    if "inertia" in facts:
        lines["inertia"] = f"{facts['inertia']:.6g}"
    if "n_iter" in facts:
        at_rest = "" if facts["n_iter"] < km.max_iter else ", the most allowed: --max-iter sets it"
        lines["iterations"] = f"{facts['n_iter']}{at_rest}"
    return lines
