"""coke's learner with one thing exchanged: how labels are found, or when they are used."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import normalize

from coke.method import OnlineConstrainedKMeans
from coke.method.kmeans import argmax_rows
from coke.method.network import Output
from coke.training.batches import Batch
from coke.training.learner import Learner

QUEUE = 3840  # features that SwAV balances together with the batch
EPSILON, ITERATIONS = 0.05, 3  # of Sinkhorn-Knopp, SwAV's own


class SinkhornKMeans(OnlineConstrainedKMeans):
    """Balanced assignment within batch and queue by Sinkhorn-Knopp (SwAV, arXiv 2006.09882, section 3.1).

    Centers are moved as the parent moves them; duals stay at 0.
    """

    queue: Tensor

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.register_buffer("queue", self.centers.new_zeros(0, self.dim))

    @torch.no_grad()
    def assign(self, features: Tensor) -> Tensor:
        """The cluster with the largest share of each row's transport plan."""
        scores = self.scores(torch.cat([features, self.queue]))
        plan = torch.exp((scores - scores.max()).double() / EPSILON)
        for _ in range(ITERATIONS):
            plan /= plan.sum(dim=0, keepdim=True).clamp_min(1e-300) * plan.shape[1]
            plan /= plan.sum(dim=1, keepdim=True).clamp_min(1e-300) * plan.shape[0]
        return argmax_rows(plan[: len(features)])

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """The parent's, and the queue takes the features in."""
        super().update(features, labels)
        self.queue = torch.cat([features.float(), self.queue])[:QUEUE]


class SinkhornLearner(Learner):
    """Labels from SwAV's balanced assignment instead of the constrained one."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.clusterings = [
            SinkhornKMeans(c.n_clusters, c.dim, 1.0, 0.0, c.centers, count_carry=c.count_carry).to(
                self.device
            )
            for c in self.clusterings
        ]


class SameStepLearner(Learner):
    """Labels of the same step instead of last epoch's: clustering and learning are no longer decoupled."""

    def _learn(self, part: Batch, large: list[Output], small: list[Output], share: float) -> Tensor:
        mean = torch.stack([output.projection.detach() for output in large]).mean(dim=0)
        labels = torch.stack([clustering.assign(mean) for clustering in self.clusterings], dim=1)
        self.memory.write(part.ids.to(self.device), labels)
        return super()._learn(part, large, small, share)


class BatchLearner(Learner):
    """k-means after every epoch over the features stored along it: N x D numbers kept.

    As DeepCluster v2 does it (arXiv 2006.09882, appendix A): no extra pass over the images, ten iterations.
    """

    def __init__(self, *arguments: Any, n_images: int, **settings: Any) -> None:
        super().__init__(*arguments, n_images=n_images, **settings)
        self.stored = torch.zeros(n_images, self.config.dim)

    def _update_clusters(self, ids: Tensor, features: Tensor, old_labels: Tensor, labels: Tensor) -> None:
        self.stored[ids.cpu()] = normalize(features).cpu()
        self.figures.add_labels(features, old_labels, labels)

    def end_epoch(self) -> dict[str, Any]:
        """Cluster all stored features, head by head; labels and centers are the next epoch's."""
        columns = []
        for clustering in self.clusterings:
            fitted = KMeans(clustering.n_clusters, n_init=1, max_iter=10, random_state=0).fit(self.stored)
            clustering.centers.copy_(normalize(torch.as_tensor(fitted.cluster_centers_, dtype=torch.float32)))
            columns.append(torch.as_tensor(fitted.labels_, dtype=torch.int64))
        ids = torch.arange(len(self.stored), device=self.device)
        self.memory.write(ids, torch.stack(columns, dim=1).to(self.device))
        return super().end_epoch()


VARIANTS: dict[str, type[Learner]] = {
    "coke": Learner,
    "sinkhorn": SinkhornLearner,
    "same-step": SameStepLearner,
    "batch-kmeans": BatchLearner,
}
