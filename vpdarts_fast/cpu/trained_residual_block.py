"""`trained_residual_block` of the native extension, with its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vpdarts_fast.cpu.masked_cell import padded, padded_channels_last

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
    """See `vpdarts_fast.reference.trained_residual_block`."""
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
    images, _, height, width = x.shape
    channels, size = weight_a.shape[0], ((height + 1) // 2, (width + 1) // 2)
    return (
        padded_channels_last(x, (images, channels, *size)),
        x.new_empty(2, channels),
        x.new_empty(2, channels),
        x.new_empty(2, images, *size, padded(channels)),
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


def _setup_context(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:6]
    if gradient is None:
        return (None,) * 7
    *tensors, mean, variance, raw = ctx.saved_tensors
    wants = needs[0], any(needs[1:4]), any(needs[4:])
    gradients = _backward(gradient, *tensors, ctx.eps, mean, variance, raw, *wants)
    return *(found if needed else None for found, needed in zip(gradients, needs, strict=True)), None


torch.library.register_autograd(
    "vpdarts_fast::trained_residual_block", _differentiate, setup_context=_setup_context
)
