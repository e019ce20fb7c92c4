"""`residual_block` of the native extension."""

from __future__ import annotations

import torch
from torch import Tensor

from vpdarts_fast import native
from vpdarts_fast.backends.cpu.masked_cell import padded_channels_last

residual_block = torch.ops.vpdarts_fast.residual_block
"""See `vpdarts_fast.contract.reference.residual_block`."""


@torch.library.register_fake("vpdarts_fast::residual_block")  # type: ignore[untyped-decorator]
def _residual_block_fake(
    x: Tensor, weight_a: Tensor, weight_b: Tensor, weight_shortcut: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    images, channels, height, width = x.shape
    shape = images, weight_a.shape[0], (height + 1) // 2, (width + 1) // 2
    return padded_channels_last(x, shape, native.cpu_lanes(channels))
