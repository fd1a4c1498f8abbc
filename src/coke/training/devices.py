"""What a run computes on: Fabric launched, the precision of the device, and processes that decode images."""

from __future__ import annotations

import os

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from coke.errors import ConfigError
from coke.training.config import Config, Precision


def make_fabric(config: Config) -> Fabric:
    """Fabric, launched. Raises `ConfigError` for a device that is not there."""
    accelerator = config.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    under_torchrun = "LOCAL_RANK" in os.environ
    devices: int | str = config.devices
    if devices == "auto":
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if under_torchrun else 1
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")) if under_torchrun else 1,
            strategy=_strategy() if under_torchrun and int(os.environ.get("WORLD_SIZE", "1")) > 1 else "auto",
            precision=precision_on(config, accelerator),
        )
        fabric.launch()
    except (RuntimeError, ValueError, ImportError) as error:  # lightning's own for a TPU's missing package
        raise ConfigError(
            f"accelerator={accelerator!r}, devices={devices!r} cannot be had: {error}"
        ) from error
    return fabric


def _strategy() -> DDPStrategy:
    """Batch norm's buffers are alike in all processes (`coke.training.batch_norm`).

    To send them round before each view would change what an earlier view's backward pass needs.
    """
    return DDPStrategy(broadcast_buffers=False)


def precision_on(config: Config, device: str) -> Precision:
    """The configuration's; a CPU has no float16 to train in, and takes bfloat16."""
    return "bf16-mixed" if (device, config.precision) == ("cpu", "16-mixed") else config.precision


def worker_count(config: Config, device: torch.device) -> int:
    """Processes that decode: the configuration's, or as many as there are cores for each process of the job."""
    if config.workers is not None:
        return config.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes on this machine
    return max(1, min(16, share - (device.type != "cpu")))
