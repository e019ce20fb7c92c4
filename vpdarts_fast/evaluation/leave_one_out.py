"""Leave-one-out evaluation: the supernet validated once per (edge, op), without that op (paper, section 3.3).

`leave_one_out` is orchestration over the ops. Its plain implementation is the loop of E*O passes; the
fused one evaluates all distinct variants together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor, nn

from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.fused_evaluation import together
from vpdarts_fast.evaluation.measuring import measured
from vpdarts_fast.evaluation.objective import Objective
from vpdarts_fast.evaluation.of_table import leave_one_out_of_table
from vpdarts_fast.evaluation.perturbation import CellTypes, Perturbation, Perturbed, leave_one_out_of_model
from vpdarts_fast.evaluation.racing import Race, Racing
from vpdarts_fast.evaluation.removal import removals
from vpdarts_fast.evaluation.validation import (
    Batch,
    BatchNorm,
    LeaveOneOut,
    Removal,
    calibration_batches,
    check_labels,
    check_options,
    checked_mask,
    checked_pair,
    one_by_one,
)
from vpdarts_fast.spaces.nas_bench_201 import EDGES, OPS, Supernet, check_alpha, pixels_of_last_stage

__all__ = [
    "Batch",
    "BatchNorm",
    "LeaveOneOut",
    "Removal",
    "distinct_variants",
    "leave_one_out",
]


NONES = torch.tensor([[op == "none" for op in OPS]] * len(EDGES), device="cpu")
"""[E, O] bool."""


def distinct_variants(alpha: Tensor, removed: Tensor, only: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Collects the tables of the base and of every removal, or `only` of some, that differs from it.

    Removing `none`, or an op whose alpha is zero, changes nothing, renormalised or not: it is the base.

    Returns:
        Tables [V, E, O], the base first, convolution removals last and the rest ordered by edge; for
        each of the E*O removals, the number of its table.
    """
    edges, ops = alpha.shape
    wanted = alpha != 0 if only is None else (alpha != 0) & only
    order = [e * ops + o for o in (1, 4, 2, 3) for e in range(edges) if wanted[e, o]]
    number = torch.zeros(edges * ops, dtype=torch.int64, device="cpu")
    number[order] = torch.arange(1, len(order) + 1, device="cpu")
    return torch.cat([alpha.detach()[None], removed[order]]), number


def _all_variants(alpha: Tensor, removed: Tensor, only: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `distinct_variants`, with a table of its own for every removal."""
    if only is None:
        return torch.cat([alpha[None], removed]), torch.arange(1, len(removed) + 1, device="cpu")
    wanted = only.flatten()
    return torch.cat([alpha[None], removed[wanted]]), wanted.cumsum(0) * wanted


@overload
def leave_one_out(
    supernet: Supernet,
    batches: Iterable[Batch],
    alpha: Tensor,
    *,
    batch_norm: BatchNorm = ...,
    removal: Removal = ...,
    batched: bool = ...,
    memory_budget: int | None = ...,
    on_batch: Callable[[int], None] | None = ...,
    cuda_graphs: bool = ...,
    racing: Racing | None = ...,
    objective: Objective | None = ...,
    only: Tensor | None = ...,
) -> LeaveOneOut: ...


@overload
def leave_one_out(
    supernet: nn.Module,
    batches: Iterable[Batch],
    alpha: Tensor,
    *,
    batch_norm: BatchNorm = ...,
    removal: Removal = ...,
    batched: bool = ...,
    memory_budget: int | None = ...,
    on_batch: Callable[[int], None] | None = ...,
    nones: Tensor | None = ...,
    racing: Racing | None = ...,
    objective: Objective | None = ...,
    only: Tensor | None = ...,
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
    racing: Racing | None = ...,
    objective: Objective | None = ...,
) -> Perturbed: ...


def leave_one_out(supernet: nn.Module, batches: Iterable[Batch], *args: Any, **options: Any) -> Any:
    """Validates a supernet without each op in turn; its parameters, buffers and modes stay as they are.

    A supernet of a space of this package takes the weights of its ops: `leave_one_out(supernet, batches,
    alpha)`; what follows is about those of NAS-Bench-201, and
    `vpdarts_fast.evaluation.of_table.leave_one_out_of_table` about all others. Any other model whose mixed
    operations are recognised (`vpdarts_fast.acceleration`) holds its alphas itself: `leave_one_out(model,
    batches)`, see `vpdarts_fast.evaluation.perturbation.leave_one_out_of_model`.

    Args:
        supernet: any mode; dropout is off while it is evaluated.
        batches: images [N, 3, H, W] and labels [N]; iterated once. Every variant sees all of them, unless ops
            race.
        *args: alpha [E, O], of supernets of this package's spaces only.
        **options: what follows, by name.
        batch_norm: `running` uses the stored statistics; `recalibrated` re-estimates them first for the
            unmodified supernet, as the average over the first batches with 250 images or more; `batch`
            uses each batch's own, per variant; `variant` re-estimates them as `recalibrated` does, for every
            variant: what the supernet without the op does once its statistics have settled.
        removal: what becomes of an edge without one of its ops. `zero` sets the op's alpha to 0 and leaves
            the others as they are, so that the edge carries less; `renormalised` scales the others up, until
            the magnitudes of the edge's alphas, `none` aside, have the sum that they had with the op. Where
            the others are 0, or so close to it that the factor is not finite, they stay as they are.
        batched: evaluate all variants together instead of in a loop over the plain modules; the same results.
        memory_budget: bytes that the activations of the variants evaluated together may take; None
            picks what is fast. With `batch` and `variant`, which take statistics of every variant, a batch
            cannot be cut, so that one variant of it is the least. The supernet's weights in the kernels'
            layout come on top.
        on_batch: called with the number of images done after each batch; may raise to stop.
        cuda_graphs: on CUDA, start each batch as one CUDA graph.
        racing: ops leave the evaluation once they cannot be their edge's most important one any more; it ends
            when that leaves one op on each edge. None: every variant sees all images.
        objective: the loss and what accuracy is (`vpdarts_fast.evaluation.objective`); None is cross-entropy
            and the share of the images that are right.
        only: [E, O] bool, of supernets of this package's spaces: the ops that are left out; all others have
            the accuracy and the loss of the unmodified supernet. None: all.

    Raises:
        UserError: no images, wrong shapes or dtypes, labels out of range, alphas that are not finite, an
            unknown `batch_norm` or `removal`, a `memory_budget` that is too small, `running` for a supernet
            that keeps no running statistics, or a CUDA graph that cannot be captured.
    """
    if isinstance(supernet, Supernet):
        return _of_supernet(supernet, batches, *args, **options)
    if args:
        return leave_one_out_of_table(supernet, batches, *args, **options)
    return leave_one_out_of_model(supernet, batches, *args, **options)


@torch.no_grad()
def _of_supernet(
    supernet: Supernet,
    batches: Iterable[Batch],
    alpha: Tensor,
    *,
    batch_norm: BatchNorm = "recalibrated",
    removal: Removal = "zero",
    batched: bool = True,
    memory_budget: int | None = None,
    on_batch: Callable[[int], None] | None = None,
    cuda_graphs: bool = True,
    racing: Racing | None = None,
    only: Tensor | None = None,
    objective: Objective | None = None,
) -> LeaveOneOut:
    check_alpha(alpha)
    only = checked_mask(only, alpha.shape, racing is not None)
    check_options(batch_norm, memory_budget, removal)
    weight = supernet.classifier.weight
    alpha = alpha.detach().to("cpu", weight.dtype)  # from here on only a look of a race waits for the device
    if not alpha.isfinite().all():
        raise UserError("alpha must be finite; got NaN or infinity: the search has diverged")
    variants = distinct_variants if batched else _all_variants
    tables, number = variants(alpha, removals(alpha, removal, NONES), only)
    number = number.view(alpha.shape)
    stream = _checked(batches, supernet, batch_norm)
    calibration = calibration_batches(stream, batch_norm)
    for images, _ in calibration:
        _check_has_statistics(images, supernet)
    if batched:
        evaluation = together(supernet, tables, batch_norm, calibration, memory_budget)
    else:
        forwards = [partial(supernet, alpha=table) for table in tables.to(weight.device)]
        evaluation = one_by_one(supernet, forwards, batch_norm, calibration)
    race = Race(racing, number) if racing else None
    with nullcontext() if batched else supernet.plain(), evaluation as logits_of:
        return measured(
            logits_of,
            number,
            chain(calibration, stream),
            race=race,
            cuda_graphs=cuda_graphs,
            on_batch=on_batch,
            objective=objective,
        )


def _checked(batches: Iterable[Any], supernet: Supernet, batch_norm: BatchNorm) -> Iterator[Batch]:
    """The batches, but for empty ones."""
    dtype = supernet.classifier.weight.dtype
    for batch in batches:
        images, labels = checked_pair(batch)
        supernet.check_images(images)
        if images.dtype != dtype:
            raise UserError(f"images must be {dtype}, like the supernet; got {images.dtype}")
        check_labels(images, labels)
        if len(labels):
            if batch_norm == "batch":
                _check_has_statistics(images, supernet)
            yield images, labels


def _check_has_statistics(images: Tensor, supernet: Supernet) -> None:
    """Two values per channel must be left after both reductions, or there is no variance."""
    count, _, height, width = images.shape
    if count * pixels_of_last_stage((height, width), supernet.stem_kind) < 2:
        raise UserError(
            f"a batch of {count} image of {height}x{width} has no variance to normalise with; use larger "
            "batches or batch_norm='running'"
        )
