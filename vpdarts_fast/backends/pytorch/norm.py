"""Batch norm with the batch's own statistics, which PyTorch's own does not return."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def batch_norm(raw: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises with the batch's statistics, and says what they were.

    Args:
        raw: [N, C, H, W], what is normalised.
        weight: [C], or [] for one factor of all channels.
        bias: [C], or none.
        eps: added to the variance.

    Returns:
        weight * normalised raw + bias [N, C, H, W]; mean and biased variance [C] of raw.
    """
    channels = raw.shape[1]
    mean, variance = raw.new_zeros(channels), raw.new_zeros(channels)
    scale = weight.expand(channels).contiguous()  # batch norm is slow with strides of 0
    count = raw.numel() // channels
    out = F.batch_norm(raw, mean, variance, scale, bias, training=True, momentum=1.0, eps=eps)
    return out, mean, variance * ((count - 1) / count)
