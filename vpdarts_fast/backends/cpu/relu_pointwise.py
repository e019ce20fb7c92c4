"""`relu_pointwise` of the native extension, with its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vpdarts_fast import native
from vpdarts_fast.backends import pytorch
from vpdarts_fast.backends.cpu.fakes import (
    gradient_of,
    gradient_of_images,
    padded_channels_last,
    register_fake,
)
from vpdarts_fast.contract import derivatives

_forward = torch.ops.vpdarts_fast.relu_pointwise
_backward = torch.ops.vpdarts_fast.relu_pointwise_backward


def relu_pointwise(x: Tensor, weights: Sequence[Tensor], stride: int = 1) -> Tensor:
    """See `vpdarts_fast.contract.reference.relu_pointwise`."""
    out: Tensor = _forward(x, list(weights), stride)
    return out


def _channels(weights: Sequence[Tensor]) -> int:
    """Of the output."""
    return sum(weight.shape[0] for weight in weights)


@register_fake("relu_pointwise")
def _forward_fake(x: Tensor, weights: Sequence[Tensor], stride: int) -> Tensor:
    channels, size = _channels(weights), (-(-side // stride) for side in x.shape[2:])
    return padded_channels_last(x, (x.shape[0], channels, *size), native.cpu_lanes(channels))


@register_fake("relu_pointwise_backward")
def _backward_fake(
    x: Tensor, weights: Sequence[Tensor], wants_x: bool, wants_weights: bool
) -> tuple[Tensor, list[Tensor]]:
    return (
        gradient_of_images(x, wants_x, native.cpu_lanes(_channels(weights))),
        [gradient_of(weight, wants_weights) for weight in weights],
    )


def _differentiate(
    inputs: Sequence[Any], kept: Sequence[Tensor], gradients: Sequence[Any], wants: Sequence[Any]
) -> Sequence[Any]:
    wants_x, wants_weights = wants
    found: Sequence[Any] = _backward(gradients[0], *inputs, wants_x, any(wants_weights))
    return found


derivatives.register("vpdarts_fast::relu_pointwise", (0, 1), _differentiate, pytorch.relu_pointwise)
