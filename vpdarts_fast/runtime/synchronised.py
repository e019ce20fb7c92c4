"""Batch norms that take their statistics from the batches of several processes together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from vpdarts_fast.runtime.processes import ALONE, Processes


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm whose statistics, in training, are those of the parts that all processes have of a batch.

    Where no gradients are kept track of it is a usual one: processes evaluate different things.

    The gradient is that of a loss which is the mean over the whole batch, where each process minimises the
    mean over its own part, and gradients are afterwards averaged by the sizes of the parts
    (`vpdarts_fast.runtime.processes.Processes.add_up`).

    Attributes:
        processes: that have a part each.
    """

    processes: Processes = ALONE

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Normalises `x` [N, C, H, W], this process' part of a batch: (x - mean) / sqrt(variance + eps)."""
        if not (self.training and torch.is_grad_enabled()) or self.processes.count == 1:
            return super().forward(x)
        values = x.numel() // x.shape[1]  # of a channel
        wide = x.float() if x.dtype.itemsize < 4 else x  # half precision cannot even count them
        sums = wide.sum((0, 2, 3))
        summed = self._of_all(torch.cat([sums, sums.new_full((1,), values)]), values)
        count = summed[-1].detach()
        mean = summed[:-1] / count
        centred = wide - mean[:, None, None]
        variance = self._of_all(centred.square().sum((0, 2, 3)), values) / count
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        normalised = centred * scale[:, None, None]
        if self.affine:
            normalised = normalised + self.bias[:, None, None]
        self._keep(mean.detach(), variance.detach(), count)
        return normalised.to(x.dtype)

    def _of_all(self, sums: Tensor, values: int) -> Tensor:
        of_all: Tensor = _SumOfAll.apply(sums, values, self.processes)
        return of_all

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Does to the running statistics what a training-mode forward does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance * count / (count - 1), weight)


class _SumOfAll(torch.autograd.Function):
    """The sum over all processes; a process' gradient counts as much as it has values."""

    @staticmethod
    @override
    def forward(ctx: Any, sums: Tensor, values: int, processes: Processes) -> Tensor:
        ctx.values, ctx.processes = values, processes
        summed = sums.detach().clone()
        processes.add_up([summed])
        return summed

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> Any:
        weighted = _SumOfAll.apply(gradient * ctx.values, 1, ctx.processes)
        return weighted / ctx.values, None, None


def synchronise(model: nn.Module, processes: Processes) -> None:
    """Makes the batch norms of a model, in place, take their statistics over several processes."""
    for module in model.modules() if processes.count > 1 else ():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronisedBatchNorm2d  # all it has, hooks included, stays
            assert isinstance(module, SynchronisedBatchNorm2d)
            module.processes = processes
