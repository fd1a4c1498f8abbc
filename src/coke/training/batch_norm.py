"""Batch norm by the statistics of the whole batch, whichever process holds its rows: several learn what one does.

On GPUs torch has it, for CPUs it is here. Shapes: b rows of this process and their positions, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from coke import distributed


def over_processes(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with its batch norms made so, where there are several processes; weights keep their names."""
    if distributed.world_size() == 1:
        return network
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm  # torch's own would drop timm's activations

        return convert_sync_batchnorm(network)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = type(type(module).__name__, (_Shared, type(module)), {})
    return network


class _Shared(nn.modules.batchnorm._BatchNorm):
    """In training takes mean and variance over all processes; `distributed.alone` it is what it was."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and distributed.active()):
            return super().forward(input)
        output, mean, variance, count = _Normalise.apply(input.float(), self.weight, self.bias, self.eps)
        if (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
        ):
            self.num_batches_tracked.add_(1)
            momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        for name in ("drop", "act"):  # of timm's layers, which do it in the same call
            output = getattr(self, name, nn.Identity())(output)
        return output.to(input.dtype)


class _Normalise(torch.autograd.Function):
    """Rows [b, C, ...] -> the same normalised, mean [C], variance [C], rows of all processes []."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        across = [0, *range(2, rows.dim())]
        count = rows.new_tensor([rows.numel() / rows.shape[1]], dtype=torch.float64)
        total = distributed.sum_over_processes(torch.cat([rows.sum(across).double(), count]))
        count = total[-1]
        mean = _along(total[:-1] / count, rows)
        squares = (rows - mean).square().sum(across).double()
        variance = distributed.sum_over_processes(squares) / count
        scale = _along((variance + eps).rsqrt(), rows)
        normal = (rows - mean) * scale
        ctx.save_for_backward(normal, scale, weight, count)
        ctx.across = across
        found = mean.flatten(), variance.to(rows.dtype), count
        ctx.mark_non_differentiable(*found)
        return normal * _along(weight, rows) + _along(bias, rows), *found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, (normal, scale, weight, count) = gradients[0], ctx.saved_tensors
        own = torch.stack([gradient.sum(ctx.across), (gradient * normal).sum(ctx.across)])
        plain, along = (distributed.sum_over_processes(own.double()) / count).unbind()
        inner = gradient - _along(plain, normal) - normal * _along(along, normal)
        return inner * scale * _along(weight, normal), own[1], own[0], None


def _along(values: Tensor, rows: Tensor) -> Tensor:
    """[C] so that it goes with rows [b, C, ...]."""
    return values.to(rows.dtype).reshape(1, -1, *[1] * (rows.dim() - 2))
