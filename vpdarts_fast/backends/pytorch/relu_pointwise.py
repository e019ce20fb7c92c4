"""`relu_pointwise` in PyTorch: one convolution, of 2x2 pixels where there are two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def relu_pointwise(x: Tensor, weights: Sequence[Tensor], stride: int = 1) -> Tensor:
    """See `vpdarts_fast.contract.reference.relu_pointwise`."""
    if len(weights) == 1:
        return F.conv2d(F.relu(x), weights[0], stride=stride)
    first, second = weights
    if x.shape[2] % 2 or x.shape[3] % 2:
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    if not torch.is_grad_enabled():
        even, odd = F.relu(x[:, :, ::2, ::2]), F.relu(x[:, :, 1::2, 1::2])
        return torch.cat([F.conv2d(even, first), F.conv2d(odd, second)], 1)
    # One convolution of 2x2 values, whose gradient is not gathered from two halves.
    weight = torch.cat([F.pad(first, (0, 1, 0, 1)), F.pad(second, (1, 0, 1, 0))])
    return F.conv2d(F.relu(x), weight, stride=2)
