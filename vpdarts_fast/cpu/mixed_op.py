"""`mixed_op` of the native extension, with its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vpdarts_fast import native
from vpdarts_fast.branches import Branch, Given, Pool, SepConv, Skip, affine, norms
from vpdarts_fast.cpu.masked_cell import padded, padded_channels_last

_forward = torch.ops.vpdarts_fast.mixed_op
_backward = torch.ops.vpdarts_fast.mixed_op_backward


def mixed_op(
    x: Tensor,
    alpha: Tensor,
    branches: Sequence[Branch],
    stride: int = 1,
    statistics: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `vpdarts_fast.reference.mixed_op`."""
    stages = [stage for branch in branches if isinstance(branch, SepConv) for stage in branch.stages]
    given = [branch.raw for branch in branches if isinstance(branch, Given)]
    of, weights = norms(branches), [(stage.depthwise, stage.pointwise) for stage in stages]
    variants, differentiable = len(alpha), [x, alpha, *given, *affine(branches), *sum(weights, ())]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in differentiable):
        # The backward pass goes through every variant.
        x, *given = (tensor.expand(variants, *tensor.shape[1:]) for tensor in (x, *given))
    out, mean, variance, _ = _forward(
        x,
        alpha,
        [_kind(branch) for branch in branches],
        [len(norms([branch])) for branch in branches],
        [depthwise for depthwise, _ in weights],
        [pointwise for _, pointwise in weights],
        [stage.dilation for stage in stages],
        given,
        _stacked([norm.gamma for norm in of], alpha.new_ones(x.shape[2])),
        _stacked([norm.beta for norm in of], alpha.new_zeros(x.shape[2])),
        [norm.eps for norm in of],
        None if statistics is None else statistics.detach(),
        stride,
    )
    return out, mean, variance


def _kind(branch: Branch) -> int:
    """As the schema counts them."""
    if isinstance(branch, Pool):
        return 2 if branch.kind == "avg" else 3
    return (
        1 if isinstance(branch, Skip) else 4 if isinstance(branch, SepConv) else 5 * isinstance(branch, Given)
    )


def _stacked(some: Sequence[Tensor | None], default: Tensor) -> Tensor:
    """[M, C], the default [C] where there is none."""
    if all(tensor is None for tensor in some):
        return default.expand(len(some), -1)
    return torch.stack([default if tensor is None else tensor for tensor in some])


@torch.library.register_fake("vpdarts_fast::mixed_op")  # type: ignore[untyped-decorator]
def _forward_fake(
    x: Tensor,
    alpha: Tensor,
    kinds: Sequence[int],
    norms: Sequence[int],
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    dilation: Sequence[int],
    given: Sequence[Tensor],
    gamma: Tensor,
    beta: Tensor,
    eps: Sequence[float],
    statistics: Tensor | None,
    stride: int,
) -> tuple[Tensor, ...]:
    variants, (inputs, images, channels, height, width) = alpha.shape[0], x.shape
    size = (height + stride - 1) // stride, (width + stride - 1) // stride
    lanes = native.mixed_op_lanes(channels)
    return (
        padded_channels_last(x, (variants, images, channels, *size), lanes),
        alpha.new_empty(variants, len(eps), channels),
        alpha.new_empty(variants, len(eps), channels),
        x.new_empty(inputs, len(depthwise), images, *size, padded(channels, lanes)),
    )


@torch.library.register_fake("vpdarts_fast::mixed_op_backward")  # type: ignore[untyped-decorator]
def _backward_fake(
    gradient: Tensor,
    x: Tensor,
    alpha: Tensor,
    kinds: Sequence[int],
    norms: Sequence[int],
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    dilation: Sequence[int],
    given: Sequence[Tensor],
    gamma: Tensor,
    beta: Tensor,
    eps: Sequence[float],
    statistics: Tensor | None,
    stride: int,
    mean: Tensor,
    variance: Tensor,
    raw: Tensor,
    wants_x: bool,
    wants_alpha: bool,
    wants_weights: bool,
    wants_given: Sequence[bool],
    wants_norms: bool,
) -> tuple[Any, ...]:
    def like(tensor: Tensor, wanted: bool) -> Tensor:
        return tensor.new_empty(tensor.shape[0] if wanted else 0, *tensor.shape[1:])

    def images_like(tensor: Tensor, wanted: bool) -> Tensor:
        shape = tensor.shape[0] if wanted else 0, *tensor.shape[1:]
        return padded_channels_last(tensor, shape, native.mixed_op_lanes(tensor.shape[2]))

    return (
        images_like(x, wants_x),
        like(alpha, wants_alpha),
        [like(weight, wants_weights) for weight in depthwise],
        [like(weight, wants_weights) for weight in pointwise],
        [images_like(raw, wanted) for raw, wanted in zip(given, wants_given, strict=True)],
        like(gamma, wants_norms),
        like(beta, wants_norms),
    )


def _setup_context(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    x, alpha, kinds, counts, depthwise, pointwise, dilation, given, gamma, beta, eps, fixed, stride = inputs
    ctx.settings = kinds, counts, dilation, eps, stride
    ctx.stages, ctx.terms = len(depthwise), len(given)
    ctx.save_for_backward(x, alpha, gamma, beta, fixed, *depthwise, *pointwise, *given, *output[1:])
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Any, ...]:
    # In place of a list of tensors, and of an empty list, autograd wants a list.
    needs = ctx.needs_input_grad
    found = [None if isinstance(need, bool) else [None] * len(need) for need in needs]
    if gradient is None:
        return tuple(found)
    kinds, counts, dilation, eps, stride = ctx.settings
    stages, terms = ctx.stages, ctx.terms
    x, alpha, gamma, beta, fixed, *rest = ctx.saved_tensors
    depthwise, pointwise, rest = rest[:stages], rest[stages : 2 * stages], rest[2 * stages :]
    inputs = (
        x,
        alpha,
        kinds,
        counts,
        depthwise,
        pointwise,
        dilation,
        rest[:terms],
        gamma,
        beta,
        eps,
        fixed,
        stride,
    )
    wants = needs[0], needs[1], any((*needs[4], *needs[5])), needs[7], needs[8] or needs[9]
    gradients = _backward(gradient, *inputs, *rest[terms:], *wants)
    for place, some in zip((0, 1, 4, 5, 7, 8, 9), gradients, strict=True):
        found[place] = _kept(some, needs[place])
    return tuple(found)


def _kept(gradients: Any, wanted: Any) -> Any:
    """A gradient, or those in a list, None for what is not wanted."""
    if isinstance(wanted, bool):
        return gradients if wanted else None
    return list(map(_kept, gradients, wanted))


torch.library.register_autograd("vpdarts_fast::mixed_op", _differentiate, setup_context=_setup_context)
