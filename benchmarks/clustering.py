"""Cost of the clustering path beside the bare product of features and centers.

One head alone (K = 3000, 4000, 5000) and the three heads of one training step together; stage 1 and stage 2.
``assign`` is wanted at most 1.30 times the product; ``else`` (duals, centers, label read, label write,
just as the trainer calls them) at most 0.10 times. Every repetition has features of its own. In a training
step a whole network has run since the centers were last touched: "cold" evicts the caches before each timed
call, "warm" leaves them as they are.

    python benchmarks/clustering.py
    python benchmarks/clustering.py --device cuda
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import _common as common
from coke import LabelMemory, OnlineConstrainedKMeans
from coke.method.objective import Objective

BATCH, DIM, IMAGES = 256, 128, 50_000
HEADS = ((3000,), (4000,), (5000,), (3000, 4000, 5000))
WANTED = {"assign": 1.30, "else": 0.10}


class Step:
    """The clustering part of a training step, its pieces as calls without arguments."""

    def __init__(self, heads: tuple[int, ...], stage: int, device: str, cold: bool, n_images: int) -> None:
        self.device, self.n_images = device, n_images
        self.clusterings = [OnlineConstrainedKMeans(k, DIM).to(device) for k in heads]
        self.memory = LabelMemory(n_images, heads).to(device)
        self.objective = Objective()
        self.buffer = torch.zeros(common.EVICT_MIB << 18, device=device) if cold else None
        self._fill()
        if stage == 2:
            self.memory.begin_averaging()
            for clustering in self.clusterings:
                clustering.begin_averaging()
            for _ in range(3):
                self._fill()
        self.fresh()

    def _fill(self) -> None:
        """Every image has a label (of one epoch at random), as after the clustering pass."""
        columns = [
            torch.randint(c.n_clusters, (self.n_images,), device=self.device) for c in self.clusterings
        ]
        self.memory.write(torch.arange(self.n_images, device=self.device), torch.stack(columns, dim=1))

    def fresh(self) -> None:
        """New features, images and labels; untimed."""
        self.features = normalize(torch.randn(BATCH, DIM, device=self.device))
        self.ids = torch.randint(self.n_images, (BATCH,), device=self.device)
        self.labels = torch.stack(
            [clustering.assign(self.features) for clustering in self.clusterings], dim=1
        )
        if self.buffer is not None:
            common.evict_caches(self.buffer)

    def product(self) -> list[Tensor]:
        """What nobody can avoid."""
        return [self.features @ clustering.centers.t() for clustering in self.clusterings]

    def assign(self) -> list[Tensor]:
        """Labels of all heads."""
        return [clustering.assign(self.features) for clustering in self.clusterings]

    def update(self) -> None:
        """Duals, centers and counts of all heads."""
        for clustering, labels in zip(self.clusterings, self.labels.unbind(1), strict=True):
            clustering.update(self.features, labels)

    def read(self) -> None:
        """Labels for the loss: the last ones, in stage 2 their averages."""
        self.averages = self.memory.read_average(self.ids)

    def target(self) -> object:
        """What the loss makes of the labels: its own business, shown beside."""
        return self.objective.target(*self.averages, averaging=self.memory.averaging)

    def write(self) -> None:
        """This epoch's labels."""
        self.memory.write(self.ids, self.labels)

    def everything_else(self) -> None:
        """All of a step's clustering path but the assignment."""
        self.read()
        self.update()
        self.write()


def measure(step: Step, pairs: int) -> dict[str, dict[str, Any]]:
    """Times of the pieces beside the product."""
    candidates: dict[str, Callable[[], object]] = {
        "product": step.product,
        "assign": step.assign,
        "else": step.everything_else,
        "  update": step.update,
        "  read": step.read,
        "  write": step.write,
        "target": step.target,
    }
    wait = torch.cuda.synchronize if step.device.startswith("cuda") else (lambda: None)
    times = common.interleaved(candidates, pairs=pairs, before=step.fresh, synchronise=wait)
    return common.summarise(times, "product", WANTED)


def main() -> None:
    """Measure, print, write."""
    parser = common.arguments(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    pairs = options.pairs or (3 if options.quick else 100)
    heads = HEADS[:1] if options.quick else HEADS
    where = common.environment(options.device)
    common.print_environment(where)
    print(f"batch {BATCH}, dimension {DIM}, {IMAGES:,} images; float32")
    results: dict[str, Any] = {}
    for stage in (1, 2):
        for cache in ("cold", "warm"):
            for sizes in heads:
                step = Step(sizes, stage, options.device, cache == "cold", IMAGES)
                name = f"stage {stage}, K {' + '.join(map(str, sizes))}, {cache} caches"
                results[name] = measure(step, pairs)
                common.print_summary(name, results[name])
    setting = {"batch": BATCH, "dim": DIM, "images": IMAGES, "pairs": pairs}
    name = "clustering" if options.device == "cpu" else "clustering-cuda"
    common.write_result(name, options, {"environment": where, "setting": setting, "results": results})


if __name__ == "__main__":
    main()
