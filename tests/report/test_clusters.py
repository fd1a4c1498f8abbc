"""Sizes and members of clusters."""

from __future__ import annotations

import numpy as np
import pyarrow
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import page_of, write_metrics, write_whole_run

from coke.report import write_page
from coke.report.clusters import Head, read_heads
from coke.report.record import read_record


def test_sizes_in_words_count_empty_and_short_clusters(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [6])
    write_metrics(run, [])
    clusters = [0] * 150 + [1] * 30 + [2] * 10 + [4] * 5 + [-1] * 5
    table = pyarrow.table({"key": textures.keys, "cluster_0": clusters})
    pyarrow.parquet.write_table(table, run.assignments)
    heads = read_heads(read_record(run))
    assert heads[0].sizes.tolist() == [150, 30, 10, 0, 5]
    words = page_of(write_page(run, textures)).words
    assert "The largest cluster holds 150 images (76.9 %), the smallest 0." in words
    assert "Empty: 1 cluster." in words
    assert "Below the bound of 16: 3 clusters." in words
    assert "Without a cluster: 5 images." in words


@given(st.integers(0, 2**31), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_members_of_a_cluster_are_its_best_and_its_weakest(seed, n_clusters):
    random = np.random.default_rng(seed)
    clusters = random.integers(-1, n_clusters, 60)
    values = random.normal(size=(2, 60))
    head = Head(0, clusters, values[0], values[1], n_clusters)
    for cluster in range(n_clusters):
        rows = np.flatnonzero(clusters == cluster)
        assert head.central(cluster, 4).tolist() == sorted(rows, key=lambda row: -values[0][row])[:4]
        assert head.borderline(cluster, 4).tolist() == sorted(rows, key=lambda row: values[1][row])[:4]
        assert sorted(head.rows(cluster)) == rows.tolist()
    assert head.sizes.sum() == len(clusters) - head.n_unassigned
