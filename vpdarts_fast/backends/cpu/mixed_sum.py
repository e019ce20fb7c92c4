"""`mixed_sum` of the native extension, with its backward pass."""

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
    """See `vpdarts_fast.contract.reference.mixed_sum`."""
    node, mean, variance = _forward(list(xs), list(raw_1x1), list(raw_3x3), alpha, list(skip_scale), eps)
    return node, mean, variance


@register_fake("mixed_sum")
def _forward_fake(xs: Sequence[Tensor], alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = tuple(xs[0].shape)
    statistics = (shape[0], len(xs), 2, shape[2])
    return padded_channels_last(xs[0], shape), alpha.new_empty(statistics), alpha.new_empty(statistics)


@register_fake("mixed_sum_backward")
def _backward_fake(
    xs: Sequence[Tensor],
    alpha: Tensor,
    wants_xs: Sequence[bool],
    wants_1x1: Sequence[bool],
    wants_3x3: Sequence[bool],
    wants_alpha: bool,
    wants_scale: Sequence[bool],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    def like_xs(wants: Sequence[bool]) -> list[Tensor]:
        return [gradient_of_images(xs[0], wanted) for wanted in wants]

    of_alpha = gradient_of(alpha, wants_alpha)
    return like_xs(wants_xs), like_xs(wants_1x1), like_xs(wants_3x3), of_alpha, like_xs(wants_scale)


def _differentiate(
    inputs: Sequence[Any], kept: Sequence[Tensor], gradients: Sequence[Any], wants: Sequence[Any]
) -> Sequence[Any]:
    found: Sequence[Any] = _backward(gradients[0], *inputs, *kept, *wants)
    return found


def _plain(*inputs: Any) -> Tensor:
    return pytorch.mixed_sum(*inputs)[0]


derivatives.register("vpdarts_fast::mixed_sum", range(5), _differentiate, _plain)
