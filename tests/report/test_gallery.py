"""Clusters in pictures: the right images, their pixels, and the budget."""

from __future__ import annotations

import re

import numpy as np
import pytest
from run_folders import page_of, photographs, pixels_of, write_assignments, write_whole_run

from coke.report import write_page
from coke.report.gallery import PER_STRIP


def strips(page, kind, cluster):
    """The embedded montage of a cluster, and the keys that its alternative text names."""
    for image in page.all("img"):
        found = re.fullmatch(rf"\d+ images?, {kind}, cluster {cluster}: (.*)", str(image["alt"]))
        if found:
            return pixels_of(str(image["src"])), found[1].split(", ")
    raise AssertionError(f"no strip {kind} of cluster {cluster}")


@pytest.fixture
def run(tmp_path, textures):
    return write_whole_run(tmp_path / "run", textures, [4])


def test_strips_show_the_extreme_images_of_each_cluster(run, textures):
    table = write_assignments(run, textures, [4], seed=3)
    page = page_of(write_page(run, textures))
    clusters, scores, margins = (table[name].to_numpy() for name in ("cluster_0", "score_0", "margin_0"))
    for cluster in range(4):
        members = np.flatnonzero(clusters == cluster)
        central = [textures.keys[row] for row in sorted(members, key=lambda row: -scores[row])]
        border = [textures.keys[row] for row in sorted(members, key=lambda row: margins[row])]
        assert strips(page, "most central", cluster)[1] == central[:PER_STRIP]
        assert strips(page, "most borderline", cluster)[1] == border[:PER_STRIP]


def test_small_images_keep_their_pixels(run, textures):
    page = page_of(write_page(run, textures))
    for kind in ("most central", "most borderline"):
        pixels, keys = strips(page, kind, 2)
        pitch = pixels.shape[2] // len(keys)
        assert pixels.shape[1] == 24 < pitch
        for place, key in enumerate(keys):
            shown = pixels[:, :, place * pitch : place * pitch + 24]
            assert shown.equal(textures.read(textures.keys.index(key)))


def test_rows_are_matched_by_key_not_by_position(run, textures):
    shuffled = textures.subset(np.random.default_rng(0).permutation(len(textures)).tolist())
    write_page(run, textures)
    expected = strips(page_of(run.report), "most central", 1)
    write_page(run, shuffled)
    pixels, keys = strips(page_of(run.report), "most central", 1)
    assert keys == expected[1]
    assert pixels.equal(expected[0])


def test_large_images_become_small_jpegs(tmp_path):
    images = photographs(tmp_path / "images", 5, 200)
    run = write_whole_run(tmp_path / "run", images, [1])
    page = page_of(write_page(run, images))
    pixels, keys = strips(page, "all", 0)
    assert str(page.all("img")[0]["src"]).startswith("data:image/jpeg")
    assert pixels.shape[1] == 64
    assert len(keys) == 5


@pytest.mark.parametrize("budget", [120_000, 300_000])
def test_the_page_stays_in_its_budget_and_says_what_it_left_out(run, textures, budget):
    write_assignments(run, textures, [40])
    path = write_page(run, textures, max_bytes=budget)
    assert path.stat().st_size <= budget
    found = re.search(
        r"(\d+) of (\d+) clusters are shown, the (\d+) largest and the (\d+) smallest", page_of(path).words
    )
    assert found
    shown, present, largest, smallest = map(int, found.groups())
    assert shown == largest + smallest < present <= 40
    assert abs(largest - smallest) <= 1
    assert len(page_of(path).all("article")) == shown


def test_the_budget_shows_both_ends_of_the_sizes(run, textures):
    table = write_assignments(run, textures, [40])
    page = page_of(write_page(run, textures, max_bytes=150_000))
    sizes = np.bincount(table["cluster_0"].to_numpy())
    counts = [int(text.split()[0]) for text in page.texts if re.fullmatch(r"\d+ images?", text)]
    assert counts[0] == sizes.max()
    assert min(counts) == sizes[sizes > 0].min()


def test_a_budget_spent_before_any_picture_is_said(run, textures):
    page = page_of(write_page(run, textures, max_bytes=10_000))
    assert "None of the 4 clusters is shown: the page's budget is spent." in page.words
    assert not page.all("img")


def test_other_heads_follow_with_what_is_left(run, textures):
    write_assignments(run, textures, [4, 6])
    words = page_of(write_page(run, textures)).words
    assert "All 4 clusters that hold images" in words
    assert "All 6 clusters that hold images" in words


def test_images_of_another_data_set_are_noticed(tmp_path, run):
    others = photographs(tmp_path / "others", 4, 8)
    words = page_of(write_page(run, others)).words
    assert "could not be found in the data at hand" in words


def test_files_that_vanished_are_noticed(tmp_path):
    folder = tmp_path / "images"
    photographs(folder, 6, 90)
    from coke.images import open_data

    images = open_data(folder, resident_bytes=0).train
    run = write_whole_run(tmp_path / "run", images, [1])
    (folder / "003.png").unlink()
    words = page_of(write_page(run, images)).words
    assert "1 image, such as “003.png”, could no longer be read" in words


def test_labels_are_named(run, textures):
    words = page_of(write_page(run, textures)).words
    assert re.search(rf"“({'|'.join(textures.classes)})” \d+\.\d %", words)
