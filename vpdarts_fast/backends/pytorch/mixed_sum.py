"""`mixed_sum` in PyTorch.

node = sum_e [skip_e * x_e + a1_e * norm(raw1_e) + a3_e * norm(raw3_e)] + pool(sum_e pool_e * x_e)

The pool is linear, so it runs once a node. Without gradients, norm and alpha are one scale and one
shift per channel. Of half precision the sums are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vpdarts_fast.backends.pytorch.dropout import skip_scale
from vpdarts_fast.backends.pytorch.norm import batch_norm
from vpdarts_fast.backends.pytorch.pool import avg_pool_3x3
from vpdarts_fast.runtime.precision import wide


def mixed_sum(
    xs: Sequence[Tensor],
    raw_1x1: Sequence[Tensor],
    raw_3x3: Sequence[Tensor],
    alpha: Tensor,
    skip_scale: Sequence[Tensor] = (),
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `vpdarts_fast.contract.reference.mixed_sum`."""
    nodes, statistics = [], []
    by_variant = zip(*(zip(*map(_slabs, some), strict=True) for some in (xs, raw_1x1, raw_3x3)), strict=True)
    scales = list(zip(*map(_slabs, skip_scale), strict=True)) or [()] * len(alpha)
    for table, (sources, raws_1x1, raws_3x3), scale in zip(wide(alpha), by_variant, scales, strict=True):
        skips = [x * s for x, s in zip(sources, scale, strict=True)] if scale else sources
        node = wide(skips[0]) * table[0, 1]
        pooled = wide(sources[0]) * table[0, 4]
        for e in range(1, len(xs)):
            node = torch.addcmul(node, skips[e], table[e, 1])
            pooled = torch.addcmul(pooled, sources[e], table[e, 4])
        node = node + avg_pool_3x3(pooled)  # not in place: under `torch.vmap` the term may be a batch
        for row, *raws in zip(table, raws_1x1, raws_3x3, strict=True):
            for raw, weight in zip(raws, row[2:4], strict=True):
                term, mean, variance = batch_norm(wide(raw), weight, None, eps)
                node = node + term
                statistics.append(torch.stack([mean, variance]))
        nodes.append(node.to(xs[0].dtype))
    shape = (*alpha.shape[:2], 2, 2, xs[0].shape[2])
    mean, variance = torch.stack(statistics).view(shape).to(alpha.dtype).unbind(3)
    return nodes[0].unsqueeze(0) if len(nodes) == 1 else torch.stack(nodes), mean, variance


def mixed_sum_with_dropout(
    xs: Sequence[Tensor],
    raw_1x1: Sequence[Tensor],
    raw_3x3: Sequence[Tensor],
    alpha: Tensor,
    skip_seed: Tensor | None,
    skip_dropout: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`mixed_sum` with skip_scale of skip_seed [k] int64, the same for all variants, or without it."""
    scales = []
    if skip_seed is not None:
        scales = [
            skip_scale(seed, skip_dropout, wide(xs[0][0])).expand_as(x)
            for seed, x in zip(skip_seed, xs, strict=True)
        ]
    return mixed_sum(xs, raw_1x1, raw_3x3, alpha, scales, eps)


def _slabs(x: Tensor) -> Sequence[Tensor]:
    """[V, N, C, H, W] -> V tensors [N, C, H, W]; for V = 1 a view whose gradient is a view too."""
    return (x.squeeze(0),) if len(x) == 1 else x.unbind(0)
