"""What a choice is worth: linear probes on M images chosen out of a long tail, and how many duplicates are found.

A probe learns from the M chosen images with their labels and is asked a balanced test split. Beside `coke.curate`: M
random images; hierarchical k-means sampling, written from its paper (Vo et al. 2024, arXiv 2405.15613: k-means of the
points, then of the centroids, each with ten rounds of resampling the points nearest to their centroids, and balanced
sampling from the top); and the choice that knows the classes. Two sets:

    cifar   CIFAR-10, classes of 5,000 to 50 images (imbalance 100), features of a run of coke on them, without labels
    digits  scikit-learn's digits, classes of 140 to 4 (imbalance 40), pixels, in which clusters follow classes
    many    a million rows of 128 features in 1,000 groups of sizes 1 / rank, in a file: time, memory, groups that give

    python benchmarks/curate.py [--only many --rows 200000]
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

import _common as common
from _rows import grouped
from memory import MIB, resident

DATA = Path("../shared/data/cifar10")
LARGEST, IMBALANCE, CLASSES = 5000, 100, 10
PARTS = ("digits", "cifar", "many")
SIZES = {"cifar": (250, 500, 1000), "digits": (30, 60, 120)}
SEEDS = {"cifar": (0, 1, 2), "digits": tuple(range(10))}
LEVELS = {"cifar": ((110,), (120, 12), (600, 60)), "digits": ((20,), (60, 12))}  # of the reference
RESAMPLED = 10  # rounds of a level
PROBE_C = 0.05  # inverse L2 strength of the probe on standardised features, the same for all
RUN = {
    "backbone": "coke_conv5_w16",
    "epochs": 30,
    "max_minutes": 10,
    "precision": "bf16-mixed",
    "linear_probe": False,
    "tensorboard": False,
}
COPIES = {"JPEG, quality 90": 90, "JPEG, quality 50": 50, "shifted by a pixel": None}
N_COPIES = 500  # of each kind
MANY, GROUPS, FROM_MANY = 1_000_000, 1_000, 100  # rows, their groups, and of how many rows one is chosen
BESIDE_ROWS = 2048 * MIB  # wanted at most beside the rows

Array = np.ndarray[Any, Any]


def main() -> None:
    """Measure and write."""
    parser = common.arguments(__doc__)
    parser.add_argument(
        "--data", type=Path, default=DATA, help=f"folder of CIFAR-10 as parquet; default {DATA}"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/curate"), help="where runs and features are kept"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts; default all")
    parser.add_argument("--rows", type=int, default=MANY, help=f"of the part many; default {MANY:,}")
    options = parser.parse_args()
    if "cifar" in options.only and not options.data.is_dir():
        sys.exit(
            f"{options.data} is not there: give --data, a folder of CIFAR-10 as parquet (train-*, test-*), "
            "or leave it out with --only digits many"
        )
    where = common.environment()
    common.print_environment(where)
    options.runs.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for kind in (part for part in PARTS if part in options.only and part in SIZES):
        features = digits() if kind == "digits" else cifar(options)
        print(f"\n{kind}: {np.bincount(features['labels']).tolist()} images of the classes", flush=True)
        sizes, seeds = (SIZES[kind][:1], (0,)) if options.quick else (SIZES[kind], SEEDS[kind])
        results[kind] = {"choices": choices(features, LEVELS[kind], sizes, seeds)}
        if kind == "cifar":
            results[kind]["duplicates"] = duplicates(features, 20 if options.quick else N_COPIES)
    if "many" in options.only:
        results["many"] = many(4_000 if options.quick else options.rows)
    common.write_result("curate", options, {"environment": where, "results": results})


def many(n_rows: int) -> dict[str, Any]:
    """What a choice of one row in `FROM_MANY` takes; made and measured in processes of their own."""
    print(f"\nmany: {n_rows:,} rows in {GROUPS:,} groups", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for step in (write_rows, choose_from):
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                found = alone.submit(step, Path(folder), n_rows).result()
    met = found["peak_bytes"] <= found["rows_bytes"] + BESIDE_ROWS
    print(
        f"{found['n']:,} chosen in {found['seconds']:.0f} s; peak {found['peak_bytes'] / MIB:,.0f} MiB, "
        f"{found['before_bytes'] / MIB:,.0f} of it libraries, the rows {found['rows_bytes'] / MIB:,.0f} MiB: wanted at "
        f"most {BESIDE_ROWS / MIB:,.0f} beside these: {'met' if met else 'MISSED'}; groups that give: "
        f"{found['groups']} of {found['groups_there']}, of as many random rows {found['groups_random']}",
        flush=True,
    )
    return {**found, "wanted_bytes": found["rows_bytes"] + BESIDE_ROWS, "met": met}


def write_rows(folder: Path, n_rows: int) -> None:
    for name, values in zip(("rows", "groups"), grouped(n_rows, GROUPS), strict=True):
        np.save(folder / f"{name}.npy", values)


def choose_from(folder: Path, n_rows: int) -> dict[str, Any]:
    """Seconds and peak of resident memory, mapped rows and libraries included (Linux)."""
    import coke.curation

    n = n_rows // FROM_MANY
    coke.curation.curate(np.load(folder / "rows.npy", mmap_mode="r")[:4_000], 40)  # compiles
    before, began = resident("VmRSS"), time.perf_counter()
    choice = coke.curation.curate(folder / "rows.npy", n)
    seconds, peak = time.perf_counter() - began, resident("VmHWM")
    groups, drawn = np.load(folder / "groups.npy"), np.random.default_rng(0).permutation(n_rows)[:n]
    found = {"rows": n_rows, "n": len(choice.rows), "seconds": seconds, "peak_bytes": peak}
    found |= {"before_bytes": before, "rows_bytes": (folder / "rows.npy").stat().st_size}
    given = (("groups", groups[choice.rows]), ("groups_there", groups), ("groups_random", groups[drawn]))
    return found | {name: len(np.unique(of)) for name, of in given}


def long_tail(labels: Array, largest: int, imbalance: int) -> Array:
    """Rows of a training split whose classes shrink exponentially, in the order of the data."""
    random = np.random.default_rng(0)
    counts = [round(largest * imbalance ** (-c / (CLASSES - 1))) for c in range(CLASSES)]
    each = [random.permutation(np.flatnonzero(labels == c))[:n] for c, n in enumerate(counts)]
    return np.sort(np.concatenate(each))


def digits() -> dict[str, Array]:
    """The first 140 images of a class to choose from, thinned out to a long tail; the others are asked."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    first = np.concatenate([np.flatnonzero(labels == c)[:140] for c in range(CLASSES)])
    tail, rest = first[long_tail(labels[first], 140, 40)], np.setdiff1d(np.arange(len(labels)), first)
    found = {"rows": pixels[tail].astype(np.float32), "labels": labels[tail]}
    return found | {"test": pixels[rest].astype(np.float32), "test_labels": labels[rest]}


def cifar(options: argparse.Namespace) -> dict[str, Array]:
    """Features of the long-tailed images, the test images and altered copies, kept for the next call."""
    file = options.runs / f"features{'-quick' if options.quick else ''}.npz"
    if file.is_file():
        return dict(np.load(file))
    train, test = (
        pq.read_table(next(options.data.glob(f"{split}-*.parquet"))) for split in ("train", "test")
    )
    labels = train["label"].to_numpy()
    rows = long_tail(labels, 500 if options.quick else LARGEST, IMBALANCE)
    embed, images = of_coke(train.take(rows), options), pixels_of(train.take(rows))
    picked = np.random.default_rng(1).permutation(len(rows))[:N_COPIES]
    found = {"rows": embed(images), "labels": labels[rows], "test": embed(pixels_of(test))}
    found |= {"test_labels": test["label"].to_numpy(), "picked": picked}
    found |= {name: embed(altered(images[picked], quality)) for name, quality in COPIES.items()}
    np.savez(file, **found)
    return found


def pixels_of(table: pa.Table) -> Array:
    """uint8 [N, 32, 32, 3]."""
    contents = table["image"].combine_chunks().field("bytes").to_pylist()
    return np.stack([np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents])


def altered(images: Array, quality: int | None) -> Array:
    """Copies as they turn up: encoded again, or moved by a pixel to the right and down."""
    if quality is None:
        return np.pad(images, ((0, 0), (1, 0), (1, 0), (0, 0)), mode="edge")[:, :-1, :-1]
    found = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality)
        found.append(np.asarray(Image.open(stream).convert("RGB")))
    return np.stack(found)


def of_coke(table: pa.Table, options: argparse.Namespace) -> Callable[[Array], Array]:
    """A run without labels on the long-tailed images; its backbone's features."""
    import coke
    from coke.run import Run

    name = f"long-tail{'-quick' if options.quick else ''}"
    data, run = options.runs / f"{name}.parquet", Run(options.runs / name)
    if not run.report.is_file():
        pq.write_table(table, data)
        settings = RUN | ({"epochs": 2} if options.quick else {})
        coke.pretrain(data, "cifar10-auxiliary", run.path, overrides=settings)
    model = coke.load(run.path)
    return lambda images: model.embed(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


def hierarchical(rows: Array, levels: Sequence[int], n: int, seed: int) -> Array:
    """Balanced sampling from hierarchical k-means, by the paper's description: random rows of the finest clusters."""
    from sklearn.cluster import KMeans

    random, points, labels = np.random.default_rng(seed), rows.astype(np.float64), []
    for level in levels:
        centers = KMeans(level, n_init=1, max_iter=30, random_state=seed).fit(points).cluster_centers_
        for _ in range(RESAMPLED):
            own, apart = nearest(points, centers)
            per_cluster = max(2, len(points) // level // 4)
            near = [np.flatnonzero(own == k) for k in range(level)]
            kept = np.concatenate([m[np.argsort(apart[m], kind="stable")[:per_cluster]] for m in near])
            if len(kept) < level:
                break
            centers = (
                KMeans(level, n_init=1, max_iter=10, random_state=seed).fit(points[kept]).cluster_centers_
            )
        labels.append(nearest(points, centers)[0])
        points = centers
    members = [np.flatnonzero(labels[0] == k) for k in range(levels[0])]

    def sample(groups: list[list[int]], wanted: int) -> list[int]:
        """Of each group of finest clusters an equal number, as near to what is wanted as the paper's rule allows."""
        capacity = np.array([sum(len(members[k]) for k in group) for group in groups])
        level = min(
            range(capacity.max() + 1), key=lambda most: abs(np.minimum(capacity, most).sum() - wanted)
        )
        return np.minimum(capacity, level).tolist()

    def below(depth: int, of: list[int]) -> list[list[int]]:
        """The groups of level ``depth`` (0 the finest) that hold these finest clusters."""
        places = np.arange(levels[0])
        for step in labels[1 : depth + 1]:
            places = step[places]
        return [[k for k in of if places[k] == group] for group in np.unique(places[of])]

    found: list[int] = []

    def descend(depth: int, of: list[int], wanted: int) -> None:
        groups = below(depth, of)
        for group, share in zip(groups, sample(groups, wanted), strict=True):
            if depth:
                descend(depth - 1, group, share)
            else:
                found.extend(random.permutation(members[group[0]])[:share].tolist())

    descend(len(levels) - 1, [k for k in range(levels[0]) if len(members[k])], n)
    return exactly(np.array(found), len(rows), n, random)


def exactly(found: Array, n_rows: int, n: int, random: np.random.Generator) -> Array:
    """The paper's rule misses n by a few: some are left out, or filled up, at random, so that all have as many."""
    rest = np.setdiff1d(np.arange(n_rows), found)
    return np.concatenate([random.permutation(found), random.permutation(rest)])[:n]


def nearest(points: Array, centers: Array) -> tuple[Array, Array]:
    """The nearest center of each point and how far it is, squared."""
    squares = (centers**2).sum(1) - 2 * points @ centers.T
    own = squares.argmin(1)
    return own, squares[np.arange(len(points)), own] + (points**2).sum(1)


def by_class(labels: Array, n: int, seed: int) -> Array:
    """The choice that knows the classes: equal shares, small classes whole."""
    from coke.curation.shares import even_shares

    random = np.random.default_rng(seed)
    shares = even_shares(np.bincount(labels), n, random)
    each = [random.permutation(np.flatnonzero(labels == c))[:share] for c, share in enumerate(shares)]
    return np.concatenate(each)


def probe(features: dict[str, Array], chosen: Array) -> float:
    """Accuracy on the test split of a logistic regression on the chosen rows; standardised by all rows."""
    from sklearn.linear_model import LogisticRegression

    mean, deviation = features["rows"].mean(0), features["rows"].std(0) + 1e-6
    fitted = LogisticRegression(C=PROBE_C, max_iter=500)
    fitted.fit((features["rows"][chosen] - mean) / deviation, features["labels"][chosen])
    predicted = fitted.predict((features["test"] - mean) / deviation)
    return float((predicted == features["test_labels"]).mean())


def contenders(
    features: dict[str, Array], reference: Sequence[Sequence[int]]
) -> dict[str, Callable[[int, int], Array]]:
    """What chooses n rows with a seed."""
    from coke import curate

    rows, labels = features["rows"], features["labels"]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found: dict[str, Callable[[int, int], Array]] = {
        "random": lambda n, seed: np.random.default_rng(seed).permutation(len(rows))[:n],
        "coke curate": lambda n, seed: curate(rows, n, seed=seed).rows,
    }
    for levels in reference:
        name = "hierarchical k-means " + ", ".join(map(str, levels))
        found[name] = lambda n, seed, levels=levels: hierarchical(unit, levels, n, seed)  # type: ignore[misc]
    return found | {"even over classes": lambda n, seed: by_class(labels, n, seed)}


def choices(
    features: dict[str, Array], reference: Sequence[Sequence[int]], sizes: Sequence[int], seeds: Sequence[int]
) -> dict[str, Any]:
    """Of each contender and M: accuracy over seeds, classes covered, share of the five rarest classes."""
    table: dict[str, Any] = {}
    for name, choose in contenders(features, reference).items():
        table[name] = {}
        for n in sizes:
            began, scores, covered, rare = time.perf_counter(), [], [], []
            for seed in seeds:
                chosen = choose(n, seed)
                assert len(np.unique(chosen)) == n
                counts = np.bincount(features["labels"][chosen], minlength=CLASSES)
                scores.append(probe(features, chosen))
                covered.append(int((counts > 0).sum()))
                rare.append(float(counts[CLASSES // 2 :].sum() / n))
            row = {"accuracy": scores, "classes": covered, "rare_share": rare}
            table[name][str(n)] = row | {"seconds": time.perf_counter() - began}
            print(
                f"{name:36} M {n:5}  accuracy {100 * statistics.mean(scores):5.1f} "
                f"[{100 * min(scores):.1f}, {100 * max(scores):.1f}]  classes {statistics.mean(covered):.1f}  "
                f"rare {100 * statistics.mean(rare):.1f} %",
                flush=True,
            )
    return table


def duplicates(features: dict[str, Array], n_copies: int) -> dict[str, Any]:
    """Altered copies behind the originals: how many are found at the default, and what else goes."""
    from coke import curate

    rows, table = features["rows"], {}
    originals = features["picked"][:n_copies]
    alone = curate(rows, 1)
    print(f"no copies: {int((alone.instead >= 0).sum()):,} go from {alone.similarity:.6g} on", flush=True)
    table["none"] = {"threshold": alone.similarity, "found": 0, "others": int((alone.instead >= 0).sum())}
    for name in COPIES:
        copies = features[name][:n_copies]
        choice = curate(np.concatenate([rows, copies]), 1)
        found = int((choice.instead[len(rows) :] >= 0).sum())
        of_original = int((choice.instead[len(rows) :] == originals).sum())
        others = int((choice.instead[: len(rows)] >= 0).sum())
        unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows[originals], copies)]
        cosines = (unit[0] * unit[1]).sum(1)
        table[name] = {"threshold": choice.similarity, "copies": len(copies), "found": found}
        table[name] |= {"of_their_original": of_original, "others": others}
        table[name]["cosine"] = common.quartiles(cosines.tolist())
        print(
            f"{name}: {found} of {len(copies)} copies found from {choice.similarity:.6g} on, {of_original} as copies "
            f"of their original; {others:,} other rows go; cosine to the original {np.median(cosines):.4f}",
            flush=True,
        )
    return table


if __name__ == "__main__":
    main()
