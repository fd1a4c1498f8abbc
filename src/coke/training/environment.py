"""What a run is made with: versions, machine, command and data, for environment.json."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

from coke import __version__
from coke.model.files import Preprocessing
from coke.run import FORMAT_VERSION, absolute
from coke.training.config import Config
from coke.training.plan import Plan

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def environment(plan: Plan, config: Config, fabric: Fabric, resumed: bool) -> dict[str, Any]:
    """What the run was made with."""
    packages = ("torch", "torchvision", "timm", "lightning-fabric", "numpy", "scikit-learn", "pyarrow")
    versions = {"coke": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed as a package"
    cuda = fabric.device.type == "cuda"
    normalised = Preprocessing(config.image_size, config.mean, config.std).as_timm()
    normalised |= {name: tuple(round(value, 4) for value in normalised[name]) for name in ("mean", "std")}
    loads = (
        f'import coke.backbones, timm; timm.create_model("{config.backbone}", num_classes=0, '
        f'checkpoint_path="backbone.safetensors", pretrained_cfg_overlay={normalised}).eval()'
    )
    if config.backbone.startswith("custom:"):
        loads = 'backbone.load_state_dict(safetensors.torch.load_file("backbone.safetensors"))'
    return {
        "format_version": FORMAT_VERSION,
        "command": " ".join(sys.argv),
        "commands": [" ".join(sys.argv)],
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "resumed": resumed,
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name(fabric.device) if cuda else "cpu",
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "backbone": {"architecture": config.backbone, "loads_with": loads},
        "data": {
            "name": plan.splits.train.name,
            "source": config.data,
            "place": absolute(plan.place),
            "n_images": len(plan.splits.train),
            "fingerprint": plan.splits.train.fingerprint,
            "splits": plan.splits.note,
            "unreadable": len(plan.splits.train.unreadable),
        },
        "decisions": plan.reasons,
    }


def gone_on(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run was made with: today's, but the first command, with all beside it, and what it decided.

    >>> first = {"command": "coke pretrain a", "decisions": ["K = 2"], "started": "Monday"}
    >>> found = gone_on(first, {"command": "coke pretrain a --resume", "decisions": [], "device": "cpu"})
    >>> found["command"], found["commands"]
    ('coke pretrain a', ['coke pretrain a', 'coke pretrain a --resume'])
    >>> found["decisions"], found["device"]
    (['K = 2'], 'cpu')
    """
    kept = ("command", "started", "decisions", "finished_epochs")
    first = [before["command"]] if "command" in before else []  # a run of old has no list of them
    commands = [*before.get("commands", first), now["command"]]
    return {**now, **{key: before[key] for key in kept if key in before}, "commands": commands}
