"""Training on photographs of 12 megapixels: seconds an epoch of input takes, and what crops lose by smaller copies.

Photographs of ImageNet are enlarged to 4000 x 3000 px and stored as JPEG of quality 90 in a temporary folder, as a
telephone gives them. An epoch is what `Batches` feeds to training, without the training: decode, crop, colour, one
process and one thread. In turns: the photographs themselves (``shrink=false``), copies made anew each epoch
(``cache=none``), in a folder, and in memory (the default), at the views of `auto` on a CPU and of ``imagenet-1view``.
Enlarged photographs have few details of their own, so what crops lose is measured on photographs as they are, reduced
from their stored size to the copy's by as much as they allow.

    python benchmarks/photographs.py
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

import _common as common
from coke.images import ImageSet, Splits, open_data
from coke.images.augment import crop_boxes, draw
from coke.images.shrunk import LARGE, shrink, side_for
from coke.images.views import View
from coke.training.auto import check_settings
from coke.training.batches import Batches, generator
from coke.training.recipes import find_recipe

DATA = Path("../shared/data/imagenet-sample")
BATCH = 16


def enlarged(content: bytes) -> bytes:
    """A photograph as 12 megapixels."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    size = (4000, 3000) if image.width >= image.height else (3000, 4000)
    stream = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def stored(data: Path) -> list[bytes]:
    """The encoded photographs of a folder of parquet files."""
    files = sorted(data.rglob("*.parquet"))
    return [row["bytes"] for file in files for row in pq.read_table(file)["image"].to_pylist()]


def views() -> dict[str, View]:
    """The views that are measured, by what they are of."""
    found = {}
    for name, changes in (("auto", {"size": 128}), ("imagenet-1view", {})):
        settings = {**find_recipe(name).settings, "recipe": name, "data": "photographs"}
        found[name] = replace(check_settings(settings).views[0], **changes)
    return found


def epoch_of(images: ImageSet, view: View) -> Any:
    """A call that feeds one epoch."""
    batches = Batches(
        images, [view], batch_size=BATCH, accumulate=1, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        seed=0, workers=0, device=torch.device("cpu"),
    )  # fmt: skip
    return lambda: sum(len(parts[0].ids) for parts in batches.epoch(0))


def crops_of(images: ImageSet, view: View, seed: int) -> list[Tensor]:
    """One crop of each image, before it is coloured, uint8 [3, S, S]."""
    from torchvision.transforms.v2.functional import resized_crop

    draws = draw(view, len(images), generator("photographs", seed))
    boxes = crop_boxes(draws, *images.sizes.float().unbind(1)).int().tolist()
    side = [view.size, view.size]
    return [
        resized_crop(images.read(index), top, left, height, width, side, antialias=True)
        for index, (left, top, width, height) in enumerate(boxes)
    ]


def lost(contents: list[bytes], view: View, seeds: range) -> dict[str, dict[str, float]]:
    """What crops lose where copies are seen: PSNR to crops of the originals, dB, and their contrast beside theirs.

    The view is as small as lets the photographs, as they are stored, be large beside it: LARGE times the copies' side.
    """
    with tempfile.TemporaryDirectory() as folder:
        for number, content in enumerate(contents):
            Path(folder, f"{number:04}.jpg").write_bytes(content)
        originals = open_data(folder, resident_bytes=0)
        shorter = int(originals.train.sizes.min(1).values.float().quantile(0.1))
        size = next(
            size for size in range(224, 4, -1) if LARGE * side_for([replace(view, size=size)]) <= shorter
        )
        view = replace(view, size=size)
        copies = shrink(originals, side_for([view]), memory=1 << 30)
        large = (copies.train.sizes != originals.train.sizes).any(1).nonzero()[:, 0]
        pair = [splits.train.subset(large) for splits in (originals, copies)]
        noise, contrast = [], []
        for seed in seeds:
            for one, other in zip(crops_of(pair[0], view, seed), crops_of(pair[1], view, seed), strict=True):
                error = (one.float() - other.float()).square().mean().item()
                noise.append(10 * np.log10(255**2 / max(error, 1e-3)))
                contrast.append(_sharpness(other) / max(_sharpness(one), 1e-6))
    print(
        f"  crops to {size} px of {len(large)} photographs as they are, copies of {side_for([view])} px: "
        f"PSNR {_spread(noise, 1)} dB, differences of neighbours {_spread(contrast, 3)} x (medians, tenths)"
    )
    return {"psnr": common.quartiles(noise), "neighbours": common.quartiles(contrast), "size": {"px": size}}


def _spread(values: list[float], digits: int) -> str:
    """Median, and in brackets what a tenth of the values lie below and above."""
    low, median, high = (f"{np.quantile(values, share):.{digits}f}" for share in (0.1, 0.5, 0.9))
    return f"{median} [{low}, {high}]"


def _sharpness(crop: Tensor) -> float:
    """Mean absolute difference of horizontal and vertical neighbours."""
    floats = crop.float()
    return float(floats.diff(dim=1).abs().mean() + floats.diff(dim=2).abs().mean())


def main() -> None:
    """Measure, print, write."""
    parser = common.arguments(__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help=f"photographs as parquet; default {DATA}")
    parser.add_argument("--images", type=int, help="how many are enlarged; default 64")
    options = parser.parse_args()
    if not options.data.exists():
        sys.exit(f"{options.data} is not there: give --data, a folder of photographs as parquet")
    torch.set_num_threads(1)
    pairs = options.pairs or (1 if options.quick else 10)
    n_images = options.images or (4 if options.quick else 64)
    where = common.environment()
    common.print_environment(where)
    contents = stored(options.data)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        photographs = Path(folder) / "photographs"
        photographs.mkdir()
        for number, content in enumerate(contents[:n_images]):
            (photographs / f"{number:04}.jpg").write_bytes(enlarged(content))
        splits = open_data(photographs, resident_bytes=0)
        print(
            f"{len(splits.train)} photographs of 4000 x 3000 px, one process, one thread, {pairs} epochs of each"
        )
        for name, view in views().items():
            side, seen = side_for([view]), dict[str, Splits]()
            seen["shrink=false"], seen["cache=none"] = splits, shrink(splits, side)
            began = time.perf_counter()
            seen["cache=FOLDER"] = shrink(splits, side, folder=Path(folder) / name)
            folder_seconds, began = time.perf_counter() - began, time.perf_counter()
            seen["cache=memory"] = shrink(splits, side, memory=8 << 30)
            memory_seconds = time.perf_counter() - began
            calls = {how: epoch_of(its.train, view) for how, its in seen.items()}
            summary = common.summarise(common.interleaved(calls, pairs=pairs, warmup=1), "shrink=false")
            common.print_summary(
                f"{name}: view {view.size} px, crops from {view.crop[0]:g}, copies {side} px", summary
            )
            print(f"  made once: {memory_seconds:.1f} s into memory, {folder_seconds:.1f} s into a folder")
            results[name] = {
                "epoch": summary,
                "made_once_seconds": {"memory": memory_seconds, "folder": folder_seconds},
                "lost": lost(contents[: 8 if options.quick else 256], view, range(1 if options.quick else 4)),
            }
    setting = {"images": n_images, "batch": BATCH, "pairs": pairs}
    common.write_result(
        "photographs", options, {"environment": where, "setting": setting, "results": results}
    )


if __name__ == "__main__":
    main()
