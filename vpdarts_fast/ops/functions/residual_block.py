"""`residual_block`: the block between two stages, batch norms with fixed statistics."""

from __future__ import annotations

from torch import Tensor

from vpdarts_fast.backends import registry
from vpdarts_fast.ops.arguments import check_like, check_small, check_tensor
from vpdarts_fast.ops.shapes import check_residual, check_shape
from vpdarts_fast.runtime.precision import autocast, without_autocast


def residual_block(
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    weight_shortcut: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """The block between two stages, its batch norms folded into a factor and a shift per channel.

    ReLU, conv a, batch norm, ReLU, conv b, batch norm, plus a pooled shortcut.

    For inference: not differentiable.

    Args:
        x: [N, C, H, W].
        weight_a: [C_out, C, 3, 3], of stride 2.
        weight_b: [C_out, C_out, 3, 3].
        weight_shortcut: [C_out, C, 1, 1], behind a 2x2 average pool.
        scale: [2, C_out], what the batch norms behind a and b multiply with: weight / sqrt(variance + eps).
        shift: [2, C_out], what they add: bias - mean * scale.
        backend: a name of `vpdarts_fast.backends.registry.BACKENDS`, or auto.

    Returns:
        [N, C_out, ceil(H/2), ceil(W/2)].

    Raises:
        UserError: arguments of another type, shape or range, or no backend for the dtype and device.
    """
    check_tensor("residual_block", "x", x)
    check_like("residual_block", x, weight_a=weight_a, weight_b=weight_b, weight_shortcut=weight_shortcut)
    check_small("residual_block", x, scale=scale, shift=shift)
    out_channels = check_residual("residual_block", x, weight_a, weight_b, weight_shortcut)
    check_shape("residual_block", "scale", scale, (2, out_channels))
    check_shape("residual_block", "shift", shift, (2, out_channels))
    tensors, small = autocast(x, weight_a, weight_b, weight_shortcut), (scale, shift)
    with without_autocast(x):
        output: Tensor = registry.select("residual_block", tensors, backend, small)(*tensors, *small)
    return output
