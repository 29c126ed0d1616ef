"""Batch normalisation by the statistics of the batches of all processes of a distributed training."""

from __future__ import annotations

import torch
from torch import nn


class _Sum(torch.autograd.Function):
    """The sum over all processes; the gradient of what each of them makes of it goes back to all."""

    @staticmethod
    def forward(ctx, values: torch.Tensor) -> torch.Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(gradient)


class _Shared(nn.modules.batchnorm._BatchNorm):
    """Takes means and variances over the images of all processes, which have equally many, and is as torch's else.

    ``torch.nn.SyncBatchNorm`` refuses processors, and takes each process's own statistics in evaluation mode, in which
    the connectors that keep no running ones are.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        by_batch = self.training or self.running_mean is None
        if not (by_batch and torch.is_grad_enabled() and torch.distributed.is_initialized()):
            return super().forward(x)
        self._check_input_dim(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        others = [0, *range(2, x.dim())]
        shape = [1, -1, *(1 for _ in others[1:])]
        number = x.numel() // x.shape[1] * torch.distributed.get_world_size()
        mean = _Sum.apply(values.sum(others)) / number
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(others)) / number  # in a pass of its own: no digits cancel out
        if self.training and self.running_mean is not None:
            self._follow(mean.detach(), variance.detach() * (number / (number - 1)))
        factor = torch.rsqrt(variance + self.eps)
        factor = factor if self.weight is None else factor * self.weight
        found = centred * factor.view(shape)
        return (found if self.bias is None else found + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        self.num_batches_tracked.add_(1)
        part = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), part)
        self.running_var.lerp_(variance.to(self.running_var.dtype), part)


KINDS = {
    kind: type(f'Shared{kind.__name__}', (_Shared, kind), {})
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
}


def share_statistics(network: nn.Module) -> None:
    """Has all batch normalisations of a network take the statistics of all processes' batches, from now on."""
    for module in network.modules():
        if type(module) in KINDS:
            module.__class__ = KINDS[type(module)]  # it keeps its tensors, its hooks and its name
