"""What the benchmarks of training share: images that lie in memory, and the options of a device."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

import _common as common
from coke.images import ImageSet
from coke.images.scan import scan
from coke.images.table import Pixels, Rows


def resident(pixels: Tensor) -> ImageSet:
    """Images held in memory: uint8 [N, 3, S, S]."""
    keys = [f"row {row}" for row in range(len(pixels))]
    rows = Rows("random", keys, Pixels(pixels), None, None)
    return scan(rows, resident_bytes=1 << 33)


def device_arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have, and those of what a step runs on."""
    parser = common.arguments(description)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2, help="on a CPU")
    parser.add_argument("--batch-size", type=int, default=None, help="default: 64 on a CPU, 512 on a GPU")
    parser.add_argument("--backbone", default="coke_resnet18_small")
    parser.add_argument("--precision", default="32-true", choices=["32-true", "16-mixed", "bf16-mixed"])
    return parser


def settle_device(options: argparse.Namespace, quick_batch: int) -> None:
    """Batch size by device; with ``--quick`` a small network and ``quick_batch`` images."""
    if options.quick:
        options.backbone, options.batch_size = "coke_conv5_w16", quick_batch
    options.batch_size = options.batch_size or (512 if options.device == "cuda" else 64)


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Threads and seed; the environment, printed."""
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    where = common.environment(options.device)
    common.print_environment(where)
    return where
