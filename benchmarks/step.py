"""One training step beside the supervised step with as many outputs as all heads together.

Both have the same backbone (small-stem ResNet-18 by default), batch of 32 px images, precision, memory format
and SGD. Ours is `Learner.step`, all that a step of training does once its views are made: label read, forward
(backbone, projector, predictor), assignment, loss over three heads, backward, optimizer, update of duals and
centers, label write and the figures of health. Theirs is backbone, linear layer with 3000 + 4000 + 5000
outputs, cross-entropy, backward, optimizer. Wanted: at most 1.10 times.

    python benchmarks/step.py
    python benchmarks/step.py --device cuda --precision bf16-mixed --batch-size 512
"""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import _common as common
import _training as training
from coke.training.auto import resolve
from coke.training.backbone import check_backbone, make_backbone
from coke.training.batches import Batch, Batches
from coke.training.config import Config, chosen
from coke.training.devices import make_fabric
from coke.training.learner import Learner
from coke.training.recipes import find_recipe
from coke.training.schedule import make_optimizer

IMAGES, SIZE = 10_000, 32
HEADS = [3000, 4000, 5000]
WANTED = 1.10


class Supervised(nn.Module):
    """Backbone and linear classifier."""

    def __init__(self, backbone: nn.Module, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, nn.Linear(n_features, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.backbone(images))


class Comparison:
    """Both steps on the same batches, each handed out by `advance`."""

    def __init__(self, options: Namespace, heads: list[int], n_images: int) -> None:
        pixels = torch.randint(256, (n_images, 3, SIZE, SIZE), dtype=torch.uint8)
        images = training.resident(pixels)
        overrides = {
            "backbone": options.backbone,
            "n_clusters": heads,
            "batch_size": options.batch_size,
            "precision": options.precision,
            "accelerator": options.device,
            "learning_rate": 1e-3,
            "averaging_share": 0.0,
        }
        settings = {**find_recipe("cifar10").settings, "recipe": "cifar10", "data": "random"}
        self.config: Config = resolve(chosen(settings, overrides), images).config
        self.fabric = make_fabric(self.config)
        self.batches = Batches(
            images,
            list(self.config.large_views),
            batch_size=self.config.batch_size,
            accumulate=1,
            mean=self.config.mean,
            std=self.config.std,
            seed=0,
            workers=0,
            device=self.fabric.device,
        )
        self.stream: Iterator[list[Batch]] = itertools.chain.from_iterable(
            self.batches.epoch(epoch) for epoch in itertools.count(1)
        )
        self.ours = self._make_ours(n_images, options.stage)
        self.theirs, self.optimizer = self._make_theirs(sum(heads))
        self.n_classes = sum(heads)

    def _make_ours(self, n_images: int, stage: int) -> Learner:
        backbone = make_backbone(self.config)
        learner = Learner(
            self.config,
            backbone,
            check_backbone(backbone, self.config),
            n_images=n_images,
            steps_per_epoch=self.batches.n_steps,
            fabric=self.fabric,
        )
        learner.network.train()
        columns = [torch.randint(k, (n_images,)) for k in self.config.n_clusters]
        learner.memory.write(
            torch.arange(n_images).to(learner.device), torch.stack(columns, 1).to(learner.device)
        )
        if stage == 2:
            learner.memory.begin_averaging()
            for clustering in learner.clusterings:
                clustering.begin_averaging()
        return learner

    def _make_theirs(self, n_classes: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        backbone = make_backbone(self.config)
        model: nn.Module = Supervised(backbone, check_backbone(backbone, self.config), n_classes)
        model = model.to(memory_format=torch.channels_last)
        network, optimizer = self.fabric.setup(model, make_optimizer(model, self.config))
        network.train()
        return network, optimizer

    def advance(self) -> None:
        """The next batch, with labels for the supervised step; untimed."""
        self.parts = next(self.stream)
        self.labels = torch.randint(self.n_classes, (len(self.parts[0].ids),), device=self.fabric.device)

    def coke(self) -> Tensor:
        """Our step."""
        return self.ours.step(self.parts, train=True)

    def supervised(self) -> Tensor:
        """Their step."""
        images = self.parts[0].views[0].contiguous(memory_format=torch.channels_last)
        loss = cross_entropy(self.theirs(images), self.labels)
        self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def profiled(step: Callable[[], object], advance: Callable[[], object], n_steps: int) -> str:
    """Where the time of a step goes, as torch's profiler sees it."""
    with torch.profiler.profile() as profile:
        for _ in range(n_steps):
            advance()
            step()
    return profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=45)


def parse() -> Namespace:
    """The options, with defaults that depend on the device."""
    parser = training.device_arguments(__doc__)
    parser.add_argument("--stage", type=int, default=1, choices=[1, 2])
    parser.add_argument("--steps", type=int, default=None, help="per measurement; default: 1, on a GPU 10")
    parser.add_argument("--profile", action="store_true", help="also print where the time goes")
    options = parser.parse_args()
    training.settle_device(options, quick_batch=16)
    options.steps = options.steps or (10 if options.device == "cuda" else 1)
    options.pairs = options.pairs or (2 if options.quick else 50)
    return options


def main() -> None:
    """Measure, print, write."""
    options = parse()
    where = training.start(options)
    heads, n_images = ([30, 40, 50], 500) if options.quick else (HEADS, IMAGES)
    both = Comparison(options, heads, n_images)
    setting = {
        "backbone": options.backbone,
        "batch": options.batch_size,
        "image_size": SIZE,
        "heads": heads,
        "views": 1,
        "stage": options.stage,
        "precision": options.precision,
        "steps_per_measurement": options.steps,
        "pairs": options.pairs,
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()), flush=True)

    def repeated(step: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(options.steps):
                step()

        return run

    wait = torch.cuda.synchronize if options.device == "cuda" else (lambda: None)
    times = common.interleaved(
        {"supervised": repeated(both.supervised), "coke": repeated(both.coke)},
        pairs=options.pairs,
        warmup=2,
        before=both.advance,
        synchronise=wait,
    )
    summary: dict[str, dict[str, Any]] = common.summarise(times, "supervised", {"coke": WANTED})
    common.print_summary("training step", summary)
    if options.profile:
        print(profiled(both.coke, both.advance, 3), profiled(both.supervised, both.advance, 3), sep="\n")
    name = "step" + ("-cuda" if options.device == "cuda" else "") + ("-stage2" if options.stage == 2 else "")
    common.write_result(name, options, {"environment": where, "setting": setting, "results": summary})


if __name__ == "__main__":
    main()
