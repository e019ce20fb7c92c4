"""`residual_block` of the native extension."""

from __future__ import annotations

import torch
from torch import Tensor

from vpdarts_fast import native
from vpdarts_fast.backends.cpu.fakes import padded_channels_last, register_fake

residual_block = torch.ops.vpdarts_fast.residual_block
"""See `vpdarts_fast.contract.reference.residual_block`."""


@register_fake("residual_block")
def _residual_block_fake(x: Tensor, weight_a: Tensor) -> Tensor:
    images, channels, height, width = x.shape
    shape = images, weight_a.shape[0], (height + 1) // 2, (width + 1) // 2
    return padded_channels_last(x, shape, native.cpu_lanes(channels))
