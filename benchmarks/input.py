"""Large images from storage to views: images per second and core, beside plain torchvision pipelines.

Photographs of ImageNet at original size, the views of the recipe ``imagenet-1view`` (crop to 224 px, flip, jitter,
gray, blur), one thread. Ours is what training does with ``workers=0``: `Batches` decodes and crops image by image and
colours in batches. Theirs are image by image: Pillow with `torchvision.transforms.v2` on PIL images, and
`torchvision.io.decode_jpeg` with the same transforms on tensors. Wanted: 1.5 times as many images as either.

    python benchmarks/input.py
"""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import _common as common
from coke.images import open_data
from coke.images.decode import decode
from coke.training.augment import Draw, colour, crop_boxes, draw, in_parts, orient
from coke.training.auto import check_settings
from coke.training.batches import Batches, generator
from coke.training.recipes import find_recipe

DATA = Path("../shared/data/imagenet-sample")
BATCH = 64
WANTED = 1.5


def their_transform(view: Any) -> Callable[[Any], Tensor]:
    """The view in torchvision's words; blur with the kernel and the widths of ours."""
    from torchvision.transforms import v2

    radius = 4  # two of the largest standard deviations of 2 px
    return v2.Compose(
        [
            v2.RandomResizedCrop(view.size, scale=view.crop, ratio=view.ratio, antialias=True),
            v2.RandomHorizontalFlip(view.flip),
            v2.RandomApply([v2.ColorJitter(*view.jitter)], view.jitter_probability),
            v2.RandomGrayscale(view.gray),
            v2.RandomApply([v2.GaussianBlur(2 * radius + 1, (0.1, 2.0))], view.blur),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )


def pillow(content: bytes) -> Image.Image:
    """Pillow's decoder."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def torchvision_jpeg(content: bytes) -> Tensor:
    """torchvision's decoder."""
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)


def batches_of(rows: Iterator[Any], work: Callable[[Any], Any]) -> Callable[[], object]:
    """A call that does ``work`` on the next batch of rows."""
    return lambda: [work(next(rows)) for _ in range(BATCH)]


def candidates(images: Any, contents: list[bytes], view: Any) -> dict[str, dict[str, Callable[[], object]]]:
    """Per stage, a call for each pipeline that handles the next batch."""
    from torchvision.transforms.v2.functional import resized_crop

    transform = their_transform(view)
    batches = Batches(
        images, [view], batch_size=BATCH, accumulate=1, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        seed=0, workers=0, device=torch.device("cpu"),
    )  # fmt: skip
    stream = itertools.chain.from_iterable(batches.epoch(epoch) for epoch in itertools.count())
    pil, tensors = [pillow(content) for content in contents], [decode(content) for content in contents]
    jpegs = [torchvision_jpeg(content) for content in contents]

    def augment() -> Tensor:
        rows = [next(numbers) for _ in range(BATCH)]
        draws = draw(view, BATCH, generator("input", rows[0]))
        sizes = torch.tensor([tensors[row].shape[1:] for row in rows]).float()
        boxes = crop_boxes(draws, *sizes.unbind(1)).int().tolist()
        side = [view.size, view.size]
        crops = [
            resized_crop(tensors[row], top, left, height, width, side, antialias=True)
            for row, (left, top, width, height) in zip(rows, boxes, strict=True)
        ]
        return in_parts(torch.stack(crops), draws, finish)

    def finish(crops: Tensor, draws: Draw) -> Tensor:
        return (colour(orient(crops, draws, view), draws, view) - batches.mean) / batches.std

    numbers = itertools.cycle(range(len(tensors)))
    return {
        "decode": {
            "torchvision, PIL": batches_of(itertools.cycle(contents), pillow),
            "torchvision, tensors": batches_of(itertools.cycle(contents), torchvision_jpeg),
            "coke": batches_of(itertools.cycle(contents), decode),
        },
        "augment": {
            "torchvision, PIL": batches_of(itertools.cycle(pil), transform),
            "torchvision, tensors": batches_of(itertools.cycle(jpegs), transform),
            "coke": augment,
        },
        "both": {
            "torchvision, PIL": batches_of(itertools.cycle(contents), lambda c: transform(pillow(c))),
            "torchvision, tensors": batches_of(
                itertools.cycle(contents), lambda c: transform(torchvision_jpeg(c))
            ),
            "coke": lambda: next(stream),
        },
    }


def main() -> None:
    """Measure, print, write."""
    parser = common.arguments(__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help=f"photographs as parquet; default {DATA}")
    options = parser.parse_args()
    if not options.data.exists():
        sys.exit(f"{options.data} is not there: give --data, a folder of photographs as parquet")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pairs = options.pairs or (1 if options.quick else 20)
    where = common.environment()
    common.print_environment(where)
    images = open_data(options.data, seed=0).train
    images = images.subset(range(len(images) // BATCH * BATCH))  # so that every batch is whole
    contents = [images.source.load(int(row)) for row in images.rows]
    settings = find_recipe("imagenet-1view").settings
    view = check_settings({**settings, "recipe": "imagenet-1view", "data": "photographs"}).views[0]
    print(f"{len(images)} photographs, median {_median_size(images)} px, batches of {BATCH}, one thread")
    results: dict[str, Any] = {}
    for stage, calls in candidates(images, contents, view).items():
        summary = common.summarise(common.interleaved(calls, pairs=pairs, warmup=1), "coke")
        common.print_summary(stage, summary)
        for row in summary.values():
            row["images_per_second"] = BATCH / (row["ms"]["median"] / 1e3)
        rivals = [row["ratio"]["median"] for name, row in summary.items() if name != "coke"]
        print(
            "  " + ", ".join(f"{name} {row['images_per_second']:,.0f}" for name, row in summary.items()),
            end="",
        )
        print(f" images per second and core; coke {min(rivals):.2f} x the faster of the others", end="")
        print(
            f" (wanted {WANTED} x: {'met' if min(rivals) >= WANTED else 'MISSED'})" if stage == "both" else ""
        )
        results[stage] = summary
    setting = {"images": len(images), "batch": BATCH, "pairs": pairs, "view": vars(view)}
    common.write_result("input", options, {"environment": where, "setting": setting, "results": results})


def _median_size(images: Any) -> str:
    height, width = images.sizes.median(dim=0).values.tolist()
    return f"{width} x {height}"


if __name__ == "__main__":
    main()
