"""What the variants of a model make of images, added up: one loop for all ways of leave-one-out evaluation.

A way of evaluation says how many variants there are, the unmodified model first, and gives the logits of any
of them. All see all images, unless ops race (`vpdarts_fast.evaluation.racing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.objective import Objective, metric_of
from vpdarts_fast.evaluation.racing import Race
from vpdarts_fast.evaluation.validation import Batch, LeaveOneOut, Logits, LogitsOf
from vpdarts_fast.runtime.graphs import Captured, Recorder, recorder_for


def numbered(pairs: Iterable[tuple[int, int]], edges: int, ops: int) -> Tensor:
    """Numbers the variants of these (edge, op) from 1 on, in a table [E, O] int64; others are variant 0."""
    number = torch.zeros(edges, ops, dtype=torch.int64, device="cpu")
    for variant, (e, o) in enumerate(pairs, start=1):
        number[e, o] = variant
    return number


def measured(
    logits_of: LogitsOf,
    number: Tensor,
    batches: Iterable[Batch],
    *,
    race: Race | None = None,
    cuda_graphs: bool = False,
    on_batch: Callable[[int], None] | None = None,
    objective: Objective | None = None,
) -> LeaveOneOut:
    """Evaluates variants on batches, each of them until it has left the race.

    Args:
        logits_of: computes their logits.
        number: [E, O] int64, on the CPU: which variant each op's removal is; 0 is the unmodified model.
        batches: images and labels, none empty; iterated as far as a race needs.
        race: of the ops; None evaluates all variants on all images.
        cuda_graphs: on CUDA, start each batch as one CUDA graph.
        on_batch: called with the number of images done after each batch; may raise to stop.
        objective: the loss and what accuracy is; None is cross-entropy and the share of the images.

    Raises:
        UserError: no images, labels out of range, or a race by a metric of classes.
    """
    objective = objective or Objective()
    if race is not None and objective.metric != "accuracy":
        raise UserError(f"ops race by the scores of images; {objective.metric} has none")
    captures = cuda_graphs and objective.metric == "accuracy"  # counts of classes begin with the first batch
    running: Sequence[int] = range(1 + int(number.max()))
    totals, part, recorder = Totals(len(running)), None, None
    for inputs, labels in batches:
        if part is None:
            recorder = recorder or (recorder_for(labels.device) if captures else None)
            part = Part(running, logits_of(running), race, recorder, labels.device, objective)
        part.add(inputs, labels)
        seen = totals.seen + part.images
        if on_batch is not None:
            on_batch(seen)
        if race is not None and race.look_is_due(seen):
            totals.add(part)
            race.look(part.images, *part.moments())
            running, part = race.running, None
            if race.over:
                break
    if part is not None:
        totals.add(part)
    if totals.seen == 0:
        raise UserError("leave_one_out: no images; `batches` was empty")
    accuracy, loss = totals.means()
    if part is not None and objective.metric != "accuracy":
        accuracy = part.metric()
    images_of_ops = race.images_of_ops(totals.seen) if race else None
    return LeaveOneOut(
        accuracy[number], loss[number], float(accuracy[0]), float(loss[0]), totals.seen, images_of_ops
    )


def check_finite(found: LeaveOneOut) -> None:
    """Raises `UserError` for losses that are not finite."""
    if not math.isfinite(found.base_loss) or not found.loss.isfinite().all():
        raise UserError("leave_one_out: the model's outputs are not finite; it has diverged")


class Part:
    """Some variants, and what they make of the images of a part of an evaluation.

    Sums are kept where they are computed.

    Attributes:
        variants: their numbers, in ascending order.
        images: how many they have seen.
    """

    def __init__(
        self,
        variants: Sequence[int],
        logits: Logits,
        race: Race | None,
        recorder: Recorder | None,
        device: torch.device,
        objective: Objective,
    ) -> None:
        self._objective = objective
        self._of_classes: tuple[Tensor, Tensor, Tensor] | None = None
        self.variants, self.images = list(variants), 0
        self._logits, self._scores_of = logits, race.scores if race else None
        self._evaluate_captured = Captured(self._evaluate, recorder)
        self._classes, count = 0, len(variants)
        self._correct = torch.zeros(count, dtype=torch.int64, device=device)
        self._loss = torch.zeros(count, dtype=torch.float64, device=device)
        self._least, self._greatest = torch.zeros(2, dtype=torch.int64, device=device)
        self._products = torch.zeros(count, count, dtype=torch.float64, device=device)

    def add(self, inputs: Tensor, labels: Tensor) -> None:
        """Evaluates a batch more: images [N, 3, H, W] and labels [N] int64."""
        self._evaluate_captured(inputs, labels)
        self.images += len(labels)

    def _evaluate(self, inputs: Tensor, labels: Tensor) -> None:
        self._least.copy_(torch.minimum(self._least, labels.min()))
        self._greatest.copy_(torch.maximum(self._greatest, labels.max()))
        scores = self._products.new_zeros(len(self.variants), len(labels))
        for variants, images, logits in self._logits(inputs):
            right, losses = self._count(variants, logits, labels[images])
            if self._scores_of:
                scores[variants, images] = self._scores_of(losses, right)
        if self._scores_of:
            self._products.add_(scores @ scores.T)

    def _count(self, variants: slice, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Adds N images more; which predictions are right, bool, and the losses, float64; [variants, N]."""
        together, count, self._classes = logits.shape
        labels = labels.clamp(0, self._classes - 1)  # `sums` complains; a GPU would stop for good
        predicted = logits.argmax(2)
        right = predicted == labels
        self._correct[variants].add_(right.sum(1))
        if self._objective.metric != "accuracy":
            self._count_classes(variants, predicted, labels, right)
        losses = self._objective.losses(logits.flatten(0, 1).double(), labels.repeat(together))
        losses = losses.view(together, count)
        self._loss[variants].add_(losses.sum(1))
        return right, losses

    def _count_classes(self, variants: slice, predicted: Tensor, labels: Tensor, right: Tensor) -> None:
        """Adds what `metric_of` takes, of predictions and whether they are right, [variants, N]."""
        if self._of_classes is None:
            shape = len(self.variants), self._classes
            self._of_classes = (
                self._correct.new_zeros(shape),
                self._correct.new_zeros(shape),
                self._correct.new_zeros(shape),
            )
        of_right, of_predicted, of_actual = (table[variants] for table in self._of_classes)
        labels = labels.expand_as(predicted)
        of_right.scatter_add_(1, labels, right.long())
        of_predicted.scatter_add_(1, predicted, torch.ones_like(predicted))
        of_actual.scatter_add_(1, labels, torch.ones_like(labels))

    def metric(self) -> Tensor:
        """What the objective calls accuracy, of each variant: [R] float64, per cent, on the CPU."""
        assert self._of_classes is not None
        right, predicted, actual = (table.cpu() for table in self._of_classes)
        return metric_of(self._objective.metric, right, predicted, actual[0])

    def sums(self) -> Tensor:
        """Sums of right predictions and losses [2, R] float64, on the CPU.

        Raises:
            UserError: a label was out of range.
        """
        least, greatest = int(self._least), int(self._greatest)
        if least < 0 or greatest >= self._classes:
            raise UserError(
                f"labels must be in 0..{self._classes - 1}; got {least}..{greatest}: "
                "the supernet has fewer classes than the data, or the labels are wrong"
            )
        return torch.stack([self._correct.double(), self._loss]).cpu()

    def moments(self) -> tuple[Tensor, Tensor]:
        """Sums and products of the scores, [R] and [R, R], as `Race.look` takes them."""
        correct, losses = self.sums()
        assert self._scores_of is not None
        return self._scores_of(losses, correct), self._products.cpu()


class Totals:
    """What V variants have predicted, each on as many images as it has been evaluated on.

    Attributes:
        seen: on how many images the unmodified model, the first variant, has been.
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
