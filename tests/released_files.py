"""Checkpoints in the layout of the released CoKe implementation, with weights of no use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import normalize


class Released(nn.Module):
    """A ResNet-50 whose ``fc`` is the projector, and a predictor; every batch norm has seen images."""

    def __init__(self, dim: int = 16, hidden: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = torchvision.models.resnet50()
        n_features = self.encoder.fc.in_features
        self.encoder.fc = nn.Sequential(
            *(nn.Linear(n_features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)),
            *(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)),
            *(nn.Linear(hidden, dim), nn.BatchNorm1d(dim)),
        )
        self.predictor = nn.Sequential(
            *(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))
        )
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.BatchNorm1d):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias)
            for _ in range(3):
                self.predictor(self.encoder(torch.randn(6, 3, 64, 64)))
        self.eval()


def released_state(
    network: Released, n_clusters: tuple[int, ...] = (5, 7), slots: int = 0
) -> dict[str, Tensor]:
    """The state dict as DDP names it, of 40 images; with slots as one view's training keeps its labels."""
    generator = torch.Generator().manual_seed(1)
    state = dict(network.state_dict())
    dim = state["encoder.fc.6.bias"].shape[0]
    for head, k in enumerate(n_clusters):
        centers = normalize(torch.randn(dim, k, generator=generator), dim=0)
        duals, counters = torch.rand(k, generator=generator) / 5, torch.zeros(k)
        state |= {f"pre_center_{head}": centers, f"cur_center_{head}": centers.clone()}
        state |= {f"dual_{head}": duals, f"counter_{head}": counters}
    shape = (len(n_clusters), 40, slots) if slots else (len(n_clusters), 40)
    state["assign_labels"] = torch.randint(min(n_clusters), shape, generator=generator)
    if slots:
        weights = torch.rand(shape, generator=generator)
        state["label_val"] = weights / weights.sum(dim=2, keepdim=True)
        state["label_idx"] = weights.argmin(dim=2)
    return {f"module.{name}": value for name, value in state.items()}


def write_released(path: Path, state: dict[str, Tensor], **more: Any) -> Path:
    """A .pth.tar as it was saved."""
    torch.save(
        {"epoch": 1001, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}}, **more}, path
    )
    return path
