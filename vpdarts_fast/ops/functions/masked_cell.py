"""`masked_cell`: a whole cell for many alpha tables, batch norms with fixed statistics."""

from __future__ import annotations

from torch import Tensor

from vpdarts_fast.backends import registry
from vpdarts_fast.ops.arguments import check_like, check_small, check_tensor, checked_eps
from vpdarts_fast.ops.shapes import check_cell, check_shape
from vpdarts_fast.runtime.precision import autocast, without_autocast


def masked_cell(
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    mean: Tensor,
    variance: Tensor,
    alpha: Tensor,
    eps: float = 1e-5,
    *,
    backend: str = "auto",
) -> Tensor:
    """The cell's output for V variants. For inference: not differentiable.

    Fast where most variants share most of their alphas, as in leave-one-out evaluation; right for any.

    Args:
        x: [V, N, C, H, W], or [1, N, C, H, W] shared by all variants.
        weight_1x1: [E, C, C, 1, 1], edges in the order 0->1, 0->2, 1->2, ...
        weight_3x3: [E, C, C, 3, 3].
        mean: [E, 2, C], of the 1x1 and the 3x3 convolution, or [V, E, 2, C] where each variant has its own.
        variance: [E, 2, C] or [V, E, 2, C], as mean.
        alpha: [V, E, 5], columns none, skip, 1x1, 3x3, pool. What has alpha 0 need not be computed: a NaN
            that its weights would bring does not show.
        eps: batch norm's epsilon, from 0 to float32's largest.
        backend: a name of `vpdarts_fast.backends.registry.BACKENDS`, or auto.

    Returns:
        [V, N, C, H, W].

    Raises:
        UserError: arguments of another type, shape or range, or no backend for the dtype and device.
    """
    check_tensor("masked_cell", "x", x)
    check_like("masked_cell", x, weight_1x1=weight_1x1, weight_3x3=weight_3x3)
    check_small("masked_cell", x, mean=mean, variance=variance, alpha=alpha)
    eps = checked_eps("masked_cell", eps)
    check_cell("masked_cell", x, weight_1x1, weight_3x3, alpha)
    variants, edges, _ = alpha.shape
    of_each = (variants,) if mean.dim() == 4 else ()
    for name, tensor in (("mean", mean), ("variance", variance)):
        check_shape("masked_cell", name, tensor, (*of_each, edges, 2, x.shape[2]))
    tensors, small = autocast(x, weight_1x1, weight_3x3), (mean, variance, alpha)
    with without_autocast(x):
        output: Tensor = registry.select("masked_cell", tensors, backend, small)(*tensors, *small, eps)
    return output
