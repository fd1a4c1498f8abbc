"""Curves of a run."""

from __future__ import annotations

import math

from run_folders import epoch, page_of, write_assignments, write_metrics, write_whole_run

from coke.report import write_page


def test_many_heads_are_folded(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [5] * 8)
    write_assignments(run, textures, [5] * 8)
    words = page_of(write_page(run, None)).words
    assert "The sizes of the other 2 heads" in words
    assert "head 7 (K = 5)" in words


def test_values_under_the_pointer_are_those_of_the_metrics(tmp_path, textures):
    text = write_page(write_whole_run(tmp_path / "run", textures, [5]), None).read_text()
    assert "<title>loss, 3: 1.75</title>" in text
    assert "<title>churn, 2: 65 %</title>" in text
    assert f"ends at {math.log(5):.3g}" in text


def test_the_untrained_network_is_a_line_to_rise_above(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [5])
    assert "untrained 20 %" in page_of(write_page(run, None)).words
    late = [{"kind": "knn", "epoch": number, "accuracy": 0.5} for number in (2, 3)]
    write_metrics(run, [epoch(number, 4, 200, [5]) for number in range(4)] + late)
    assert "untrained 20 %" not in page_of(write_page(run, None)).words
    assert "untrained 50 %" not in page_of(run.report).words


def test_the_clustering_epoch_has_no_loss_and_that_is_no_fault(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [5])
    losses = [None, 2.0, 1.5, 1.0]
    write_metrics(run, [epoch(number, 4, 200, [5], loss=loss) for number, loss in enumerate(losses)])
    words = page_of(write_page(run, None)).words
    assert "not a finite number" not in words
    assert "loss 1 " in words
    assert "median 10" in words
