"""`relu_pointwise`: ReLU and a 1x1 convolution, or the two of a factorised reduce."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vpdarts_fast.backends import registry
from vpdarts_fast.errors import UserError
from vpdarts_fast.ops.arguments import check_integer, check_lists, check_tensor
from vpdarts_fast.ops.shapes import check_shape
from vpdarts_fast.runtime.precision import autocast, without_autocast

OP = "relu_pointwise"


def relu_pointwise(x: Tensor, weights: Sequence[Tensor], stride: int = 1, *, backend: str = "auto") -> Tensor:
    """One or two 1x1 convolutions of relu(x) side by side, before batch norm. Differentiable.

    One is the convolution between the cells of a DARTS network, two at stride 2 are a factorised reduce: the
    second one reads the pixel that is one further in both directions, and zero where that is outside.

    Args:
        x: [N, C, H, W].
        weights: of one convolution, or at stride 2 of one or two, each [C_i, C, 1, 1].
        stride: 1 or 2.
        backend: a name of `vpdarts_fast.backends.registry.BACKENDS`, or auto.

    Returns:
        [N, sum of C_i, ceil(H / stride), ceil(W / stride)].

    Raises:
        UserError: arguments of another type, shape or range, or no backend for the dtype and device.
    """
    check_tensor(OP, "x", x)
    check_lists(OP, x, weights=weights)
    check_integer(OP, "stride", stride, (1, 2))
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise UserError(f"{OP}: x must be [N, C, H, W], C, H and W at least 1; got {list(x.shape)}")
    if len(weights) not in range(1, stride + 1):
        most = "one tensor" if stride == 1 else "one or two tensors"
        raise UserError(f"{OP}: weights must hold {most} at stride {stride}; got {len(weights)}")
    for i, weight in enumerate(weights):
        if weight.dim() != 4 or weight.shape[0] == 0:
            raise UserError(f"{OP}: weights[{i}] must be [C_i, C, 1, 1]; got {list(weight.shape)}")
        check_shape(OP, f"weights[{i}]", weight, (weight.shape[0], x.shape[1], 1, 1))
    x, *cast = autocast(x, *weights)
    with without_autocast(x):
        out: Tensor = registry.select(OP, (x, *cast), backend)(x, cast, stride)
    return out
