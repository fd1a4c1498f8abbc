"""Curves of a run."""

from __future__ import annotations

import math

from run_folders import page_of, write_assignments, write_whole_run

from coke.report import write_report


def test_many_heads_are_folded(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [5] * 8)
    write_assignments(run, textures, [5] * 8)
    words = page_of(write_report(run, None)).words
    assert "The sizes of the other 2 heads" in words
    assert "head 7 (K = 5)" in words


def test_values_under_the_pointer_are_those_of_the_metrics(tmp_path, textures):
    text = write_report(write_whole_run(tmp_path / "run", textures, [5]), None).read_text()
    assert "<title>loss, 3: 1.75</title>" in text
    assert "<title>churn, 2: 65 %</title>" in text
    assert f"ends at {math.log(5):.3g}" in text
