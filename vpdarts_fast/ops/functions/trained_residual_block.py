"""`trained_residual_block`: the block between two stages, batch norms with the batch's own statistics."""

from __future__ import annotations

from torch import Tensor

from vpdarts_fast.backends import registry
from vpdarts_fast.errors import UserError
from vpdarts_fast.ops.arguments import check_like, check_small, check_tensor, checked_eps
from vpdarts_fast.ops.shapes import check_residual, check_shape
from vpdarts_fast.runtime.precision import autocast, without_autocast


def trained_residual_block(
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    weight_shortcut: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float = 1e-5,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """The block between two stages as it is trained. Differentiable but for the statistics.

    It computes what `residual_block` does, with the batch's own statistics.

    Args:
        x: [N, C, H, W].
        weight_a: [C_out, C, 3, 3], of stride 2.
        weight_b: [C_out, C_out, 3, 3].
        weight_shortcut: [C_out, C, 1, 1], behind a 2x2 average pool.
        gamma: [2, C_out], what the batch norms behind a and b multiply the normalised values with.
        beta: [2, C_out], what they add.
        eps: batch norm's epsilon, from 0 to float32's largest.
        backend: a name of `vpdarts_fast.backends.registry.BACKENDS`, or auto.

    Returns:
        [N, C_out, ceil(H/2), ceil(W/2)]; mean and biased variance [2, C_out] of the outputs of the
        convolutions a and b.

    Raises:
        UserError: arguments of another type, shape or range, or no backend for the dtype and device.
    """
    op = "trained_residual_block"
    check_tensor(op, "x", x)
    check_like(op, x, weight_a=weight_a, weight_b=weight_b, weight_shortcut=weight_shortcut)
    check_small(op, x, gamma=gamma, beta=beta)
    eps = checked_eps(op, eps)
    out_channels = check_residual(op, x, weight_a, weight_b, weight_shortcut)
    check_shape(op, "gamma", gamma, (2, out_channels))
    check_shape(op, "beta", beta, (2, out_channels))
    if x.shape[0] * -(-x.shape[2] // 2) * -(-x.shape[3] // 2) < 2:
        raise UserError(f"{op}: the output must hold two values per channel; got x of {list(x.shape)}")
    tensors, small = autocast(x, weight_a, weight_b, weight_shortcut), (gamma, beta)
    with without_autocast(x):
        out, mean, variance = registry.select(op, tensors, backend, small)(*tensors, *small, eps)
    return out, mean, variance
