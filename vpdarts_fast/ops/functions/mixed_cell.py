"""`mixed_cell`: a whole cell of mixed operations, batch norms with the batch's own statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from vpdarts_fast.backends import registry
from vpdarts_fast.errors import UserError
from vpdarts_fast.ops.arguments import (
    check_flag,
    check_like,
    check_seeds,
    check_small,
    check_tensor,
    checked_eps,
    checked_skip_dropout,
)
from vpdarts_fast.ops.shapes import check_cell, check_shape
from vpdarts_fast.runtime.precision import autocast, without_autocast


def mixed_cell(
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    alpha: Tensor,
    skip_seed: Tensor | None = None,
    skip_dropout: float = 0.0,
    eps: float = 1e-5,
    skip_zeros: bool = False,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """The cell as it is trained (paper, Eq. 3), for V variants. Differentiable but for the statistics.

    Args:
        x: [V, N, C, H, W], or [1, N, C, H, W] shared by all variants.
        weight_1x1: [E, C, C, 1, 1], edges in the order 0->1, 0->2, 1->2, ...
        weight_3x3: [E, C, C, 3, 3].
        alpha: [V, E, 5], columns none, skip, 1x1, 3x3, pool.
        skip_seed: none, or [E] int64, on the CPU or where x is: the seeds of the skip connections' dropout.
        skip_dropout: its probability, in steps of 2^-32.
        eps: batch norm's epsilon, from 0 to float32's largest.
        skip_zeros: convolutions whose alpha is 0 need not be computed, and their mean and variance are 0,
            unless a gradient of alpha is wanted.
        backend: a name of `vpdarts_fast.backends.registry.BACKENDS`, or auto.

    Returns:
        The last node [V, N, C, H, W]; mean and biased variance [V, E, 2, C] of the convolutions' outputs,
        1x1 first.

    Raises:
        UserError: arguments of another type, shape or range, or no backend for the dtype and device.
    """
    check_tensor("mixed_cell", "x", x)
    check_like("mixed_cell", x, weight_1x1=weight_1x1, weight_3x3=weight_3x3)
    check_small("mixed_cell", x, alpha=alpha)
    check_seeds("mixed_cell", "skip_seed", skip_seed, x)
    eps, skip_dropout = checked_eps("mixed_cell", eps), checked_skip_dropout("mixed_cell", skip_dropout)
    check_flag("mixed_cell", "skip_zeros", skip_zeros)
    check_cell("mixed_cell", x, weight_1x1, weight_3x3, alpha)
    if x.shape[1] * x.shape[3] * x.shape[4] < 2:
        raise UserError(f"mixed_cell: x must hold two values per channel; got {list(x.shape)}")
    if skip_seed is not None:
        check_shape("mixed_cell", "skip_seed", skip_seed, (alpha.shape[1],))
    skip_zeros = skip_zeros and not (torch.is_grad_enabled() and alpha.requires_grad)
    tensors = autocast(x, weight_1x1, weight_3x3)
    implementation = registry.select("mixed_cell", tensors, backend, (alpha,))
    with without_autocast(x):
        node, mean, variance = implementation(*tensors, alpha, skip_seed, skip_dropout, eps, skip_zeros)
    return node, mean, variance
