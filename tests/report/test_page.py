"""The whole page from real run folders: complete, missing, broken, hostile."""

from __future__ import annotations

import re

import pytest
from run_folders import (
    epoch,
    page_of,
    photographs,
    write_assignments,
    write_metrics,
    write_unreadable,
    write_whole_run,
)

from coke.errors import ResumeError
from coke.report import write_page
from coke.run import Run


def test_whole_run_gives_a_complete_page(tmp_path, textures):
    run = write_whole_run(tmp_path / "textures", textures, [5, 7])
    path = write_page(run, textures)
    assert path == run.report
    page = page_of(path)
    words = page.words
    assert "It learns steadily" in words
    assert "train longer" in words
    for name in ("Summary", "Scores", "Curves", "Cluster sizes", "Clusters in pictures", "Images left out"):
        assert name in words
    assert "5, 7 (2 heads)" in words
    assert "4 min 4 s for 4 epochs (1 min 1 s each)" in words
    assert "torch 2.11.0" in words
    assert "All 5 clusters that hold images" in words
    assert "All 7 clusters that hold images" in words
    assert "Every image that was found could be read." in words
    assert len(page.all("svg")) == 12  # eight figures of the run, two sizes over epochs, two bars
    assert not page.all("p", class_="missing")


def test_links_inside_the_page_lead_somewhere(tmp_path, textures):
    page = page_of(write_page(write_whole_run(tmp_path / "run", textures, [5]), textures))
    places = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(places) == len(set(places))
    links = [str(link["href"]) for link in page.all("a")]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(places)


def test_nothing_is_loaded_and_no_script_runs(tmp_path, textures):
    text = write_page(write_whole_run(tmp_path / "run", textures, [5]), textures).read_text()
    page = page_of(tmp_path / "run" / "report.html")
    assert not re.search(r"https?:|url\(|@import", text)
    names = {name for name, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed"}
    assert all(str(image["src"]).startswith("data:image/") for image in page.all("img"))
    assert "prefers-color-scheme:dark" in text


def test_readable_without_seeing(tmp_path, textures):
    page = page_of(write_page(write_whole_run(tmp_path / "run", textures, [5]), textures))
    assert page.all("html", lang="en")
    assert all(image["alt"] for image in page.all("img"))
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in page.all("svg"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert {header["scope"] for header in page.all("th")} == {"row", "col"}
    assert len(page.all("h1")) == 1


def test_same_folder_gives_the_same_page(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [5])
    first = write_page(run, textures).read_bytes()
    assert write_page(run, textures).read_bytes() == first


def test_text_from_outside_is_escaped(tmp_path):
    images = photographs(tmp_path / "images", 6, 8)
    images.keys[:] = [f'<script>alert("{index}")</script>&' for index in range(6)]
    run = Run(tmp_path / "<b>run</b>")
    run.path.mkdir(parents=True)
    run.write_config({"data": "<img src=x>", "epochs": 1, "<i>": "<u>"})
    attack = '"><script>bad()</script>'
    run.write_json(run.environment_file, {"data": {"name": attack}, "versions": {attack: attack}})
    run.write_json(run.verdict_file, {"state": attack, "healthy": "<b>", "text": attack, "action": attack})
    evaluation = {attack: {"knn": 0.5, attack: attack}, "note": f"said {attack}", "heads": [{attack: 1.0}]}
    run.write_json(run.evaluation_file, evaluation)
    write_metrics(run, [epoch(0, 1, 6, [2], verdict={}), {"kind": "event", "epoch": attack, "text": attack}])
    run.unreadable_file.write_text(f"key,reason\n<b>.png,{attack.replace(chr(34), '')}\n")
    write_assignments(run, images, [2])
    page = page_of(write_page(run, images))
    assert not [name for name, _ in page.tags if name in ("script", "u")]
    assert "<script>bad()</script>" in page.words
    assert '<script>alert("0")</script>&' in str([cell.get("title") for cell in page.all("span")])
    assert all(str(image["src"]).startswith("data:") for image in page.all("img"))


def test_a_run_stopped_in_its_first_epoch(tmp_path):
    run = Run(tmp_path)
    run.write_config({"epochs": 20, "n_clusters": "auto"})
    write_metrics(run, [{"kind": "step", "epoch": 0, "step": step, "loss": 3.0 - step} for step in range(3)])
    words = page_of(write_page(run, None)).words
    assert "no verdict yet" in words
    assert "0 of 20 epochs are recorded" in words
    assert "--resume" in words
    assert "No epoch has ended yet" in words
    assert "has not been evaluated" in words
    assert "no assignments.parquet" in words
    assert "environment.json is not in the run folder" in words
    assert "not recorded yet" in words


def test_a_run_without_labels(tmp_path):
    images = photographs(tmp_path / "images", 12, 10)
    assert images.labels is None
    run = write_whole_run(tmp_path / "run", images, [3])
    run.evaluation_file.unlink()
    write_metrics(run, [epoch(number, 4, 12, [3]) for number in range(4)])
    page = page_of(write_page(run, images))
    assert "has no labels to ask about" in page.words
    assert "No k-NN accuracy was recorded" in page.words
    assert page.all("img")


def test_losses_that_are_not_numbers_are_named(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [5], n_epochs=6)
    losses = [3.0, 2.9, float("nan"), 2.5, float("inf"), float("nan")]
    write_metrics(run, [epoch(number, 6, 200, [5], loss=loss) for number, loss in enumerate(losses)])
    verdict = {"state": "exploding", "healthy": False, "text": "the loss is not a number", "action": "lower"}
    run.write_json(run.verdict_file, verdict)
    page = page_of(write_page(run, None))
    assert "not a finite number in 3 epochs, first in epoch 2" in page.words
    assert "2.5 (last known)" in page.words
    assert page.all("section", class_="verdict bad")
    assert "nan" not in re.sub(r"base64,[^\"]*", "", run.report.read_text()).lower()


def test_collapsed_and_exploded_figures_are_drawn(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [5])
    figures = [(10.0**power, 10.0**-power) for power in (0, 9, 20, 30)]
    records = [
        epoch(number, 4, 200, [5], loss=loss, feature_spread=spread, effective_rank=1 + spread * 1e-12)
        for number, (loss, spread) in enumerate(figures)
    ]
    write_metrics(run, records)
    words = page_of(write_page(run, None)).words
    assert "loss 1e+30" in words
    assert "feature spread 1e-30" in words
    assert "effective rank 1" in words


def test_every_loss_missing(tmp_path):
    run = Run(tmp_path)
    write_metrics(run, [epoch(number, 2, 50, [5], loss=float("nan"), heads=[]) for number in range(2)])
    words = page_of(write_page(run, None)).words
    assert "not a finite number in 2 epochs, first in epoch 0" in words
    assert "the plan is not recorded" in words
    assert "It learns" in words  # the last epoch's verdict stands in for verdict.json


def test_images_that_are_not_at_hand(tmp_path, textures):
    page = page_of(write_page(write_whole_run(tmp_path / "run", textures, [5]), None))
    assert "The images were not at hand" in page.words
    assert "for all 200 images" in page.words
    assert not page.all("img")


def test_half_written_files_become_sentences(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [5])
    with open(run.metrics_file, "a") as stream:
        stream.write('{"kind": "epo')
    run.evaluation_file.write_text('{"trained": ')
    run.assignments.write_bytes(b"PAR1")
    words = page_of(write_page(run, textures)).words
    assert "1 line of metrics.jsonl could not be read" in words
    assert "evaluation.json could not be read" in words
    assert "assignments.parquet could not be read" in words
    assert "4 of 4" in words


def test_unreadable_images_are_counted_and_the_first_listed(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [5])
    write_unreadable(run, 27)
    words = page_of(write_page(run, None)).words
    assert "27 images could not be read" in words
    assert "The first 20 are listed here" in words
    assert "broken/19.jpg" in words
    assert "broken/20.jpg" not in words
    assert "truncated, 12 bytes" in words


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ResumeError, match="holds no run to report"):
        write_page(Run(tmp_path / "nowhere"), None)


def test_a_newer_format_is_refused(tmp_path):
    run = Run(tmp_path)
    run.write_json(run.environment_file, {"format_version": 99})
    with pytest.raises(ResumeError, match="newer coke"):
        write_page(run, None)
    assert not run.report.exists()
