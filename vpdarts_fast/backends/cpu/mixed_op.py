"""`mixed_op` of the native extension, with its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
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
from vpdarts_fast.contract.branches import Branch, Given, Norm, Pool, SepConv, Skip, Stage, Zero, affine
from vpdarts_fast.contract.branches import norms as norms_of

_forward = torch.ops.vpdarts_fast.mixed_op
_fixed = torch.ops.vpdarts_fast.mixed_op_fixed
_backward = torch.ops.vpdarts_fast.mixed_op_backward


def mixed_op(
    x: Tensor,
    alpha: Tensor,
    branches: Sequence[Branch],
    stride: int = 1,
    statistics: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `vpdarts_fast.contract.reference.mixed_op`."""
    stages = [stage for branch in branches if isinstance(branch, SepConv) for stage in branch.stages]
    given = [branch.raw for branch in branches if isinstance(branch, Given)]
    of, weights = norms_of(branches), [(stage.depthwise, stage.pointwise) for stage in stages]
    variants, differentiable = len(alpha), [x, alpha, *given, *affine(branches), *sum(weights, ())]
    differentiates = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in differentiable)
    if differentiates:
        # The backward pass goes through every variant.
        x, *given = (tensor.expand(variants, *tensor.shape[1:]) for tensor in (x, *given))
    elif statistics is not None and statistics.dim() == 4:  # of each variant
        x = x.expand(variants, *x.shape[1:])
    branches_and_norms = (
        [_kind(branch) for branch in branches],
        [len(norms_of([branch])) for branch in branches],
        [depthwise for depthwise, _ in weights],
        [pointwise for _, pointwise in weights],
        [stage.dilation for stage in stages],
        given,
        _stacked([norm.gamma for norm in of], alpha.new_ones(x.shape[2])),
        _stacked([norm.beta for norm in of], alpha.new_zeros(x.shape[2])),
        [float(norm.eps) for norm in of],
    )
    statistics = None if statistics is None else statistics.detach()
    if statistics is None or differentiates:
        out, mean, variance, _ = _forward(x, alpha, *branches_and_norms, statistics, stride)
        return out, mean, variance
    out = _fixed(x, alpha, *branches_and_norms, statistics, stride)
    mean, variance = statistics.to(alpha, copy=True).expand(variants, len(of), 2, x.shape[2]).unbind(2)
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


@register_fake("mixed_op")
def _forward_fake(
    x: Tensor, alpha: Tensor, depthwise: Sequence[Tensor], eps: Sequence[float], stride: int
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


@register_fake("mixed_op_fixed")
def _fixed_fake(x: Tensor, alpha: Tensor, stride: int) -> Tensor:
    size = ((side + stride - 1) // stride for side in x.shape[3:])
    shape = alpha.shape[0], *x.shape[1:3], *size
    return padded_channels_last(x, shape, native.mixed_op_lanes(x.shape[2]))


@register_fake("mixed_op_backward")
def _backward_fake(
    x: Tensor,
    alpha: Tensor,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    given: Sequence[Tensor],
    gamma: Tensor,
    beta: Tensor,
    wants_x: bool,
    wants_alpha: bool,
    wants_weights: bool,
    wants_given: Sequence[bool],
    wants_norms: bool,
) -> tuple[Any, ...]:
    lanes = native.mixed_op_lanes(x.shape[2])
    return (
        gradient_of_images(x, wants_x, lanes),
        gradient_of(alpha, wants_alpha),
        [gradient_of(weight, wants_weights) for weight in depthwise],
        [gradient_of(weight, wants_weights) for weight in pointwise],
        [gradient_of_images(raw, wanted, lanes) for raw, wanted in zip(given, wants_given, strict=True)],
        gradient_of(gamma, wants_norms),
        gradient_of(beta, wants_norms),
    )


_DIFFERENTIABLE = 0, 1, 4, 5, 7, 8, 9
"""x, alpha, depthwise, pointwise, given, gamma and beta, as the schema counts them."""


def _differentiate(
    inputs: Sequence[Any], kept: Sequence[Tensor], gradients: Sequence[Any], wants: Sequence[Any]
) -> Sequence[Any]:
    wants_x, wants_alpha, depthwise, pointwise, given, gamma, beta = wants
    wanted = wants_x, wants_alpha, any((*depthwise, *pointwise)), given, gamma or beta
    found: Sequence[Any] = _backward(gradients[0], *inputs, *kept, *wanted)
    return found


def _plain(
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
) -> Tensor:
    in_order = map(Norm, eps, gamma, beta)
    stages = zip(depthwise, pointwise, dilation, strict=True)
    terms = iter(given)

    def branch(kind: int, count: int) -> Branch:
        own = list(islice(in_order, count))
        if kind == 4:
            return SepConv(tuple(Stage(*stage, norm) for norm, stage in zip(own, stages, strict=False)))
        norm = own[0] if own else None
        if kind == 5:
            return Given(next(terms), norm)
        return (Zero(), Skip(), Pool("avg", norm), Pool("max", norm))[kind]

    return pytorch.mixed_op(x, alpha, list(map(branch, kinds, norms)), stride, statistics)[0]


derivatives.register("vpdarts_fast::mixed_op", _DIFFERENTIABLE, _differentiate, _plain)
