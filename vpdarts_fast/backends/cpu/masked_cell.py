"""`masked_cell` of the native extension."""

from __future__ import annotations

import torch
from torch import Tensor

from vpdarts_fast.backends.cpu.fakes import padded_channels_last, register_fake

masked_cell = torch.ops.vpdarts_fast.masked_cell
"""See `vpdarts_fast.contract.reference.masked_cell`."""


@register_fake("masked_cell", "masked_cell_tf32")
def _masked_cell_fake(x: Tensor, alpha: Tensor) -> Tensor:
    return padded_channels_last(x, (alpha.shape[0], *x.shape[1:]))
