"""`residual_block`: the block between two stages, batch norms with fixed statistics."""

from __future__ import annotations

from torch import Tensor

from vpdarts_fast import backends
from vpdarts_fast.errors import UserError
from vpdarts_fast.ops.shapes import check_shape


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
    """ReLU, conv a, batch norm, ReLU, conv b, batch norm, plus a pooled shortcut.

    For inference: not differentiable.

    Args:
        x: [N, C, H, W].
        weight_a: [C_out, C, 3, 3], of stride 2.
        weight_b: [C_out, C_out, 3, 3].
        weight_shortcut: [C_out, C, 1, 1], behind a 2x2 average pool.
        scale: [2, C_out], what the batch norms behind a and b multiply with: weight / sqrt(variance + eps).
        shift: [2, C_out], what they add: bias - mean * scale.
        backend: a name of `vpdarts_fast.backends.BACKENDS`, or auto.

    Returns:
        [N, C_out, ceil(H/2), ceil(W/2)].

    Raises:
        UserError: shapes that do not fit, or no backend for the dtype and device.
    """
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise UserError(f"residual_block: x must be [N, C, H, W], C, H and W at least 1; got {list(x.shape)}")
    if weight_a.dim() != 4 or weight_a.shape[0] == 0:
        raise UserError(f"residual_block: weight_a must be [C_out, C, 3, 3]; got {list(weight_a.shape)}")
    channels, out_channels = x.shape[1], weight_a.shape[0]
    check_shape("residual_block", "weight_a", weight_a, (out_channels, channels, 3, 3))
    check_shape("residual_block", "weight_b", weight_b, (out_channels, out_channels, 3, 3))
    check_shape("residual_block", "weight_shortcut", weight_shortcut, (out_channels, channels, 1, 1))
    check_shape("residual_block", "scale", scale, (2, out_channels))
    check_shape("residual_block", "shift", shift, (2, out_channels))
    tensors = (x, weight_a, weight_b, weight_shortcut, scale, shift)
    output: Tensor = backends.select("residual_block", tensors, backend)(*tensors)
    return output
