"""`mixed_sum` of the native extension, with its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vpdarts_fast.backends import pytorch
from vpdarts_fast.backends.cpu.masked_cell import padded_channels_last
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


def _differentiate(
    inputs: Sequence[Any], kept: Sequence[Tensor], gradients: Sequence[Any], wants: Sequence[Any]
) -> Sequence[Any]:
    found: Sequence[Any] = _backward(gradients[0], *inputs, *kept, *wants)
    return found


def _plain(*inputs: Any) -> Tensor:
    return pytorch.mixed_sum(*inputs)[0]


derivatives.register("vpdarts_fast::mixed_sum", range(5), _differentiate, _plain)
