"""What all ways of leave-one-out evaluation share: batches, batch norm modes, counts, the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vpdarts_fast.bounds import check_bound
from vpdarts_fast.errors import UserError
from vpdarts_fast.runtime.precision import wide

Batch = tuple[Tensor, Tensor]
"""Images [N, 3, H, W], floating, and labels [N], int64."""

Piece = tuple[slice, slice, Tensor]
"""Which variants, which images of a batch, and their logits [variants, images, classes]."""

Logits = Callable[[Tensor], Iterable[Piece]]
"""Computes the logits of some variants for images [N, 3, H, W], piece by piece."""

LogitsOf = Callable[[Sequence[int]], Logits]
"""Numbers of some variants, in ascending order, 0 among them -> what computes the logits of these."""

BatchNorm = Literal["recalibrated", "running", "batch", "variant"]
"""Which statistics batch norms use; `leave_one_out` says what each means."""

Removal = Literal["zero", "renormalised"]
"""What becomes of an edge's weights without an op; `leave_one_out` says what each means."""

CALIBRATION_IMAGES = 250
"""`recalibrated` and `variant` re-estimate the statistics on at least so many images."""


@dataclass(frozen=True)
class LeaveOneOut:
    """What leave-one-out evaluation measured, all of it on the same images.

    Attributes:
        accuracy: [E, O] float64, per cent, of the supernet without the op.
        loss: [E, O] float64, mean cross-entropy without the op.
        base_accuracy: of the unmodified supernet, per cent.
        base_loss: likewise.
        images: how many the unmodified supernet was evaluated on.
        op_images: [E, O] int64, how many each removal was evaluated on, where they differ
            (`vpdarts_fast.evaluation.racing`); None: all of them.
    """

    accuracy: Tensor
    loss: Tensor
    base_accuracy: float
    base_loss: float
    images: int
    op_images: Tensor | None = None


def mean_of(evaluations: Sequence[LeaveOneOut]) -> LeaveOneOut:
    """Averages what was measured of several supernets, each on as many images; of one it is that itself."""
    if len(evaluations) == 1:
        return evaluations[0]
    return LeaveOneOut(
        torch.stack([evaluation.accuracy for evaluation in evaluations]).mean(0),
        torch.stack([evaluation.loss for evaluation in evaluations]).mean(0),
        sum(evaluation.base_accuracy for evaluation in evaluations) / len(evaluations),
        sum(evaluation.base_loss for evaluation in evaluations) / len(evaluations),
        evaluations[0].images,
    )


def calibration_batches(stream: Iterator[Batch], batch_norm: BatchNorm) -> list[Batch]:
    """Takes the first batches that together hold enough images; none where no statistics are re-estimated."""
    taken: list[Batch] = []
    if batch_norm not in ("recalibrated", "variant"):
        return taken
    count = 0
    for batch in stream:
        taken.append(batch)
        count += len(batch[1])
        if count >= CALIBRATION_IMAGES:
            break
    return taken


def checked_mask(only: Tensor | None, shape: Sequence[int], races: bool = False) -> Tensor | None:
    """The ops to be left out, [E, O] bool on the CPU; `UserError` for another kind of table, or in a race."""
    if only is not None and races:
        raise UserError("only and racing exclude each other: a race has to know all ops of its edges")
    if only is not None and (only.dtype != torch.bool or tuple(only.shape) != tuple(shape)):
        raise UserError(f"only must be bool {list(shape)}; got {only.dtype} {list(only.shape)}")
    return None if only is None else only.cpu()


def check_options(batch_norm: str, memory_budget: int | None, removal: str = "zero") -> None:
    """Raises `UserError` for options that no evaluation takes."""
    if batch_norm not in get_args(BatchNorm):
        raise UserError(f"batch_norm must be one of {', '.join(get_args(BatchNorm))}; got {batch_norm!r}")
    if removal not in get_args(Removal):
        raise UserError(f"removal must be one of {', '.join(get_args(Removal))}; got {removal!r}")
    if memory_budget is not None and memory_budget <= 0:
        raise UserError(f"memory_budget must be positive, in bytes; got {memory_budget}")
    check_bound("memory_budget", memory_budget)


def checked_pair(batch: object) -> Batch:
    """A batch as the caller's iterable gave it; `UserError` unless it is a tuple or list of two tensors."""
    if not isinstance(batch, (tuple, list)):
        got = type(batch).__name__
    elif len(batch) != 2:
        got = f"{len(batch)} items; data loaders that give more need (x[0], x[1]) for x in loader"
    elif not all(isinstance(part, Tensor) for part in batch):
        got = " and ".join(type(part).__name__ for part in batch)
    else:
        images, labels = batch
        return images, labels
    raise UserError(f"batches must be pairs of tensors, images and labels; got {got}")


def checked_batch(batch: object) -> Batch:
    """Checks a batch as the caller's iterable gave it, and its labels; `UserError` for anything else."""
    images, labels = checked_pair(batch)
    check_labels(images, labels)
    return images, labels


def checked_batches(batches: Iterable[object]) -> Iterator[Batch]:
    """Checks batches, each when it is asked for, and leaves out those without images."""
    return (batch for batch in map(checked_batch, batches) if len(batch[1]))


def check_labels(images: Tensor, labels: Tensor) -> None:
    """Raises `UserError` unless labels are int64 [N], one for each image."""
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise UserError(
            f"labels must be int64 [N] = [{len(images)}]; got {list(labels.shape)} of {labels.dtype}"
        )


NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d


Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

StatisticsOf = Callable[[int], None]
"""Gives the batch norms the statistics that the variant of this number is evaluated with."""


@contextmanager
def evaluation_mode(
    model: nn.Module,
    batch_norm: BatchNorm,
    calibration: Sequence[Batch],
    forwards: Sequence[Callable[[Tensor], object]],
) -> Iterator[StatisticsOf]:
    """Turns dropout off and sets the batch norms as asked; all is as it was on exit.

    Args:
        model: whose batch norms they are.
        batch_norm: with `variant` the statistics of each variant are estimated and kept, one after another.
        calibration: what statistics are estimated on; empty where none are.
        forwards: run the model, the unmodified one first, then each variant; without `variant` only the first
            is needed.

    Yields:
        What has to be called before a variant is evaluated; without `variant` it changes nothing.

    Raises:
        UserError: `running` is asked of a model that keeps no running statistics.
    """
    modes = [(module, module.training) for module in model.modules()]
    norms = batch_norms(model)
    changing = ("running_mean", "running_var", "num_batches_tracked", "momentum", "track_running_stats")
    saved = [(norm, {name: getattr(norm, name) for name in changing}) for norm in norms]
    if batch_norm == "running" and any(norm.running_mean is None for norm in norms):
        raise UserError("batch_norm='running' needs running statistics, and this supernet keeps none; "
                        "use 'recalibrated' or 'batch'")  # fmt: skip
    model.eval()
    estimated: list[list[tuple[Tensor | None, Tensor | None]]] = []

    def use_statistics_of(variant: int) -> None:
        if estimated:
            for norm, (mean, variance) in zip(norms, estimated[variant], strict=True):
                norm.running_mean, norm.running_var = mean, variance

    try:
        if batch_norm == "batch":
            for norm in norms:  # a batch norm without buffers uses the batch's own statistics
                norm.running_mean = norm.running_var = None
        elif batch_norm == "recalibrated":
            recalibrate(model, norms, calibration, forwards[0])
        elif batch_norm == "variant":
            for forward in forwards:
                recalibrate(model, norms, calibration, forward)
                estimated.append([(norm.running_mean, norm.running_var) for norm in norms])
        yield use_statistics_of
    finally:
        for norm, attributes in saved:
            for name, value in attributes.items():
                setattr(norm, name, value)
        for module, mode in modes:
            module.training = mode


@contextmanager
def one_by_one(
    model: nn.Module,
    forwards: Sequence[Callable[[Tensor], Tensor]],
    batch_norm: BatchNorm,
    calibration: Sequence[Batch],
) -> Iterator[LogitsOf]:
    """Within, the model's variants can be evaluated, each in a forward pass of its own.

    Args:
        model: in evaluation mode within, with the statistics that are asked for.
        forwards: compute the logits [N, classes] of each variant, the unmodified model first.
        batch_norm: as `vpdarts_fast.evaluation.leave_one_out.leave_one_out` has it.
        calibration: batches that statistics are estimated on.
    """
    with evaluation_mode(model, batch_norm, calibration, forwards) as use_statistics_of:

        def logits_of(variants: Sequence[int]) -> Logits:
            def logits(images: Tensor) -> Iterator[Piece]:
                for place, variant in enumerate(variants):
                    use_statistics_of(variant)
                    yield slice(place, place + 1), slice(None), forwards[variant](images)[None]

            return logits

        yield logits_of


def batch_norms(model: nn.Module) -> list[Norm]:
    """Lists the batch norms of a model, all of which an evaluation gives other statistics."""
    return [module for module in model.modules() if isinstance(module, NORMS)]


def recalibrate(
    model: nn.Module,
    norms: Sequence[Norm],
    calibration: Sequence[Batch],
    forward: Callable[[Tensor], object],
    running_mean: Callable[[Tensor, Tensor], Tensor] = lambda mean, variance: mean,
) -> None:
    """Gives the batch norms new buffers, with the average of the statistics of the calibration batches.

    Args:
        model: whose batch norms they are.
        norms: the batch norms.
        calibration: batches.
        forward: runs the model on images.
        running_mean: the buffer of this name, made of the mean and the variance [C] that it starts with.
    """
    default = wide(next(model.parameters())[:0])
    for norm in norms:
        template = norm.running_mean if norm.running_mean is not None else norm.weight
        template = default if template is None else template
        norm.running_var = template.new_ones(norm.num_features)
        norm.running_mean = running_mean(template.new_zeros(norm.num_features), norm.running_var)
        norm.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=template.device)
        norm.track_running_stats = True
        norm.train()
    for count, (images, _) in enumerate(calibration, start=1):
        for norm in norms:
            norm.momentum = 1 / count  # cumulative average, without a look at the count on the device
        forward(images)
    for norm in norms:
        norm.eval()
