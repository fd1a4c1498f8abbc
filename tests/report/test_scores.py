"""The evaluation side by side."""

from __future__ import annotations

from run_folders import Page, write_whole_run

from coke.report.record import Record, read_record
from coke.report.scores import scores


def test_scores_stand_side_by_side_with_their_protocol(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [5])
    page = Page(scores(read_record(run)))
    words = page.words
    assert words.index("raw pixels 25.1 %") < words.index("untrained 23.2 %") < words.rindex("trained 42.8 %")
    assert "trained 42.8 %, 17.7 points above raw pixels, 19.6 points above untrained" in words
    assert "500 query images were asked of 4,500 bank images, 10 classes (chance 10.0 %)" in words
    assert "clustering scores are those of the 4,500 images of the bank" in words
    assert "Note: probes query the test split (500 images)." in words
    assert "head 0 5 30.0 % 31.0 % 20.0 %" in words
    assert len(page.all("td", class_="best")) == 5


def test_a_trained_network_that_lost_is_said_so(tmp_path):
    evaluation = {"trained": {"knn": 0.3}, "raw pixels": {"knn": 0.4}, "untrained": {"knn": float("nan")}}
    words = Page(scores(Record(tmp_path, evaluation=evaluation))).words
    assert "trained 30.0 %, 10.0 points below raw pixels." in words
