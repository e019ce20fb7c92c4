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

from vpdarts_fast.contract.sharing import index, tables_on
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation import validation
from vpdarts_fast.evaluation.fused_evaluation import (
    Normalisation,
    OwnStatistics,
    own_statistics,
    variant_logits,
)
from vpdarts_fast.evaluation.of_table import leave_one_out_of_table
from vpdarts_fast.evaluation.perturbation import CellTypes, Perturbation, Perturbed, leave_one_out_of_model
from vpdarts_fast.evaluation.racing import Race, Racing
from vpdarts_fast.evaluation.removal import removals
from vpdarts_fast.evaluation.validation import (
    Batch,
    BatchNorm,
    Counts,
    LeaveOneOut,
    Removal,
    calibration_batches,
    check_labels,
    check_options,
    checked_pair,
)
from vpdarts_fast.runtime.graphs import Captured, Recorder, recorder_for
from vpdarts_fast.spaces.nas_bench_201 import EDGES, OPS, Supernet, check_alpha, pixels_of_last_stage

__all__ = [
    "Batch",
    "BatchNorm",
    "Counts",
    "LeaveOneOut",
    "Removal",
    "distinct_variants",
    "evaluation_mode",
    "leave_one_out",
]


NONES = torch.tensor([[op == "none" for op in OPS]] * len(EDGES), device="cpu")
"""[E, O] bool."""


def distinct_variants(alpha: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
    """Collects the tables of the base and of every removal that differs from it.

    Removing `none`, or an op whose alpha is zero, changes nothing, renormalised or not: it is the base.

    Returns:
        Tables [V, E, O], the base first, convolution removals last and the rest ordered by edge; for
        each of the E*O removals, the number of its table.
    """
    edges, ops = alpha.shape
    order = [e * ops + o for o in (1, 4, 2, 3) for e in range(edges) if alpha[e, o] != 0]
    number = torch.zeros(edges * ops, dtype=torch.int64, device="cpu")
    number[order] = torch.arange(1, len(order) + 1, device="cpu")
    return torch.cat([alpha.detach()[None], removed[order]]), number


def _all_variants(alpha: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
    """As `distinct_variants`, with a table of its own for every removal."""
    return torch.cat([alpha[None], removed]), torch.arange(1, len(removed) + 1, device="cpu")


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
) -> LeaveOneOut:
    check_alpha(alpha)
    check_options(batch_norm, memory_budget, removal)
    weight = supernet.classifier.weight
    alpha = alpha.detach().to("cpu", weight.dtype)  # from here on only a look of a race waits for the device
    if not alpha.isfinite().all():
        raise UserError("alpha must be finite; got NaN or infinity: the search has diverged")
    tables, number = (distinct_variants if batched else _all_variants)(alpha, removals(alpha, removal, NONES))
    race = Race(racing, number.view(alpha.shape)) if racing else None
    checked = (_checked(batch, supernet) for batch in batches)
    stream = (batch for batch in checked if len(batch[1]))
    calibration = calibration_batches(stream, batch_norm)
    recorder = recorder_for(weight.device) if cuda_graphs else None
    totals = Totals(len(tables))
    with (
        nullcontext() if batched else supernet.plain(),
        _logits(supernet, tables, calibration, batch_norm, batched, memory_budget) as logits_of,
    ):
        part = Part(range(len(tables)), logits_of, supernet, racing, recorder)
        for inputs, labels in chain(calibration, stream):
            if batch_norm == "batch":
                _check_has_statistics(inputs)
            part.add(inputs, labels)
            seen = totals.seen + part.images
            if on_batch is not None:
                on_batch(seen)
            if race is not None and race.look_is_due(seen):
                totals.add(part)
                race.look(part.images, *part.moments())
                part = Part(race.running, logits_of, supernet, racing, recorder)
                if race.over:
                    break
    totals.add(part)
    if totals.seen == 0:
        raise UserError("leave_one_out: no images; `batches` was empty")
    accuracy, loss = totals.means()
    return LeaveOneOut(
        accuracy[number].view(alpha.shape),
        loss[number].view(alpha.shape),
        float(accuracy[0]),
        float(loss[0]),
        totals.seen,
        race.images_of_ops(totals.seen) if race else None,
    )


Piece = tuple[slice, slice, Tensor]
"""Which variants, which images of a batch, and their logits [variants, images, classes]."""

LogitsOf = Callable[[Sequence[int]], Callable[[Tensor], Iterable[Piece]]]
"""Of some variants, in ascending order, what computes their logits for images [N, 3, H, W]."""


@contextmanager
def _logits(
    supernet: Supernet,
    tables: Tensor,
    calibration: Sequence[Batch],
    batch_norm: BatchNorm,
    batched: bool,
    memory_budget: int | None,
) -> Iterator[LogitsOf]:
    """Logits of the variants with alpha tables [V, E, O], the base first, in evaluation mode."""
    device = supernet.classifier.weight.device
    everywhere = tables_on(device, tables)
    own = batched and batch_norm == "variant"
    # Of statistics of their own the variants share those of the stem, which are the unmodified supernet's.
    stored: BatchNorm = "recalibrated" if own else batch_norm
    with evaluation_mode(supernet, stored, calibration, everywhere) as use_statistics_of:
        normalisation: Normalisation = "batch" if batch_norm == "batch" else "stored"
        if own:
            images_only = [images for images, _ in calibration]
            normalisation = own_statistics(supernet, images_only, everywhere, memory_budget)

        def together(variants: Sequence[int]) -> Callable[[Tensor], Iterable[Piece]]:
            chosen = tables_on(device, tables[list(variants)])
            norms = normalisation
            if isinstance(norms, OwnStatistics):
                norms = norms.some(index(tuple(variants), device))
            return lambda images: variant_logits(supernet, images, chosen, norms, memory_budget)

        def one_by_one(variants: Sequence[int]) -> Callable[[Tensor], Iterable[Piece]]:
            def logits(images: Tensor) -> Iterator[Piece]:
                for place, variant in enumerate(variants):
                    use_statistics_of(variant)
                    yield slice(place, place + 1), slice(None), supernet(images, everywhere[variant])[None]

            return logits

        yield together if batched else one_by_one


class Part:
    """Some variants, and what they make of the images of a part of an evaluation.

    Attributes:
        variants: their numbers, in ascending order.
        images: how many they have seen.
    """

    def __init__(
        self,
        variants: Sequence[int],
        logits_of: LogitsOf,
        supernet: Supernet,
        racing: Racing | None,
        recorder: Recorder | None,
    ) -> None:
        device = supernet.classifier.weight.device
        self.variants, self.images = list(variants), 0
        self._logits, self._scores_of = logits_of(variants), racing.scores if racing else None
        self._counts = Counts(len(variants), supernet.num_classes, device)
        self._products = torch.zeros(len(variants), len(variants), dtype=torch.float64, device=device)
        self._evaluate_captured = Captured(self._evaluate, recorder)

    def add(self, inputs: Tensor, labels: Tensor) -> None:
        """Evaluates a batch more: images [N, 3, H, W] and labels [N] int64."""
        self._evaluate_captured(inputs, labels)
        self.images += len(labels)

    def _evaluate(self, inputs: Tensor, labels: Tensor) -> None:
        scores = self._products.new_zeros(len(self.variants), len(labels))
        for variants, piece, logits in self._logits(inputs):
            right, losses = self._counts.add(variants, logits, labels[piece])
            if self._scores_of:
                scores[variants, piece] = self._scores_of(losses, right)
        if self._scores_of:
            self._products.add_(scores @ scores.T)

    def sums(self) -> Tensor:
        """Sums of right predictions and losses [2, R] float64, on the CPU.

        Raises:
            UserError: a label is out of range.
        """
        correct, losses = self._counts.read()
        return torch.stack([correct.double(), losses])

    def moments(self) -> tuple[Tensor, Tensor]:
        """Sums and products of the scores, [R] and [R, R], as `Race.look` takes them."""
        correct, losses = self.sums()
        assert self._scores_of is not None
        return self._scores_of(losses, correct), self._products.cpu()


class Totals:
    """What V variants have predicted, each on as many images as it has been evaluated on.

    Attributes:
        seen: on how many the unmodified supernet, the first variant, has been.
    """

    def __init__(self, variants: int) -> None:
        self.seen = 0
        self._images = torch.zeros(variants, dtype=torch.int64, device="cpu")
        self._sums, self._sums_of_base = torch.zeros(2, 2, variants, dtype=torch.float64, device="cpu")

    def add(self, part: Part) -> None:
        """Adds what variants, the first among them, have predicted since they were added last."""
        self.seen += part.images
        self._images[part.variants] += part.images
        self._sums[:, part.variants] += part.sums()
        self._sums_of_base[:, part.variants] = self._sums[:, :1]

    def means(self) -> tuple[Tensor, Tensor]:
        """Accuracy in per cent and loss, [V] float64 each.

        For a variant that has seen fewer images than the base, they are what the base has on all, with the
        difference from the base on the images seen added to it. So easy images make no op look unimportant.
        """
        means, of_base = self._sums / self._images, self._sums_of_base / self._images
        correct, loss = means + (means[:, :1] - of_base)
        return (100 * correct).clamp(0, 100), loss.clamp_min(0)


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
    """Does what `validation.evaluation_mode` does, for alpha tables [V, E, O], the base first."""

    def forward(table: Tensor, images: Tensor) -> Tensor:
        _check_has_statistics(images)
        logits: Tensor = supernet(images, table)
        return logits

    forwards = [partial(forward, table) for table in tables]
    with validation.evaluation_mode(supernet, batch_norm, calibration, forwards) as use_statistics_of:
        yield use_statistics_of
