"""`relu_conv` on a GPU: one ReLU, then one convolution of each size for all edges, channels last, by cuDNN.

There is no kernel here: cuDNN's implicit GEMM reads the input once for all edges, as one of our own would,
and leaves the raw outputs side by side in one tensor, whose slices `mixed_sum` takes as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def relu_conv(x: Tensor, weight_1x1: Tensor, weight_3x3: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """See `vpdarts_fast.contract.reference.relu_conv`; the outputs of one size are slices of one tensor."""
    if len(weight_1x1) == 0:
        return [], []
    rectified = F.relu(x.contiguous(memory_format=torch.channels_last))
    raw_1x1 = F.conv2d(rectified, weight_1x1.flatten(0, 1))
    raw_3x3 = F.conv2d(rectified, weight_3x3.flatten(0, 1), padding=1)
    return list(torch.split(raw_1x1, x.shape[1], dim=1)), list(torch.split(raw_3x3, x.shape[1], dim=1))
