"""Batch norm with the batch's own statistics, which PyTorch's own does not return."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def batch_norm(raw: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """weight * normalised raw + bias, and raw's mean and biased variance [C].

    raw [N, C, H, W], weight [C] or [], bias [C] or none.
    """
    channels = raw.shape[1]
    mean, variance = raw.new_zeros(channels), raw.new_zeros(channels)
    scale = weight.expand(channels).contiguous()  # batch norm is slow with strides of 0
    count = raw.numel() // channels
    out = F.batch_norm(raw, mean, variance, scale, bias, training=True, momentum=1.0, eps=eps)
    return out, mean, variance * ((count - 1) / count)
