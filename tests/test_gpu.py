"""What must be the same on a GPU; skipped, and said so, where there is none."""

import json

import pytest
import torch
from torch.nn.functional import normalize

import coke
from coke.evaluation import knn_accuracy, linear_probe, near
from coke.method.network import Output
from coke.method.objective import Objective, Target
from coke.training import augment
from coke.training.plan import make_plan
from coke.training.session import start
from coke.training.views import View

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("ratio", [0.4, 1.0])
def test_clustering_follows_the_cpu(ratio):
    start = normalize(torch.randn(300, 32))
    here = coke.OnlineConstrainedKMeans(300, 32, ratio, 2.0, start)
    there = coke.OnlineConstrainedKMeans(300, 32, ratio, 2.0, start).cuda()
    for epoch in range(3):
        if epoch == 2:
            here.begin_averaging()
            there.begin_averaging()
        for batch in normalize(torch.randn(1000, 32)).split(96):
            labels = here.assign(batch)
            assert (there.assign(batch.cuda()).cpu() == labels).float().mean() > 0.99  # near ties may differ
            here.update(batch, labels)
            there.update(batch.cuda(), labels.cuda())
        here.end_epoch()
        there.end_epoch()
        for name in ("centers", "frozen_centers", "duals"):
            torch.testing.assert_close(getattr(there, name).cpu(), getattr(here, name), atol=1e-5, rtol=1e-5)


def test_views_follow_the_cpu():
    view = View(size=16, jitter=(0.4, 0.4, 0.2, 0.1), gray=0.5, blur=0.5, solarise=0.5, invert=0.5)
    images, draws = torch.rand(32, 3, 16, 16), augment.draw(view, 32, torch.Generator().manual_seed(0))
    here = augment.colour(augment.orient(images, draws, view), draws, view)
    moved = draws.to(torch.device("cuda"))
    there = augment.colour(augment.orient(images.cuda(), moved, view), moved, view).cpu()
    # at the threshold of the solarisation rounding decides
    assert ((there - here).abs() < 1e-4).float().mean() > 0.999


def test_assignment_is_float32_under_autocast():
    clustering = coke.OnlineConstrainedKMeans(500, 64).cuda()
    features = normalize(torch.randn(64, 64)).cuda()
    with torch.autocast("cuda", dtype=torch.float16):
        labels, scores = clustering.assign(features), clustering.scores(features)
    assert scores.dtype == torch.float32
    assert torch.equal(labels, clustering.assign(features))


def test_label_memory_follows_the_cpu():
    here = coke.LabelMemory(50, [7, 300])
    there = coke.LabelMemory(50, [7, 300]).cuda()
    for step in range(20):
        if step == 5:
            here.begin_averaging()
            there.begin_averaging()
        ids = torch.randint(50, (16,))  # with duplicates
        labels = torch.stack([torch.randint(7, (16,)), torch.randint(300, (16,))], dim=1)
        here.write(ids, labels)
        there.write(ids.cuda(), labels.cuda())
    everyone = torch.arange(50)
    for mine, other in zip(here.read_average(everyone), there.read_average(everyone.cuda()), strict=True):
        assert torch.equal(mine, other.cpu())


def test_objective_follows_the_cpu():
    outputs = [Output(normalize(torch.randn(8, 16)), normalize(torch.randn(8, 16))) for _ in range(3)]
    objective = Objective(0.1, label_weight=0.3, prediction_share=0.5)
    target = objective.target(torch.randint(5, (8, 1, 1)), torch.ones(8, 1, 1), averaging=False)
    centers = [normalize(torch.randn(5, 16))]
    here = objective(outputs[:2], outputs[2:], target, centers)
    moved = [Output(output.projection.cuda(), output.prediction.cuda()) for output in outputs]
    asked = Target(target.labels.cuda(), target.weights.cuda())
    there = objective(moved[:2], moved[2:], asked, [c.cuda() for c in centers])
    torch.testing.assert_close(there.value.cpu(), here.value, atol=1e-5, rtol=1e-5)


def test_probes_follow_the_cpu():
    labels = torch.randint(4, (600,))
    features = torch.nn.functional.one_hot(labels, 16).float() + 0.5 * torch.randn(600, 16)
    bank, query = features[:500], features[500:]
    there = near(bank, "cuda")
    assert there.device.type == "cuda"
    for probe in (knn_accuracy, lambda *asked: linear_probe(*asked).accuracy):
        here = probe(bank, labels[:500], query, labels[500:])
        assert abs(probe(there, labels[:500], query, labels[500:]) - here) <= 0.02  # near ties


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_a_run_on_the_gpu_and_its_resumption(tmp_path, precision):
    keys = {"precision": precision, "linear_probe": False, "tensorboard": False, "accelerator": "cuda"}
    run = coke.pretrain("textures", out=tmp_path / "run", epochs=3, **keys)
    losses = [record["loss"] for record in run.metrics("epoch")][1:]
    assert losses[-1] < losses[0], json.dumps(losses)
    again = coke.pretrain(out=tmp_path / "run", resume=True, epochs=4)
    assert [record["epoch"] for record in again.metrics("epoch")] == [0, 1, 2, 3]


@pytest.mark.parametrize("averaging_share", [0.0, 1.0])
def test_a_step_never_waits_for_the_device(tmp_path, averaging_share):
    """Views, network, clustering, labels: the host runs ahead of all of it, in both stages."""
    keys = {"accelerator": "cuda", "averaging_share": averaging_share, "tensorboard": False, "epochs": 9}
    keys |= {"objective.rotation": 0.4, "objective.decorrelation": 0.1}
    training = start(make_plan("textures", None, keys), None)
    learner, batches = training.learner, training.batches
    learner.network.train()
    for epoch in range(4):  # the clustering pass, the first steps of a kind, and two epochs that are watched
        learner.begin_epoch(epoch)
        torch.cuda.set_sync_debug_mode("error" if epoch >= 2 else "default")
        try:
            for parts in batches.epoch(epoch):
                learner.step(parts, train=epoch > 0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        learner.end_epoch()
    assert learner.schedule.trained_steps == 3 * batches.n_steps  # none of them raised


def test_a_compiled_run(tmp_path):
    keys = {"compile": True, "precision": "bf16-mixed", "linear_probe": False, "tensorboard": False}
    keys |= {"objective.rotation": 0.4, "objective.decorrelation": 0.1}
    run = coke.pretrain("textures", out=tmp_path / "run", epochs=3, accelerator="cuda", **keys)
    losses = [record["loss"] for record in run.metrics("epoch")][1:]
    assert losses[-1] < losses[0], json.dumps(losses)
