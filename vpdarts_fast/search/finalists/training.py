"""One cell, trained from scratch on the training half for some steps and judged on the validation half.

Everything random is a function of the search's seed, the repetition and the step, not of the cell: two cells
begin with the same weights where they have the same op on an edge, and see the same images in the same order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vpdarts_fast.data import ImageHalf, epoch_order
from vpdarts_fast.evaluation.objective import Metric, metric_of, share_of_images
from vpdarts_fast.runs.values import number, tensors_like, whole
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.finalists.rounds import Score
from vpdarts_fast.search.methods.alpha_rules import Loss
from vpdarts_fast.search.optimizers import adapted, weights_optimizer
from vpdarts_fast.search.preflight import last_batch_is_too_small
from vpdarts_fast.search.records import Mean, step_sums
from vpdarts_fast.search.step import training_step
from vpdarts_fast.search.streams import seed_for, stream

LEARNING_RATE = 0.1
"""At the start of a cosine schedule to zero over the steps of a training."""


class CellTraining:
    """A cell in training, in the network that its space has for finalists (`Space.finalist_network`).

    Attributes:
        steps: how many it takes.
        step: the one that comes next.
        last_epoch: loss over the steps of the last epoch so far.
        seconds: taken so far.
    """

    def __init__(
        self,
        genotype: Any,
        steps: int,
        repetition: int,
        config: SearchConfig,
        classes: int,
        device: torch.device,
        loss: Loss = F.cross_entropy,
    ) -> None:
        self._loss = loss
        self.genotype, self.steps, self.repetition = genotype, steps, repetition
        self._config = config
        with torch.random.fork_rng():
            torch.manual_seed(seed_for(config.search.seed, "finalist weights", repetition))
            network = config.space.finalist_network(
                genotype, classes, fused=config.execution.fused, backend=config.execution.backend
            )
        self.network = network.to(device).train()
        self.parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = weights_optimizer(self.parameters, config, captured=False)  # `train` sets the rate
        self.step, self.last_epoch, self.seconds = 0, Mean(), 0.0

    def train(self, batch: tuple[Tensor, Tensor], *, counts: bool) -> None:
        """Takes one step.

        Args:
            batch: images and labels.
            counts: whether its loss is one of the last epoch.
        """
        rate = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        self.optimizer.param_groups[0]["lr"] = rate
        clip = self._config.optimisers.gradient_clip
        loss, correct = training_step(self.network, batch, self.optimizer, clip, self._loss)
        if counts:
            images = len(batch[1])
            self.last_epoch.add(step_sums(loss, correct, images), images)
        self.step += 1

    def state_dict(self) -> dict[str, Any] | None:
        """Returns tensors and plain values to go on from.

        None where numbers are not finite: it is then as good to begin anew.
        """
        tensors = self.network.state_dict()
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            return None
        return {
            "architecture": str(self.genotype),
            "steps": self.steps,
            "repetition": self.repetition,
            "step": self.step,
            "supernet": tensors,
            "optimizer": self.optimizer.state_dict(),
            "last_epoch": self.last_epoch.to_dict(),
            "seconds": self.seconds,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; `ValueError`, `KeyError` or `TypeError` for what does not fit."""
        self.network.load_state_dict(tensors_like(saved["supernet"], self.network.state_dict(), "supernet"))
        self.optimizer.load_state_dict(adapted(saved["optimizer"], self.optimizer))
        self.step = whole(saved["step"], "step", 0, self.steps)
        self.last_epoch = Mean.from_dict(saved["last_epoch"], "the last epoch")
        self.seconds = number(saved["seconds"], "seconds", 0)


@dataclass(frozen=True)
class Images:
    """What finalists are trained and judged on, the same for all of a rung and a repetition.

    Attributes:
        training: the half that trains.
        validation: the half that judges.
    """

    training: ImageHalf
    validation: ImageHalf
    config: SearchConfig

    @property
    def steps_per_epoch(self) -> int:
        """How many steps, of a batch each, an epoch of the training half has."""
        return len(self._order(0, 0))

    def _order(self, repetition: int, epoch: int) -> list[Tensor]:
        count, size = len(self.training), self.config.optimisers.batch_size
        smallest = self.config.space.smallest(self.training.image_size)
        drop_last = last_batch_is_too_small(count, size, smallest)
        return epoch_order(
            count, size, stream(self.config.search.seed, "finalist order", repetition, epoch), drop_last
        )

    def epoch(self, repetition: int, epoch: int) -> Callable[[int], tuple[Tensor, Tensor]]:
        """Gives the batch of a step of that epoch, from 0."""
        order = self._order(repetition, epoch)

        def batch(step: int) -> tuple[Tensor, Tensor]:
            augmentation = stream(self.config.search.seed, "finalist augmentation", repetition, epoch, step)
            return self.training.batch(order[step], augmentation)

        return batch

    def judging(self, steps: int) -> int:
        """How many validation images judge a training of so many steps: half of what it trains on, or all.

        Judging then takes about a sixth of the time of training, at most.
        """
        return max(1, min(len(self.validation), steps * self.config.optimisers.batch_size // 2))

    def judged_by(self, steps: int) -> list[Tensor]:
        """Lists the indices of the images that judge a training of so many steps, in int64 batches."""
        count = self.judging(steps)
        generator = stream(self.config.search.seed, "finalist images")
        order = torch.randperm(len(self.validation), generator=generator, device="cpu")[:count]
        return list(order.tensor_split(math.ceil(count / self.config.optimisers.evaluation_batch_size)))


def finish(training: CellTraining, images: Images, on_step: Callable[[], None]) -> Score:
    """Trains to the last step and judges; `on_step` is called before each step and batch, and may raise.

    What is raised leaves the training where it can go on, or be saved.
    """
    per_epoch = images.steps_per_epoch
    first_counted = training.steps - min(per_epoch, training.steps)
    batches: tuple[int, Callable[[int], tuple[Tensor, Tensor]]] | None = None
    while training.step < training.steps:
        on_step()
        started = time.perf_counter()
        epoch, step = divmod(training.step, per_epoch)
        if batches is None or batches[0] != epoch:
            batches = epoch, images.epoch(training.repetition, epoch)
        training.train(batches[1](step), counts=training.step >= first_counted)
        training.seconds += time.perf_counter() - started
    return _judge(training, images, on_step)


def _judge(training: CellTraining, images: Images, on_step: Callable[[], None]) -> Score:
    started = time.perf_counter()
    predicted, wanted = [], []
    training.network.eval()
    try:
        with torch.no_grad():
            for indices in images.judged_by(training.steps):
                on_step()
                batch, labels = images.validation.batch(indices)
                predicted.append(training.network(batch).argmax(1).cpu())
                wanted.append(labels.cpu())
    finally:
        training.network.train()
    loss, _ = training.last_epoch.summary()
    finite = loss is not None and math.isfinite(loss)
    seconds = training.seconds + time.perf_counter() - started
    metric = images.config.search.metric
    return score(torch.cat(predicted), torch.cat(wanted), metric, loss if finite else None, seconds)


def score(predicted: Tensor, labels: Tensor, metric: Metric, loss: float | None, seconds: float) -> Score:
    """What predictions [images] come to by a metric; see `Score`."""
    correct = predicted == labels
    if metric == "accuracy":
        return Score(correct, loss, seconds)
    classes = 1 + int(torch.maximum(predicted.max(), labels.max()))
    right, counted, actual = (
        some.bincount(minlength=classes) for some in (labels[correct], predicted, labels)
    )
    return Score(
        correct, loss, seconds, float(metric_of(metric, right, counted, actual)), share_of_images(labels)
    )
