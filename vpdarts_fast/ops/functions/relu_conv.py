"""`relu_conv`: one ReLU, then the 1x1 and 3x3 convolutions of all edges that leave a node."""

from __future__ import annotations

from torch import Tensor

from vpdarts_fast.backends import registry
from vpdarts_fast.errors import UserError
from vpdarts_fast.ops.arguments import check_count, check_like, check_tensor
from vpdarts_fast.runtime.precision import autocast, without_autocast


def relu_conv(
    x: Tensor, weight_1x1: Tensor, weight_3x3: Tensor, *, backend: str = "auto"
) -> tuple[list[Tensor], list[Tensor]]:
    """The convolutions of relu(x) for the k edges that leave a node, before batch norm. Differentiable.

    Args:
        x: [N, C, H, W].
        weight_1x1: [k, C, C, 1, 1].
        weight_3x3: [k, C, C, 3, 3].
        backend: a name of `vpdarts_fast.backends.registry.BACKENDS`, or auto.

    Returns:
        The raw outputs of the k 1x1 and of the k 3x3 convolutions, each [N, C, H, W].

    Raises:
        UserError: arguments of another type, shape or range, or no backend for the dtype and device.
    """
    check_tensor("relu_conv", "x", x)
    check_like("relu_conv", x, weight_1x1=weight_1x1, weight_3x3=weight_3x3)
    if x.dim() != 4:
        raise UserError(f"relu_conv: x must be [N, C, H, W]; got {list(x.shape)}")
    channels = x.shape[1]
    for name, weight, kernel in (("weight_1x1", weight_1x1, 1), ("weight_3x3", weight_3x3, 3)):
        expected = (*weight_1x1.shape[:1], channels, channels, kernel, kernel)
        if tuple(weight.shape) != expected:
            raise UserError(f"relu_conv: {name} must be [k, C, C, {kernel}, {kernel}] = {list(expected)}; "
                            f"got {list(weight.shape)}")  # fmt: skip
    check_count("relu_conv", "weight_1x1", "edges", len(weight_1x1))
    tensors = autocast(x, weight_1x1, weight_3x3)
    with without_autocast(x):
        raw_1x1, raw_3x3 = registry.select("relu_conv", tensors, backend)(*tensors)
    return raw_1x1, raw_3x3
