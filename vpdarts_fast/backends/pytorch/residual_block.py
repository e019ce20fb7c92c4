"""`residual_block` in PyTorch: batch norms folded into the convolutions, on a CPU a few images at a time.

What is folded is float32 or better and rounded once, to the dtype of the convolutions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vpdarts_fast.runtime.precision import wide

CACHE_BYTES = 2 << 20
"""Of the input that a CPU works on at once, so that what lies between the convolutions stays in its cache."""


def residual_block(
    x: Tensor, weight_a: Tensor, weight_b: Tensor, weight_shortcut: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    """See `vpdarts_fast.contract.reference.residual_block`."""
    weight_a, weight_b = (
        (weight * factor[:, None, None, None]).to(x.dtype).contiguous(memory_format=torch.channels_last)
        for weight, factor in zip((weight_a, weight_b), wide(scale), strict=True)
    )
    shift = shift.to(x.dtype)
    image_bytes = max(1, x[:1].numel() * x.element_size())
    together = max(1, CACHE_BYTES // image_bytes if x.device.type == "cpu" else len(x))
    parts = []
    for images in torch.split(x, together):
        a = F.conv2d(F.relu(images), weight_a, shift[0], stride=2, padding=1)
        b = F.conv2d(F.relu(a), weight_b, shift[1], padding=1)
        parts.append(b + F.conv2d(F.avg_pool2d(images, 2, ceil_mode=True), weight_shortcut))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
