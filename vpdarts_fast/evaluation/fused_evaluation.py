"""Logits of many variants of a supernet at once, through the fused ops.

The variants are stacked in front of the batch. The stem runs once for all of them, the first cell
shares what they share (`vpdarts_fast.contract.sharing`), and the stack is cut into pieces that fit a memory
budget: by images where all variants use the same fixed statistics (they stay together and share most), by
variants where each has its own, fixed or the batch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpdarts_fast import ops
from vpdarts_fast.backends.registry import preferred
from vpdarts_fast.contract.sharing import some_tables
from vpdarts_fast.evaluation.memory_budget import Need, cell_need, few_images, few_variants, whole_batches
from vpdarts_fast.runtime.precision import autocast, wide
from vpdarts_fast.spaces.blocks import Fixed, ResidualBlock, SearchCell
from vpdarts_fast.spaces.nas_bench_201 import Supernet

DEFAULT_BUDGET = {"masked_cell": 96 << 20, "mixed_cell": 3 << 27}
"""Bytes; where the CPU path was fastest (benchmarks/test_leave_one_out.py)."""

OWN_BUDGET = 256 << 20
"""Bytes, likewise, where each variant has its own statistics: these are folded into weights once a piece, so
that it has to hold many images, and many variants share much of the first cell.
"""

GPU_BUDGET = 4 << 30
"""Bytes: a GPU has no cache to stay in, and few large launches keep it busier than many small ones."""


@dataclass(frozen=True)
class OwnStatistics:
    """What the batch norms behind the stem use, for each of V variants.

    Attributes:
        cells: of each of the supernet's cells: mean and variance, [V, E, 2, C] of a search cell and [V, 2, C]
            of a residual block.
        last: of the batch norm in front of the classifier, [V, C] each.
    """

    cells: tuple[Fixed, ...]
    last: Fixed

    def some(self, variants: slice | Tensor) -> OwnStatistics:
        """Selects the statistics of some of the variants, by a slice or by their numbers."""
        return OwnStatistics(
            tuple((mean[variants], variance[variants]) for mean, variance in self.cells),
            (self.last[0][variants], self.last[1][variants]),
        )


Normalisation = Literal["stored", "batch"] | OwnStatistics
"""What batch norms use: the supernet's statistics, the batch's for each variant, or each variant's own."""


def variant_logits(
    supernet: Supernet,
    images: Tensor,
    alpha: Tensor,
    normalisation: Normalisation,
    memory_budget: int | None,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Computes the logits of every variant for every image, piece by piece.

    Args:
        supernet: in eval mode.
        images: [N, 3, H, W].
        alpha: [V, E, O], similar variants next to each other; from `sharing.tables_on`, or it is read back.
        normalisation: of the batch norms; the stem uses the supernet's statistics with `OwnStatistics`, too.
        memory_budget: bytes for the activations of a piece; None is what is fast.

    Yields:
        Which variants, which images, and their logits [variants, images, classes].

    Raises:
        UserError: a budget that is too small for one variant of an image, or of all images where their own
            statistics normalise them; says the least that will do.
    """
    count = len(images)
    if normalisation == "batch":
        variants_together, images_together = _whole_batches(supernet, images, alpha, "batch", memory_budget)
    else:
        own = isinstance(normalisation, OwnStatistics)
        cut, budget = (few_variants, OWN_BUDGET) if own else (few_images, DEFAULT_BUDGET["masked_cell"])
        need = _cell_need(supernet, "masked_cell", images)
        limits = memory_budget, GPU_BUDGET if images.is_cuda else budget
        variants_together, images_together = cut(need, len(alpha), count, *limits)
    for i in range(0, count, max(images_together, 1)):
        piece = slice(i, min(count, i + images_together))
        stem = supernet.stem(images[piece].contiguous(memory_format=torch.channels_last))[None]
        for v in range(0, len(alpha), variants_together):
            variants = slice(v, min(len(alpha), v + variants_together))
            tables = some_tables(alpha, variants)
            if normalisation == "batch":
                logits = _batch_statistics_logits(supernet, stem, tables)
            elif isinstance(normalisation, OwnStatistics):
                logits = _own_statistics_logits(supernet, stem, tables, normalisation.some(variants))
            else:
                logits = _stored_statistics_logits(supernet, stem, tables)
            yield variants, piece, logits


def own_statistics(
    supernet: Supernet, calibration: Sequence[Tensor], alpha: Tensor, memory_budget: int | None
) -> OwnStatistics:
    """Estimates the statistics of every variant: the average, over some batches, of those of each batch.

    Args:
        supernet: in eval mode.
        calibration: batches of images [N, 3, H, W].
        alpha: [V, E, O], as `variant_logits` takes it.
        memory_budget: bytes for the activations of the variants evaluated together; None is what is fast.

    Raises:
        UserError: a budget that is too small for one variant of a batch.
    """
    batches = [_found_in(supernet, images, alpha, memory_budget) for images in calibration]
    *cells, last = [(_mean([mean for mean, _ in place]), _mean([variance for _, variance in place]))
                    for place in zip(*batches, strict=True)]  # fmt: skip
    return OwnStatistics(tuple(cells), last)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).mean(0)


def _found_in(supernet: Supernet, images: Tensor, alpha: Tensor, memory_budget: int | None) -> list[Fixed]:
    """Statistics of a batch, for every variant: those of each cell, then those of the last batch norm."""
    raw = supernet.stem[0](images.contiguous(memory_format=torch.channels_last))
    stem = _normalised(supernet.stem[1], raw, None)[None]
    together, _ = _whole_batches(supernet, images, alpha, "variant", memory_budget)
    parts: list[list[Fixed]] = []
    for v in range(0, len(alpha), together):
        x, found = _batch_statistics_cells(supernet, stem, some_tables(alpha, slice(v, v + together)))
        variance, mean = torch.var_mean(wide(x), (1, 3, 4))  # unbiased
        parts.append([*found, (mean, variance)])
    return [(torch.cat([mean for mean, _ in place]), torch.cat([variance for _, variance in place]))
            for place in zip(*parts, strict=True)]  # fmt: skip


def _normalised(norm: nn.Module, x: Tensor, fixed: Fixed | None) -> Tensor:
    """Normalises x [N, C, H, W] by a batch norm with mean and variance [C], or the batch's own."""
    assert isinstance(norm, nn.BatchNorm2d)
    mean, variance = fixed or (None, None)
    return F.batch_norm(x, mean, variance, norm.weight, norm.bias, training=fixed is None, eps=norm.eps)


def _cell_need(supernet: Supernet, op: str, images: Tensor) -> Need:
    (node,) = autocast(images[:0])  # of a node's dtype
    node_bytes = supernet.channels * images.shape[2] * images.shape[3] * node.element_size()
    return cell_need(op, supernet.backend, node, node_bytes)


def _whole_batches(
    supernet: Supernet, images: Tensor, alpha: Tensor, batch_norm: str, memory_budget: int | None
) -> tuple[int, int]:
    """How many variants are evaluated together, all images at once."""
    need = _cell_need(supernet, "mixed_cell", images)
    budget = GPU_BUDGET if images.is_cuda else DEFAULT_BUDGET["mixed_cell"]
    return whole_batches(need, len(alpha), len(images), memory_budget, budget, batch_norm)


def _stored_statistics_logits(supernet: Supernet, x: Tensor, alpha: Tensor) -> Tensor:
    """x, the stem's output [1, N, C, H, W], and alpha [V, E, O] -> logits [V, N, classes]."""
    for cell in supernet.cells:
        if isinstance(cell, SearchCell):
            x = cell.with_fixed_statistics(x, alpha)
        else:
            assert isinstance(cell, ResidualBlock)
            reduced = cell.with_fixed_statistics(x.flatten(0, 1))
            x = reduced.view(*x.shape[:2], *reduced.shape[1:])
    return supernet.classify(x.flatten(0, 1)).view(*x.shape[:2], -1)


def _own_statistics_logits(supernet: Supernet, x: Tensor, alpha: Tensor, statistics: OwnStatistics) -> Tensor:
    """As `_stored_statistics_logits`; what is not a cell is normalised variant by variant."""
    for cell, fixed in zip(supernet.cells, statistics.cells, strict=True):
        if isinstance(cell, SearchCell):
            x = cell.with_fixed_statistics(x, alpha, fixed)
        else:
            assert isinstance(cell, ResidualBlock)
            blocks = zip(x, zip(*fixed, strict=True), strict=True)
            x = torch.stack([cell.with_fixed_statistics(images, some) for images, some in blocks])
    logits = []
    for images, mean, variance in zip(x, *statistics.last, strict=True):
        normalised = _normalised(supernet.lastact[0], images, (mean, variance))
        logits.append(supernet.classify_activated(F.relu(normalised)))
    return torch.stack(logits)


def _batch_statistics_logits(supernet: Supernet, x: Tensor, alpha: Tensor) -> Tensor:
    """As `_stored_statistics_logits`, with the statistics that the batch has, variant by variant."""
    x, _ = _batch_statistics_cells(supernet, x, alpha)
    return torch.stack([supernet.classify(images) for images in x])


def _batch_statistics_cells(supernet: Supernet, x: Tensor, alpha: Tensor) -> tuple[Tensor, list[Fixed]]:
    """The last cell's output [V, N, 4C, H, W], and what the batch norms of every cell have found."""
    found: list[Fixed] = []
    for cell in supernet.cells:
        if isinstance(cell, SearchCell):
            backend = preferred("mixed_cell", cell.backend)
            weights = cell.convolution_weights()
            x, mean, variance = ops.mixed_cell(
                x, *weights, alpha, eps=cell.norm.eps, skip_zeros=True, backend=backend
            )
        else:
            assert isinstance(cell, ResidualBlock)
            blocks = [cell.with_batch_statistics(images) for images in x]
            x, mean, variance = (torch.stack(some) for some in zip(*blocks, strict=True))
        pixels = x.shape[1] * x.shape[3] * x.shape[4]
        found.append((mean, variance * (pixels / max(pixels - 1, 1))))  # unbiased, as batch norms keep it
    return x, found
