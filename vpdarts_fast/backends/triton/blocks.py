"""How many pixels and channels a program of the memory-bound kernels works on."""

from __future__ import annotations

import triton

from vpdarts_fast.backends.triton.availability import interpreted

ELEMENTS = 4096 if interpreted() else 1024  # the interpreter's time is a program's, not an element's
"""Of a block: 8 a thread of 4 warps, two loads of 16 bytes in float32."""


def block_sizes(channels: int) -> tuple[int, int]:
    """Pixels and channels of a block, both powers of two."""
    block_c = min(triton.next_power_of_2(channels), 64)
    return ELEMENTS // block_c, block_c
