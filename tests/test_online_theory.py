"""benchmarks/online_theory.py measures the class: its streams equal it step by step, and its optimum is the optimum."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from coke import OnlineConstrainedKMeans, assign_balanced

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
K, DIM = 8, 4


@pytest.fixture(scope="module")
def theory() -> Iterator[ModuleType]:
    """The benchmark, with the modules that it imports from its folder."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import online_theory

    yield online_theory
    sys.path.remove(str(ROOT / "benchmarks"))


def grid(n_images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and centers whose products are small multiples of 1/16: exact in any precision, with many ties."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(-3, 4, (n_images, DIM), generator=generator) / 4
    return features, torch.randint(-3, 4, (K, DIM), generator=generator) / 4


def stepped(
    features: torch.Tensor, centers: torch.Tensor, batch: int, **settings: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and duals of the class itself, its centers put back after every update."""
    clustering = OnlineConstrainedKMeans(len(centers), centers.shape[1], centers=centers, **settings)
    labels = []
    for part in features.split(batch):
        labels.append(clustering.assign(part))
        clustering.update(part, labels[-1])
        clustering.centers.copy_(centers)
    return torch.cat(labels), clustering.duals


def followed(theory: ModuleType, cosines: np.ndarray, batch: int, groups: list) -> tuple:
    """Labels [G, N] of the benchmark's vectorised runs, and the runs, a few batches a call."""
    runs = theory.Runs.start(groups, batch, 1, cosines.shape[1])
    length = 3 * batch
    labels = [runs.take(cosines[None, i : i + length]) for i in range(0, len(cosines), length)]
    return np.concatenate(labels, axis=2)[0], runs


@pytest.mark.parametrize("ratio", [0.5, 1.0])
@pytest.mark.parametrize("batch", [1, 128])
def test_a_stream_is_the_class_step_by_step(theory: ModuleType, batch: int, ratio: float) -> None:
    """Every number is a multiple of a power of two, so equal means equal: labels, duals, ties."""
    features, centers = grid(1280, seed=1)
    labels, duals = stepped(features, centers, batch, min_size_ratio=ratio, dual_lr=batch / 64)
    group = theory.Group("c/sqrt(N)", ratio, 4096)  # h = 1 / 64
    found, runs = followed(theory, (features @ centers.t()).double().numpy(), batch, [group])
    assert np.array_equal(found[0], labels.numpy())
    assert np.array_equal(runs.duals[0, 0], duals.double().numpy())
    assert np.array_equal(runs.counts[0, 0], np.bincount(labels.numpy(), minlength=K))
    assert not torch.equal(labels, (features @ centers.t()).argmax(dim=1))  # duals decided some


@pytest.mark.parametrize("batch", [1, 128])
def test_every_rule_is_a_setting_of_the_class(theory: ModuleType, batch: int) -> None:
    """Two streams, five rules and two ratios at once, on the benchmark's own data, the last batch short."""
    n_images, streams = 1000, [theory.Stream(10, data, seed=5) for data in theory.DATA]
    cosines = np.stack([stream.scores(n_images)[0] for stream in streams])
    groups = [theory.Group(rule, ratio, n_images) for rule in theory.RULES for ratio in (0.4, 1.0)]
    runs = theory.Runs.start(groups, batch, 2, 10)
    labels = runs.take(cosines.astype(np.float64))
    steps = {
        "c/sqrt(N)": {"dual_lr": batch / n_images**0.5},
        "c/sqrt(t)": {"dual_lr": batch**0.5, "dual_decay_updates": 1},
        "0.02": {"dual_lr": 0.02 * batch},
        "0.02 falling": {"dual_lr": 0.02 * batch, "dual_decay_updates": 2500 / batch},
        "eta = c/sqrt(N)": {"dual_lr": 1 / n_images**0.5},
    }
    for s, g in np.ndindex(2, len(groups)):
        step = steps[groups[g].rule]
        # identity centers: the features are the benchmark's cosines, so both sides compare the same numbers
        own, duals = stepped(
            torch.from_numpy(cosines[s]), torch.eye(10), batch, min_size_ratio=groups[g].ratio, **step
        )
        assert np.array_equal(labels[s, g], own.numpy()), groups[g]
        assert np.allclose(runs.duals[s, g], duals.numpy(), atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.sampled_from([1, 128]),
    ratio=st.sampled_from([0.25, 0.5, 1.0]),
    order=st.sampled_from(["random", "sorted", "repeated"]),
)
def test_the_inequality_is_exact_for_any_stream(seed: int, batch: int, ratio: float, order: str) -> None:
    """r N / K - n_k <= (B / eta) (rho_k(end) - rho_k(start)), without tolerance, also from a start that is not 0."""
    features, centers = grid(384, seed)
    if order == "sorted":
        features = features[(features @ centers.t()).argmax(dim=1).argsort()]
    if order == "repeated":
        features[:] = features[0]
    clustering = OnlineConstrainedKMeans(K, DIM, ratio, batch / 64, centers=centers)
    clustering.duals.copy_(torch.arange(K) / 8)
    start, counts = clustering.duals.clone(), torch.zeros(K)
    for part in features.split(batch):
        labels = clustering.assign(part)
        counts += torch.bincount(labels, minlength=K)
        clustering.update(part, labels)  # centers move as well: the inequality does not mind
    shortfall = ratio * len(features) / K - counts
    assert (shortfall <= 64 * (clustering.duals - start)).all()


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_duals_of_single_images_stay_within_the_span_of_cosines(theory: ModuleType, ratio: float) -> None:
    """docs/theory.md: at most 2 + h apart on any stream, so that no cluster misses more than a constant over h."""
    h, n_images = 1 / 16, 6000
    for cosines in (
        np.tile(-np.eye(5)[0] * 2 + 1, (n_images, 1)),  # one cluster is never liked
        np.eye(5)[np.arange(n_images) * 5 // n_images] * 2 - 1,  # sorted
        np.random.default_rng(0).choice([-1.0, 1.0], (n_images, 5)),
    ):
        runs = theory.Runs.start([theory.Group("c/sqrt(N)", ratio, 256)], 1, 1, 5)
        for start in range(0, n_images, 500):
            runs.take(cosines[None, start : start + 500])
            duals = runs.duals[0, 0]
            assert duals.max() - duals.min() <= 2 + h + 1e-9
            assert duals.max() <= (2 + h if ratio == 1 else 4 + 2 * h) + 1e-9
        assert theory.inequality(runs) >= -1e-6


def exact(scores: np.ndarray, ratio: float) -> float:
    """The optimum by an independent linear programme."""
    n_rows, n_clusters = scores.shape
    sizes = scipy.sparse.kron(np.ones((1, n_rows)), scipy.sparse.eye(n_clusters))
    once = scipy.sparse.kron(scipy.sparse.eye(n_rows), np.ones((1, n_clusters)))
    bound = np.full(n_clusters, ratio * n_rows / n_clusters)
    found = linprog(
        -scores.ravel(), A_ub=-sizes, b_ub=-bound, A_eq=once, b_eq=np.ones(n_rows), method="highs"
    )
    assert found.status == 0
    return -found.fun


@pytest.mark.parametrize("ratio", [0.4, 1.0])
@pytest.mark.parametrize(("n_images", "n_clusters"), [(500, 10), (500, 100), (1500, 10)])
def test_the_optimum_is_the_optimum(theory: ModuleType, n_images: int, n_clusters: int, ratio: float) -> None:
    scores, _ = theory.Stream(n_clusters, "long-tailed", seed=7).scores(n_images)
    wanted = exact(scores.astype(np.float64), ratio)
    duals, value = theory.optimum(scores, ratio, np.zeros(n_clusters), 4.0)
    assert wanted - 1e-6 <= value <= wanted + 0.01
    # from nearby duals within a small radius, as in the benchmark's larger sizes
    start = duals + 0.02 * np.random.default_rng(0).standard_normal(n_clusters)
    _, again = theory.optimum(scores, ratio, start if ratio == 1 else np.maximum(start, 0), 0.03)
    assert wanted - 1e-6 <= again <= wanted + 0.01
    assert ratio == 1 or duals.min() >= 0
    nearest = scores.argmax(axis=1)
    counts = np.bincount(nearest, minlength=n_clusters)
    gained = float(scores.max(axis=1).sum(dtype=np.float64))
    short, regret, priced = theory.compare(counts, gained, ratio * n_images / n_clusters, (duals, value))
    assert short > 0  # greedy misses bounds,
    assert regret < 0 < priced  # so it scores above the optimum, and has no advantage once it pays for them


@pytest.mark.parametrize("ratio", [0.4, 1.0])
@pytest.mark.parametrize(("n_images", "n_clusters"), [(10_000, 10), (3000, 100)])
def test_the_optimum_is_reached_by_an_assignment(
    theory: ModuleType, n_images: int, n_clusters: int, ratio: float
) -> None:
    """From the other side: no assignment can beat the dual's value, and one within the bounds comes up to it."""
    scores, _ = theory.Stream(n_clusters, "long-tailed", seed=8).scores(n_images)
    bound = round(ratio * n_images / n_clusters)
    labels = assign_balanced(1 - scores.astype(np.float64), min_size=bound)
    assert np.bincount(labels, minlength=n_clusters).min() >= bound
    gained = float(scores[np.arange(n_images), labels].sum(dtype=np.float64))
    _, value = theory.optimum(scores, ratio, np.zeros(n_clusters), 4.0)
    assert gained - 1e-6 <= value <= gained + 0.01


def test_the_window_is_sinkhorn(theory: ModuleType) -> None:
    """Against SwAV's published loop over the whole matrix of the window."""
    cosines = theory.Stream(10, "long-tailed", seed=3).scores(5120)[0]
    window = theory.Window(10)
    for start in range(0, 5120, 128):
        labels, soft = window.assign(cosines[start : start + 128])
    table = np.exp(cosines[-4096:].astype(np.float64) / 0.05).T
    table /= table.sum()
    for _ in range(3):
        table /= table.sum(axis=1, keepdims=True) * 10
        table /= table.sum(axis=0, keepdims=True) * 4096
    assert np.allclose(soft, 4096 * table.T[-128:], atol=1e-4)
    assert np.array_equal(labels, (table.T[-128:]).argmax(axis=1))


def test_the_slope_of_a_power_is_its_exponent(theory: ModuleType) -> None:
    sizes, noise = (1000, 10_000, 100_000), np.random.default_rng(0).normal(1, 0.01, (10, 3))
    found = theory.slope(sizes, np.sqrt(sizes) * noise)
    assert abs(found["mean"] - 0.5) < found["half_width"] < 0.02
    assert theory.slope(sizes, -np.sqrt(sizes) * noise)["sign"] == -1
    assert theory.slope(sizes, np.array([1.0, -1.0, 1.0]) * noise) is None


@pytest.mark.slow
def test_quick_mode_measures_and_writes_where_asked(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "online_theory.py"), "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["quick"] is True
    assert set(result["results"]) == {"K 10", "K 100"}
    assert result["environment"]["commit"] in done.stdout


def test_the_page_shows_what_was_measured(theory: ModuleType) -> None:
    """The tables of docs/theory.md are those of the result file, to the letter."""
    result = json.loads((ROOT / "benchmarks" / "results" / "online_theory.json").read_text())
    assert theory.page.slopes(result) in PAGE
    assert theory.page.figures(result) in PAGE
    figure = ROOT / "docs" / "theory.svg"
    assert figure.stat().st_size < 200 * 1024
