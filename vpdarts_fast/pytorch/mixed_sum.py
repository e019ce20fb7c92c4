"""`mixed_sum` in PyTorch.

node = sum_e [skip_e * x_e + a1_e * norm(raw1_e) + a3_e * norm(raw3_e)] + pool(sum_e pool_e * x_e)

The pool is linear, so it runs once a node. Without gradients, norm and alpha are one scale and one
shift per channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vpdarts_fast.pytorch.pool import avg_pool_3x3


def mixed_sum(
    xs: Sequence[Tensor],
    raw_1x1: Sequence[Tensor],
    raw_3x3: Sequence[Tensor],
    alpha: Tensor,
    skip_scale: Sequence[Tensor] = (),
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `vpdarts_fast.reference.mixed_sum`."""
    weights = alpha[..., None, None, None, None]  # [V, k, O, 1, 1, 1, 1]
    node = torch.zeros_like(xs[0])
    pooled = torch.zeros_like(xs[0])
    means, variances = [], []
    for e, x in enumerate(xs):
        node = torch.addcmul(node, x * skip_scale[e] if skip_scale else x, weights[:, e, 1])
        pooled = torch.addcmul(pooled, x, weights[:, e, 4])
        for raw, weight in ((raw_1x1[e], alpha[:, e, 2]), (raw_3x3[e], alpha[:, e, 3])):
            normalised = [_norm(slab, a, eps) for slab, a in zip(raw, weight, strict=True)]
            node = node + torch.stack([out for out, _, _ in normalised])
            means.append(torch.stack([mean for _, mean, _ in normalised]))
            variances.append(torch.stack([variance for _, _, variance in normalised]))
    node = node + avg_pool_3x3(pooled.flatten(0, 1)).view_as(node)
    shape = (*alpha.shape[:2], 2, xs[0].shape[2])
    return node, torch.stack(means, dim=1).view(shape), torch.stack(variances, dim=1).view(shape)


def _norm(raw: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """weight * batch_norm(raw), and raw's mean and biased variance. raw [N, C, H, W], weight []."""
    channels = raw.shape[1]
    mean, variance = raw.new_zeros(channels), raw.new_zeros(channels)
    scale = weight.expand(channels)
    count = raw.numel() // channels
    out = F.batch_norm(raw, mean, variance, weight=scale, training=True, momentum=1.0, eps=eps)
    return out, mean, variance * ((count - 1) / count)
