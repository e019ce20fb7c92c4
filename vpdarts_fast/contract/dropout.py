"""The specification of a skip connection's dropout: what is drawn, as a function of a seed and a place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def keep_bits(seed: int, shape: Sequence[int]) -> Tensor:
    """32 well-mixed bits for every element of a tensor: what a skip connection's dropout is drawn with.

    A function of the seed and the element's place in channels-last order, so that nothing is stored and
    every backend draws the same: i = place xor low(seed), then multiplications, shifts and exclusive ors
    modulo 2^32.

    Args:
        seed: 64 bits.
        shape: N, C, H, W.

    Returns:
        [N, C, H, W] int64 in 0..2^32-1.
    """
    n, c, h, w = shape
    word = 2**32 - 1
    bits = (torch.arange(n * h * w * c, device="cpu") & word ^ (seed & word)) * 0x21F0AAAD & word
    bits = (bits ^ bits >> 15 ^ (seed >> 32 & word)) * 0x735A2D97 & word
    bits = (bits ^ bits >> 16) * 0x21F0AAAD & word
    return (bits ^ bits >> 15).view(n, h, w, c).permute(0, 3, 1, 2)


def skip_scale(seed: int, dropout: float, x: Tensor) -> Tensor:
    """What a skip connection with dropout multiplies x [N, C, H, W] with: 0, or 1 over the share kept.

    An element is kept if its `keep_bits` are below (1 - dropout) * 2^32, rounded.
    """
    kept = round((1 - dropout) * 2**32)
    return (keep_bits(seed, x.shape) < kept).to(x.device, x.dtype) * (2**32 / kept)
