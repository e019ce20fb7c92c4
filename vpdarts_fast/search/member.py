"""One supernet of a search: trained and evaluated on the search's images, by random streams of its own."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Protocol

import torch
from torch import Tensor

from vpdarts_fast.data import ImageSet, epoch_order
from vpdarts_fast.evaluation.leave_one_out import LeaveOneOut, leave_one_out
from vpdarts_fast.evaluation.racing import Racing
from vpdarts_fast.runtime.graphs import Captured, recorder_for
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.optimizers import alpha_rate
from vpdarts_fast.search.preflight import (
    images_evaluated,
    images_of_epoch,
    last_batch_is_too_small,
    steps_of_epoch,
)
from vpdarts_fast.search.state import EpochRecord, SearchState, step_sums
from vpdarts_fast.search.step import alpha_step, weights_step
from vpdarts_fast.search.streams import seed_for, stream


class Watch(Protocol):
    """Who watches a member, and may stop it."""

    def begins(self, phase: str, total: int, done: int) -> None:
        """A phase begins, with so many units of work, of which some are done."""

    def stop_if_asked(self) -> None:
        """Called before every step; what it raises stops the member in order."""

    def done(self, done: int, total: int) -> None:
        """So many units of the phase are done."""


class Member:
    """A supernet with alpha and optimisers of its own, of which a committee has several.

    Args:
        config: the settings of the search.
        number: in the committee; the first one draws all random numbers as a search without others does.
        num_classes: of the images.
        device: where it trains.
        training: the half that trains the weights.
        validation: the half that trains alpha and evaluates.

    Attributes:
        config: these settings with its own seed, and the rate at which alpha learns in so many steps.
        state: what it has learned so far, and its position.
    """

    def __init__(
        self,
        config: SearchConfig,
        number: int,
        num_classes: int,
        device: torch.device,
        training: ImageSet,
        validation: ImageSet,
    ) -> None:
        seed = config.seed if number == 0 else seed_for(config.seed, "member", number)
        height, width = training.images.shape[1:3]
        steps = steps_of_epoch(config, len(training), (height, width))
        rate = alpha_rate(config, steps)
        self.config = dataclasses.replace(config, seed=seed, alpha_learning_rate=rate)
        self.device = device
        self.training, self.validation = training, validation
        self.state = SearchState(self.config, num_classes, device)
        recorder = recorder_for(device) if config.cuda_graphs else None
        self._weights_step = Captured(self._train_weights, recorder)
        self._alpha_step = Captured(self._train_alpha, recorder)

    def train_epoch(self, watch: Watch) -> None:
        """Alternates a weight step on a training batch with an alpha step on a validation batch."""
        state, config = self.state, self.config
        pruning = state.epoch >= config.warmup_epochs
        steps = [(self._weights_step, self._draws(self.training, "training"), state.record.weights)]
        count = len(steps[0][1])
        if pruning:
            steps.append((self._alpha_step, self._draws(self.validation, "validation"), state.record.alpha))
        if config.step_order == "alpha-first":
            steps.reverse()
        state.publish_learning_rate()
        watch.begins("pruning" if pruning else "warm-up", count, state.step)
        while state.step < count:
            watch.stop_if_asked()
            started = time.perf_counter()
            torch.manual_seed(seed_for(config.seed, "dropout", state.epoch, state.step))
            for step, draws, mean in steps:
                draw = draws[state.step]
                mean.add(step(draw), draw.shape[1])
            state.step += 1
            state.record.seconds["train"] += time.perf_counter() - started
            watch.done(state.step, count)

    def end_epoch(self) -> None:
        """Goes on to the next epoch."""
        state = self.state
        state.schedule.step()
        for phase, seconds in state.record.seconds.items():
            state.seconds[phase] = state.seconds.get(phase, 0.0) + seconds
        state.epoch, state.step, state.record = state.epoch + 1, 0, EpochRecord()

    def evaluate(self, watch: Watch) -> LeaveOneOut:
        """Leave-one-out on a fresh random share of the validation half; losses need not be finite."""
        state, config = self.state, self.config
        started = time.perf_counter()
        generator = stream(config.seed, "evaluation images", state.epoch)
        count = images_evaluated(config, len(self.validation))
        drawn = self.validation.draw(torch.randperm(len(self.validation), generator=generator)[:count])
        parts = math.ceil(count / config.evaluation_batch_size)
        watch.begins("leave-one-out", count, 0)

        def on_batch(done: int) -> None:
            watch.done(done, count)
            watch.stop_if_asked()

        evaluation = leave_one_out(
            state.supernet,
            map(self.validation.take, drawn.to(self.device).tensor_split(parts, dim=1)),
            state.alpha,
            batch_norm=config.batch_norm,
            removal=config.removal,
            batched=config.fused,
            memory_budget=config.memory_budget_mib and config.memory_budget_mib << 20,
            on_batch=on_batch,
            cuda_graphs=config.cuda_graphs,
            racing=self._racing(count),
        )
        state.record.seconds["leave_one_out"] += time.perf_counter() - started
        return evaluation

    def _racing(self, images: int) -> Racing | None:
        """How ops race in an evaluation on so many images, if they do."""
        config = self.config
        if config.evaluation == "full" or config.criterion == "alpha":
            return None
        return Racing(images, config.criterion, config.race_confidence)

    def _train_weights(self, draw: Tensor) -> Tensor:
        """A weight step on what is drawn from the training images; its `step_sums`."""
        state, batch = self.state, self.training.take(draw)
        clip = self.config.gradient_clip
        step = weights_step(state.supernet, state.alpha, batch, state.weights_optimizer, clip)
        return step_sums(*step, len(batch[1]))

    def _train_alpha(self, draw: Tensor) -> Tensor:
        """An alpha step on what is drawn from the validation images; its `step_sums`."""
        state, batch = self.state, self.validation.take(draw)
        step = alpha_step(state.supernet, state.alpha, state.alive, batch, state.alpha_optimizer)
        return step_sums(*step, len(batch[1]))

    def _draws(self, images: ImageSet, purpose: str) -> list[Tensor]:
        """What each step of the epoch takes of the images, on the device; copied there all at once."""
        seed, size, epoch = self.config.seed, self.config.batch_size, self.state.epoch
        height, width = images.images.shape[1:3]
        visited = images_of_epoch(self.config, len(images))
        drop_last = last_batch_is_too_small(visited, size, (height, width))
        order = epoch_order(len(images), size, stream(seed, f"{purpose} order", epoch), drop_last, visited)
        draws = [
            images.draw(indices, stream(seed, f"{purpose} augmentation", epoch, step))
            for step, indices in enumerate(order)
        ]
        return list(torch.split(torch.cat(draws, dim=1).to(self.device), size, dim=1))
