"""Long runs in turns: few repetitions, a budget of time, a line for each, medians and ratios pair by pair.

`_common.interleaved` is for calls of milliseconds. Here a call takes seconds to minutes, a candidate may give several
laps (trained; with labels), and repetitions end when the next one would not fit into the budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import _common as common
from _candidates import Found

Laps = dict[str, list[float]]


def turns(
    candidates: Mapping[str, Callable[[], Found]], *, repetitions: int, budget: float
) -> tuple[Laps, dict[str, Found]]:
    """Seconds of every lap, equally many of each, and each candidate's last result.

    budget: seconds; no repetition but the first begins if it would probably end beyond.
    """
    seconds: Laps = {}
    last: dict[str, Found] = {}
    names = list(candidates)
    began, last_took = time.perf_counter(), 0.0
    for repetition in range(repetitions):
        started = time.perf_counter()
        if repetition and started - began + 1.1 * last_took > budget:
            print(f"  {repetition} repetitions: another one would not fit into {budget:.0f} s", flush=True)
            break
        shift = repetition % len(names)
        for name in names[shift:] + names[:shift]:
            last.pop(name, None)  # its labels need not lie in memory while it runs again
            last[name] = candidates[name]()
            for lap, value in last[name].laps.items():
                seconds.setdefault(lap, []).append(value)
            laps = ", ".join(f"{lap} {value:.3f} s" for lap, value in last[name].laps.items())
            print(f"  {repetition + 1}: {laps}", flush=True)
        last_took = time.perf_counter() - started
    return seconds, last


def summary(seconds: Laps, base: str) -> dict[str, dict[str, Any]]:
    """Per lap: n, seconds, and times of ``base`` pair by pair (median of ratios, quartiles, extremes).

    >>> summary({"coke": [1.0, 2.0], "other": [4.0, 6.0]}, "coke")["other"]["ratio"]["median"]
    3.5
    """
    found: dict[str, dict[str, Any]] = {}
    for name, values in seconds.items():
        ratios = [value / reference for value, reference in zip(values, seconds[base], strict=True)]
        found[name] = {"n": len(values), "seconds": _spread(values), "ratio": _spread(ratios)}
    return found


def _spread(values: Sequence[float]) -> dict[str, float]:
    return common.quartiles(values) | {"least": min(values), "most": max(values)}


def print_laps(found: Mapping[str, Mapping[str, Any]], base: str) -> None:
    """A summary as lines: median seconds [quartiles], and how many times the base that is."""
    width = max(map(len, found))
    for name, row in found.items():
        seconds, ratio = row["seconds"], row["ratio"]
        print(
            f"  {name:{width}}  {seconds['median']:9.3f} s [{seconds['lower']:.3f}, {seconds['upper']:.3f}]"
            f"   {ratio['median']:7.3f} x {base} [{ratio['lower']:.3f}, {ratio['upper']:.3f}]   n {row['n']}",
            flush=True,
        )


def check(
    what: str, value: float, wanted: float, *, at_least: bool = False, unit: str = ""
) -> dict[str, Any]:
    """A figure beside what is wanted, printed and as a result.

    >>> check("gap", 2e-5, 1e-4)["met"]
      gap: 2e-05, wanted <= 0.0001: met
    True
    """
    met = value >= wanted if at_least else value <= wanted
    sign = ">=" if at_least else "<="
    print(
        f"  {what}: {value:.4g}{unit}, wanted {sign} {wanted:g}{unit}: {'met' if met else 'MISSED'}",
        flush=True,
    )
    return {"what": what, "value": value, "wanted": f"{sign} {wanted:g}{unit}", "met": bool(met)}
