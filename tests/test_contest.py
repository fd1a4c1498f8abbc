"""The contest behind docs/evidence.md: its subsets, its rivals, and that its page comes from its files."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from coke.images import open_data

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import claims  # noqa: E402
import evidence_page  # noqa: E402
from contest import data, entries, loop, peers, variants  # noqa: E402

sys.path.remove(str(ROOT / "benchmarks"))

CIFAR = ROOT / "../shared/data/cifar10"
PHOTOGRAPHS = ROOT / "../shared/data/imagenet-sample"


def test_class_counts_fall_in_equal_proportions():
    counts = data.class_counts(10, 4500, 50)
    assert counts[0] == 4500
    assert counts[-1] == 90
    ratios = [a / b for a, b in itertools.pairwise(counts)]
    assert max(ratios) / min(ratios) < 1.02


def test_subsets_have_the_sizes_they_name():
    pool = open_data("textures", seed=0).train
    balanced = data.subset(pool, "balanced", 1000)
    assert torch.bincount(data.labels_of(balanced)).tolist() == [100] * 10
    tailed = torch.bincount(data.labels_of(data.subset(pool, "imbalance-10", None)))
    assert tailed[0] == torch.bincount(data.labels_of(pool)).min()
    assert abs(int(tailed[0]) / int(tailed[-1]) - 10) < 0.5
    again = data.subset(pool, "balanced", 1000)
    assert torch.equal(again.rows, balanced.rows)


def test_a_second_compression_loses_on_a_grid_between_and_hardly_on_the_same():
    pool = open_data("textures", seed=0).train
    once = [data.compress(pool.read(index), quality=75, shift=0) for index in range(40)]

    def lost(shift):
        again = [data.compress(pixels, quality=75, shift=shift) for pixels in once]
        return sum(float((a.float() - o.float()).square().mean()) for a, o in zip(again, once, strict=True))

    assert lost(4) > 5 * lost(0)
    part = pool.subset(range(30))
    again = data.Data(part, part.subset([3]), part.subset([4, 5])).compressed_again()
    assert [len(images) for images in (again.pool, again.held, again.test)] == [30, 1, 2]
    assert torch.equal(again.pool.read(3), data.compress(part.read(3)))
    assert torch.equal(again.held.read(0), again.pool.read(3))
    assert torch.equal(again.pool.labels, part.labels)


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="the photographs are not here")
def test_photographs_lose_the_second_time_what_they_lost_the_first():
    photographs = open_data(PHOTOGRAPHS, seed=0).train
    small = list(torch.cat(list(photographs.centered(32))))
    once = [data.compress(pixels, quality=75, shift=0) for pixels in small]
    twice = [data.compress(pixels) for pixels in once]

    def lost(before, after):
        return sum(float((b.float() - a.float()).square().mean()) for b, a in zip(before, after, strict=True))

    assert lost(once, twice) == pytest.approx(lost(small, once), rel=0.1)


def test_sinkhorn_balances_where_the_nearest_center_does_not():
    features = normalize(torch.randn(3000, 16, generator=torch.Generator().manual_seed(0)) + 0.5)
    centers = normalize(torch.randn(10, 16, generator=torch.Generator().manual_seed(1)))
    balanced = variants.SinkhornKMeans(10, 16, 1.0, 0.0, centers)
    nearest = torch.bincount((features @ centers.t()).argmax(1), minlength=10)
    sizes = torch.bincount(balanced.assign(features), minlength=10)
    assert sizes.min() > 2 * nearest.min()
    assert sizes.max() < nearest.max() / 1.5
    for batch in features.split(500):
        balanced.update(batch, balanced.assign(batch))
    assert len(balanced.queue) == 3000  # not yet full
    assert torch.equal(balanced.queue[:500], features[2500:])
    assert balanced.duals.abs().max() == 0


def test_a_slow_copy_follows():
    fast = torch.nn.Linear(3, 2)
    slow = peers._slow_copy(fast)
    before = slow.weight.clone()
    with torch.no_grad():
        fast.weight += 1
    peers._follow(slow, fast, 0.9)
    torch.testing.assert_close(slow.weight, before + 0.1)
    assert not slow.weight.requires_grad


@pytest.mark.parametrize("scale", entries.SCALES.values(), ids=entries.SCALES)
def test_entries_have_names_of_their_own_and_settings_that_hold(scale):
    images = open_data("textures", seed=0).train
    found = {}
    for claim in entries.CLAIMS:
        for entry in entries.entries(claim, scale):
            assert found.setdefault(claims.file_name(entry.name, 0), entry) == entry
            config = loop.configure(entry, scale, images, seed=3)
            assert config.seed == 3
            assert len(config.large_views) == (1 if entry.views == "one" else 2)
    if scale.name == "small":
        assert len(found) < 60


@pytest.mark.parametrize("method", ["coke", "sinkhorn", "same-step", "batch-kmeans", "supervised"])
def test_a_contender_trains_and_is_probed(method):
    images = open_data("textures", seed=0).train
    parts = data.Data(
        images.subset(range(300)), images.subset(range(300, 400)), images.subset(range(400, 600))
    )
    scale = entries.Scale(
        "tiny",
        {"backbone": "coke_conv5_w16", "n_clusters": [5, 8], "batch_size": 50, "warmup_epochs": 1},
        n_images=None,
        epochs=2,
        seeds=(0,),
    )
    result = loop.run(entries.Entry(method, method), scale, parts, seed=0)
    losses = [epoch["loss"] for epoch in result["history"] if epoch["loss"]]
    assert len(losses) == 2
    assert all(torch.isfinite(torch.tensor(losses)))
    assert result["views_seen"] == 600
    assert set(result["scores"]) == {"held_knn", "knn", "linear", "accuracy", "nmi", "ari"}
    assert ("heads" in result) == (method != "supervised")


@pytest.mark.parametrize("method", ["simclr", "moco", "byol", "barlow", "swav"])
def test_a_peer_learns_to_know_its_views_again(method):
    pytest.importorskip("lightly", reason="needs lightly (pip install --no-deps lightly)")
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 32))
    options = {"queue": 64} if method == "moco" else {}  # full from the second step on
    learner = peers.PEERS[method](backbone, 32, **options)
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    images = torch.randn(64, 3, 4, 4)
    losses = []
    for step in range(60):
        views = [images + 0.1 * torch.randn_like(images) for _ in range(2)]
        loss = learner.loss(learner(views), torch.arange(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.after_step(step / 60)
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[5:10])


def test_the_page_is_what_the_files_say(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence_page, "CLAIMS", tmp_path)
    for seed, knn in enumerate((0.4, 0.42)):
        result = {"entry": "coke", "scores": {"knn": knn, "held_knn": 0.3}, "seconds": {"compute": 10.0}}
        path = tmp_path / "small" / f"coke-seed{seed}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result))
    printed = evidence_page.table(evidence_page.load("small"), ["coke", "other"], ["k-NN", "seconds"])
    assert printed.splitlines()[2:] == [
        "| coke | 2 | 41.0 ± 1.4 | 10 ± 0 |",
        "| other | 0 | not run | not run |",
    ]


@pytest.mark.nightly
@pytest.mark.skipif(not CIFAR.exists(), reason="the CIFAR-10 files are not here")
def test_the_full_scale_starts():
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "claims.py"),
        "decoupling",
        "--dry-run",
        "--scale",
        "full",
        "--share",
        "1/2",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "same-step-labels-seed0: held_knn" in done.stdout
    assert not (ROOT / "benchmarks" / "results" / "claims" / "full").exists()
