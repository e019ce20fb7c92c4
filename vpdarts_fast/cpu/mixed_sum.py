"""`mixed_sum` of the native extension, with its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vpdarts_fast.cpu.masked_cell import padded_channels_last

_forward = torch.ops.vpdarts_fast.mixed_sum
_backward = torch.ops.vpdarts_fast.mixed_sum_backward


def mixed_sum(
    xs: Sequence[Tensor],
    raw_1x1: Sequence[Tensor],
    raw_3x3: Sequence[Tensor],
    alpha: Tensor,
    skip_scale: Sequence[Tensor] = (),
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `vpdarts_fast.reference.mixed_sum`."""
    node, mean, variance = _forward(list(xs), list(raw_1x1), list(raw_3x3), alpha, list(skip_scale), eps)
    return node, mean, variance


@torch.library.register_fake("vpdarts_fast::mixed_sum")  # type: ignore[untyped-decorator]
def _forward_fake(
    xs: Sequence[Tensor],
    raw_1x1: Sequence[Tensor],
    raw_3x3: Sequence[Tensor],
    alpha: Tensor,
    skip_scale: Sequence[Tensor],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = tuple(xs[0].shape)
    statistics = (shape[0], len(xs), 2, shape[2])
    return padded_channels_last(xs[0], shape), alpha.new_empty(statistics), alpha.new_empty(statistics)


@torch.library.register_fake("vpdarts_fast::mixed_sum_backward")  # type: ignore[untyped-decorator]
def _backward_fake(
    gradient: Tensor,
    xs: Sequence[Tensor],
    raw_1x1: Sequence[Tensor],
    raw_3x3: Sequence[Tensor],
    alpha: Tensor,
    skip_scale: Sequence[Tensor],
    eps: float,
    mean: Tensor,
    variance: Tensor,
    wants_xs: Sequence[bool],
    wants_1x1: Sequence[bool],
    wants_3x3: Sequence[bool],
    wants_alpha: bool,
    wants_scale: Sequence[bool],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    variants, *rest = xs[0].shape

    def like_xs(wants: Sequence[bool]) -> list[Tensor]:
        return [padded_channels_last(xs[0], (variants if wanted else 0, *rest)) for wanted in wants]

    return (
        like_xs(wants_xs),
        like_xs(wants_1x1),
        like_xs(wants_3x3),
        alpha.new_empty(variants if wants_alpha else 0, *alpha.shape[1:]),
        like_xs(wants_scale),
    )


def _setup_context(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    xs, raw_1x1, raw_3x3, alpha, skip_scale, eps = inputs
    ctx.save_for_backward(*xs, *raw_1x1, *raw_3x3, *skip_scale, alpha, *output[1:])
    ctx.edges, ctx.eps = len(xs), eps
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Any, ...]:
    *terms, alpha, mean, variance = ctx.saved_tensors
    k = ctx.edges
    xs, raw_1x1, raw_3x3, skip_scale = terms[:k], terms[k : 2 * k], terms[2 * k : 3 * k], terms[3 * k :]
    wants = ctx.needs_input_grad[:5]
    if gradient is None:
        return *(None if isinstance(wanted, bool) else [None] * len(wanted) for wanted in wants), None
    inputs = xs, raw_1x1, raw_3x3, alpha, skip_scale
    found = _backward(gradient, *inputs, ctx.eps, mean, variance, *wants)

    def kept(gradients: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
        return [gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)]

    return (
        *(kept(gradients, wanted) for gradients, wanted in zip(found[:3], wants[:3], strict=True)),
        found[3] if wants[3] else None,
        kept(found[4], wants[4]),
        None,
    )


torch.library.register_autograd("vpdarts_fast::mixed_sum", _differentiate, setup_context=_setup_context)
