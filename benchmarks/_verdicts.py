"""What each row of bounded.py's table promises, judged from times (ratios to coke) and audited results."""

from __future__ import annotations

from typing import Any

from _candidates import Found, Problem, inertia, violation
from _turns import check

BASE = "coke"
FLOW = "k-means-constrained"
FASTER = {"20k": 40, "50k": 30}  # times `FLOW`
SLOWER = {"1M": {"faiss": 1.5}, "200k": {"scikit-learn": 1.0, "faiss": 1.35}}  # times that, at most
LABELLED = "faiss with labels"
MOST_GAP, MOST_OFF, MOST_WORSE = 1e-4, 1e-6, 0.1  # the last in per cent
TIME_A_ROW, BYTES_A_ROW = 1.1, 16

Checks = list[dict[str, Any]]


def audit(problem: Problem, found: Found) -> dict[str, Any]:
    """What all results are judged by, computed alike for all; and what the candidate says itself."""
    assert found.centers is not None
    assert found.labels is not None
    outside = violation(found.labels, len(problem.centers), problem.sizes)
    figures: dict[str, Any] = dict(found.figures)
    return {"inertia": inertia(problem.rows, found.centers, found.labels), "violation": outside, **figures}


def figures_of(result: dict[str, Any]) -> str:
    """An audited result in words."""
    words = [f"inertia {result['inertia']:.8g}", f"violation {result['violation']}"]
    words += [f"gap {result['gap']:.2g}"] if "gap" in result else []
    words += [f"{result['iterations']} iterations"]
    return ", ".join(words + ([f"{result['passes']} passes over the rows"] if "passes" in result else []))


def verdict(name: str, part: dict[str, Any], *, bounded: bool) -> Checks:
    """What a row beside peers promises, from ``times`` and audited ``results`` of the part; ratios go into it."""
    times, results = part["times"], part["results"]
    own = results[BASE]
    part["coke_over"] = {lap: 1 / row["ratio"]["median"] for lap, row in times.items() if lap != BASE}
    if "product" in times:
        print(f"  coke takes {part['coke_over']['product']:.2f} times the bare product of as many sweeps")
    if LABELLED in times:
        print(f"  coke takes {part['coke_over'][LABELLED]:.3f} times {LABELLED}")
    iterations = {candidate: result["iterations"] for candidate, result in results.items()}
    part["same_iterations"] = len(set(iterations.values())) == 1
    if not part["same_iterations"]:
        print(f"  NOT THE SAME ITERATIONS: {iterations}")
    for result in results.values():
        result["inertia_beyond_coke"] = result["inertia"] / own["inertia"] - 1
    checks = [_own_inertia(own)]
    if name in FASTER and FLOW in times:
        faster = times[FLOW]["ratio"]["median"]
        checks.append(check(f"times faster than {FLOW}", faster, FASTER[name], at_least=True))
        worse = 100 * (own["inertia"] / results[FLOW]["inertia"] - 1)
        checks.append(check(f"inertia above that of {FLOW}", worse, MOST_WORSE, unit=" %"))
    for lap, wanted in SLOWER.get(name, {}).items():
        if lap in times:
            checks.append(check(f"time beside {lap}", part["coke_over"][lap], wanted, unit=" x"))
    return checks + (_bounds_hold(own) if bounded else [])


def itself_verdict(part: dict[str, Any], tenth: int, n_rows: int) -> Checks:
    """What a memory map promises: time and memory of a row, beside those of a tenth of the rows."""
    small, large = part["results"]["tenth"], part["results"]["all"]
    ratio = part["times"]["all"]["ratio"]["median"] * tenth / n_rows
    growth = (large["peak"] - small["peak"]) / (n_rows - tenth)
    checks = [check("time a row beside that of a tenth of the rows", ratio, TIME_A_ROW, unit=" x")]
    checks.append(check("anonymous memory for each further row", growth, BYTES_A_ROW, unit=" bytes"))
    return [*checks, _own_inertia(large), *_bounds_hold(large)]


def _own_inertia(own: dict[str, Any]) -> dict[str, Any]:
    return check(
        "own inertia beside its recomputation", abs(own["own_inertia"] / own["inertia"] - 1), MOST_OFF
    )


def _bounds_hold(own: dict[str, Any]) -> Checks:
    return [
        check("violation", own["violation"], 0, unit=" rows"),
        check("certified gap", own["gap"], MOST_GAP),
    ]
