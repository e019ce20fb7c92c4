"""`mixed_cell`'s own kernel of the backward pass: a node's gradient from all that it feeds, and its sums."""

import triton
import triton.language as tl

from vpdarts_fast.backends.triton.kernels.pixels import box_share, inside, load_tile, place, skip_scale


@triton.jit
def differentiate_node(
    node_gradient,
    parts,
    rectified_gradients,
    rectified_steps,
    later,
    later_steps,
    node,
    node_step,
    raws,
    raw_steps,
    seeds,
    last,
    factor,
    alpha,
    mean,
    pixels,
    height,
    width,
    NODE: tl.constexpr,
    WANTS_ALPHA: tl.constexpr,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient g of node j, whose values are x, and the sums of a block of pixels that its edges need.

    With the gradients g_i of the later nodes i and t_i = pool^T(g_i)::

        g = [x > 0] (d_1x1 + d_3x3) + sum_i a_skip scale_i g_i + a_pool t_i
        of a block        sum g
        of an edge into j sum g (raw - mean) of both raw outputs
        of an edge j -> i sum g_i scale_i x,  sum t_i x

    rectified_gradients: d_1x1 and d_3x3; of the last node, which feeds nothing and is None, its g alone.
    node_gradient: None where nobody wants it. parts [blocks, rows, C], rows 1 + 2j, and two for each edge
    out of j where alpha's gradient is wanted. seeds: none, or [E] int64. alpha [E, 5], mean [E, 2, C].
    Grid (blocks of pixels, blocks of channels).
    """
    start = tl.program_id(0) * BLOCK_P
    first = start.to(tl.int64)
    i = tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    y, x = place(start + i, height, width)
    here = ((start + i) < pixels)[:, None] & (c < C)[None, :]
    rows: tl.constexpr = 1 + len(raws) + (2 * len(later) if WANTS_ALPHA else 0)
    parts += first // BLOCK_P * rows * C + c
    g = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for j in tl.static_range(len(rectified_gradients)):
        g += load_tile(rectified_gradients[j], first, rectified_steps[j], i, c, here)
    if node is not None:
        value = load_tile(node, first, node_step, i, c, here)
        g = tl.where(value <= 0, 0.0, g)
    for j in tl.static_range(len(later)):
        edge = (NODE + 1 + j) * (NODE + j) // 2 + NODE
        t = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        for tap in range(9):
            dy, dx = tap // 3 - 1, tap % 3 - 1
            mask = inside(y + dy, x + dx, height, width)[:, None] & here
            near = load_tile(later[j], first + (dy * width + dx), later_steps[j], i, c, mask)
            t += box_share(y + dy, x + dx, height, width)[:, None] * near
        kept = load_tile(later[j], first, later_steps[j], i, c, here)
        if seeds is not None:
            position = ((start + i) * C)[:, None] + c[None, :]
            kept *= skip_scale(position.to(tl.uint32), tl.load(seeds + edge), last, factor)
        if node_gradient is not None:
            g += tl.load(alpha + edge * 5 + 1).to(tl.float32) * kept
            g += tl.load(alpha + edge * 5 + 4).to(tl.float32) * t
        if WANTS_ALPHA:
            part = parts + (1 + len(raws) + 2 * j) * C
            tl.store(part, tl.sum(kept * value, axis=0), mask=c < C)
            tl.store(part + C, tl.sum(t * value, axis=0), mask=c < C)
    if node_gradient is not None:
        rounded = g.to(node_gradient.dtype.element_ty)
        tl.store(node_gradient + first * C + (i * C)[:, None] + c[None, :], rounded, mask=here)
        g = rounded.to(tl.float32)  # the sums are those of what others read
    tl.store(parts, tl.sum(g, axis=0), mask=c < C)
    for j in tl.static_range(len(raws)):
        average = tl.load(mean + (NODE * (NODE - 1) + j) * C + c, mask=c < C, other=0)
        centred = load_tile(raws[j], first, raw_steps[j], i, c, here) - average[None, :]
        tl.store(parts + (1 + j) * C, tl.sum(g * centred, axis=0), mask=c < C)
