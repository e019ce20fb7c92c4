"""Everything a training changes as it goes, and its way into a checkpoint and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.validation import Batch
from vpdarts_fast.runs.formats import TRAINING_CHECKPOINT
from vpdarts_fast.runs.values import mapping, numbers_by_name, tensors_like
from vpdarts_fast.runs.values import whole as whole_number
from vpdarts_fast.runtime.processes import ALONE, Processes
from vpdarts_fast.search.methods.alpha_rules import Loss
from vpdarts_fast.search.optimizers import adapted
from vpdarts_fast.search.records import Mean, step_sums
from vpdarts_fast.search.streams import seed_for
from vpdarts_fast.train.config import TrainConfig
from vpdarts_fast.train.ema import MovingAverage
from vpdarts_fast.train.networks import DROP_PATH, network_to_train


class TrainingState:
    """Network, optimiser, moving average and position.

    Args:
        config: the settings.
        num_classes: of the classifier.
        device: where it is trained.
        steps_per_epoch: how many there are.
        loss: of logits [N, classes] and labels [N], what is minimised.
        processes: that train it together.

    Attributes:
        network: in training mode.
        average: of its weights, or None.
        epoch: the epoch in progress, from 0.
        step: the step of it that comes next.
        record: loss and accuracy of the epoch's steps so far.
        epoch_seconds: that the epoch took so far, by what they were spent on.
        seconds: that the epochs before it took.
    """

    def __init__(
        self,
        config: TrainConfig,
        num_classes: int,
        device: torch.device,
        steps_per_epoch: int,
        loss: Loss = F.cross_entropy,
        processes: Processes = ALONE,
    ) -> None:
        self._config, self._steps_per_epoch, self._loss_of = config, steps_per_epoch, loss
        self.network = network_to_train(config, num_classes, device, processes)
        training = config.training
        self.optimizer = torch.optim.SGD(
            [parameter for parameter in self.network.parameters() if parameter.requires_grad],
            lr=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            nesterov=training.nesterov and training.momentum > 0,
        )
        self.average = None if training.ema is None else MovingAverage(self.network, training.ema)
        self.epoch, self.step = 0, 0
        self.record = Mean()
        self.seconds = {"train": 0.0, "evaluate": 0.0}
        self.epoch_seconds = dict(self.seconds)

    @property
    def total_seconds(self) -> dict[str, float]:
        """That the whole training took so far, by what they were spent on."""
        return {name: value + self.epoch_seconds[name] for name, value in self.seconds.items()}

    @property
    def learning_rate(self) -> float:
        """Of the step that comes next, or of the epoch's, by the cosine schedule."""
        training = self._config.training
        within = self.step / self._steps_per_epoch if training.anneal == "steps" else 0.0
        share = (1 + math.cos(math.pi * (self.epoch + within) / training.epochs)) / 2
        return training.learning_rate_end + (training.learning_rate - training.learning_rate_end) * share

    @property
    def drop_path(self) -> float:
        """With which probability the epoch drops the output of an operation."""
        return self._config.network.drop_path * self.epoch / self._config.training.epochs

    def train(self, batch: Batch, whole: int, share: float = 1.0, processes: Processes = ALONE) -> None:
        """Takes a step.

        Args:
            batch: images [N, 3, H, W] and labels [N], of several processes the part of this one.
            whole: how many images the processes have together.
            share: what part of the gradient those of this process are.
            processes: that take the step together.
        """
        images, labels = batch
        self.optimizer.param_groups[0]["lr"] = self.learning_rate
        if self._config.network.drop_path > 0:
            setattr(self.network, DROP_PATH, self.drop_path)
            # Of this step alone, so that one that is resumed draws the same.
            torch.manual_seed(seed_for(self._config.training.seed, "drop path", self.epoch, self.step))
        loss, logits = self._loss(images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = self.optimizer.param_groups[0]["params"]
        processes.add_up([each.grad for each in parameters if each.grad is not None], share)
        if self._config.training.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self._config.training.gradient_clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.network)
        correct = (logits.argmax(1) == labels).sum()
        sums = step_sums(loss.detach(), correct, len(labels))
        if len(labels) == whole and not processes.first:  # where all had the whole batch, it counts once
            sums.zero_()
        processes.add_up([sums])
        self.record.add(sums, whole)
        self.step += 1

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss [] of a batch, that of an auxiliary head included, and the logits [N, classes]."""
        weight = self._config.network.auxiliary_weight
        if not weight:
            logits: Tensor = self.network(images)
            return self._loss_of(logits, labels), logits
        # Not a call of the module, which returns logits alone.
        with_auxiliary: Any = self.network.forward_with_auxiliary
        logits, beside = with_auxiliary(images)
        return self._loss_of(logits, labels) + weight * self._loss_of(beside, labels), logits

    def begin_next_epoch(self) -> None:
        """Goes on behind an epoch that is over."""
        self.epoch, self.step, self.record = self.epoch + 1, 0, Mean()
        self.seconds, self.epoch_seconds = self.total_seconds, dict.fromkeys(self.seconds, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and plain values for `checkpoint.save`."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average and {"tensors": self.average.tensors, "steps": self.average.steps},
            "epoch": self.epoch,
            "step": self.step,
            "record": self.record.to_dict(),
            "seconds": self.seconds,
            "epoch_seconds": self.epoch_seconds,
        }

    def load_state_dict(self, content: Mapping[str, Any], source: str) -> None:
        """The inverse of `state_dict`; `UserError` naming `source` where it does not fit."""
        try:
            with TRAINING_CHECKPOINT.reading(source):
                self._load(content)
        except RuntimeError as error:  # of `load_state_dict`
            raise TRAINING_CHECKPOINT.damaged(source, error) from error

    def _load(self, content: Mapping[str, Any]) -> None:
        expected = self.network.state_dict()
        tensors = tensors_like(content["network"], expected, "network")
        average = content["average"]
        if (average is None) != (self.average is None):
            raise ValueError("average must be there where --ema is set, and only there")
        epoch = whole_number(content["epoch"], "epoch", 0, self._config.training.epochs)
        step = whole_number(content["step"], "step", 0, self._steps_per_epoch)
        record = Mean.from_dict(mapping(content["record"], "record"), "the epoch")
        seconds, of_epoch = (numbers_by_name(content[name], name, 0) for name in ("seconds", "epoch_seconds"))
        if not seconds.keys() == of_epoch.keys() == self.seconds.keys():
            raise ValueError(f"seconds are of {', '.join(self.seconds)}; got {', '.join(seconds)[:80]}")
        optimizer = adapted(content["optimizer"], self.optimizer)
        if self.average is not None:
            averages = tensors_like(mapping(average, "average")["tensors"], expected, "average")
            self.average.load(averages, whole_number(average["steps"], "steps of the average"))
        self.network.load_state_dict(tensors)
        self.optimizer.load_state_dict(optimizer)
        self.epoch, self.step, self.record, self.seconds = epoch, step, record, seconds
        self.epoch_seconds = of_epoch

    def check_finite(self) -> None:
        """Raises `UserError` where the loss of the epoch so far is no number any more."""
        loss, _ = self.record.summary()
        if loss is not None and not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} in epoch {self.epoch + 1}: the training diverged. Start a new one "
                "with a smaller --learning-rate or a --gradient-clip"
            )
