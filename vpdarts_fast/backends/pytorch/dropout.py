"""The skip connections' dropout in 32-bit arithmetic, which wraps around as `keep_bits` wants it."""

from __future__ import annotations

import torch
from torch import Tensor


def skip_scale(seed: Tensor, dropout: float, x: Tensor) -> Tensor:
    """See `vpdarts_fast.contract.dropout.skip_scale`. x [N, C, H, W] -> the same shape, channels last.

    seed [] int64 lies where x does and is not read back.
    """
    n, c, h, w = x.shape
    kept = round((1 - dropout) * 2**32)
    bits = torch.arange(n * h * w * c, dtype=torch.int32, device=x.device)
    bits ^= seed.to(torch.int32)  # the low word
    bits *= 0x21F0AAAD
    bits ^= _logical_shift(bits, 15)
    bits ^= (seed >> 32).to(torch.int32)
    bits *= 0x735A2D97
    bits ^= _logical_shift(bits, 16)
    bits *= 0x21F0AAAD
    bits ^= _logical_shift(bits, 15)
    bits ^= -(2**31)  # unsigned order as signed order
    below = bits < kept - 2**31 if kept < 2**32 else torch.ones_like(bits, dtype=torch.bool)
    return below.view(n, h, w, c).permute(0, 3, 1, 2).to(x.dtype) * (2**32 / kept)


def _logical_shift(bits: Tensor, count: int) -> Tensor:
    return (bits >> count).bitwise_and_(2 ** (32 - count) - 1)
