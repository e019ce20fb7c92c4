"""`trained_residual_block` of the native extension, with its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vpdarts_fast import native
from vpdarts_fast.backends import pytorch
from vpdarts_fast.backends.cpu.masked_cell import padded, padded_channels_last
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


@torch.library.register_fake("vpdarts_fast::trained_residual_block")  # type: ignore[untyped-decorator]
def _forward_fake(
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    weight_shortcut: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
) -> tuple[Tensor, ...]:
    images, in_channels, height, width = x.shape
    channels, size = weight_a.shape[0], ((height + 1) // 2, (width + 1) // 2)
    lanes = native.cpu_lanes(in_channels)
    return (
        padded_channels_last(x, (images, channels, *size), lanes),
        x.new_empty(2, channels),
        x.new_empty(2, channels),
        x.new_empty(2, images, *size, padded(channels, lanes)),
    )


@torch.library.register_fake("vpdarts_fast::trained_residual_block_backward")  # type: ignore[untyped-decorator]
def _backward_fake(
    gradient: Tensor,
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    weight_shortcut: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    mean: Tensor,
    variance: Tensor,
    raw: Tensor,
    wants_x: bool,
    wants_weights: bool,
    wants_norms: bool,
) -> tuple[Tensor, ...]:
    def like(tensor: Tensor, wanted: bool) -> Tensor:
        return tensor.new_empty(tensor.shape[0] if wanted else 0, *tensor.shape[1:])

    return (
        padded_channels_last(x, (x.shape[0] if wants_x else 0, *x.shape[1:])),
        *(like(weight, wants_weights) for weight in (weight_a, weight_b, weight_shortcut)),
        like(gamma, wants_norms),
        like(beta, wants_norms),
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
