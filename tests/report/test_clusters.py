"""Clusters in pictures: the right images, their pixels, copies, lists, and the budget."""

from __future__ import annotations

import re

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
from PIL import Image
from run_folders import (
    page_of,
    photographs,
    pixels_of,
    unpacked,
    write_assignments,
    write_plane,
    write_whole_run,
)

from coke.images import open_data
from coke.report import write_page


def rows_of(path, cluster, kind):
    """The rows of the images that a card of the first head shows of a kind."""
    text = path.read_text("utf-8")
    card = text.split(f'id="c0-{cluster}"')[1].split("</article>")[0]
    strip = "".join(card.split(f"<p>{kind}\n")[1:]).split('class="strip"')[0]
    return [int(row) for row in re.findall(r'data-row="(\d+)"', strip)]


def pictures_of(path):
    """All pictures on a page by row, those held for the script too."""
    text = path.read_text("utf-8")
    shown = {
        int(row): uri
        for row, uri in re.findall(
            r'data-row="(\d+)".*?>\s*<button type="button">\s*<img src="([^"]*)"', text
        )
    }
    return {int(row): "base64," + held for row, held in unpacked(path)["pictures"].items()} | shown


@pytest.fixture
def run(tmp_path, textures):
    return write_whole_run(tmp_path / "run", textures, [4])


def test_cards_show_the_extreme_images_of_each_cluster(run, textures):
    table = write_assignments(run, textures, [4], seed=3)
    path = write_page(run, textures)
    clusters, scores, margins = (table[name].to_numpy() for name in ("cluster_0", "score_0", "margin_0"))
    for cluster in range(4):
        members = np.flatnonzero(clusters == cluster)
        assert len(members) > 24
        assert rows_of(path, cluster, "central") == sorted(members, key=lambda row: -scores[row])[:24]
        assert rows_of(path, cluster, "borderline") == sorted(members, key=lambda row: margins[row])[:24]
        assert rows_of(path, cluster, "farthest") == sorted(members, key=lambda row: scores[row])[:24]
        assert set(rows_of(path, cluster, "random")) < set(members.tolist())


def test_what_is_said_of_a_cluster(run, textures):
    table = write_assignments(run, textures, [4], seed=3)
    page = page_of(write_page(run, textures))
    for card in page.all("article"):
        inside = table["cluster_0"].to_numpy() == int(card["data-number"])
        labels = table["label"].to_numpy()[inside]
        assert int(card["data-size"]) == inside.sum()
        assert float(card["data-cohesion"]) == pytest.approx(
            table["score_0"].to_numpy()[inside].mean(), abs=1e-6
        )
        assert float(card["data-doubt"]) == pytest.approx(
            (table["margin_0"].to_numpy()[inside] < 0.02).mean()
        )
        assert float(card["data-purity"]) == pytest.approx(np.bincount(labels).max() / len(labels))
    assert [int(card["data-size"]) for card in page.all("article")] == sorted(
        np.bincount(table["cluster_0"].to_numpy()), reverse=True
    )
    assert re.search(rf"“({'|'.join(textures.classes)})” \d+\.\d %", page.words)


def test_small_images_keep_their_pixels(run, textures):
    pictures = pictures_of(write_page(run, textures))
    assert len(pictures) > 100
    for row, uri in pictures.items():
        assert pixels_of(uri).equal(textures.read(row))


def test_large_images_become_small(tmp_path):
    images = photographs(tmp_path / "images", 5, 300)
    pictures = pictures_of(write_page(write_whole_run(tmp_path / "run", images, [1]), images))
    assert {tuple(pixels_of(uri).shape) for uri in pictures.values()} == {(3, 160, 160)}
    assert len(pictures) == 5


def test_rows_are_matched_by_content_wherever_images_lie(run, textures):
    shuffled = textures.subset(np.random.default_rng(0).permutation(len(textures)).tolist())
    first = write_page(run, textures).read_bytes()
    run.thumbnails.unlink()
    assert write_page(run, shuffled).read_bytes() == first
    run.thumbnails.unlink()
    shuffled.keys[:] = [f"elsewhere/{key}" for key in shuffled.keys]
    assert write_page(run, shuffled).read_bytes() == first


def test_a_run_that_kept_no_contents_is_matched_by_key(run, textures):
    table = pq.read_table(run.assignments).drop_columns(["content"])
    pq.write_table(table, run.assignments)
    assert pictures_of(write_page(run, textures))


def test_the_page_keeps_its_pictures_when_the_images_are_gone(run, textures):
    first = pictures_of(write_page(run, textures))
    assert pictures_of(write_page(run, None)) == first
    assert pq.read_table(run.thumbnails)["row"].to_pylist() == sorted(first)


def test_copies_are_one_picture_with_a_count(tmp_path):
    folder = tmp_path / "images"
    photographs(folder, 40, 64)
    picture = Image.open(folder / "000.png")
    for number in range(5):
        (folder / f"copy-{number}.png").write_bytes((folder / "000.png").read_bytes())
        smooth = Image.new("RGB", (64, 64), (40 * number, 90, 200))
        smooth.save(folder / f"smooth-{number}.png")
        smooth.save(folder / f"smooth-{number}.jpg", quality=80)
    picture.close()
    images = open_data(folder).train
    run = write_whole_run(tmp_path / "run", images, [1])
    n_images = len(images)
    scores = [
        1.0 if "copy" in key or key == "000.png" else 0.9 if "smooth" in key else 0.1 for key in images.keys
    ]
    table = pq.read_table(run.assignments)
    table = table.set_column(
        table.column_names.index("score_0"), "score_0", pyarrow.array(scores, pyarrow.float32())
    )
    pq.write_table(table, run.assignments)
    path = write_page(run, images)
    central = [images.keys[row] for row in rows_of(path, 0, "central")]
    assert central[0] in {"000.png", *(f"copy-{n}.png" for n in range(5))}
    assert sorted(key.split(".")[0] for key in central[1:6]) == [f"smooth-{n}" for n in range(5)]
    words = page_of(path).words
    assert "×6" in words
    assert "×2" in words
    assert "5 images are copies of others." in words
    assert "6 times" in words
    assert n_images == 55


def test_the_most_alike_pairs_and_the_loneliest_images_are_listed(run, textures):
    write_plane(run, textures)
    plane = pq.read_table(run.map)
    nearest, similarity = plane["nearest"].to_numpy(), plane["similarity"].to_numpy()
    text = write_page(run, textures).read_text("utf-8")
    pairs = [
        int(row)
        for row in re.findall(
            r'data-row="(\d+)"', text.split("<h3>Near-duplicates</h3>")[1].split("</details>")[0]
        )
    ]
    assert len(pairs) == 48
    one, other = pairs[:2]
    assert nearest[one] == other
    assert similarity[one] == similarity.max()
    lonely = re.findall(r'data-row="(\d+)"', text.split("<h3>Outliers</h3>")[1].split("</details>")[0])
    assert [int(row) for row in lonely] == np.argsort(similarity, kind="stable")[:24].tolist()


@pytest.mark.parametrize("budget", [2_200_000, 4_000_000])
def test_the_page_stays_in_its_budget_and_says_so(run, textures, budget):
    table = write_assignments(run, textures, [40])
    path = write_page(run, textures, max_bytes=budget)
    assert path.stat().st_size <= budget
    page = page_of(path)
    assert len(page.all("article")) == len(table["cluster_0"].unique())
    found = re.search(
        r"To keep this file small, (\d+) images are shown, drawn from all clusters alike", page.words
    )
    assert (found is not None) == (budget < 4_000_000)
    if found:
        assert len(pictures_of(path)) == int(found[1])
        counts = [len(rows_of(path, card["data-number"], "central")) for card in page.all("article")[:20]]
        assert max(counts) - min(counts) <= 1


def test_other_heads_are_held_for_the_script(run, textures):
    write_assignments(run, textures, [4, 6])
    path = write_page(run, textures)
    data = unpacked(path)
    assert [len(cards) for cards in data["cards"]] == [6]
    assert all(
        f'data-row="{row}"' in path.read_text("utf-8") or row in "".join(data["cards"][0])
        for row in map(str, pictures_of(path))
    )


def test_a_sample_stands_for_very_many_images_and_that_is_said(run, textures, monkeypatch):
    monkeypatch.setattr("coke.report.page._MAX_ROWS", 150)
    write_assignments(run, textures, [60])
    path = write_page(run, textures, max_bytes=2_200_000)
    data = unpacked(path)
    assert 150 <= len(data["rows"]) < 200
    assert data["sampled"] == f"{len(data['rows'])} of 200 images, drawn at random"
    assert set(pictures_of(path)) <= set(data["rows"])
    assert data["keys"] == [textures.keys[row] for row in data["rows"]]


def test_images_of_another_data_set_are_noticed(tmp_path, run):
    others = photographs(tmp_path / "others", 4, 8)
    assert "could not be found in the data at hand" in page_of(write_page(run, others)).words


def test_files_that_vanished_are_noticed(tmp_path):
    folder = tmp_path / "images"
    photographs(folder, 6, 90)
    images = open_data(folder, resident_bytes=0).train
    run = write_whole_run(tmp_path / "run", images, [1])
    (folder / "003.png").unlink()
    assert "1 image, such as “003.png”, could no longer be read" in page_of(write_page(run, images)).words


def test_names_link_to_files(tmp_path):
    folder = tmp_path / "my photos & more"
    images = photographs(folder, 4, 40)
    run = write_whole_run(tmp_path / "run", images, [1])
    run.write_config({**run.config, "data": str(folder)})
    page = page_of(write_page(run, None))
    links = {str(link["href"]) for link in page.all("a") if not str(link["href"]).startswith("#")}
    assert links == {f"../my%20photos%20%26%20more/00{number}.png" for number in range(4)}
