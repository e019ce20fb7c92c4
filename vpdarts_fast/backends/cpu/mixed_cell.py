"""`mixed_cell` of the native extension, with its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vpdarts_fast.backends import pytorch
from vpdarts_fast.backends.cpu.fakes import (
    gradient_of,
    gradient_of_images,
    padded,
    padded_channels_last,
    register_fake,
)
from vpdarts_fast.contract import derivatives

_forward = torch.ops.vpdarts_fast.mixed_cell
_variants = torch.ops.vpdarts_fast.mixed_cell_variants
_backward = torch.ops.vpdarts_fast.mixed_cell_backward


def mixed_cell(
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    alpha: Tensor,
    skip_seed: Tensor | None = None,
    skip_dropout: float = 0.0,
    eps: float = 1e-5,
    skip_zeros: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `vpdarts_fast.contract.reference.mixed_cell`."""
    weights, rest = (weight_1x1, weight_3x3), (skip_seed, skip_dropout, eps, skip_zeros)
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, alpha))):
        node, mean, variance = _variants(x, *weights, alpha, *rest)
        return node, mean, variance
    inputs = x.expand(len(alpha), *x.shape[1:]).unbind(0)
    cells = [
        _forward(images, *weights, table, *rest)[:3]
        for images, table in zip(inputs, alpha.unbind(0), strict=True)
    ]
    node, mean, variance = (
        some[0].unsqueeze(0) if len(some) == 1 else torch.stack(some) for some in zip(*cells, strict=True)
    )
    return node, mean, variance


@register_fake("mixed_cell")
def _forward_fake(x: Tensor, alpha: Tensor) -> tuple[Tensor, ...]:
    images, channels, height, width = x.shape
    edges, wide = alpha.shape[0], padded(channels)
    nodes = next((n for n in range(2, 7) if n * (n - 1) // 2 == edges), None)
    if nodes is None:
        raise ValueError(f"mixed_cell: alpha must have 1, 3, 6, 10 or 15 edges; got {edges}")
    return (
        padded_channels_last(x, (images, channels, height, width)),
        x.new_empty(edges, 2, channels),
        x.new_empty(edges, 2, channels),
        x.new_empty(nodes - 2, images, height, width, wide),
        x.new_empty(edges, images, height, width, wide),
        x.new_empty(edges, 4, wide),
        x.new_empty(nodes - 1, 1 + wide, wide),
    )


@register_fake("mixed_cell_variants")
def _variants_fake(x: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    statistics = (*alpha.shape[:2], 2, x.shape[2])
    return (
        padded_channels_last(x, (alpha.shape[0], *x.shape[1:])),
        x.new_empty(statistics),
        x.new_empty(statistics),
    )


@register_fake("mixed_cell_backward")
def _backward_fake(
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    alpha: Tensor,
    wants_x: bool,
    wants_weights: bool,
    wants_alpha: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        gradient_of_images(x, wants_x),
        gradient_of(weight_1x1, wants_weights),
        gradient_of(weight_3x3, wants_weights),
        gradient_of(alpha, wants_alpha),
    )


def _differentiate(
    inputs: Sequence[Any], kept: Sequence[Tensor], gradients: Sequence[Any], wants: Sequence[bool]
) -> Sequence[Tensor]:
    gradient, of_cell = gradients[0], kept[2:]  # mean and variance are kept for whoever called
    wants_x, wants_1x1, wants_3x3, wants_alpha = wants
    found: Sequence[Tensor] = _backward(
        gradient, *inputs, *of_cell, wants_x, wants_1x1 or wants_3x3, wants_alpha
    )
    return found


def _plain(x: Tensor, weight_1x1: Tensor, weight_3x3: Tensor, alpha: Tensor, *rest: Any) -> Tensor:
    node, _, _ = pytorch.mixed_cell(x[None], weight_1x1, weight_3x3, alpha[None], *rest)
    return node[0]


derivatives.register("vpdarts_fast::mixed_cell", range(4), _differentiate, _plain)
