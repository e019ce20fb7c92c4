"""Logits of many variants of a supernet at once, through the fused ops.

The variants are stacked in front of the batch. The stem runs once for all of them, the first cell
shares what they share (`vpdarts_fast.sharing`), and the stack is cut into pieces that fit a memory
budget: by images where the statistics are fixed (all variants stay together and share most), by
variants where each batch is normalised with its own statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from vpdarts_fast import ops
from vpdarts_fast.backends import preferred
from vpdarts_fast.memory_budget import cell_need, cell_op, pieces
from vpdarts_fast.nn import ResidualBlock, SearchCell
from vpdarts_fast.precision import autocast
from vpdarts_fast.sharing import some_tables
from vpdarts_fast.spaces.nas_bench_201 import Supernet

DEFAULT_BUDGET = {"masked_cell": 96 << 20, "mixed_cell": 3 << 27}
"""Bytes; where the CPU path was fastest (benchmarks/test_leave_one_out.py)."""

GPU_BUDGET = 4 << 30
"""Bytes: a GPU has no cache to stay in, and few large launches keep it busier than many small ones."""


def variant_logits(
    supernet: Supernet, images: Tensor, alpha: Tensor, batch_statistics: bool, memory_budget: int | None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Logits of every variant for every image, piece by piece.

    Args:
        supernet: in eval mode.
        images: [N, 3, H, W].
        alpha: [V, E, O], similar variants next to each other; from `sharing.tables_on`, or it is read back.
        batch_statistics: batch norms use the statistics of `images`, per variant; else the stored ones.
        memory_budget: bytes for the activations of a piece; None is what is fast.

    Yields:
        Which variants, which images, and their logits [variants, images, classes].

    Raises:
        UserError: a budget that is too small for one variant of an image, or of all images where their own
            statistics normalise them; says the least that will do.
    """
    op = cell_op(batch_statistics)
    count, _, height, width = images.shape
    (node,) = autocast(images[:0])  # of a node's dtype
    node_bytes = supernet.channels * height * width * node.element_size()
    variants_together, images_together = pieces(
        cell_need(op, supernet.backend, node, node_bytes),
        len(alpha),
        count,
        memory_budget,
        GPU_BUDGET if images.is_cuda else DEFAULT_BUDGET[op],
        whole_batches=batch_statistics,
    )
    evaluate = _batch_statistics_logits if batch_statistics else _fixed_statistics_logits
    for i in range(0, count, max(images_together, 1)):
        piece = slice(i, min(count, i + images_together))
        stem = supernet.stem(images[piece].contiguous(memory_format=torch.channels_last))[None]
        for v in range(0, len(alpha), variants_together):
            variants = slice(v, min(len(alpha), v + variants_together))
            yield variants, piece, evaluate(supernet, stem, some_tables(alpha, variants))


def _fixed_statistics_logits(supernet: Supernet, x: Tensor, alpha: Tensor) -> Tensor:
    """x, the stem's output [1, N, C, H, W], and alpha [V, E, O] -> logits [V, N, classes]."""
    for cell in supernet.cells:
        if isinstance(cell, SearchCell):
            x = _fixed_statistics_cell(cell, x, alpha)
        else:
            assert isinstance(cell, ResidualBlock)
            reduced = fixed_statistics_residual(cell, x.flatten(0, 1))
            x = reduced.view(*x.shape[:2], *reduced.shape[1:])
    return supernet.classify(x.flatten(0, 1)).view(*x.shape[:2], -1)


def _fixed_statistics_cell(cell: SearchCell, x: Tensor, alpha: Tensor) -> Tensor:
    norms = [conv.norm for pair in cell.convolutions() for conv in pair]
    shape = (len(norms) // 2, 2, x.shape[2])  # [E, 2, C]
    return ops.masked_cell(
        x,
        *cell.convolution_weights(),
        _stacked(norms, "running_mean").view(shape),
        _stacked(norms, "running_var").view(shape),
        alpha,
        cell.norm.eps,
        backend=preferred("masked_cell", cell.backend),
    )


def fixed_statistics_residual(block: ResidualBlock, x: Tensor) -> Tensor:
    """x [N, C, H, W] -> [N, C_out, ceil(H/2), ceil(W/2)]."""
    norms = block.norms
    variance = _stacked(norms, "running_var") + norms[0].eps
    scale = _stacked(norms, "weight") / torch.sqrt(variance)
    shift = _stacked(norms, "bias") - _stacked(norms, "running_mean") * scale
    backend = preferred("residual_block", block.backend)
    return ops.residual_block(x, *block.convolution_weights(), scale, shift, backend=backend)


def _stacked(norms: Sequence[nn.BatchNorm2d], name: str) -> Tensor:
    """[M, C], a parameter or buffer that all M batch norms have."""
    return torch.stack([getattr(norm, name) for norm in norms])


def _batch_statistics_logits(supernet: Supernet, x: Tensor, alpha: Tensor) -> Tensor:
    """As `_fixed_statistics_logits`; what is not a cell normalises variant by variant."""
    for cell in supernet.cells:
        if isinstance(cell, SearchCell):
            x = _batch_statistics_cell(cell, x, alpha)
        else:
            assert isinstance(cell, ResidualBlock)
            x = torch.stack([cell.with_batch_statistics(images)[0] for images in x])
    return torch.stack([supernet.classify(images) for images in x])


def _batch_statistics_cell(cell: SearchCell, x: Tensor, alpha: Tensor) -> Tensor:
    """x [1 or V, N, C, H, W], alpha [V, E, O] -> [V, N, C, H, W]."""
    backend = preferred("mixed_cell", cell.backend)
    return ops.mixed_cell(x, *cell.convolution_weights(), alpha, eps=cell.norm.eps, backend=backend)[0]
