"""What the kernels share: pixels of images of H x W that lie one behind the other, and the 3x3 pool.

Vectors over a block of pixels are [P], over pixels and channels [P, C].
"""

import triton
import triton.language as tl


@triton.jit
def place(pixel, height, width):
    """The row y and the column x of each pixel in its image, [P] each."""
    return pixel // width % height, pixel % width


@triton.jit
def box_share(y, x, height, width):
    """1 / (how many pixels of the 3x3 box around (y, x) lie inside the image), [P]."""
    rows = 1 + (y > 0).to(tl.int32) + (y < height - 1).to(tl.int32)
    columns = 1 + (x > 0).to(tl.int32) + (x < width - 1).to(tl.int32)
    return 1.0 / (rows * columns).to(tl.float32)


@triton.jit
def inside(y, x, height, width):
    """Whether (y, x) lies inside the image, [P]."""
    return (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def load_tile(tensor, first, step, i, c, mask):
    """Channels c of the pixels first + i, `step` elements from one to the next: float32 [P, C], 0 outside."""
    source = tensor + first * step + (i * step)[:, None] + c[None, :]
    return tl.load(source, mask=mask, other=0).to(tl.float32)


@triton.jit
def skip_scale(position, seed, last, factor):
    """What a skip connection with dropout is multiplied with: 0, or `factor` if the element is kept.

    As `vpdarts_fast.contract.dropout.keep_bits`: an element is kept if its 32 bits are at most `last`.
    position [P, C] uint32, in channels-last order; seed [] int64.
    """
    low = seed.to(tl.uint32)
    high = (seed >> 32).to(tl.uint32)
    bits = (position ^ low) * 0x21F0AAAD
    bits = (bits ^ (bits >> 15) ^ high) * 0x735A2D97
    bits = (bits ^ (bits >> 16)) * 0x21F0AAAD
    bits = bits ^ (bits >> 15)
    return tl.where(bits <= last.to(tl.uint32), factor, 0.0)
