"""docs/evidence.md's tables and docs/evidence.svg, from the JSON files under results/claims.

python benchmarks/evidence_page.py
uv run --with matplotlib python benchmarks/evidence_page.py      # the figure as well
"""

from __future__ import annotations

import importlib.util
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _common as common

PAGE, FIGURE = common.ROOT / "docs" / "evidence.md", common.ROOT / "docs" / "evidence.svg"
CLAIMS = common.RESULTS / "claims"
SCORES = {"knn": "k-NN", "linear": "linear", "accuracy": "ACC"}
Runs = dict[str, list[dict[str, Any]]]


def load(scale: str) -> Runs:
    """All results of a scale by entry, seeds in order."""
    runs: Runs = defaultdict(list)
    for path in sorted((CLAIMS / scale).glob("*.json")):
        result = json.loads(path.read_text())
        if path.name.startswith("baselines"):
            for name, scores in result["scores"].items():
                runs[name].append({"scores": scores})
        else:
            runs[result["entry"]].append(result)
    return runs


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean, and standard deviation where there is more than one.

    >>> spread([40.0, 42.0]), spread([41.0])
    ('41.0 ± 1.4', '41.0')
    """
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def table(runs: Runs, entries: Sequence[str], columns: Sequence[str]) -> str:
    """One row an entry that was run."""
    lines = ["| contender | n | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name in dict.fromkeys(entries):
        if name not in runs:
            lines.append(f"| {name} | 0 |" + " not run |" * len(columns))
            continue
        cells = [_cell(runs[name], column) for column in columns]
        lines.append(f"| {name} | {len(runs[name])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: list[dict[str, Any]], column: str) -> str:
    if column == "held-out k-NN":
        return spread([100 * run["scores"]["held_knn"] for run in found])
    for key, label in SCORES.items():
        if column == label:
            return spread([100 * run["scores"][key] for run in found])
    if "seconds" not in found[0]:
        return "-"
    if column == "seconds":
        return spread([run["seconds"]["compute"] for run in found], 0)
    if column == "views seen":
        seen = sorted({run["views_seen"] for run in found})
        return f"{seen[0]:,}" if len(seen) == 1 else f"{seen[0]:,} to {seen[-1]:,}"
    if column == "memory, MiB":
        return spread([run["peak_memory_mib"] for run in found], 0)
    heads = [run.get("heads", []) for run in found]
    if column in ("smallest", "largest"):
        last = [run["history"][-1].get("heads") for run in found]
        return "-" if None in last else spread([head[0][column] for head in last], 0)
    assert column in ("head ACC", "head NMI", "head ARI"), column
    key = {"head ACC": "accuracy", "head NMI": "nmi", "head ARI": "ari"}[column]
    return "-" if not all(heads) else spread([100 * head[0][key] for head in heads])


def figure(scales: dict[str, Runs], path: Path) -> None:
    """k-NN by contender for the claims with several seeds, every run a dot."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "evidence", "font.size": 9})
    from matplotlib import pyplot

    sizes = ["coke, r = 0", "coke", "coke, r = 1", "sinkhorn"]
    views = ["coke", "coke, companions", "simclr, learning rate x 2"]
    panels = [
        ("minimum size, balanced", "small", sizes),
        ("minimum size, imbalance 50", "small", [f"{name}, imbalance-50" for name in sizes]),
        ("one view or two", "small", [*views, "moco, T 0.1"]),
        ("one view or two, medium", "medium", views),
    ]
    canvas, axes = pyplot.subplots(1, len(panels), figsize=(11, 2.8), sharey=True)
    for axis, (title, scale, names) in zip(axes, panels, strict=True):
        runs = scales[scale]
        for place, name in enumerate(names):
            values = [100 * run["scores"]["knn"] for run in runs.get(name, [])]
            axis.plot([place] * len(values), values, "o", color="#0b62a4", alpha=0.7)
            if values:
                axis.plot([place - 0.25, place + 0.25], [statistics.fmean(values)] * 2, color="#d9822b")
        labels = [_short(name) for name in names]
        axis.set_xticks(range(len(names)), labels, rotation=20)
        axis.axhline(
            100 * statistics.fmean(run["scores"]["knn"] for run in runs["untrained"]), color="#8a8a8a", ls=":"
        )
        axis.axhline(100 * runs["raw pixels"][0]["scores"]["knn"], color="#8a8a8a", ls="--")
        axis.set_title(title)
    axes[0].set_ylabel("k-NN of 10,000 test images, %")
    canvas.tight_layout()
    canvas.savefig(path, format="svg", metadata={"Date": None})


def _short(name: str) -> str:
    """What is written under a dot."""
    name = name.removesuffix(", imbalance-50").replace("coke, r", "r").replace("coke, ", "")
    return name if name.startswith("coke") else name.split(",")[0]


def filled(marker: re.Match[str]) -> str:
    """A table of the page made anew: ``TABLE:folder of results:claim:columns``."""
    from contest.entries import SCALES, entries

    folder, claim = marker[2], marker[3]
    names = [entry.name for entry in entries(claim, SCALES[folder.split("-")[0]])]
    if claim in ("study", "table"):
        names = ["raw pixels", "untrained", *names]
    columns = [column.strip() for column in marker[4].split(";")]
    return f"{marker[1]}{table(load(folder), names, columns)}\n{marker[5]}"


def main() -> None:
    """Replace what stands between the page's markers."""
    marked = r"(<!-- TABLE:([^:]*):([^:]*):([^>]*) -->\n).*?(<!-- /TABLE -->)"
    PAGE.write_text(re.sub(marked, filled, PAGE.read_text(), flags=re.DOTALL))
    print(f"written: {PAGE.relative_to(common.ROOT)}")
    if importlib.util.find_spec("matplotlib") is None:
        print("no figure: matplotlib is not installed (uv run --with matplotlib ...)")
    else:
        figure({scale: load(scale) for scale in ("small", "medium")}, FIGURE)
        print(f"written: {FIGURE.relative_to(common.ROOT)}")


if __name__ == "__main__":
    main()
