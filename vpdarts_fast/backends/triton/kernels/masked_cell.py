"""`masked_cell`'s kernels: batch norms and alphas folded into weights, and a node as one implicit GEMM."""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

from vpdarts_fast.backends.triton.availability import interpreted
from vpdarts_fast.backends.triton.kernels.pixels import box_share, inside, place


@triton.jit
def fold_weights(
    weight,
    bias,
    weight_1x1,
    weight_3x3,
    mean,
    variance,
    alpha,
    edges,
    rows,
    statistics,
    eps,
    C: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Folds batch norms and alphas into one convolution for each of D pairs of an edge and a row of alpha.

    ::

        W = a_3x3 W3 / s3 + a_1x1 W1 / s1 at the centre tap,  b = -a_3x3 m3 / s3 - a_1x1 m1 / s1

    weight [D, 9, PADDED in, PADDED out], 0 in the padding,
    bias [D, PADDED]; weight_1x1 [E, C, C], weight_3x3 [E, C, C, 9], mean and variance [E or V * E, 2, C], the
    row `statistics` of which it uses; alpha [V * E, 5]; edges, rows, statistics [D] int32. Grid (D, blocks of
    PADDED^2).
    """
    d = tl.program_id(0)
    across: tl.constexpr = PADDED // BLOCK_C
    i = tl.program_id(1) // across * BLOCK_C + tl.arange(0, BLOCK_C)
    o = tl.program_id(1) % across * BLOCK_C + tl.arange(0, BLOCK_C)
    edge, row = tl.load(edges + d), alpha + tl.load(rows + d) * 5
    norm = tl.load(statistics + d) * 2 * C + o
    deviation_1x1 = tl.sqrt(tl.load(variance + norm, mask=o < C, other=1).to(tl.float32) + eps)
    deviation_3x3 = tl.sqrt(tl.load(variance + norm + C, mask=o < C, other=1).to(tl.float32) + eps)
    scale_1x1 = tl.load(row + 2).to(tl.float32) / deviation_1x1
    scale_3x3 = tl.load(row + 3).to(tl.float32) / deviation_3x3
    mask = (i < C)[:, None] & (o < C)[None, :]
    at = (edge * C + o)[None, :] * C + i[:, None]
    out = weight + d.to(tl.int64) * 9 * PADDED * PADDED + i[:, None] * PADDED + o[None, :]
    for tap in tl.static_range(9):
        folded = tl.load(weight_3x3 + at * 9 + tap, mask=mask, other=0).to(tl.float32) * scale_3x3[None, :]
        if tap == 4:
            folded += tl.load(weight_1x1 + at, mask=mask, other=0).to(tl.float32) * scale_1x1[None, :]
        tl.store(out + tap * PADDED * PADDED, folded.to(weight.dtype.element_ty))
    if tl.program_id(1) < across:
        shift = tl.load(mean + norm, mask=o < C, other=0).to(tl.float32) * scale_1x1
        shift += tl.load(mean + norm + C, mask=o < C, other=0).to(tl.float32) * scale_3x3
        tl.store(bias + d * PADDED + o, -shift)


def _config(pixels: int, warps: int, stages: int, registers: int | None = None) -> triton.Config:
    return triton.Config({"BLOCK_P": pixels}, num_warps=warps, num_stages=stages, maxnreg=registers)


CONFIGS = [_config(64, 4, 2), _config(64, 8, 2), _config(128, 8, 3)]
"""The tensor cores' wide instructions need 64 rows and 4 warps at least. With 8 warps
a thread needs fewer registers, with 128 rows each weight is read half as often.
"""

EXACT = [_config(64, 4, 2, 168), _config(64, 8, 2, 128), _config(128, 8, 3, 168)]
"""For more than 16 channels of float32 without tensor cores: left to itself, ptxas takes as few registers as
let more blocks run, and spills for them.
"""


def _configs(configs: Sequence[Any], arguments: Any, **sizes: Any) -> list[triton.Config]:
    exact = sizes["PRECISION"] == "ieee" and sizes["OPERAND"] == tl.float32
    return EXACT if exact and sizes["BLOCK_C"] > 16 else CONFIGS


@triton.autotune(
    CONFIGS[:1] if interpreted() else CONFIGS,
    key=["C", "PRECISION"],
    prune_configs_by={"early_config_prune": _configs},
)
@triton.jit
def cell_node(
    node,
    values,
    numbers,
    folds,
    weight,
    bias,
    alpha,
    rows,
    pixels,
    height,
    width,
    C: tl.constexpr,
    PADDED: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A node as the sum of its edges, convolutions folded by `fold_weights`.

    ::

        node_u = sum_e W_d * relu(x_e) + b_d + a_skip x_e + pool(a_pool x_e),  d = folds[u, e]

    An implicit GEMM: the convolutions of all k edges are 9 k products [P, in] x [in, out] that add up in
    float32 registers. The same loads, before the ReLU, serve the skips and the pools.
    node [U, pixels, C]; values: k tensors [U_e, pixels, C], of which x_e is number numbers[u, e];
    numbers, folds [U, k] and rows [D] int32; weight [D, 9, PADDED, PADDED], bias [D, PADDED],
    alpha [V * E, 5]. Grid (blocks of pixels, blocks of PADDED, U).
    """
    u = tl.program_id(2)
    start = tl.program_id(0) * BLOCK_P
    p = tl.arange(0, BLOCK_P)
    o = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    y, x = place(start + p, height, width)
    here = (start + p) < pixels
    k: tl.constexpr = len(values)
    product = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    other = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    shift = tl.zeros([BLOCK_C], tl.float32)
    for e in range(k):
        value = values[0]
        for j in tl.static_range(1, k):
            value = tl.where(e == j, values[j], value)
        fold = tl.load(folds + u * k + e)
        row = alpha + tl.load(rows + fold) * 5
        a_skip, a_pool = tl.load(row + 1).to(tl.float32), tl.load(row + 4).to(tl.float32)
        pool = a_pool * box_share(y, x, height, width)
        shift += tl.load(bias + fold * PADDED + o)
        image = value + (tl.load(numbers + u * k + e).to(tl.int64) * pixels + start) * C
        for block in range(PADDED // BLOCK_C):
            i = block * BLOCK_C + tl.arange(0, BLOCK_C)
            exists = here[:, None] & (i < C)[None, :]
            tiles = image + (p * C)[:, None] + i[None, :]
            taps = weight + fold.to(tl.int64) * 9 * PADDED * PADDED + (i * PADDED)[:, None] + o[None, :]
            for tap in range(9):
                dy, dx = tap // 3 - 1, tap % 3 - 1
                mask = inside(y + dy, x + dx, height, width)[:, None] & exists
                tile = tl.load(tiles + (dy * width + dx) * C, mask=mask, other=0)
                matrix = tl.load(taps + tap * PADDED * PADDED).to(OPERAND)
                rectified = tl.maximum(tile, 0, propagate_nan=tl.PropagateNan.ALL).to(OPERAND)
                product = tl.dot(rectified, matrix, product, input_precision=PRECISION)
                share = pool + tl.where(tap == 4, a_skip, 0.0)
                if PADDED == BLOCK_C:
                    other += share[:, None] * tile
                else:
                    other += tl.where(block == tl.program_id(1), share[:, None] * tile, 0.0)
    total = product + (other + shift[None, :])
    out = node + (u.to(tl.int64) * pixels + start) * C + (p * C)[:, None] + o[None, :]
    tl.store(out, total.to(node.dtype.element_ty), mask=here[:, None] & (o < C)[None, :])
