"""`relu_conv` of the native extension, with its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vpdarts_fast.backends import pytorch
from vpdarts_fast.backends.cpu.fakes import (
    gradient_of,
    gradient_of_images,
    padded_channels_last,
    register_fake,
)
from vpdarts_fast.contract import derivatives

_forward = torch.ops.vpdarts_fast.relu_conv
_backward = torch.ops.vpdarts_fast.relu_conv_backward


def relu_conv(x: Tensor, weight_1x1: Tensor, weight_3x3: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """See `vpdarts_fast.contract.reference.relu_conv`."""
    raw_1x1, raw_3x3 = _forward(x, weight_1x1, weight_3x3)
    return raw_1x1, raw_3x3


@register_fake("relu_conv")
def _forward_fake(x: Tensor, weight_1x1: Tensor, weight_3x3: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    if not x.device == weight_1x1.device == weight_3x3.device:
        raise ValueError("relu_conv: all tensors must be on one device")
    edges = range(weight_1x1.shape[0])
    raw_1x1, raw_3x3 = ([padded_channels_last(x, tuple(x.shape)) for _ in edges] for _ in range(2))
    return raw_1x1, raw_3x3


@register_fake("relu_conv_backward")
def _backward_fake(
    x: Tensor, weight_1x1: Tensor, weight_3x3: Tensor, wants_x: bool, wants_1x1: bool, wants_3x3: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        gradient_of_images(x, wants_x),
        gradient_of(weight_1x1, wants_1x1),
        gradient_of(weight_3x3, wants_3x3),
    )


def _differentiate(
    inputs: Sequence[Any], kept: Sequence[Tensor], gradients: Sequence[Any], wants: Sequence[bool]
) -> Sequence[Tensor]:
    x = inputs[0]
    arriving = (
        [x.new_zeros(()).expand_as(x) if gradient is None else gradient for gradient in some]
        for some in gradients
    )
    found: Sequence[Tensor] = _backward(*arriving, *inputs, *wants)
    return found


derivatives.register("vpdarts_fast::relu_conv", range(3), _differentiate, pytorch.relu_conv, outputs=2)
