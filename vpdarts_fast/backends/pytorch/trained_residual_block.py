"""`trained_residual_block` in PyTorch: its convolutions, batch norms and pool."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vpdarts_fast.backends.pytorch.norm import batch_norm
from vpdarts_fast.runtime.precision import wide


def trained_residual_block(
    x: Tensor,
    weight_a: Tensor,
    weight_b: Tensor,
    weight_shortcut: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `vpdarts_fast.contract.reference.trained_residual_block`."""
    raw_a = F.conv2d(F.relu(x), weight_a, stride=2, padding=1)
    a, mean_a, variance_a = batch_norm(wide(raw_a), wide(gamma[0]), wide(beta[0]), eps)
    raw_b = F.conv2d(F.relu(a).to(x.dtype), weight_b, padding=1)
    b, mean_b, variance_b = batch_norm(wide(raw_b), wide(gamma[1]), wide(beta[1]), eps)
    out = F.conv2d(F.avg_pool2d(x, 2, ceil_mode=True), weight_shortcut) + b
    mean, variance = torch.stack([mean_a, mean_b]), torch.stack([variance_a, variance_b])
    return out.to(x.dtype), mean.to(gamma.dtype), variance.to(gamma.dtype)
