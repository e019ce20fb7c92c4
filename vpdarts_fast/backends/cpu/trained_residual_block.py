"""`trained_residual_block` of the native extension, with its backward pass."""

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
    padded,
    padded_channels_last,
    register_fake,
)
from vpdarts_fast.contract import derivatives

_forward = torch.ops.vpdarts_fast.trained_residual_block
_backward = torch.ops.vpdarts_fast.trained_residual_block_backward


def trained_residual_block(
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    weight_shortcut: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `vpdarts_fast.contract.reference.trained_residual_block`."""
    out, mean, variance, _ = _forward(x, weight_a, weight_b, weight_shortcut, gamma, beta, eps)
    return out, mean, variance


@register_fake("trained_residual_block")
def _forward_fake(x: Tensor, weight_a: Tensor) -> tuple[Tensor, ...]:
    images, in_channels, height, width = x.shape
    channels, size = weight_a.shape[0], ((height + 1) // 2, (width + 1) // 2)
    lanes = native.cpu_lanes(in_channels)
    return (
        padded_channels_last(x, (images, channels, *size), lanes),
        x.new_empty(2, channels),
        x.new_empty(2, channels),
        x.new_empty(2, images, *size, padded(channels, lanes)),
    )


@register_fake("trained_residual_block_backward")
def _backward_fake(
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    weight_shortcut: Tensor,
    gamma: Tensor,
    beta: Tensor,
    wants_x: bool,
    wants_weights: bool,
    wants_norms: bool,
) -> tuple[Tensor, ...]:
    return (
        gradient_of_images(x, wants_x),
        *(gradient_of(weight, wants_weights) for weight in (weight_a, weight_b, weight_shortcut)),
        gradient_of(gamma, wants_norms),
        gradient_of(beta, wants_norms),
    )


def _differentiate(
    inputs: Sequence[Any], kept: Sequence[Tensor], gradients: Sequence[Any], wants: Sequence[bool]
) -> Sequence[Tensor]:
    found: Sequence[Tensor] = _backward(
        gradients[0], *inputs, *kept, wants[0], any(wants[1:4]), any(wants[4:])
    )
    return found


def _plain(*inputs: Any) -> Tensor:
    return pytorch.trained_residual_block(*inputs)[0]


derivatives.register("vpdarts_fast::trained_residual_block", range(6), _differentiate, _plain)
