"""`mixed_sum`: the weighted sum of all edges that enter a node, with the batch's own statistics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from torch import Tensor

from vpdarts_fast.backends import registry
from vpdarts_fast.errors import UserError
from vpdarts_fast.ops.arguments import (
    check_count,
    check_lists,
    check_sequence,
    check_small,
    check_tensor,
    checked_eps,
)
from vpdarts_fast.runtime.precision import autocast, without_autocast


def mixed_sum(
    xs: Sequence[Tensor],
    raw_1x1: Sequence[Tensor],
    raw_3x3: Sequence[Tensor],
    alpha: Tensor,
    skip_scale: Sequence[Tensor] = (),
    eps: float = 1e-5,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """A node of V variants from its k incoming edges (paper, Eq. 3). Differentiable but for the statistics.

    Args:
        xs: k source nodes, each [V, N, C, H, W].
        raw_1x1: k outputs of `relu_conv`, each [V, N, C, H, W].
        raw_3x3: likewise.
        alpha: [V, k, 5], columns none, skip, 1x1, 3x3, pool.
        skip_scale: none, or k factors on the skip connections (dropout), each [V, N, C, H, W].
        eps: batch norm's epsilon, from 0 to float32's largest.
        backend: a name of `vpdarts_fast.backends.registry.BACKENDS`, or auto.

    Returns:
        node [V, N, C, H, W]; mean and biased variance [V, k, 2, C] of the raw outputs, 1x1 first.

    Raises:
        UserError: arguments of another type, shape or range, or no backend for the dtype and device.
    """
    for name, tensors in (("xs", xs), ("raw_1x1", raw_1x1), ("raw_3x3", raw_3x3), ("skip_scale", skip_scale)):
        check_sequence("mixed_sum", name, tensors)
    eps = checked_eps("mixed_sum", eps)
    k = len(xs)
    if k == 0 or len(raw_1x1) != k or len(raw_3x3) != k or len(skip_scale) not in (0, k):
        raise UserError(
            f"mixed_sum: expected as many raw_1x1, raw_3x3 (and skip_scale or none) as xs, at least one; "
            f"got {k}, {len(raw_1x1)}, {len(raw_3x3)}, {len(skip_scale)}"
        )
    check_tensor("mixed_sum", "xs[0]", xs[0])
    check_lists("mixed_sum", xs[0], xs=xs, raw_1x1=raw_1x1, raw_3x3=raw_3x3, skip_scale=skip_scale)
    check_small("mixed_sum", xs[0], alpha=alpha)
    shape = xs[0].shape
    if len(shape) != 5:
        raise UserError(f"mixed_sum: xs must be [V, N, C, H, W]; got {list(shape)}")
    if shape[0] == 0 or shape[1] * shape[3] * shape[4] < 2:
        raise UserError(f"mixed_sum: xs must hold a variant, and two values per channel; got {list(shape)}")
    for name, tensors in (("xs", xs), ("raw_1x1", raw_1x1), ("raw_3x3", raw_3x3), ("skip_scale", skip_scale)):
        for e, tensor in enumerate(tensors):
            if tensor.shape != shape:
                raise UserError(f"mixed_sum: {name}[{e}] must be {list(shape)}; got {list(tensor.shape)}")
    if tuple(alpha.shape) != (shape[0], k, 5):
        raise UserError(f"mixed_sum: alpha must be [V, k, 5] = {[shape[0], k, 5]}; got {list(alpha.shape)}")
    check_count("mixed_sum", "alpha", "variants", shape[0])
    terms = [autocast(*tensors) for tensors in (xs, raw_1x1, raw_3x3, skip_scale)]
    implementation = registry.select("mixed_sum", list(chain(*terms)), backend, (alpha,))
    with without_autocast(xs[0]):
        node, mean, variance = implementation(*terms[:3], alpha, terms[3], eps)
    return node, mean, variance
