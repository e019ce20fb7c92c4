"""`mixed_sum`'s kernels: statistics of raw outputs, the node, and the adjoints of both.

All are bound by memory. Tensors are [V, pixels, C] with `step` elements from pixel to pixel; `raws` holds
2k of them, the 1x1 and the 3x3 output of each edge in turn. Sums over pixels are taken in two stages: each
program adds up a block of pixels, then the blocks are added up in order. So no sum depends on which program
ends first, and kernels that add up are not tuned: blocks of another size would round differently. Everything
is added up in float32.
"""

import triton
import triton.language as tl

from vpdarts_fast.backends.triton.availability import interpreted
from vpdarts_fast.backends.triton.kernels.pixels import box_share, inside, load_tile, place, skip_scale

SIZES = (4096,) if interpreted() else (1024, 512)
CONFIGS = [triton.Config({"ELEMENTS": elements}, num_warps=4) for elements in SIZES]
"""Of a block, in kernels that do not add up: in float32 two loads of 16 bytes a thread, or one."""


@triton.jit
def block_statistics(
    parts, raws, raw_steps, pixels, C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """The mean of every raw output over a block of n pixels, and its squared deviations from it.

    ::

        mean = sum raw / n,  squares = sum (raw - mean)^2

    parts [V, blocks, 2k, 2, C]; grid (blocks of pixels, 2k, V * blocks of channels).
    """
    block, which = tl.program_id(0), tl.program_id(1)
    channel_blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    v = tl.program_id(2) // channel_blocks
    c = tl.program_id(2) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    i = tl.arange(0, BLOCK_P)
    raw, step = raws[0], raw_steps[0]
    for j in tl.static_range(1, len(raws)):
        if which == j:
            raw, step = raws[j], raw_steps[j]
    start = block * BLOCK_P
    mask = ((start + i) < pixels)[:, None] & (c < C)[None, :]
    value = load_tile(raw, v.to(tl.int64) * pixels + start, step, i, c, mask)
    count = tl.minimum(pixels - start, BLOCK_P).to(tl.float32)
    mean = tl.sum(value, axis=0) / count
    difference = tl.where(mask, value - mean[None, :], 0.0)
    part = parts + ((v.to(tl.int64) * tl.num_programs(0) + block) * len(raws) + which) * 2 * C + c
    tl.store(part, mean, mask=c < C)
    tl.store(part + C, tl.sum(difference * difference, axis=0), mask=c < C)


@triton.jit
def combine_statistics(
    mean,
    variance,
    parts,
    blocks,
    pixels,
    RAWS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Joins the statistics of all blocks to those of the batch (Chan, Golub and LeVeque, 1983).

    ::

        mean = sum n_b m_b / n,  variance = sum (S_b + n_b (m_b - mean)^2) / n

    parts [V, blocks, 2k, 2, C] -> mean, variance [V, 2k, C]; grid (V * 2k, blocks of channels).
    """
    v, which = tl.program_id(0) // RAWS, tl.program_id(0) % RAWS
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    parts += (v.to(tl.int64) * blocks * RAWS + which) * 2 * C
    origin = tl.load(parts + c, mask=c < C, other=0)  # the means differ from it by little
    sums = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, blocks, BLOCK_P):
        b = start + tl.arange(0, BLOCK_P)
        mask = (b < blocks)[:, None] & (c < C)[None, :]
        part = tl.load(parts + (b * (RAWS * 2 * C))[:, None] + c[None, :], mask=mask, other=0)
        count = tl.minimum(pixels - b * BLOCK_P, BLOCK_P).to(tl.float32)
        sums += tl.where(mask, (part - origin[None, :]) * count[:, None], 0.0)
    average = origin + tl.sum(sums, axis=0) / pixels
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, blocks, BLOCK_P):
        b = start + tl.arange(0, BLOCK_P)
        mask = (b < blocks)[:, None] & (c < C)[None, :]
        part = parts + (b * (RAWS * 2 * C))[:, None] + c[None, :]
        difference = tl.load(part, mask=mask, other=0) - average[None, :]
        own = tl.load(part + C, mask=mask, other=0)
        count = tl.minimum(pixels - b * BLOCK_P, BLOCK_P).to(tl.float32)
        squares += tl.where(mask, own + difference * difference * count[:, None], 0.0)
    tl.store(mean + tl.program_id(0) * C + c, average, mask=c < C)
    tl.store(variance + tl.program_id(0) * C + c, tl.sum(squares, axis=0) / pixels, mask=c < C)


@triton.autotune(CONFIGS, key=["C", "EDGES"])
@triton.jit
def form_node(
    node,
    rectified,
    xs,
    x_steps,
    raws,
    raw_steps,
    scales,
    scale_steps,
    seeds,
    last,
    factor,
    alpha,
    mean,
    variance,
    eps,
    pixels,
    height,
    width,
    EDGES: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """The node, of k edges with their raw outputs normalised.

    ::

        node = sum_e a_skip scale_e x_e + a_1x1 norm(raw_1x1_e) + a_3x3 norm(raw_3x3_e) + pool(a_pool x_e)

    rectified: relu(node), or None where nobody wants it. scales: none, or k factors; seeds: none, or [k]
    int64 to draw them from. alpha [V, k, 5], mean and variance [V, 2k, C].
    Grid (blocks of pixels, blocks of channels, V).
    """
    BLOCK_P: tl.constexpr = ELEMENTS // BLOCK_C
    v = tl.program_id(2)
    start = tl.program_id(0) * BLOCK_P
    first = v.to(tl.int64) * pixels + start
    i = tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    y, x = place(start + i, height, width)
    here = ((start + i) < pixels)[:, None] & (c < C)[None, :]
    k: tl.constexpr = EDGES
    pooled = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for tap in range(9):
        dy, dx = tap // 3 - 1, tap % 3 - 1
        mask = inside(y + dy, x + dx, height, width)[:, None] & here
        for e in tl.static_range(k):
            value = load_tile(xs[e], first + (dy * width + dx), x_steps[e], i, c, mask)
            pooled += tl.load(alpha + (v * k + e) * 5 + 4).to(tl.float32) * value
    total = pooled * box_share(y, x, height, width)[:, None]
    for e in tl.static_range(k):
        value = load_tile(xs[e], first, x_steps[e], i, c, here)
        value *= tl.load(alpha + (v * k + e) * 5 + 1).to(tl.float32)
        if len(scales) > 0:
            value *= load_tile(scales[e], first, scale_steps[e], i, c, here)
        if seeds is not None:
            position = ((start + i) * C)[:, None] + c[None, :]
            value *= skip_scale(position.to(tl.uint32), tl.load(seeds + e), last, factor)
        total += value
    for j in tl.static_range(2 * k):
        at = (v * 2 * k + j) * C + c
        deviation = tl.sqrt(tl.load(variance + at, mask=c < C, other=1) + eps)
        scale = tl.load(alpha + (v * k + j // 2) * 5 + 2 + j % 2).to(tl.float32) / deviation
        average = tl.load(mean + at, mask=c < C, other=0)
        total += scale[None, :] * (load_tile(raws[j], first, raw_steps[j], i, c, here) - average[None, :])
    out = first * C + (i * C)[:, None] + c[None, :]
    tl.store(node + out, total.to(node.dtype.element_ty), mask=here)
    if rectified is not None:
        total = tl.maximum(total, 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(rectified + out, total.to(node.dtype.element_ty), mask=here)


@triton.jit
def reduce_gradient(
    parts,
    x_gradients,
    scale_gradients,
    gradient,
    gradient_step,
    xs,
    x_steps,
    raws,
    raw_steps,
    scales,
    scale_steps,
    seeds,
    last,
    factor,
    alpha,
    mean,
    pixels,
    height,
    width,
    WANTS_RAWS: tl.constexpr,
    WANTS_ALPHA: tl.constexpr,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The sums of a block of pixels that batch norms and alpha need, and the gradients that need no sum.

    With g the node's gradient and t = pool^T(g)::

        of a block   sum g
        of each edge sum g (raw - mean) of both raw outputs;  sum g scale x,  sum t x
        x_gradient = a_skip scale g + a_pool t,    scale_gradient = a_skip x g

    parts [V, blocks, 1 + 4k, C]; a sum that nobody wants is 0. x_gradients and scale_gradients hold k
    tensors, or None where nobody wants one. Grid (blocks of pixels, blocks of channels, V).
    """
    v = tl.program_id(2)
    start = tl.program_id(0) * BLOCK_P
    first = v.to(tl.int64) * pixels + start
    i = tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    y, x = place(start + i, height, width)
    here = ((start + i) < pixels)[:, None] & (c < C)[None, :]
    k: tl.constexpr = len(xs)
    parts += (v.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * (1 + 4 * k) * C + c
    g = load_tile(gradient, first, gradient_step, i, c, here)
    tl.store(parts, tl.sum(g, axis=0), mask=c < C)
    t = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for tap in range(9):
        dy, dx = tap // 3 - 1, tap % 3 - 1
        mask = inside(y + dy, x + dx, height, width)[:, None] & here
        value = load_tile(gradient, first + (dy * width + dx), gradient_step, i, c, mask)
        t += box_share(y + dy, x + dx, height, width)[:, None] * value
    nothing = tl.zeros([BLOCK_C], tl.float32)
    for j in tl.static_range(2 * k):
        part = parts + (1 + j) * C
        if WANTS_RAWS[j]:
            average = tl.load(mean + (v * 2 * k + j) * C + c, mask=c < C, other=0)
            centred = load_tile(raws[j], first, raw_steps[j], i, c, here) - average[None, :]
            tl.store(part, tl.sum(g * centred, axis=0), mask=c < C)
        else:
            tl.store(part, nothing, mask=c < C)
    for e in tl.static_range(k):
        a_skip = tl.load(alpha + (v * k + e) * 5 + 1).to(tl.float32)
        a_pool = tl.load(alpha + (v * k + e) * 5 + 4).to(tl.float32)
        kept = g
        if len(scales) > 0:
            kept = g * load_tile(scales[e], first, scale_steps[e], i, c, here)
        if seeds is not None:
            position = ((start + i) * C)[:, None] + c[None, :]
            kept = g * skip_scale(position.to(tl.uint32), tl.load(seeds + e), last, factor)
        out = first * C + (i * C)[:, None] + c[None, :]
        part = parts + (1 + 2 * k + 2 * e) * C
        if x_gradients[e] is not None:
            value = a_skip * kept + a_pool * t
            tl.store(x_gradients[e] + out, value.to(gradient.dtype.element_ty), mask=here)
        if WANTS_ALPHA or scale_gradients[e] is not None:
            value = load_tile(xs[e], first, x_steps[e], i, c, here)
            if WANTS_ALPHA:
                tl.store(part, tl.sum(kept * value, axis=0), mask=c < C)
                tl.store(part + C, tl.sum(t * value, axis=0), mask=c < C)
            if scale_gradients[e] is not None:
                value = a_skip * g * value
                tl.store(scale_gradients[e] + out, value.to(gradient.dtype.element_ty), mask=here)
        if not WANTS_ALPHA:
            tl.store(part, nothing, mask=c < C)
            tl.store(part + C, nothing, mask=c < C)


@triton.jit
def add_up_parts(
    totals,
    alpha_gradient,
    parts,
    blocks,
    variance,
    eps,
    ROWS: tl.constexpr,
    RAWS: tl.constexpr,
    EDGES: tl.constexpr,
    NODE: tl.constexpr,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Adds up a row of parts over the blocks, and makes the gradient of alpha of the totals.

    The gradient of alpha, column by column::

        0 | sum_c total | sum_c total / sqrt(variance + eps) of both raw outputs | sum_c total

    Rows: one; RAWS for the raw outputs of the edges into the node; two, skip and pool, for each edge out of
    it or, where NODE is None, into it. parts [V, blocks, rows, C] -> totals [V, rows, C], alpha_gradient
    [V, EDGES, 5] or None; of a whole cell, V = 1, these are all its edges. Grid (rows, V).
    """
    row, v = tl.program_id(0), tl.program_id(1)
    raw, other = row - 1, row - 1 - RAWS
    normed = (raw >= 0) & (raw < RAWS)
    column = tl.where(normed, 2 + raw % 2, 1 + other % 2 * 3)
    e = tl.where(normed, raw // 2, other // 2)
    if NODE is not None:
        target = NODE + 1 + e
        e = tl.where(normed, NODE * (NODE - 1) // 2 + e, target * (target - 1) // 2 + NODE)
    parts += (v.to(tl.int64) * blocks * ROWS + row) * C
    by_channel = tl.zeros([BLOCK_C], tl.float32)
    for channel in range(0, C, BLOCK_C):
        c = channel + tl.arange(0, BLOCK_C)
        sums = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        for start in range(0, blocks, BLOCK_P):
            b = start + tl.arange(0, BLOCK_P)
            mask = (b < blocks)[:, None] & (c < C)[None, :]
            sums += tl.load(parts + (b * (ROWS * C))[:, None] + c[None, :], mask=mask, other=0)
        total = tl.sum(sums, axis=0)
        tl.store(totals + (v * ROWS + row) * C + c, total, mask=c < C)
        at = ((v * EDGES + e) * 2 + column - 2) * C + c
        spread = tl.load(variance + at, mask=normed & (c < C), other=1) + eps
        by_channel += tl.where(normed, total / tl.sqrt(spread), total)
    if alpha_gradient is not None:
        out = alpha_gradient + (v * EDGES + e) * 5
        tl.store(out + column, tl.sum(by_channel, axis=0).to(out.dtype.element_ty), mask=row > 0)
        tl.store(out, tl.zeros([], out.dtype.element_ty), mask=(row > 0) & (column == 1))


@triton.autotune(CONFIGS, key=["C", "EDGES"])
@triton.jit
def differentiate_raws(
    raw_gradients,
    raw_gradient_steps,
    gradient,
    gradient_step,
    raws,
    raw_steps,
    alpha,
    mean,
    variance,
    totals,
    eps,
    pixels,
    ROWS: tl.constexpr,
    EDGES: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """The gradients of the raw outputs, through their batch norms.

    With s^2 = variance + eps::

        raw_gradient = a / s (g - sum g / n - (raw - mean) sum g (raw - mean) / (n s^2))

    raw_gradients hold 2k tensors, or None where nobody wants one; totals [V, rows, C], of which the first
    1 + 2k are those of this node's sums.
    Grid (blocks of pixels, blocks of channels, V).
    """
    BLOCK_P: tl.constexpr = ELEMENTS // BLOCK_C
    v = tl.program_id(2)
    start = tl.program_id(0) * BLOCK_P
    first = v.to(tl.int64) * pixels + start
    i = tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = ((start + i) < pixels)[:, None] & (c < C)[None, :]
    raw_count: tl.constexpr = 2 * EDGES
    totals += v * ROWS * C + c
    g = load_tile(gradient, first, gradient_step, i, c, here)
    g -= (tl.load(totals, mask=c < C, other=0) / pixels)[None, :]
    for j in tl.static_range(raw_count):
        if raw_gradients[j] is not None:
            at = (v * raw_count + j) * C + c
            spread = tl.load(variance + at, mask=c < C, other=1) + eps
            a = tl.load(alpha + (v * (raw_count // 2) + j // 2) * 5 + 2 + j % 2).to(tl.float32)
            along = tl.load(totals + (1 + j) * C, mask=c < C, other=0) / (pixels * spread)
            average = tl.load(mean + at, mask=c < C, other=0)
            centred = load_tile(raws[j], first, raw_steps[j], i, c, here) - average[None, :]
            value = (a / tl.sqrt(spread))[None, :] * (g - centred * along[None, :])
            step = raw_gradient_steps[j]
            out = raw_gradients[j] + first * step + (i * step)[:, None] + c[None, :]
            tl.store(out, value.to(gradient.dtype.element_ty), mask=here)
