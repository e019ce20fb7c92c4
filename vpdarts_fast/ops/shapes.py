"""What the ops of cells and of residual blocks ask of their arguments' shapes."""

from __future__ import annotations

from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.ops.arguments import check_count


def check_cell(op: str, x: Tensor, weight_1x1: Tensor, weight_3x3: Tensor, alpha: Tensor) -> None:
    """Checks the shapes of a cell's arguments against each other.

    Args:
        op: named in the message.
        x: [1 or V, N, C, H, W].
        weight_1x1: [E, C, C, 1, 1].
        weight_3x3: [E, C, C, 3, 3].
        alpha: [V, E, 5], with V at least 1 and E the 1, 3, 6, 10 or 15 edges of a full cell.

    Raises:
        UserError: a tensor of another shape.
    """
    if x.dim() != 5:
        raise UserError(f"{op}: x must be [V, N, C, H, W]; got {list(x.shape)}")
    if alpha.dim() != 3 or alpha.shape[2] != 5 or alpha.shape[1] not in (1, 3, 6, 10, 15):
        raise UserError(f"{op}: alpha must be [V, E, 5], E the edges of a full cell; got {list(alpha.shape)}")
    variants, edges, _ = alpha.shape
    channels = x.shape[2]
    if x.shape[0] not in (1, variants) or variants == 0:
        raise UserError(f"{op}: x must hold 1 or V = {variants} variants; got {x.shape[0]}")
    check_count(op, "alpha", "variants", variants)
    check_shape(op, "weight_1x1", weight_1x1, (edges, channels, channels, 1, 1))
    check_shape(op, "weight_3x3", weight_3x3, (edges, channels, channels, 3, 3))


def check_residual(op: str, x: Tensor, weight_a: Tensor, weight_b: Tensor, weight_shortcut: Tensor) -> int:
    """Checks the shapes of a residual block's input and weights against each other.

    Args:
        op: named in the message.
        x: [N, C, H, W], with C, H and W at least 1.
        weight_a: [C_out, C, 3, 3], of the first convolution, with C_out at least 1.
        weight_b: [C_out, C_out, 3, 3], of the second.
        weight_shortcut: [C_out, C, 1, 1].

    Returns:
        C_out, the number of channels behind the block.

    Raises:
        UserError: a tensor of another shape.
    """
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise UserError(f"{op}: x must be [N, C, H, W], C, H and W at least 1; got {list(x.shape)}")
    if weight_a.dim() != 4 or weight_a.shape[0] == 0:
        raise UserError(f"{op}: weight_a must be [C_out, C, 3, 3]; got {list(weight_a.shape)}")
    channels, out_channels = x.shape[1], weight_a.shape[0]
    check_shape(op, "weight_a", weight_a, (out_channels, channels, 3, 3))
    check_shape(op, "weight_b", weight_b, (out_channels, out_channels, 3, 3))
    check_shape(op, "weight_shortcut", weight_shortcut, (out_channels, channels, 1, 1))
    return out_channels


def check_shape(op: str, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raises `UserError` unless the tensor has exactly this shape."""
    if tuple(tensor.shape) != expected:
        raise UserError(f"{op}: {name} must be {list(expected)}; got {list(tensor.shape)}")
