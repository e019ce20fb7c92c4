"""Leave-one-out evaluation: the supernet validated once per (edge, op), without that op (paper, section 3.3).

`leave_one_out` is orchestration over the ops. Its plain implementation is the loop of E*O passes; the
fused one evaluates all distinct variants together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpdarts_fast.errors import UserError
from vpdarts_fast.fused_evaluation import variant_logits
from vpdarts_fast.graphs import Captured, recorder_for
from vpdarts_fast.sharing import tables_on
from vpdarts_fast.spaces.nas_bench_201 import Supernet, check_alpha

Batch = tuple[Tensor, Tensor]
"""Images [N, 3, H, W], floating, and labels [N], int64."""

BatchNorm = Literal["recalibrated", "running", "batch"]

CALIBRATION_IMAGES = 250
"""`recalibrated` re-estimates the statistics on at least so many images."""


@dataclass(frozen=True)
class LeaveOneOut:
    """What leave-one-out evaluation measured, all of it on the same images.

    Attributes:
        accuracy: [E, O] float64, per cent, of the supernet without the op.
        loss: [E, O] float64, mean cross-entropy without the op.
        base_accuracy: of the unmodified supernet, per cent.
        base_loss: likewise.
        images: how many were evaluated.
    """

    accuracy: Tensor
    loss: Tensor
    base_accuracy: float
    base_loss: float
    images: int


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
    number = torch.zeros(edges * ops, dtype=torch.int64)
    number[order] = torch.arange(1, len(order) + 1)
    return torch.cat([alpha.detach()[None], removed[order]]), number


@torch.no_grad()
def leave_one_out(
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
    """Validates the supernet without each op in turn; its parameters, buffers and modes stay as they are.

    Args:
        supernet: any mode; dropout is off while it is evaluated.
        batches: images [N, 3, H, W] and labels [N]; iterated once. Every variant sees all of them.
        alpha: [E, O].
        batch_norm: `running` uses the stored statistics; `recalibrated` re-estimates them first for the
            unmodified supernet, as the average over the first batches with 250 images or more; `batch`
            uses each batch's own, per variant.
        fused: evaluate all variants together instead of in a loop; the same results.
        memory_budget: bytes that the activations of the variants evaluated together may take; None
            picks what is fast.
        on_batch: called with the number of images done after each batch; may raise to stop.
        cuda_graphs: on CUDA, start each batch as one CUDA graph.

    Raises:
        UserError: no images, wrong shapes or dtypes, labels out of range, alphas that are not finite, an
            unknown `batch_norm`, `running` for a supernet that keeps no running statistics, or a CUDA graph
            that cannot be captured.
    """
    check_alpha(alpha)
    if batch_norm not in get_args(BatchNorm):
        raise UserError(f"batch_norm must be one of {', '.join(get_args(BatchNorm))}; got {batch_norm!r}")
    if memory_budget is not None and memory_budget <= 0:
        raise UserError(f"memory_budget must be positive, in bytes; got {memory_budget}")
    weight = supernet.classifier.weight
    alpha = alpha.detach().to("cpu", weight.dtype)  # from here to the end nothing waits for the device
    if not alpha.isfinite().all():
        raise UserError("alpha must be finite; got NaN or infinity: the search has diverged")
    removed = removals(alpha)
    if fused:
        tables, number = distinct_variants(alpha, removed)
    else:
        tables = torch.cat([alpha[None], removed])
        number = torch.arange(1, len(tables))
    tables = tables_on(weight.device, tables)
    checked = (_checked(batch, supernet) for batch in batches)
    stream = (batch for batch in checked if len(batch[1]))
    calibration = _calibration_batches(stream) if batch_norm == "recalibrated" else []
    counts = Counts(len(tables), supernet.num_classes, weight.device)
    images = 0

    def evaluate(inputs: Tensor, labels: Tensor) -> None:
        if fused:
            parts = variant_logits(supernet, inputs, tables, batch_norm == "batch", memory_budget)
        else:
            parts = (
                (slice(v, v + 1), slice(None), supernet(inputs, table)[None])
                for v, table in enumerate(tables)
            )
        for variants, some, logits in parts:
            counts.add(variants, logits, labels[some])

    captured = Captured(evaluate, recorder_for(weight.device) if cuda_graphs else None)
    with evaluation_mode(supernet, batch_norm, calibration, tables[0]):
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


class Counts:
    """Right predictions and losses of V variants, added up where they are computed."""

    def __init__(self, variants: int, classes: int, device: torch.device) -> None:
        self._classes = classes
        self._correct = torch.zeros(variants, dtype=torch.int64, device=device)
        self._loss = torch.zeros(variants, dtype=torch.float64, device=device)
        self._least, self._greatest = torch.zeros(2, dtype=torch.int64, device=device)

    def add(self, variants: slice, logits: Tensor, labels: Tensor) -> None:
        """Logits [variants, N, classes] and labels [N] of N images more."""
        self._least.copy_(torch.minimum(self._least, labels.min()))
        self._greatest.copy_(torch.maximum(self._greatest, labels.max()))
        labels = labels.clamp(0, self._classes - 1)  # `read` complains; a GPU would stop for good
        some, count = logits.shape[:2]
        self._correct[variants].add_((logits.argmax(2) == labels).sum(1))
        losses = F.cross_entropy(logits.flatten(0, 1).double(), labels.repeat(some), reduction="none")
        self._loss[variants].add_(losses.view(some, count).sum(1))

    def read(self) -> tuple[Tensor, Tensor]:
        """Right predictions [V] int64 and sums of losses [V] float64, on the CPU.

        Raises:
            UserError: a label was out of range.
        """
        least, greatest = int(self._least), int(self._greatest)
        if least < 0 or greatest >= self._classes:
            raise UserError(
                f"labels must be in 0..{self._classes - 1}; got {least}..{greatest}: "
                "the supernet has fewer classes than the data, or the labels are wrong"
            )
        return self._correct.cpu(), self._loss.cpu()


def _checked(batch: Batch, supernet: Supernet) -> Batch:
    images, labels = batch
    supernet.check_images(images)
    dtype = supernet.classifier.weight.dtype
    if images.dtype != dtype:
        raise UserError(f"images must be {dtype}, like the supernet; got {images.dtype}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise UserError(
            f"labels must be int64 [N] = [{len(images)}]; got {list(labels.shape)} of {labels.dtype}"
        )
    return batch


def _check_has_statistics(images: Tensor) -> None:
    """Two values per channel must be left after both reductions, or there is no variance."""
    count, _, height, width = images.shape
    if count * -(-height // 4) * -(-width // 4) < 2:
        raise UserError(
            f"a batch of {count} image of {height}x{width} has no variance to normalise with; use larger "
            "batches or batch_norm='running'"
        )


def _calibration_batches(stream: Iterator[Batch]) -> list[Batch]:
    """Takes the first batches that together hold enough images."""
    taken: list[Batch] = []
    count = 0
    for batch in stream:
        taken.append(batch)
        count += len(batch[1])
        if count >= CALIBRATION_IMAGES:
            break
    return taken


@contextmanager
def evaluation_mode(
    supernet: Supernet, batch_norm: BatchNorm, calibration: Sequence[Batch], alpha: Tensor
) -> Iterator[None]:
    """Dropout off and the batch norms as asked, restored on exit."""
    modes = [(module, module.training) for module in supernet.modules()]
    norms = [module for module in supernet.modules() if isinstance(module, nn.BatchNorm2d)]
    changing = ("running_mean", "running_var", "num_batches_tracked", "momentum", "track_running_stats")
    saved = [(norm, {name: getattr(norm, name) for name in changing}) for norm in norms]
    if batch_norm == "running" and any(norm.running_mean is None for norm in norms):
        raise UserError("batch_norm='running' needs running statistics, and this supernet keeps none; "
                        "use 'recalibrated' or 'batch'")  # fmt: skip
    supernet.eval()
    try:
        if batch_norm == "batch":
            for norm in norms:  # a batch norm without buffers uses the batch's own statistics
                norm.running_mean = norm.running_var = None
        elif batch_norm == "recalibrated":
            for norm in norms:
                weight = supernet.classifier.weight
                norm.running_mean = weight.new_zeros(norm.num_features)
                norm.running_var = weight.new_ones(norm.num_features)
                norm.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=weight.device)
                norm.track_running_stats = True
                norm.train()
            for count, (images, _) in enumerate(calibration, start=1):
                _check_has_statistics(images)
                for norm in norms:
                    norm.momentum = 1 / count  # cumulative average, without a look at the count on the device
                supernet(images, alpha)
            for norm in norms:
                norm.eval()
        yield
    finally:
        for norm, attributes in saved:
            for name, value in attributes.items():
                setattr(norm, name, value)
        for module, mode in modes:
            module.training = mode
