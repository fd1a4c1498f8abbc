"""The page in a real browser: no error; sort, filter, enlarge, search, choose, export, copy and the map work."""

from __future__ import annotations

import csv
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from browser import CHROMIUM, Browser
from run_folders import photographs, write_assignments, write_plane, write_whole_run

from coke.images import open_data
from coke.report import write_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
SHOWN = '[...document.querySelectorAll(".card:not([hidden])")].map((card) => ({...card.dataset}))'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of 200 files in class folders, with copies, two heads, and labels."""
    folder = tmp_path_factory.mktemp("made")
    for name in "ab":
        photographs(folder / "images" / name, 100, 40, seed=ord(name))
    (folder / "images" / "a" / 'it\'s "so", <b>.png').write_bytes(
        (folder / "images" / "a" / "001.png").read_bytes()
    )
    images = open_data(folder / "images").train
    run = write_whole_run(folder / "run", images, [12, 20])
    run.write_config({**run.config, "data": str(folder / "images")})
    write_assignments(run, images, [12, 20])
    write_plane(run, images)
    write_page(run, images)
    return run


@pytest.fixture(scope="module")
def opened(made):
    with Browser(made.report) as browser:
        yield browser


@pytest.fixture
def browser(opened):
    """The page as it is when it opens."""
    opened.ask("""large.close(); chosen.clear(); all("#cards input").forEach((box) => (box.checked = false))
        find.value = ""; one("#which").value = "all"; one("#order").value = "-size"; grid.classList.add("few")
        all(".open").forEach((strip) => strip.classList.remove("open")); arrange(); draw_map()""")
    yield opened
    assert opened.errors == []


def choose(browser, control, value):
    event = "input" if control == "find" else "change"
    browser.ask(f'one("#{control}").value = {value!r}; one("#{control}").dispatchEvent(new Event("{event}"))')


def test_clusters_are_sorted(browser, made):
    for order, key, falling in (
        ("-size", "size", True),
        ("cohesion", "cohesion", False),
        ("-doubt", "doubt", True),
        ("-purity", "purity", True),
    ):
        choose(browser, "order", order)
        values = [float(card[key]) for card in browser.ask(SHOWN)]
        assert len(values) == 12
        assert values == sorted(values, reverse=falling)


def test_the_first_few_clusters_are_there_and_the_others_on_demand(browser):
    visible = '[...document.querySelectorAll(".card")].filter((card) => card.offsetParent).length'
    assert browser.ask(visible) == 8
    browser.ask('one("#all").click()')
    assert browser.ask(visible) == 12
    assert browser.ask('one("#all").offsetParent') is None


def test_clusters_are_filtered(browser, made):
    choose(browser, "which", "doubt")
    assert all(float(card["doubt"]) >= 1 / 3 for card in browser.ask(SHOWN))
    browser.ask('one(".card input").click()')
    chosen = browser.ask('one(".card").dataset.number')
    choose(browser, "which", "chosen")
    assert [card["number"] for card in browser.ask(SHOWN)] == [chosen]
    assert "1 of 12 clusters, 1 chosen" in browser.ask('one("#said").textContent')


def test_every_picture_is_there(browser):
    """Those held for the script, too: each embedded once, wherever it is shown."""
    assert browser.ask('all("#cards img").length') > 500
    browser.wait('all("#cards img").every((image) => image.complete && image.naturalWidth == 40)')


def test_show_more(browser):
    visible = 'all("figure", one(".strip")).filter((figure) => figure.offsetParent).length'
    assert browser.ask(visible) == 6
    browser.ask('one(".show").click()')
    assert 6 < browser.ask(visible) <= 24
    assert browser.ask('one(".show").ariaExpanded') == "true"


def test_search_by_file_name(browser, made):
    table = pq.read_table(made.assignments)
    cluster = dict(zip(table["key"].to_pylist(), table["cluster_0"].to_pylist(), strict=True))
    choose(browser, "find", "B/04")
    found = {key: number for key, number in cluster.items() if "b/04" in key}
    assert browser.ask('all("#hits button").map((hit) => hit.textContent)') == [
        f"{k} → cluster {n}" for k, n in found.items()
    ]
    assert {int(card["number"]) for card in browser.ask(SHOWN)} == set(found.values())
    assert f"{len(found)} file names match" in browser.ask('one("#said").textContent')
    browser.ask('one("#hits button").click()')
    assert next(iter(found)) in browser.ask('one("p", one("#large")).textContent')
    choose(browser, "find", "no such name")
    assert browser.ask(SHOWN) == []


def test_a_click_enlarges_and_keys_go_on(browser):
    browser.ask('one("figure[data-row] button").click()')
    assert browser.ask('one("#large").open')
    browser.wait(
        'one("#large img").naturalWidth == 40 && one("#large img").src.startsWith("file:")'
    )  # the file itself
    first = browser.ask('one("p", one("#large")).textContent')
    name, figures = first.split("\n")
    assert name.endswith(".png")
    assert "score" in figures
    assert "label “" in figures
    browser.press("ArrowRight")
    second = browser.ask('one("p", one("#large")).textContent')
    assert second.split("\n")[0] != name
    browser.press("ArrowLeft")
    assert browser.ask('one("p", one("#large")).textContent') == first
    browser.press("Escape")
    browser.wait('!one("#large").open')


def test_the_chosen_are_exported(browser, made):
    choose(browser, "find", "so")
    browser.ask('one("#choose").click()')
    cluster = int(browser.ask(SHOWN)[0]["number"])
    browser.ask('one("#export").click()')
    path, end = browser.downloads / "clusters-head-0.csv", time.monotonic() + 20
    while not path.is_file():
        assert time.monotonic() < end
        time.sleep(0.05)
    table = pq.read_table(made.assignments)
    inside = table["cluster_0"].to_numpy() == cluster
    with open(path, newline="", encoding="utf-8") as stream:
        header, *lines = csv.reader(stream)
    assert header == ["key", "cluster", "score", "margin", "label"]
    assert [line[0] for line in lines] == [
        key for key, one in zip(table["key"].to_pylist(), inside, strict=True) if one
    ]
    np.testing.assert_allclose(
        [float(line[2]) for line in lines], table["score_0"].to_numpy()[inside], atol=5.1e-4
    )
    assert {line[4] for line in lines} <= {"a", "b"}
    assert f"{len(lines)} images written to clusters-head-0.csv" in browser.ask('one("#said").textContent')


def test_heads_are_switched_and_back(browser):
    text = 'all(".card").map((card) => card.textContent)'
    first = browser.ask(text)
    choose(browser, "head", "1")
    assert len(browser.ask(SHOWN)) == 20
    assert browser.ask('one(".card").id').startswith("c1-")
    browser.wait('all("#cards img").every((image) => image.complete && image.naturalWidth == 40)')
    choose(browser, "head", "0")
    assert browser.ask(text) == first


def test_nearest_clusters_are_a_click_away(browser):
    choose(browser, "find", "b/04")
    target = browser.ask('const link = one(".card header a"); link.click(); link.hash.slice(1)')
    assert browser.ask(f'one("#{target}").offsetParent !== null')
    assert browser.ask("location.hash") == f"#{target}"


def test_the_map_shows_every_image_and_opens_it(browser, made):
    assert browser.ask('one("#plane").data[0].x.length') == 201
    assert browser.ask('new Set(one("#plane").data[0].marker.color).size') == 12
    assert "Click on a dot" in browser.ask('one("#map-said").textContent')
    browser.ask('one("#plane").emit("plotly_click", {points: [{customdata: 7}]})')
    key = pq.read_table(made.assignments)["key"][7].as_py()
    assert browser.ask('one("p", one("#large")).textContent').startswith(key + "\n")
    browser.ask('one("#large").close(); one(".card input").click()')
    assert "rgba(128,128,128,.15)" in browser.ask('one("#plane").data[0].marker.color')


def test_without_webgl_the_map_is_drawn_all_the_same(made):
    with Browser(made.report, webgl=False) as browser:
        assert browser.ask('one("#plane").data[0].type') == "scatter"
        assert browser.ask('all("#plane .points path").length') == 201
        assert browser.errors == []


def test_every_chart_is_drawn(browser):
    assert browser.ask('all("[data-chart]").length') == 11
    assert browser.ask('all("[data-chart]").every((plot) => plot.querySelector(".trace, .bars"))')


def test_a_line_is_copied(browser):
    browser.ask('one(".copy").click()')
    assert browser.wait('one(".copy").textContent == "copied"')


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800), (1920, 1080)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_screens_and_schemes(made, width, height, scheme):
    with Browser(made.report, width, height, prefers_color_scheme=scheme) as browser:
        assert browser.ask("document.documentElement.scrollWidth") == width
        red = int(browser.ask("getComputedStyle(document.body).backgroundColor").split("(")[1].split(",")[0])
        assert (red < 60) == (scheme == "dark")
        assert browser.errors == []


def test_without_a_script_what_matters_is_readable(made):
    with Browser(made.report, script=False) as browser:
        assert browser.ask('document.querySelectorAll(".card").length') == 12
        text = browser.ask("document.body.innerText")
        assert "It learned: images of a group have come to look alike to the network." in text
        assert "choose those shown" not in text
        assert "k-NN" in text
        seen = '[...document.querySelectorAll(".card img[src]")].filter((image) => image.offsetParent).length'
        assert browser.ask(seen) > 100
