"""The whole page from real run folders: complete, missing, broken, hostile."""

from __future__ import annotations

import json
import math
import re
import shlex

import pyarrow
import pytest
from run_folders import (
    epoch,
    page_of,
    photographs,
    write_assignments,
    write_metrics,
    write_plane,
    write_unreadable,
    write_whole_run,
)

from coke.errors import ResumeError
from coke.report import write_page
from coke.run import Run


def charts_of(page):
    """The charts by title, as the script is given them."""
    charts = [json.loads(str(part["data-chart"])) for part in page.all("div", class_="plot")]
    return {chart["title"]: chart for chart in charts}


def test_whole_run_gives_a_complete_page(tmp_path, textures):
    run = write_whole_run(tmp_path / "textures", textures, [5, 7])
    path = write_page(run, textures)
    assert path == run.report
    page = page_of(path)
    words = page.words
    assert "It learned: images of a group have come to look alike to the network." in words
    assert "The figures: it learns steadily." in words
    assert "Next: train longer" in words
    assert re.search(r"Groups follow neither brightness nor colour alone: \d+ % of the differences in", words)
    titles = ["Clusters in pictures", "Map", "Scores", "Curves", "Sizes", "Use this", "Words", "Run"]
    assert [text for text in page.texts if text in titles][-8:] == titles
    assert words.index("It learned") < words.index("Clusters in pictures") < words.index("Cluster 0")
    assert "5, 7 clusters per head" in words
    assert "200 images" in words
    assert "4.07 minutes of training" in words
    assert len(page.all("article")) == 5
    assert set(charts_of(page)) == {
        *(
            "Loss",
            "Nearest neighbours",
            "Pseudo-labels",
            "Effective rank",
            "Feature spread",
            "Learning rate",
            "Speed",
        ),
        *("Sizes during training, head 0", "Sizes during training, head 1", "Head 0", "Head 1"),
    }
    assert '"torch": "2.11.0"' in words
    assert "Every image that was found could be read." in words
    assert len(page.all("dt")) == 10
    assert len(page.all("p", class_="missing")) == 12  # of what needs a script


def test_links_inside_the_page_lead_somewhere(tmp_path, textures):
    page = page_of(write_page(write_whole_run(tmp_path / "run", textures, [5]), textures))
    places = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(places) == len(set(places))
    links = [str(link["href"]) for link in page.all("a")]
    assert len(links) > 8
    assert {link.removeprefix("#") for link in links} <= set(places)


def test_nothing_is_loaded_from_anywhere(tmp_path, textures):
    write_page(write_whole_run(tmp_path / "run", textures, [5]), textures)
    page = page_of(tmp_path / "run" / "report.html")
    assert not {name for name, _ in page.tags} & {"link", "iframe", "object", "embed"}
    assert all("src" not in script for script in page.all("script"))
    shown = [image for image in page.all("img") if "src" in image]
    assert len(shown) > 50
    assert all(str(image["src"]).startswith("data:image/") for image in shown)
    text = (tmp_path / "run" / "report.html").read_text()
    assert not re.search(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme:dark" in text


def test_readable_without_seeing(tmp_path, textures):
    page = page_of(write_page(write_whole_run(tmp_path / "run", textures, [5]), textures))
    assert page.all("html", lang="en")
    assert all(
        image["alt"] for image in page.all("img")[:-1]
    )  # the last is the dialog's, filled when it opens
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in page.all("div", class_="plot"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert {header["scope"] for header in page.all("th")} == {"row", "col"}
    assert len(page.all("h1")) == 1
    headings = [int(name[1]) for name, _ in page.tags if re.fullmatch("h[1-4]", name)]
    assert headings[:2] == [1, 2]


def test_same_folder_gives_the_same_page(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [5])
    first = write_page(run, textures).read_bytes()
    assert write_page(run, textures).read_bytes() == first
    assert write_page(run, None).read_bytes() == first  # the pictures were kept


def test_text_from_outside_is_escaped(tmp_path):
    images = photographs(tmp_path / "images", 6, 8)
    images.keys[:] = [f'<script>alert("{index}")</script>&' for index in range(6)]
    run = Run(tmp_path / "<b>run</b>")
    run.path.mkdir(parents=True)
    run.write_config({"data": "<img src=x>", "epochs": 1, "<i>": "<u>"})
    attack = '"><script>bad()</script>'
    run.write_json(run.environment_file, {"data": {"name": attack}, "versions": {attack: attack}})
    run.write_json(run.verdict_file, {"state": attack, "healthy": "<b>", "text": attack, "action": attack})
    representations = {attack: {"knn": 0.5, attack: attack}}
    others = {attack: {"representations": representations, "split": attack}}
    run.write_json(
        run.evaluation_file, {"representations": representations, "split": attack, "others": others}
    )
    write_metrics(run, [epoch(0, 1, 6, [2], verdict={}), {"kind": "event", "epoch": attack, "text": attack}])
    run.unreadable_file.write_text(f"key,reason\n<b>.png,{attack.replace(chr(34), '')}\n")
    write_assignments(run, images, [2])
    write_plane(run, images)
    page = page_of(write_page(run, images))
    scripts = page.all("script")
    assert [script.get("id") for script in scripts] == ["data", "plotly", None]
    assert not [name for name, _ in page.tags if name == "u"]
    assert "<script>bad()</script>" in page.words
    assert '<script>alert("0")</script>&' in [image["alt"] for image in page.all("img")]
    assert all(str(image["src"]).startswith("data:") for image in page.all("img") if "src" in image)


def test_names_that_are_no_utf8_and_lone_surrogates_are_spelled_out(tmp_path):
    run = Run(tmp_path / b"caf\xe9".decode("utf-8", "surrogateescape"))
    run.path.mkdir()
    write_metrics(run, [epoch(0, 1, 6, [2])])
    assert "caf\\udce9" in page_of(write_page(run, None)).words


def test_a_run_stopped_in_its_first_epoch(tmp_path):
    run = Run(tmp_path)
    run.write_config({"epochs": 20, "n_clusters": "auto"})
    write_metrics(run, [{"kind": "step", "epoch": 0, "step": step, "loss": 3.0 - step} for step in range(3)])
    page = page_of(write_page(run, None))
    for sentence in (
        "there is no verdict yet",
        "0 of 20 epochs are recorded",
        "--resume continues it",
        "No epoch has ended yet",
        "This run has no scores",
        "There are no clusters to show yet",
        "There is no map.parquet that fits. Training writes it at its end.",
        "Go on with this run",
    ):
        assert sentence in page.words
    assert charts_of(page)["Loss"]["lines"] == {"loss": [3.0, 2.0, 1.0]}


def test_a_run_without_labels(tmp_path):
    images = photographs(tmp_path / "images", 12, 10)
    assert images.labels is None
    run = write_whole_run(tmp_path / "run", images, [3])
    run.evaluation_file.unlink()
    write_metrics(run, [epoch(number, 4, 12, [3]) for number in range(4)])
    page = page_of(write_page(run, images))
    assert "it has no labels to ask about" in page.words
    assert "Nearest neighbours" not in charts_of(page)
    assert not [option for option in page.all("option") if "purity" in str(option["value"])]
    assert all(card["data-purity"] == "" for card in page.all("article"))
    assert page.all("img")


def test_losses_that_are_not_numbers_leave_gaps(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [5], n_epochs=6)
    losses = [3.0, 2.9, float("nan"), 2.5, float("inf"), None]
    write_metrics(run, [epoch(number, 6, 200, [5], loss=loss) for number, loss in enumerate(losses)])
    verdict = {"state": "diverging", "healthy": False, "text": "the loss is nan", "action": "lower"}
    run.write_json(run.verdict_file, verdict)
    page = page_of(write_page(run, None))
    assert charts_of(page)["Loss"]["lines"]["loss"] == [3.0, 2.9, None, 2.5, None, None]
    assert "Training went wrong: its loss ran away." in page.words
    assert "not a number" in page.words  # in the table
    assert page.all("section", class_="verdict bad")


def test_collapsed_and_exploded_figures_are_drawn(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [5])
    figures = [(10.0**power, 10.0**-power) for power in (0, 9, 20, 30)]
    write_metrics(run, [epoch(n, 4, 200, [5], loss=a, feature_spread=b) for n, (a, b) in enumerate(figures)])
    page = page_of(write_page(run, None))
    assert charts_of(page)["Loss"]["lines"]["loss"] == [loss for loss, _ in figures]
    assert "1e+30" in page.words
    assert "1e-30" in page.words.replace("−", "-")


def test_every_loss_missing(tmp_path):
    run = Run(tmp_path)
    write_metrics(run, [epoch(number, 2, 50, [5], loss=float("nan"), heads=[]) for number in range(2)])
    page = page_of(write_page(run, None))
    assert charts_of(page)["Loss"]["lines"] == {"a guess (ln K)": [pytest.approx(math.log(5))] * 2}
    assert "It learned" in page.words  # the last epoch's verdict stands in for verdict.json


def test_images_that_are_not_at_hand(tmp_path, textures):
    page = page_of(write_page(write_whole_run(tmp_path / "run", textures, [5]), None))
    assert "Images were not at hand when this page was written" in page.words
    assert not [image for image in page.all("img") if "src" in image]
    assert len(page.all("article")) == 5


def test_half_written_files_become_sentences(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [5])
    with open(run.metrics_file, "a") as stream:
        stream.write('{"kind": "epo')
    run.evaluation_file.write_text('{"trained": ')
    run.assignments.write_bytes(b"PAR1")
    run.thumbnails.write_bytes(b"PAR1")
    words = page_of(write_page(run, textures)).words
    assert "1 line of metrics.jsonl could not be read" in words
    for name in ("evaluation.json", "assignments.parquet", "thumbnails.parquet"):
        assert f"{name} could not be read" in words
    assert "map.parquet has other rows than assignments.parquet and is not used" in words
    assert "4 epochs" in words


@pytest.mark.parametrize(
    "what", [[], "text", {"heads": 3}, {"others": [1]}, {"representations": {"trained": 1}}]
)
def test_files_of_another_shape_are_no_page_without_a_page(tmp_path, textures, what):
    run = write_whole_run(tmp_path / "run", textures, [5])
    for file in (run.evaluation_file, run.verdict_file, run.environment_file, run.config_file):
        file.write_text(json.dumps(what))
    write_metrics(
        run, [{"kind": "epoch", "heads": what}, {"kind": "event"}, {"kind": "knn", "accuracy": what}]
    )
    assert "Clusters in pictures" in page_of(write_page(run, textures)).words


def test_unreadable_images_are_counted_and_the_first_listed(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [5])
    write_unreadable(run, 27)
    words = page_of(write_page(run, None)).words
    assert "27 images could not be read" in words
    assert "broken/19.jpg: truncated, 12 bytes" in words
    assert "broken/20.jpg" not in words
    assert "27 left out" in words


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ResumeError, match="holds no run to report"):
        write_page(Run(tmp_path / "nowhere"), None)


def test_a_newer_format_is_refused(tmp_path):
    run = Run(tmp_path)
    run.write_json(run.environment_file, {"format_version": 99})
    with pytest.raises(ResumeError, match="newer coke"):
        write_page(run, None)
    assert not run.report.exists()


def test_scores_on_other_images_are_further_rows(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [5])
    rows = {"trained": {"knn": 0.125, "query_images": 10, "bank_images": 90, "n_classes": 4}}
    others = {"labelled, train": {"representations": rows, "heads": [], "split": "a hold-out", "source": "x"}}
    run.write_json(run.evaluation_file, {**run.evaluation, "others": others})
    words = page_of(write_page(run, textures)).words
    first, other = words.split("On other images: labelled, train. a hold-out")
    assert "trained 42.8 %, 17.7 points above raw pixels, 19.6 points above untrained" in first
    assert "raw pixels 25.1 % 19.0 %" in first
    assert "trained 42.8 % 51.1 %" in first
    assert "head 0 5 30.0 % 31.0 % 20.0 %" in first
    assert "trained 12.5 %" in other
    assert "10 query images were asked of 90 bank images, 4 classes (chance 25.0 %)" in other


def test_lines_to_copy_are_quoted_for_any_path(tmp_path, textures):
    folder = tmp_path / "my 'best' run; $(rm -rf ~) & more"
    run = write_whole_run(folder, textures, [5])
    run.write_config({**run.config, "data": "my photos & more"})
    page = page_of(write_page(run, textures))
    lines = [text for text in page.texts if text.startswith(("coke ", "import coke"))]
    assert [shlex.split(line)[1] for line in lines[1:]] == [
        "embed",
        "predict",
        "pretrain",
        "evaluate",
        "report",
    ]
    for line in lines[1:]:
        assert any(word.startswith(str(folder)) for word in shlex.split(line)), line
        assert not set(shlex.split(line)) & {"&", "more"}
    assert shlex.split(lines[1])[3] == "my photos & more"
    namespace: dict[str, object] = {}
    exec(lines[0].replace("coke.load", "str"), namespace)
    assert namespace["run"] == str(folder)


def test_broken_bounds_are_said(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [6])
    write_metrics(run, [])
    clusters = [0] * 150 + [1] * 30 + [2] * 10 + [4] * 5 + [-1] * 5
    table = pyarrow.table({"key": textures.keys, "cluster_0": clusters})
    pyarrow.parquet.write_table(table, run.assignments)
    page = page_of(write_page(run, textures))
    assert "The largest cluster holds 150 images (76.9 %), the smallest 0." in page.words
    assert "Empty: 1 cluster." in page.words
    assert "The bound of 16 is broken by 3 clusters: 2, 3, 4." in page.words
    assert "Without a cluster: 5 images." in page.words
    assert [card["data-number"] for card in page.all("article") if "data-short" in card] == ["2", "4"]


def test_groups_that_follow_brightness_are_said_to(tmp_path, textures):
    run = write_whole_run(tmp_path / "run", textures, [2])
    brightness = textures.sums[:, 0].sum(1)
    clusters = (brightness > brightness.median()).int().numpy()
    table = pyarrow.parquet.read_table(run.assignments)
    column = table.column_names.index("cluster_0")
    pyarrow.parquet.write_table(
        table.set_column(column, "cluster_0", pyarrow.array(clusters)), run.assignments
    )
    said = page_of(write_page(run, None)).words
    assert re.search(r"Groups follow brightness and colour: 6\d % of the differences in brightness", said)
