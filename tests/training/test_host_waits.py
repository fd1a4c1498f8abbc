"""A step never makes the host wait for the device, seen without one; `tests/test_gpu.py` asks a GPU the same.

What a device would hold lives on torch's "meta" device, whose tensors have shapes and no values, beside the
host's real image numbers and random numbers. To read a value there raises by itself; copies that wait and
operations across devices are found by `Watched`.
"""

import contextlib

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import CPUAccelerator
from lightning_fabric.strategies import SingleDeviceStrategy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from coke.training.backbone import check_backbone, make_backbone
from coke.training.batches import Batches
from coke.training.learner import Learner
from coke.training.plan import make_plan
from coke.training.recipes import RECIPES

DEVICE = torch.device("meta")
SMALL = {"backbone": "coke_conv5_w16", "n_clusters": [20, 50], "dual_lr": 1.0, "batch_size": 600, "epochs": 9}


class Watched(TorchDispatchMode):
    """Raises where an operation takes tensors of two devices, or a copy between them waits."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        came, went = (
            {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}
            for tree in ((args, kwargs), result)
        )
        copies = operation.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        asynchronous = bool((kwargs or {}).get("non_blocking")) or (len(args) > 2 and args[2] is True)
        if len(came | went) > 1 and came and not (copies and asynchronous):
            raise AssertionError(f"{operation} from {came} to {went} makes the host wait")
        return result


class Pretended(CPUAccelerator):
    """Takes any device for its own."""

    def setup_device(self, device):
        pass


@pytest.fixture(autouse=True)
def _without_autocast(monkeypatch):
    """There is no autocast for meta tensors; precision decides no wait."""
    autocast = torch.autocast
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda device, *args, **kwargs: (
            contextlib.nullcontext() if device == DEVICE.type else autocast(device, *args, **kwargs)
        ),
    )


def on_meta(recipe, keys):
    """A learner and its batches, of which the host holds nothing but numbers of images and random numbers."""
    plan = make_plan("textures", recipe, {**SMALL, **keys})
    config, images = plan.config, plan.splits.train
    views = [*config.large_views, *config.small_views]
    batches = Batches(
        images,
        views,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        mean=config.mean,
        std=config.std,
        seed=config.seed,
        workers=0,
        device=torch.device("cpu"),
    )
    batches.device = DEVICE
    for name in ("mean", "std", "pixels"):
        setattr(batches, name, getattr(batches, name).to(DEVICE))
    backbone = make_backbone(config)
    n_features = check_backbone(backbone, config)
    fabric = Fabric(strategy=SingleDeviceStrategy(DEVICE, Pretended()))
    with DEVICE:
        learner = Learner(
            config,
            backbone.to(DEVICE),
            n_features,
            n_images=len(images),
            steps_per_epoch=batches.n_steps,
            fabric=fabric,
        )
    learner.network.train()
    return learner, batches


def run_stages(learner, batches):
    """A step of the clustering pass and of both stages, all of them watched; figures are left unread."""
    for epoch in range(3):
        learner.begin_epoch(epoch)
        steps = batches.epoch(epoch)
        with Watched():
            learner.step(next(steps), train=epoch > 0)
        for clustering in learner.clusterings:
            clustering.end_epoch()
    assert learner.memory.averaging
    return learner.schedule.trained_steps


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_makes_the_host_wait(recipe):
    learner, batches = on_meta(recipe, {"averaging_share": 1.0, "accumulate": 1})
    assert batches.resident
    assert run_stages(learner, batches) == 2


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"optimizer": "lars", "clip_norm": 1.0}, id="lars-clipped"),
        pytest.param({"optimizer": "adamw", "accumulate": 3}, id="adamw-in-parts"),
        pytest.param(
            {"objective.rotation": 1, "objective.decorrelation": 0.1, "count_carry": 0.5}, id="auxiliary"
        ),
        pytest.param({"min_size_ratio": 1.0, "objective.prediction_share": 0.5}, id="duals"),
        pytest.param(
            {"views.blur": 0.5, "views.solarise": 0.2, "views.rotation": 20.0, "views.invert": 0.1},
            id="views",
        ),
    ],
)
def test_no_key_makes_the_host_wait(keys):
    assert run_stages(*on_meta("textures", {"averaging_share": 1.0, **keys})) == 2


def test_decoded_images_do_not_make_the_host_wait():
    learner, batches = on_meta("textures", {"averaging_share": 1.0})
    batches.resident = False
    assert run_stages(learner, batches) == 2


@pytest.mark.parametrize(
    "waits",
    [
        lambda there: float(there.sum()),
        lambda there: there[there > 0],
        lambda there: there.nonzero(),
        lambda there: there.cpu(),
        lambda there: torch.ones(3).to(DEVICE),
        lambda there: there + torch.ones(3),
        lambda there: there.copy_(torch.ones(3)),
        lambda there: bool((there > 0).any()),
        lambda there: there.tolist(),
    ],
)
def test_what_waits_is_found(waits):
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), Watched():
        waits(torch.ones(3, device=DEVICE))
