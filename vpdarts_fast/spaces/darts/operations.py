"""The candidate operations of the DARTS space as plain modules.

Parameter names are those of public DARTS code, so that its checkpoints load. An operation of stride 2 halves
height and width, rounding up: [N, C, H, W] -> [N, C, ceil(H / stride), ceil(W / stride)].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import override

from vpdarts_fast.spaces.blocks import Zero


class Noise(nn.Module):
    """Standard normal noise in place of its input, in training and evaluation (Zela et al., 2020, space S4).

    It is drawn anew for every call from PyTorch's generator of the device; its input has no gradient of it.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Draws noise [N, C, ceil(H / stride), ceil(W / stride)] of the dtype of `x` [N, C, H, W]."""
        return torch.randn_like(x.detach()[:, :, :: self.stride, :: self.stride])

    @override
    def extra_repr(self) -> str:
        return f"stride={self.stride}"


class SeparableConv(nn.Module):
    """Stages of ReLU, depthwise convolution, 1x1 convolution and batch norm; the first has the stride.

    Args:
        channels: of input and output.
        kernel: of the depthwise convolutions, odd; their padding keeps the image as large as it is.
        stride: of the first one.
        affine: whether batch norms learn a scale and a shift.
        dilation: of the depthwise convolutions.
        stages: how many.
    """

    def __init__(
        self, channels: int, kernel: int, stride: int, affine: bool, *, dilation: int = 1, stages: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        layers: list[nn.Module] = []
        for step in (stride, *[1] * (stages - 1)):
            layers += [
                nn.ReLU(),
                nn.Conv2d(
                    channels, channels, kernel, step, padding, dilation=dilation, groups=channels, bias=False
                ),
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels, affine=affine),
            ]
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x` [N, C, H, W] to [N, C, ceil(H / stride), ceil(W / stride)]."""
        out: Tensor = self.op(x)
        return out


class FactorizedReduce(nn.Module):
    """Halves the image: half of the channels from its even pixels, half from its odd ones.

    [N, C_in, H, W] -> [N, C_out, ceil(H / 2), ceil(W / 2)]; where H is odd, zeros follow the last row, and
    likewise with W.
    """

    def __init__(self, channels_in: int, channels_out: int, affine: bool) -> None:
        super().__init__()
        even = channels_out // 2
        self.relu = nn.ReLU()
        self.pad = nn.ConstantPad2d((0, 1, 0, 1), 0)  # nothing of it is read where H and W are even
        self.conv_1 = nn.Conv2d(channels_in, even, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(channels_in, channels_out - even, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x` [N, C_in, H, W] to [N, C_out, ceil(H / 2), ceil(W / 2)]."""
        x = self.relu(x)
        out: Tensor = self.bn(torch.cat([self.conv_1(x), self.conv_2(self.pad(x)[:, :, 1:, 1:])], dim=1))
        return out


POOLS = ("max_pool_3x3", "avg_pool_3x3")

OPERATIONS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "none": lambda channels, stride, affine: Zero(stride),
    "noise": lambda channels, stride, affine: Noise(stride),
    "max_pool_3x3": lambda channels, stride, affine: nn.MaxPool2d(3, stride, 1),
    "avg_pool_3x3": lambda channels, stride, affine: nn.AvgPool2d(3, stride, 1, count_include_pad=False),
    "skip_connect": lambda channels, stride, affine: (
        nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)
    ),
    "sep_conv_3x3": lambda channels, stride, affine: SeparableConv(channels, 3, stride, affine, stages=2),
    "sep_conv_5x5": lambda channels, stride, affine: SeparableConv(channels, 5, stride, affine, stages=2),
    "dil_conv_3x3": lambda channels, stride, affine: SeparableConv(channels, 3, stride, affine, dilation=2),
    "dil_conv_5x5": lambda channels, stride, affine: SeparableConv(channels, 5, stride, affine, dilation=2),
}
"""Builds an operation: (channels, stride 1 or 2, affine batch norms) -> module."""
