"""Logits of many variants of a supernet at once, through the fused ops.

The variants are stacked in front of the batch. The stem runs once for all of them, the first cell
shares what they share (`vpdarts_fast.contract.sharing`), and the stack is cut into pieces that fit a memory
budget: by images where all variants use the same fixed statistics (they stay together and share most), by
variants where each has its own, fixed or the batch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpdarts_fast.contract.sharing import some_tables, tables_on
from vpdarts_fast.evaluation.memory_budget import (
    Cut,
    Pieces,
    cell_need,
    cell_op,
    few_images,
    few_variants,
    whole_batches,
)
from vpdarts_fast.evaluation.validation import Batch, BatchNorm, LogitsOf, Piece, evaluation_mode
from vpdarts_fast.runtime.precision import autocast, wide
from vpdarts_fast.spaces.blocks import ResidualBlock, SearchCell
from vpdarts_fast.spaces.nas_bench_201 import Supernet
from vpdarts_fast.spaces.norms import Fixed

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


@contextmanager
def together(
    supernet: Supernet,
    tables: Tensor,
    batch_norm: BatchNorm,
    calibration: Sequence[Batch],
    memory_budget: int | None,
) -> Iterator[LogitsOf]:
    """Within, the variants of a supernet can be evaluated together.

    Args:
        supernet: in evaluation mode within, with the statistics that are asked for.
        tables: [V, E, O] on the CPU, of the unmodified supernet first, similar ones next to each other.
        batch_norm: as `vpdarts_fast.evaluation.leave_one_out.leave_one_out` has it.
        calibration: batches that statistics are estimated on.
        memory_budget: bytes for the activations of variants that are evaluated together; None is what is
            fast.

    Raises:
        UserError: a budget that is too small for one variant of a batch, where statistics are estimated.
    """
    pieces = pieces_of(supernet, batch_norm, memory_budget)
    alpha = tables_on(supernet.classifier.weight.device, tables)
    normalisation: Normalisation = "batch" if batch_norm == "batch" else "stored"
    # Of statistics of their own the variants share those of the stem, which are the unmodified supernet's.
    stored: BatchNorm = "recalibrated" if batch_norm == "variant" else batch_norm
    with evaluation_mode(supernet, stored, calibration, [lambda images: supernet(images, alpha[0])]):
        if batch_norm == "variant":
            estimation = pieces_of(supernet, batch_norm, memory_budget, estimates=True)
            normalisation = own_statistics(supernet, [images for images, _ in calibration], alpha, estimation)
        yield FusedVariants(supernet, alpha, normalisation, pieces).select


def pieces_of(
    supernet: Supernet, batch_norm: BatchNorm, memory_budget: int | None, *, estimates: bool = False
) -> Pieces:
    """How batches are cut; `estimates` where the statistics of each variant are still to be estimated."""
    weight = supernet.classifier.weight
    (node,) = autocast(weight.new_empty(0))  # of a node's dtype
    whole = batch_norm == "batch" or estimates
    op = cell_op(whole)
    cut: Cut = few_images
    budget = DEFAULT_BUDGET[op]
    if whole:
        cut = partial(whole_batches, batch_norm=batch_norm)
    elif batch_norm == "variant":
        cut, budget = few_variants, OWN_BUDGET
    need = cell_need(op, supernet.backend, node, supernet.channels * node.element_size())
    return Pieces(cut, need, memory_budget, GPU_BUDGET if weight.is_cuda else budget)


@dataclass(frozen=True)
class FusedVariants:
    """Variants of a supernet that are evaluated together.

    Attributes:
        supernet: in evaluation mode.
        alpha: [V, E, O], similar variants next to each other; from `sharing.tables_on`, or it is read back.
        normalisation: of the batch norms; the stem uses the supernet's statistics with `OwnStatistics`, too.
        pieces: how batches are cut.
    """

    supernet: Supernet
    alpha: Tensor
    normalisation: Normalisation
    pieces: Pieces

    def select(self, variants: Sequence[int]) -> FusedVariants:
        """Selects some of the variants, by their numbers."""
        normalisation, numbers = self.normalisation, list(variants)
        if isinstance(normalisation, OwnStatistics):
            normalisation = normalisation.some(torch.tensor(numbers, device=self.alpha.device))
        return replace(self, alpha=some_tables(self.alpha, numbers), normalisation=normalisation)

    def __call__(self, images: Tensor) -> Iterator[Piece]:
        """Computes the logits of every variant for images [N, 3, H, W], piece by piece.

        Raises:
            UserError: a budget that is too small for one variant of an image, or of all images where their
                own statistics normalise them; says the least that will do.
        """
        for some, parts in self.pieces.of(len(self.alpha), images):
            stem = self.supernet.stem(images[some].contiguous(memory_format=torch.channels_last))[None]
            for variants in parts:
                tables = some_tables(self.alpha, variants)
                if self.normalisation == "batch":
                    logits = _batch_statistics_logits(self.supernet, stem, tables)
                elif isinstance(self.normalisation, OwnStatistics):
                    own = self.normalisation.some(variants)
                    logits = _own_statistics_logits(self.supernet, stem, tables, own)
                else:
                    logits = _stored_statistics_logits(self.supernet, stem, tables)
                yield variants, some, logits


def own_statistics(
    supernet: Supernet, calibration: Sequence[Tensor], alpha: Tensor, pieces: Pieces
) -> OwnStatistics:
    """Estimates the statistics of every variant: the average, over some batches, of those of each batch.

    Args:
        supernet: in evaluation mode.
        calibration: batches of images [N, 3, H, W].
        alpha: [V, E, O], as `FusedVariants` has it.
        pieces: how variants are cut; batches are whole.

    Raises:
        UserError: a budget that is too small for one variant of a batch.
    """
    batches = [_found_in(supernet, images, alpha, pieces) for images in calibration]
    *cells, last = [(_mean([mean for mean, _ in place]), _mean([variance for _, variance in place]))
                    for place in zip(*batches, strict=True)]  # fmt: skip
    return OwnStatistics(tuple(cells), last)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).mean(0)


def _found_in(supernet: Supernet, images: Tensor, alpha: Tensor, pieces: Pieces) -> list[Fixed]:
    """Statistics of a batch, for every variant: those of each cell, then those of the last batch norm."""
    raw = supernet.stem[0](images.contiguous(memory_format=torch.channels_last))
    stem = _normalised(supernet.stem[1], raw, None)[None]
    parts: list[list[Fixed]] = []
    for _, variants in pieces.of(len(alpha), images):
        for some in variants:
            x, found = _batch_statistics_cells(supernet, stem, some_tables(alpha, some))
            variance, mean = torch.var_mean(wide(x), (1, 3, 4))  # unbiased
            parts.append([*found, (mean, variance)])
    return [(torch.cat([mean for mean, _ in place]), torch.cat([variance for _, variance in place]))
            for place in zip(*parts, strict=True)]  # fmt: skip


def _normalised(norm: nn.Module, x: Tensor, fixed: Fixed | None) -> Tensor:
    """Normalises x [N, C, H, W] by a batch norm with mean and variance [C], or the batch's own."""
    assert isinstance(norm, nn.BatchNorm2d)
    mean, variance = fixed or (None, None)
    return F.batch_norm(x, mean, variance, norm.weight, norm.bias, training=fixed is None, eps=norm.eps)


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
            x, mean, variance = cell.with_batch_statistics(x, alpha)
        else:
            assert isinstance(cell, ResidualBlock)
            blocks = [cell.with_batch_statistics(images) for images in x]
            x, mean, variance = (torch.stack(some) for some in zip(*blocks, strict=True))
        pixels = x.shape[1] * x.shape[3] * x.shape[4]
        found.append((mean, variance * (pixels / max(pixels - 1, 1))))  # unbiased, as batch norms keep it
    return x, found
