"""Leave-one-out evaluation: the supernet validated once per (edge, op), without that op (paper, section 3.3).

`leave_one_out` is orchestration over the ops. Its plain implementation is the loop of E*O passes; the
fused one evaluates all distinct variants together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor, nn

from vpdarts_fast import validation
from vpdarts_fast.errors import UserError
from vpdarts_fast.fused_evaluation import Normalisation, own_statistics, variant_logits
from vpdarts_fast.graphs import Captured, recorder_for
from vpdarts_fast.perturbation import CellTypes, Perturbation, Perturbed, leave_one_out_of_model
from vpdarts_fast.sharing import tables_on
from vpdarts_fast.spaces.nas_bench_201 import Supernet, check_alpha, pixels_of_last_stage
from vpdarts_fast.validation import (
    Batch,
    BatchNorm,
    Counts,
    LeaveOneOut,
    calibration_batches,
    check_labels,
    check_options,
    checked_pair,
)

__all__ = [
    "Batch",
    "BatchNorm",
    "Counts",
    "LeaveOneOut",
    "distinct_variants",
    "evaluation_mode",
    "leave_one_out",
]


def removals(alpha: Tensor) -> Tensor:
    """Alpha [E, O] -> [E*O, E, O]: in table e*O + o, entry (e, o) is zero."""
    edges, ops = alpha.shape
    tables = alpha.detach().repeat(edges * ops, 1, 1)
    tables.view(edges * ops, -1).fill_diagonal_(0)
    return tables


def distinct_variants(alpha: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
    """The base and every removal that differs from it.

    Removing `none`, or an op whose alpha is zero, changes nothing: it is the base.

    Returns:
        tables [V, E, O], the base first, convolution removals last and the rest ordered by edge; for
        each of the E*O removals, the number of its table.
    """
    edges, ops = alpha.shape
    order = [e * ops + o for o in (1, 4, 2, 3) for e in range(edges) if alpha[e, o] != 0]
    number = torch.zeros(edges * ops, dtype=torch.int64, device="cpu")
    number[order] = torch.arange(1, len(order) + 1, device="cpu")
    return torch.cat([alpha.detach()[None], removed[order]]), number


def _all_variants(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """As `distinct_variants`, with a table of its own for every removal."""
    tables = torch.cat([alpha[None], removals(alpha)])
    return tables, torch.arange(1, len(tables), device="cpu")


@overload
def leave_one_out(
    supernet: Supernet,
    batches: Iterable[Batch],
    alpha: Tensor,
    *,
    batch_norm: BatchNorm = ...,
    fused: bool = ...,
    memory_budget: int | None = ...,
    on_batch: Callable[[int], None] | None = ...,
    cuda_graphs: bool = ...,
) -> LeaveOneOut: ...


@overload
def leave_one_out(
    supernet: nn.Module,
    batches: Iterable[Batch],
    *,
    cells: CellTypes | None = ...,
    perturbation: Perturbation = ...,
    batch_norm: BatchNorm = ...,
    batched: bool = ...,
    memory_budget: int | None = ...,
    on_batch: Callable[[int], None] | None = ...,
    logits: Callable[[Any], Tensor] | None = ...,
) -> Perturbed: ...


def leave_one_out(supernet: nn.Module, batches: Iterable[Batch], *args: Any, **options: Any) -> Any:
    """Validates a supernet without each op in turn; its parameters, buffers and modes stay as they are.

    A `Supernet` of this package takes its alphas: `leave_one_out(supernet, batches, alpha)`. Any other model
    whose mixed operations are recognised (`vpdarts_fast.acceleration`) holds them itself:
    `leave_one_out(model, batches)`, of which `vpdarts_fast.perturbation.leave_one_out_of_model` documents
    arguments, result and errors.

    Args:
        supernet: any mode; dropout is off while it is evaluated.
        batches: images [N, 3, H, W] and labels [N]; iterated once. Every variant sees all of them.
        alpha: [E, O].
        batch_norm: `running` uses the stored statistics; `recalibrated` re-estimates them first for the
            unmodified supernet, as the average over the first batches with 250 images or more; `batch`
            uses each batch's own, per variant; `variant` re-estimates them as `recalibrated` does, for every
            variant: what the supernet without the op does once its statistics have settled.
        fused: evaluate all variants together instead of in a loop over the plain modules; the same results.
        memory_budget: bytes that the activations of the variants evaluated together may take; None
            picks what is fast. With `batch` and `variant`, which take statistics of every variant, a batch
            cannot be cut, so that one variant of it is the least. The supernet's weights in the kernels'
            layout come on top.
        on_batch: called with the number of images done after each batch; may raise to stop.
        cuda_graphs: on CUDA, start each batch as one CUDA graph.

    Raises:
        UserError: no images, wrong shapes or dtypes, labels out of range, alphas that are not finite, an
            unknown `batch_norm`, a `memory_budget` that is too small, `running` for a supernet that keeps no
            running statistics, or a CUDA graph that cannot be captured.
    """
    if isinstance(supernet, Supernet):
        return _of_supernet(supernet, batches, *args, **options)
    return leave_one_out_of_model(supernet, batches, *args, **options)


@torch.no_grad()
def _of_supernet(
    supernet: Supernet,
    batches: Iterable[Batch],
    alpha: Tensor,
    *,
    batch_norm: BatchNorm = "recalibrated",
    fused: bool = True,
    memory_budget: int | None = None,
    on_batch: Callable[[int], None] | None = None,
    cuda_graphs: bool = True,
) -> LeaveOneOut:
    check_alpha(alpha)
    check_options(batch_norm, memory_budget)
    weight = supernet.classifier.weight
    alpha = alpha.detach().to("cpu", weight.dtype)  # from here to the end nothing waits for the device
    if not alpha.isfinite().all():
        raise UserError("alpha must be finite; got NaN or infinity: the search has diverged")
    tables, number = distinct_variants(alpha, removals(alpha)) if fused else _all_variants(alpha)
    tables = tables_on(weight.device, tables)
    checked = (_checked(batch, supernet) for batch in batches)
    stream = (batch for batch in checked if len(batch[1]))
    calibration = calibration_batches(stream, batch_norm)
    counts = Counts(len(tables), supernet.num_classes, weight.device)
    images = 0

    def one_by_one(inputs: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        for v, table in enumerate(tables):
            use_statistics_of(v)
            yield slice(v, v + 1), slice(None), supernet(inputs, table)[None]

    def evaluate(inputs: Tensor, labels: Tensor) -> None:
        together = variant_logits(supernet, inputs, tables, normalisation, memory_budget) if fused else None
        for variants, piece, logits in together or one_by_one(inputs):
            counts.add(variants, logits, labels[piece])

    captured = Captured(evaluate, recorder_for(weight.device) if cuda_graphs else None)
    normalisation: Normalisation = "batch" if batch_norm == "batch" else "stored"
    own = fused and batch_norm == "variant"
    # Of statistics of their own the variants share those of the stem, which are the unmodified supernet's.
    stored: BatchNorm = "recalibrated" if own else batch_norm
    with (
        nullcontext() if fused else supernet.plain(),
        evaluation_mode(supernet, stored, calibration, tables) as use_statistics_of,
    ):
        if own:
            images_only = [images for images, _ in calibration]
            normalisation = own_statistics(supernet, images_only, tables, memory_budget)
        for inputs, labels in chain(calibration, stream):
            if batch_norm == "batch":
                _check_has_statistics(inputs)
            captured(inputs, labels)
            images += len(labels)
            if on_batch is not None:
                on_batch(images)
    if images == 0:
        raise UserError("leave_one_out: no images; `batches` was empty")
    correct, losses = counts.read()
    accuracy, loss = correct.double() * (100 / images), losses / images
    return LeaveOneOut(
        accuracy[number].view(alpha.shape),
        loss[number].view(alpha.shape),
        float(accuracy[0]),
        float(loss[0]),
        images,
    )


def _checked(batch: Any, supernet: Supernet) -> Batch:
    images, labels = checked_pair(batch)
    supernet.check_images(images)
    dtype = supernet.classifier.weight.dtype
    if images.dtype != dtype:
        raise UserError(f"images must be {dtype}, like the supernet; got {images.dtype}")
    check_labels(images, labels)
    return images, labels


def _check_has_statistics(images: Tensor) -> None:
    """Two values per channel must be left after both reductions, or there is no variance."""
    count, _, height, width = images.shape
    if count * pixels_of_last_stage((height, width)) < 2:
        raise UserError(
            f"a batch of {count} image of {height}x{width} has no variance to normalise with; use larger "
            "batches or batch_norm='running'"
        )


@contextmanager
def evaluation_mode(
    supernet: Supernet, batch_norm: BatchNorm, calibration: Sequence[Batch], tables: Tensor
) -> Iterator[validation.StatisticsOf]:
    """As `validation.evaluation_mode`, for variants with these alpha tables [V, E, O], the base first."""

    def forward(table: Tensor, images: Tensor) -> Tensor:
        _check_has_statistics(images)
        logits: Tensor = supernet(images, table)
        return logits

    forwards = [partial(forward, table) for table in tables]
    with validation.evaluation_mode(supernet, batch_norm, calibration, forwards) as use_statistics_of:
        yield use_statistics_of
