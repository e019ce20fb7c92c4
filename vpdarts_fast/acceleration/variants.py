"""Functions of many variants at once, which `torch.vmap` calls as such."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def of_variants(function: Callable[..., Tensor], x: Tensor, *weights: Tensor) -> Tensor:
    """The function of x [1 or V, N, C, H, W] and weights [V, ...], called with x and weights of one variant.

    In `torch.vmap` without gradients, it is called with all variants. What comes out lies in memory as x.
    """
    if torch.is_grad_enabled():
        return _single(function, x, *weights)
    out: Tensor = _OfVariants.apply(function, x, *weights)
    return out


def _single(function: Callable[..., Tensor], x: Tensor, *weights: Tensor) -> Tensor:
    out = function(x.unsqueeze(0), *(weight.unsqueeze(0) for weight in weights)).squeeze(0)
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    # An op's output is a view, which autograd would not let others change in place, as drop-path does.
    return out.clone(memory_format=layout) if out.requires_grad else out.contiguous(memory_format=layout)


class _OfVariants(torch.autograd.Function):
    """Has no derivative; what there is of it is its rule for `torch.vmap`."""

    forward = staticmethod(_single)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing to keep."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        function: Callable[..., Tensor],
        x: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, int]:
        """The output, and where its dimension of V is."""
        _, x_dim, *weight_dims = in_dims
        x = x.unsqueeze(0) if x_dim is None else x.movedim(x_dim, 0)
        expanded = (
            weight.expand(info.batch_size, *weight.shape) if dim is None else weight.movedim(dim, 0)
            for weight, dim in zip(weights, weight_dims, strict=True)
        )
        out = function(x, *expanded)
        return out.contiguous() if x[0].is_contiguous() else out, 0
