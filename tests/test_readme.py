"""README and docs/ say what is true: examples run, commands parse, tables list what there is."""

import contextlib
import io
import pydoc
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import coke
import coke.run
from coke import cli
from coke.training import health
from coke.training.auto import check_settings, template
from coke.training.config import chosen
from coke.training.recipes import RECIPES, find_recipe
from coke.training.settings import parse_overrides

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
PROSE = {
    "README.md": README,
    "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
} | PAGES


PRETRAINING = PAGES["pretraining.md"]


def section(page: str, title: str) -> str:
    """The text below a page's heading, up to the next."""
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_column(title: str) -> list[str]:
    """The code words in the first column of the table in a section of docs/pretraining.md."""
    rows = [line for line in section(PRETRAINING, title).splitlines() if line.startswith("| `")]
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row.split("|")[1])]


@pytest.mark.slow
def test_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python blocks, one after the other, as somebody would paste them."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n".join(blocks), "README.md", "exec"), {"__name__": "readme"})
    assert "raw pixels: k-NN" in printed.getvalue()
    assert "untrained: k-NN" in printed.getvalue()
    assert "torch.Size([2, 128])" in printed.getvalue()
    sizes = re.search(r"^\[([\d, ]+)\]$", printed.getvalue(), re.M)
    assert sizes
    assert sum(map(int, sizes[1].split(","))) == 2000
    assert (tmp_path / "runs" / "example" / "report.html").is_file()


def test_clustering_example_keeps_its_bounds() -> None:
    """By itself, as somebody would paste it who has no images."""
    (block,) = re.findall(r"```python\n(.*?)```", section(README, "Clustering under size bounds"), re.S)
    printed, names = io.StringIO(), {"__name__": "readme"}
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "README.md", "exec"), names)
    km, spread = names["km"], names["spread"]
    assert re.fullmatch(r"sizes 2\d\d to (2\d\d|300), at most .*\n", printed.getvalue())
    assert sum(km.counts_) == 5000
    assert km.gap_ < 1e-4
    assert max(spread.tolist().count(cluster) for cluster in range(20)) <= 60


def test_python_examples_are_short() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 2  # one for each half
    for block in blocks:
        assert len([line for line in block.splitlines() if line and not line.startswith("#")]) <= 20


def commands() -> list[list[str]]:
    """The words after ``coke`` of every command line in the indented blocks of README and docs/pretraining.md."""
    lines = re.findall(
        r"^    (.*\bcoke (?:pretrain|evaluate|report|recipes|embed|predict|cluster|assign).*)$",
        README + PRETRAINING,
        re.M,
    )
    words = [shlex.split(re.split(r"\bcoke ", line)[-1]) for line in lines if " DATA " not in line]
    assert len(words) >= 9
    return [list(each) for each in dict.fromkeys(map(tuple, words))]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_parse(words: list[str]) -> None:
    options, rest = cli.parser().parse_known_args(words)
    assert not [word for word in rest if word.startswith("-")]
    settings = [word for word in [*getattr(options, "words", []), *rest] if "=" in word]
    recipe = find_recipe(getattr(options, "recipe", None) or "textures")
    check_settings(chosen(template(recipe), parse_overrides(settings)))


def test_start_commands() -> None:
    tests = "uv run pytest -n 2 --dist loadfile"
    assert f"    pip install uv && uv run coke pretrain\n    {tests}\n" in README
    assert f"\n{tests} ||" in (ROOT / ".ci" / "run").read_text()


def test_options_are_those_of_the_command_line() -> None:
    usage = next(line for line in PRETRAINING.splitlines() if " DATA [--recipe" in line)
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
        cli.main(["pretrain", "--help"])
    assert set(re.findall(r"--[\w-]+", usage)) == set(re.findall(r"--[\w-]+", said.getvalue())) - {"--help"}


def test_recipes_are_listed() -> None:
    assert first_column("Recipes") == list(RECIPES)


def test_verdicts_are_listed() -> None:
    states = re.findall(r'Verdict\(\s*"(\w+)"', Path(health.__file__).read_text())
    assert sorted(first_column("Is it learning?")) == sorted(set(states))


def test_run_folder_is_listed() -> None:
    names = re.findall(r"^    (\S+?)/?\s{2,}", coke.run.__doc__, re.M)
    assert len(names) >= 10
    assert sorted(name.strip("/") for name in first_column("The run folder")) == sorted(names)


def test_image_suffixes_are_listed() -> None:
    from coke.images.folder import SUFFIXES

    assert set(re.findall(r"`(\.\w+)`", PAGES["data.md"].split("## List")[0])) == set(SUFFIXES)


def test_reference_has_every_public_name() -> None:
    """In docs/reference.md, from which mkdocstrings makes a page, each once."""
    named = re.findall(r"^::: (\S+)$", PAGES["reference.md"], re.M)
    assert len(named) == len(set(named))
    assert {f"coke.{name}" for name in coke.__all__} <= set(named)
    for name in named:
        assert pydoc.locate(name) is not None, f"there is no {name}"


def test_site_has_every_page() -> None:
    """What mkdocs builds; without mkdocs, as here: `mkdocs build --strict` is a check of its own in .ci/run."""
    import yaml

    def pages(entries: list[Any]) -> list[str]:
        values = [next(iter(entry.values())) for entry in entries]
        return [page for value in values for page in (pages(value) if isinstance(value, list) else [value])]

    shown = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    beside = {"index.md": "README.md", "benchmarks.md": "benchmarks/README.md"}
    beside |= {name.lower(): name for name in ("CHANGELOG.md", "CONTRIBUTING.md")}
    assert sorted(shown) == sorted([*PAGES, *beside])
    hook = (ROOT / "docs" / "hooks.py").read_text()
    for name, place in beside.items():
        assert f'"{place}": "{name}"' in hook
        assert (ROOT / place).is_file()
    assert "mkdocs build --strict" in (ROOT / ".ci" / "run").read_text()


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 160


@pytest.mark.parametrize("name", PROSE)
def test_links_lead_somewhere(name: str) -> None:
    base = ROOT / "docs" if name in PAGES else ROOT
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", PROSE[name]) if "://" not in t]
    assert [target for target in targets if target and not (base / target).exists()] == []


@pytest.mark.parametrize("name", PROSE)
def test_prose_is_plain(name: str) -> None:
    """No badges, no emojis, and lines that fit a terminal (tables and addresses aside)."""
    text = PROSE[name]
    assert "![" not in text
    assert not re.search("[\U0001f300-\U0001faff\u2600-\u27bf]", text)
    if name != "log.md":
        code = re.sub(r"```.*?```|<!-- RESULT.*?/RESULT", "", text, flags=re.S)
        long = [
            line for line in code.splitlines() if len(line) > 120 and line[:1] != "|" and "://" not in line
        ]
        assert long == []


def test_citation_names_the_version() -> None:
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == coke.__version__
    assert citation["license"] == "Apache-2.0"
    assert len(citation["references"][0]["authors"]) == 5
    assert f"## {coke.__version__}" in (ROOT / "CHANGELOG.md").read_text()
