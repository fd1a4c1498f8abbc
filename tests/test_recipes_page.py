"""The pages on clustering under bounds are true: their code runs, prints what they show, does what they claim."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coke import ConstrainedKMeans, cli
from coke.errors import BoundsError

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"```python\n(.*?)```\n\n((?:    [^\n]*\n)+)", re.S)
"""Code, and below it what it prints."""
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
DEDUPLICATION, SHARDS, BERTOPIC, SAMPLING, TERRITORIES = range(5)


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


@functools.cache
def run(page: str, number: int) -> tuple[dict[str, Any], list[str]]:
    """The names that a page's block leaves, and the lines that it prints; on one thread."""
    if (page, number) == ("recipes.md", BERTOPIC):
        pytest.importorskip("bertopic", reason="BERTopic is not installed, so its recipe is not run")
    names: dict[str, Any] = {"__name__": page}
    printed, n_threads = io.StringIO(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(blocks(page)[number][0], f"{page}, block {number + 1}", "exec"), names)
    finally:
        torch.set_num_threads(n_threads)
    return names, printed.getvalue().splitlines()


def recipe(number: int) -> dict[str, Any]:
    return run("recipes.md", number)[0]


def test_every_recipe_is_there_and_shows_what_it_prints() -> None:
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (\d)\. ", text, re.M)
    assert titles == ["1", "2", "3", "4", "5"]
    assert len(blocks("recipes.md")) == len(re.findall("```python", text)) == 5
    assert (
        max(len(line) for code, shown in blocks("recipes.md") for line in (code + shown).splitlines()) <= 120
    )


@pytest.mark.parametrize(
    ("page", "number"),
    [*(("recipes.md", number) for number in range(5)), *(("clustering.md", number) for number in range(2))],
)
def test_block_prints_what_the_page_shows(page: str, number: int) -> None:
    """The same words, and numbers of about the same size: on another processor a fit may end elsewhere."""
    printed = run(page, number)[1]
    shown = [line.removeprefix("    ") for line in blocks(page)[number][1].splitlines()]
    assert len(printed) == len(shown)
    for line, expected in zip(printed, shown, strict=True):
        if (page, number) != ("recipes.md", BERTOPIC):  # there, words are results, too
            assert NUMBER.sub("#", line) == NUMBER.sub("#", expected)
        for found, told in zip(NUMBER.findall(line), NUMBER.findall(expected), strict=True):
            whole = "." not in told
            nearly = {"rel": 0.1, "abs": 5} if whole else {"rel": 0.03, "abs": 0.03}
            value = pytest.approx(float(told.replace(",", "")), **nearly)
            assert float(found.replace(",", "")) == value, f"{line!r} is shown as {expected!r}"


def test_deduplication_finds_what_was_copied() -> None:
    names = recipe(DEDUPLICATION)
    X, kept = names["X"], names["kept"]
    assert len(X) == 2600
    remaining = X[kept] @ X[kept].T - np.eye(len(kept), dtype=np.float32)
    assert np.count_nonzero(kept >= 2000) <= 2  # copies that two borders in a row have parted
    assert np.count_nonzero(remaining > 0.97) <= 4
    assert set(range(2000)) - set(kept.tolist()) == set()  # no original was lost
    again, pairs, largest = names["deduplicate"](np.arange(len(X)), 0)
    assert largest <= 150
    assert pairs <= 2600 * 150
    assert len(again) >= len(kept)


def test_shards_are_equal_and_their_price_is_recall() -> None:
    names = recipe(SHARDS)
    X, queries, km = names["X"], names["queries"], names["km"]
    assert np.unique(km.counts_).tolist() == [250]
    distance = ((queries[:, None].astype(np.float64) - X) ** 2).sum(axis=2)
    assert (np.sort(distance.argsort(axis=1)[:, :10]) == np.sort(names["nearest"])).mean() > 0.999
    lines = run("recipes.md", SHARDS)[1][1:]
    recall = {
        line.split(",")[0]: [float(r) for r in re.findall(r"(0\.\d\d|1\.00) \(", line)] for line in lines
    }
    free, capped, equal = recall["any size"], recall["at most 1.5 x"], recall["equal"]
    assert free == sorted(free)
    assert equal == sorted(equal)
    assert equal[-1] >= 0.9  # a few of twenty shards hold most of what is near
    assert all(a >= b - 0.02 for a, b in zip(capped, equal, strict=True))
    assert all(a >= b - 0.02 for a, b in zip(free, equal, strict=True))


def test_new_rows_spread_and_shards_keep_their_numbers() -> None:
    names = recipe(SHARDS)
    X, km = names["X"], names["km"]
    new = names["draw"](1000)
    sizes = np.bincount(km.assign(new, max_size_ratio=1.5), minlength=20)
    assert sizes.max() <= 75
    former, centers = km.labels_.copy(), km.cluster_centers_.copy()
    grown = np.concatenate([X, new])
    again = ConstrainedKMeans(20, min_size_ratio=1, max_size_ratio=1, max_iter=5, warm_start=True)
    again.cluster_centers_, again.duals_ = centers, km.duals_
    again.fit(grown)
    assert np.unique(again.counts_).tolist() == [300]
    assert np.mean(again.labels_[: len(X)] == former) > 0.8


def test_every_document_has_a_topic() -> None:
    names = recipe(BERTOPIC)
    topics, clusters, model = names["topics"], names["clusters"], names["model"]
    sizes = np.bincount(topics)
    assert -1 not in topics
    assert sizes.sum() == 400
    assert len(sizes) == 7
    assert sizes.min() >= 20
    assert sizes.max() <= 100
    assert sorted(sizes) == sorted(clusters.counts_)
    assert np.all(np.diff(sizes) <= 0)  # numbered by size
    for topic in range(7):
        of_topic = {word for word, _ in model.get_topic(topic)[:4]}
        assert any(of_topic <= set(words) for words in names["words"]), of_topic
    again, _ = model.transform(names["documents"][:20], names["embeddings"][:20])
    assert set(again) <= set(range(7))


def test_sampling_finds_rare_kinds() -> None:
    names = recipe(SAMPLING)
    kind, km, chosen = names["kind"], names["km"], names["chosen"]
    assert len(np.unique(chosen)) == 150
    assert (np.bincount(km.labels_[chosen]) == 5).all()
    assert km.counts_.min() >= 12
    assert names["plain"].counts_.min() < 5
    assert len(set(kind[chosen])) > len(set(kind[names["at_random"]]))
    true = np.bincount(kind, minlength=20) / 3000
    assert names["estimate"].sum() == pytest.approx(1)
    assert abs(names["estimate"][0] - true[0]) < 0.05 < abs(names["unweighted"] - true[0])


def test_territories_hold_their_capacities_at_nearly_the_least_cost() -> None:
    """The least cost by an independent solver, which may split customers: no assignment is cheaper."""
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix

    names = recipe(TERRITORIES)
    cost, parcels, capacity, labels = (names[n] for n in ("cost", "parcels", "capacity", "territory"))
    load = np.bincount(labels, parcels, minlength=6)
    assert (load <= capacity).all()
    nearest = np.bincount(cost.argmin(axis=1), parcels, minlength=6)
    assert (nearest > capacity).any()
    row, depot = np.divmod(np.arange(cost.size), 6)
    each = np.arange(cost.size)
    once = coo_matrix((np.ones(cost.size), (row, each)))
    loads = coo_matrix((parcels[row].astype(float), (depot, each)))
    least = linprog(cost.ravel(), A_ub=loads, b_ub=capacity, A_eq=once, b_eq=np.ones(600), method="highs")
    mine = cost[np.arange(600), labels].sum()
    assert least.fun <= mine <= 1.02 * least.fun  # 2 %: what the subtracted customer costs, at most


def test_places_can_be_found_as_well() -> None:
    names = recipe(TERRITORIES)
    parcels = names["parcels"]
    km = ConstrainedKMeans(6, max_size=700, random_state=0)
    km.fit(names["customers"], sample_weight=parcels, size_weight=parcels)
    sums = np.bincount(km.labels_, parcels, minlength=6)
    assert sums.max() <= 700 + parcels.max()
    assert km.counts_.sum() == 600


def test_clustering_page_keeps_its_bounds() -> None:
    km = run("clustering.md", 0)[0]["km"]
    assert km.counts_.min() >= 60
    assert km.counts_.max() <= 150
    assert km.lower_bound_ <= km.inertia_ * (1 + 1e-12)


def test_one_import_is_all_that_changes() -> None:
    """Every parameter of scikit-learn's class is taken, with the same defaults but for tol, and labels are k-means'."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    theirs = KMeans(tol=0.0).get_params()
    ours = ConstrainedKMeans().get_params()
    assert {name: ours.get(name, "missing") for name in theirs} == theirs
    X = run("clustering.md", 0)[0]["X"]
    start = X[:40]
    one, other = (kind(40, init=start, n_init=1, max_iter=20).fit(X) for kind in (KMeans, ConstrainedKMeans))
    assert adjusted_rand_score(one.labels_, other.labels_) > 0.99
    assert other.inertia_ == pytest.approx(one.inertia_, rel=1e-3)
    assert (other.predict(X) == other.labels_).all()


def test_counts_and_ratios_of_the_page_agree() -> None:
    X = run("clustering.md", 0)[0]["X"][:1000]
    with pytest.raises(BoundsError, match="give only one"):
        ConstrainedKMeans(10, min_size=10, min_size_ratio=0.1).fit(X)
    sizes = ConstrainedKMeans(7, min_size_ratio=1, max_size_ratio=1, random_state=0).fit(X).counts_
    assert sorted(set(sizes.tolist())) == [142, 143]


def commands(page: str) -> list[list[str]]:
    """The words after ``coke`` of the command lines in a page's indented blocks."""
    text = (DOCS / page).read_text(encoding="utf-8")
    lines = re.findall(r"^    (.*\bcoke (?:cluster|assign).*)$", text, re.M)
    assert lines
    return [shlex.split(re.split(r"\bcoke ", line)[-1]) for line in lines]


@pytest.mark.parametrize("words", commands("clustering.md"), ids=" ".join)
def test_commands_parse(words: list[str]) -> None:
    options = cli.parser().parse_args(words)
    assert isinstance(options, argparse.Namespace)
    assert options.verb in ("cluster", "assign")
