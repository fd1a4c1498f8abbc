"""What docs/theory.md shows of online_theory.py's result: two tables and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = {
    "c/sqrt(N)": "#0b62a4",
    "c/sqrt(t)": "#7cc36a",
    "0.02 falling": "#13807c",
    "0.02": "#d9822b",
    "greedy": "#8a8a8a",
    "Sinkhorn": "#b0308f",
}
NAMES = {
    "c/sqrt(N)": "h = 1/sqrt(N)",
    "c/sqrt(t)": "h = 1/sqrt(t)",
    "0.02 falling": "h = 1/sqrt(t + 2500)",
    "0.02": "h = 0.02",
    "eta = c/sqrt(N)": "eta = 1/sqrt(N)",
    "greedy": "greedy nearest",
    "Sinkhorn": "Sinkhorn, last 4,096",
}
PROBLEMS = (("long-tailed", 0.4), ("long-tailed", 1.0), ("balanced", 1.0))
ONLINE = ("c/sqrt(N)", "c/sqrt(t)", "0.02 falling", "0.02")
LINEAR = 10.0  # regret between -10 and 10 is drawn on a linear scale


def _entries(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for part in result["results"].values():
        yield from part["entries"]


def _find(result: Mapping[str, Any], **wanted: Any) -> dict[str, Any]:
    return next(
        entry for entry in _entries(result) if all(entry[key] == value for key, value in wanted.items())
    )


def slopes(result: Mapping[str, Any]) -> str:
    """Log-log slopes of shortfall, signed and priced regret, one image at a time and in batches."""

    def words(found: dict[str, float] | None) -> str:
        if found is None:
            return "-"
        below = ", below 0" if found["sign"] < 0 else ""
        return f"{found['mean']:.2f} ± {found['half_width']:.2f}{below}"

    names = ("shortfall", "regret", "priced")
    lines = [
        "| data, r | K | step | from N | B 1: shortfall | regret | priced | B 128: shortfall | regret | priced |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for data, ratio in PROBLEMS:
        for n_clusters in (10, 100):
            for rule in ONLINE:
                wanted = {"data": data, "ratio": ratio, "K": n_clusters, "rule": rule}
                single, batches = (_find(result, batch=batch, **wanted) for batch in (1, 128))
                found = [entry[f"{name}_slope"] for entry in (single, batches) for name in names]
                first = next((f"{fit['from']:,}" for fit in found if fit), "-")
                cells = [f"{data}, {ratio:g}", str(n_clusters), NAMES[rule], first, *map(words, found)]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figures(result: Mapping[str, Any]) -> str:
    """The figures of batches of 128 at the largest size, beside the optimum."""
    lines = [
        "| data, r | K | optimum | how | largest shortfall | of the bound | mean cosine - optimum | priced |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data, ratio in PROBLEMS[:2]:
        for n_clusters in (10, 100):
            for rule in (*ONLINE, "eta = c/sqrt(N)", "greedy", "Sinkhorn"):
                entry = _find(result, data=data, ratio=ratio, K=n_clusters, rule=rule, batch=128)
                size = entry["sizes"][-1]
                best = result["results"][f"K {n_clusters}"]["optimum"][f"{data}, r {ratio}, N {size}"]
                short, regret, priced = (
                    entry[name]["mean"][-1] for name in ("shortfall", "regret", "priced")
                )
                share = f"{100 * short * n_clusters / (ratio * size):.2f} %" if short > 0 else "holds"
                cells = [
                    f"{data}, {ratio:g}",
                    str(n_clusters),
                    f"{best['mean_cosine']:.4f}",
                    NAMES[rule],
                    f"{short:,.0f}",
                    share,
                    f"{-regret / size:+.6f}",
                    f"{-priced / size:+.6f}",
                ]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Long-tailed data, both ratios and numbers of clusters; solid: one image at a time, dashed: batches of 128."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "theory", "font.size": 9})
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    cases = [(ratio, n_clusters) for ratio in (0.4, 1.0) for n_clusters in (10, 100)]
    canvas, axes = pyplot.subplots(
        2, len(cases), figsize=(14, 7), sharex=True, sharey="row", layout="constrained"
    )
    for column, (ratio, n_clusters) in enumerate(cases):
        above, below = axes[:, column]
        for entry in _entries(result):
            if (entry["data"], entry["ratio"], entry["K"]) != ("long-tailed", ratio, n_clusters):
                continue
            if entry["rule"] in COLOURS:
                _line(above, entry, "shortfall")
                _line(below, entry, "regret")
        lengths = np.array([1e3, 1e6])
        above.plot(lengths, 0.1 * lengths**0.5, color="black", linewidth=0.8, linestyle=":")
        above.set(title=f"r = {ratio:g}, K = {n_clusters}", xscale="log", yscale="log", ylim=(0.5, 3e5))
        below.axhline(0, color="black", linewidth=0.8)
        below.set(xlabel="images in the stream, N")
        below.set_yscale("symlog", linthresh=LINEAR)
        for axis in (above, below):
            axis.xaxis.set_minor_locator(NullLocator())  # hundreds of marks that nobody counts
            axis.yaxis.set_minor_locator(NullLocator())
            axis.grid(True, color="#e4e4e4", linewidth=0.6)
    axes[0, 0].set_ylabel("largest shortfall, images")
    axes[1, 0].set_ylabel("regret (below 0: above the optimum)")
    lines = [pyplot.Line2D([], [], color=colour, label=NAMES[rule]) for rule, colour in COLOURS.items()]
    for style, words in (("-", "one image at a time"), ("--", "batches of 128"), (":", "slope 1/2")):
        lines.append(pyplot.Line2D([], [], color="black", linestyle=style, label=words))
    canvas.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
    canvas.suptitle("Long-tailed streams, fixed centers: means over seeds with 95 % intervals")
    canvas.savefig(path, metadata={"Date": None})
    pyplot.close(canvas)


def _line(axis: Any, entry: Mapping[str, Any], name: str) -> None:
    """One rule's means with intervals; on the logarithmic axis a size where no bound is missed is left out."""
    means = np.array(entry[name]["mean"])
    widths = np.array(entry[name]["half_width"])
    shown = means > 0 if name == "shortfall" else np.isfinite(means)
    low = np.minimum(widths, 0.9 * means) if name == "shortfall" else widths
    dashed = entry["batch"] > 1 and entry["rule"] in ONLINE
    axis.errorbar(
        np.array(entry["sizes"])[shown],
        means[shown],
        yerr=np.stack([low, widths])[:, shown],
        color=COLOURS[entry["rule"]],
        linestyle="--" if dashed else "-",
        linewidth=1.3,
        elinewidth=0.8,
    )
