"""An edge of the DARTS space as plain modules, and the same as branches of `mixed_op`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpdarts_fast import ops
from vpdarts_fast.contract.branches import Branch, Given, Norm, Pool, SepConv, Skip, Stage, Zero


def separable(channels: int, kernel: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel - 1) // 2
    shape = (channels, channels, kernel, stride, padding, dilation, channels, False)
    return [nn.ReLU(), nn.Conv2d(*shape), nn.Conv2d(channels, channels, 1, bias=False), norm(channels)]


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)


class FactorizedReduce(nn.Module):
    """Half of the channels from even pixels, half from odd ones."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(channels, channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(channels, channels // 2, 1, stride=2, bias=False)
        self.norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        out: Tensor = self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))
        return out

    def raw(self, x: Tensor) -> Tensor:
        """Both convolutions as one op."""
        return ops.relu_pointwise(x, [self.even.weight, self.odd.weight], 2)


class DartsEdge(nn.Module):
    """none, max_pool_3x3, avg_pool_3x3, skip_connect, sep_conv_3x3 and 5x5, dil_conv_3x3 and 5x5.

    Args:
        channels: C.
        stride: 1 or 2.
        fused: through `mixed_op`.
    """

    def __init__(self, channels: int, stride: int, fused: bool) -> None:
        super().__init__()
        self.stride, self.fused = stride, fused
        average = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        skip = nn.Identity() if stride == 1 else FactorizedReduce(channels)
        convolutions = [separable(channels, k, stride) + separable(channels, k, 1) for k in (3, 5)]
        convolutions += [separable(channels, k, stride, dilation=2) for k in (3, 5)]
        self.ops = nn.ModuleList(
            [
                nn.Sequential(nn.MaxPool2d(3, stride, 1), norm(channels)),
                nn.Sequential(average, norm(channels)),
                skip,
                *(nn.Sequential(*some) for some in convolutions),
            ]
        )

    def forward(self, x: Tensor, alpha: Tensor) -> Tensor:
        """x [N, C, H, W], alpha [8] -> [N, C, H', W']."""
        if self.fused:
            out, _, _ = ops.mixed_op(x[None], alpha[None], self.branches(x), self.stride)
            return out.squeeze(0)
        terms = [factor * op(x) for factor, op in zip(alpha[1:], self.ops, strict=True)]
        return sum(terms[1:], terms[0])

    def branches(self, x: Tensor) -> list[Branch]:
        """x [N, C, H, W]."""
        skip = self.ops[2]
        given = Given(skip.raw(x)[None], Norm()) if isinstance(skip, FactorizedReduce) else Skip()
        return [Zero(), Pool("max", Norm()), Pool("avg", Norm()), given, *map(_branch, self.ops[3:])]


def _branch(layers: Any) -> SepConv:
    """ReLU, depthwise, pointwise and batch norm, once or twice."""
    stages = (
        Stage(layers[i].weight, layers[i + 1].weight, layers[i].dilation[0], Norm())
        for i in range(1, len(layers), 4)
    )
    return SepConv(tuple(stages))
