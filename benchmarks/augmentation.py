"""Batched augmentation beside torchvision's per-image transforms: images per second and core.

Same operations with the same probabilities on 32 px images, one thread. Ours warps and colours a batch at once
(`Batches`); theirs is `torchvision.transforms.v2` image by image, on uint8 tensors and on PIL images, stacked
into a batch. Both start from images in memory and end as normalised float32.

    python benchmarks/augmentation.py
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import _common as common
import _training as training
from coke.images.views import View
from coke.training.batches import Batches

IMAGES, SIZE, BATCH = 5000, 32, 256
VIEWS = {
    "crop, flip, jitter, gray (recipe cifar10)": View(size=32, crop=(0.3, 1.0)),
    "the same with blur 0.5 and solarise 0.2": View(size=32, crop=(0.3, 1.0), blur=0.5, solarise=0.2),
}


def ours(view: View, pixels: Tensor) -> Callable[[], object]:
    """A call that makes the next batch of views."""
    images = training.resident(pixels)
    batches = Batches(
        images,
        [view],
        batch_size=BATCH,
        accumulate=1,
        mean=images.mean,
        std=images.std,
        seed=0,
        workers=0,
        device=torch.device("cpu"),
    )
    stream = itertools.chain.from_iterable(batches.epoch(epoch) for epoch in itertools.count())
    return lambda: next(stream)


def theirs(view: View, images: list[Any]) -> Callable[[], Tensor]:
    """The same of torchvision, on a list of tensors or PIL images."""
    from torchvision.transforms import v2

    brightness, contrast, saturation, hue = view.jitter
    jitter = v2.ColorJitter(brightness, contrast, saturation, hue)
    steps: list[Any] = [
        v2.RandomResizedCrop(view.size, scale=view.crop, ratio=view.ratio, antialias=True),
        v2.RandomHorizontalFlip(view.flip),
        v2.RandomApply([jitter], view.jitter_probability),
        v2.RandomGrayscale(view.gray),
    ]
    if view.blur:
        scale = view.size / 224
        steps.append(v2.RandomApply([v2.GaussianBlur(3, (0.1 * scale, 2.0 * scale))], view.blur))
    if view.solarise:
        steps.append(v2.RandomSolarize(128, view.solarise))
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
    transform = v2.Compose(steps)
    rows = itertools.cycle(range(len(images)))
    return lambda: torch.stack([transform(images[next(rows)]) for _ in range(BATCH)])


def main() -> None:
    """Measure, print, write."""
    from torchvision.transforms.v2.functional import to_pil_image

    options = common.arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pairs = options.pairs or (2 if options.quick else 50)
    where = common.environment()
    common.print_environment(where)
    n_images = 300 if options.quick else IMAGES
    print(f"{n_images:,} images of {SIZE} x {SIZE} px in memory, batches of about {BATCH}, one thread")
    coarse = torch.randint(256, (n_images, 3, 8, 8)).float()  # smooth, as photographs are
    pixels = torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear").byte()
    pil = [to_pil_image(image) for image in pixels]
    results: dict[str, Any] = {}
    for name, view in VIEWS.items():
        times = common.interleaved(
            {
                "torchvision v2, tensors": theirs(view, list(pixels)),
                "torchvision v2, PIL": theirs(view, pil),
                "coke, batched": ours(view, pixels),
            },
            pairs=pairs,
            warmup=1,
        )
        summary = common.summarise(times, "torchvision v2, PIL")
        for row in summary.values():
            row["images_per_second"] = BATCH / (row["ms"]["median"] / 1e3)
        common.print_summary(name, summary)
        for candidate, row in summary.items():
            print(f"  {candidate:24} {row['images_per_second']:10,.0f} images per second and core")
        results[name] = summary
    setting = {"images": IMAGES, "size": SIZE, "batch": BATCH, "pairs": pairs}
    common.write_result(
        "augmentation", options, {"environment": where, "setting": setting, "results": results}
    )


if __name__ == "__main__":
    main()
