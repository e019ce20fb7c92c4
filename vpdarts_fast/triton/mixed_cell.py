"""`mixed_cell` in Triton: `relu_conv` and `mixed_sum` node by node, dropout drawn where it is used.

Of one variant, as in training, nothing is read back from the device.
"""

from __future__ import annotations

from torch import Tensor

from vpdarts_fast.pytorch.mixed_cell import node_by_node
from vpdarts_fast.triton.mixed_sum import mixed_sum_with_dropout
from vpdarts_fast.triton.relu_conv import relu_conv


def mixed_cell(
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    alpha: Tensor,
    skip_seed: Tensor | None = None,
    skip_dropout: float = 0.0,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `vpdarts_fast.reference.mixed_cell`; mean and variance have alpha's dtype."""
    seeds = skip_seed.to(x.device) if skip_seed is not None and skip_dropout > 0 else None

    def mixed_sum(
        xs: list[Tensor], raw_1x1: list[Tensor], raw_3x3: list[Tensor], table: Tensor, incoming: range
    ) -> tuple[Tensor, Tensor, Tensor]:
        some = seeds[incoming.start : incoming.stop] if seeds is not None else None
        return mixed_sum_with_dropout(xs, raw_1x1, raw_3x3, table, some, skip_dropout, eps)

    return node_by_node(x, weight_1x1, weight_3x3, alpha, relu_conv, mixed_sum)
