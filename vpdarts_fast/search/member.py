"""One supernet of a search: trained and evaluated on the search's images, by random streams of its own."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpdarts_fast.contract.derivatives import for_second_derivatives, frozen
from vpdarts_fast.data import ImageHalf, epoch_order
from vpdarts_fast.evaluation.leave_one_out import LeaveOneOut, leave_one_out
from vpdarts_fast.evaluation.objective import Objective
from vpdarts_fast.evaluation.racing import Racing
from vpdarts_fast.evaluation.taylor import taylor
from vpdarts_fast.evaluation.validation import Batch, evaluation_mode
from vpdarts_fast.runtime.graphs import Captured, recorder_for
from vpdarts_fast.runtime.processes import ALONE, Processes
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.methods.alpha_rules import Loss
from vpdarts_fast.search.methods.schedules import Stage
from vpdarts_fast.search.optimizers import alpha_rate
from vpdarts_fast.search.preflight import (
    images_evaluated,
    images_of_epoch,
    last_batch_is_too_small,
    steps_of_epoch,
)
from vpdarts_fast.search.records import EpochRecord, step_sums
from vpdarts_fast.search.state import SearchState
from vpdarts_fast.search.step import Combine, Step, alpha_step, joint_step, weights_step
from vpdarts_fast.search.streams import drawing, seed_for, stream
from vpdarts_fast.search.watching import largest_eigenvalue
from vpdarts_fast.spaces.edges import WithFurtherWeights
from vpdarts_fast.spaces.nas_bench_201 import Supernet


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
        loss: of logits and labels, what both steps minimise.
        objective: what evaluations measure; None is cross-entropy and accuracy.
        processes: that train the member together, each on its part of every batch.

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
        training: ImageHalf,
        validation: ImageHalf,
        loss: Loss = F.cross_entropy,
        objective: Objective | None = None,
        processes: Processes = ALONE,
    ) -> None:
        seed = config.search.seed if number == 0 else seed_for(config.search.seed, "member", number)
        steps = steps_of_epoch(config, len(training), training.image_size)
        rate = alpha_rate(config, steps)
        self.config = config.replaced(seed=seed, alpha_learning_rate=rate)
        self._loss, self._processes = loss, processes
        self._objective = objective or Objective()
        self.device = device
        self.training, self.validation = training, validation
        self.state = SearchState(self.config, num_classes, device, processes)
        self._capture_steps()

    def _capture_steps(self) -> None:
        """Records training steps anew where they are recorded, as a supernet's first ones."""
        recorder = recorder_for(self.device) if self.config.execution.cuda_graphs else None
        self._weights_step = Captured(self._train_weights, recorder)
        self._alpha_step = Captured(self._train_alpha, recorder)
        self._joint_step = Captured(self._train_both, recorder)

    def widen(self, ranking: Tensor, ops: int) -> None:
        """Prunes ops and goes on with a wider supernet; see `SearchState.widen`."""
        self.state.widen(ranking.to(self.device), ops)
        self._capture_steps()

    def train_epoch(self, watch: Watch) -> None:
        """Trains what the epoch's stage says: weights on training batches, alpha on validation batches."""
        state, config = self.state, self.config
        stage = config.stage(state.epoch)
        training = self._draws(self.training, "training")
        count = len(training)
        steps = self._steps(stage, training)
        state.begin_epoch(stage, fresh=state.epoch == 0 or config.stage(state.epoch - 1) != stage)
        state.publish_epoch()
        watch.begins(stage.name, count, state.step)
        while state.step < count:
            watch.stop_if_asked()
            started = time.perf_counter()
            torch.manual_seed(seed_for(config.search.seed, "dropout", state.epoch, state.step))
            for step in steps:
                step.take(state.step)
            state.step += 1
            state.record.seconds["train"] += time.perf_counter() - started
            watch.done(state.step, count)

    def _steps(self, stage: Stage, training: list[Tensor]) -> list[Step]:
        """What is trained again and again in an epoch of that stage, in its order, on these draws."""
        record, method = self.state.record, self.config.method
        rule, every = method.alpha_rule, method.alpha_every
        if stage.weights and stage.alpha and rule.joint:
            return [Step(self._joint_step, [training], [record.weights, record.alpha])]
        steps = [Step(self._weights_step, [training], [record.weights])] if stage.weights else []
        if stage.alpha:
            first = method.step_order == "alpha-first"
            seen = [self._draws(self.validation, "validation")]
            seen += [training] if rule.needs_training else []
            alpha = Step(self._alpha_step, seen, [record.alpha], every, 0 if first else every - 1)
            steps = [alpha, *steps] if first else [*steps, alpha]
        return steps

    def end_epoch(self) -> None:
        """Goes on to the next epoch."""
        state = self.state
        state.schedule.step()
        for phase, seconds in state.record.seconds.items():
            state.seconds[phase] = state.seconds.get(phase, 0.0) + seconds
        state.epoch, state.step, state.record = state.epoch + 1, 0, EpochRecord()

    def evaluate(self, watch: Watch, only: Tensor | None = None) -> LeaveOneOut:
        """Evaluates the supernet without each op in turn, on a fresh random share of the validation half.

        Of a table `only` [E, O] bool, no others than the ops that it marks. Losses need not be finite. What
        `watch` raises stops the evaluation.
        """
        state, config = self.state, self.config
        state.publish_epoch()
        started = time.perf_counter()
        generator = stream(config.search.seed, "evaluation images", state.epoch)
        count = images_evaluated(config, len(self.validation))
        drawn = self.validation.draw(torch.randperm(len(self.validation), generator=generator)[:count])
        parts = math.ceil(count / config.optimisers.evaluation_batch_size)
        watch.begins("leave-one-out", count, 0)

        def on_batch(done: int) -> None:
            watch.done(done, count)
            watch.stop_if_asked()

        self._processes.copy_from_first(list(state.supernet.buffers()))
        supernet, weights = self._evaluated()
        batches = map(self.validation.take, drawn.to(self.device).tensor_split(parts, dim=1))
        if self._processes.count > 1 and not (config.method.criterion.estimates or self._racing(count)):
            evaluation = self._measured_together(supernet, batches, weights, only, on_batch, count)
        else:
            evaluation = self._measured(supernet, batches, weights, only, on_batch, count)
        state.record.seconds["leave_one_out"] += time.perf_counter() - started
        return evaluation

    def _measured_together(
        self,
        supernet: nn.Module,
        batches: Iterable[Batch],
        weights: Tensor,
        only: Tensor | None,
        on_batch: Callable[[int], None],
        count: int,
    ) -> LeaveOneOut:
        """The same, where each process leaves out some of the ops; to the last bit."""
        wanted = self.config.space.present & ~self.config.space.nones
        wanted = wanted & (weights != 0).cpu() & (wanted if only is None else only.cpu())
        mine = self._processes.turns(wanted)
        found = self._measured(supernet, batches, weights, mine, on_batch, count)
        tables = [torch.where(mine, table, 0.0) for table in (found.accuracy, found.loss)]
        self._processes.add_up(tables)
        accuracy, loss = (
            torch.where(wanted, table, base)
            for table, base in zip(tables, (found.base_accuracy, found.base_loss), strict=True)
        )
        return dataclasses.replace(found, accuracy=accuracy, loss=loss)

    def _measured(
        self,
        supernet: nn.Module,
        batches: Iterable[Batch],
        weights: Tensor,
        only: Tensor | None,
        on_batch: Callable[[int], None],
        count: int,
    ) -> LeaveOneOut:
        """Leave-one-out on `count` images, or its estimate if the criterion asks for one."""
        config = self.config
        if config.method.criterion.estimates:
            nones = config.space.nones
            losses = None if self._objective == Objective() else self._objective.losses
            return taylor(
                supernet, batches, weights, nones=nones, only=only, on_batch=on_batch, losses=losses
            )
        return leave_one_out(
            supernet,
            batches,
            weights,
            batch_norm=config.search.batch_norm,
            removal=config.search.removal,
            batched=config.execution.fused,
            memory_budget=config.execution.memory_budget_mib and config.execution.memory_budget_mib << 20,
            on_batch=on_batch,
            racing=self._racing(count),
            only=only,
            objective=self._objective,
            **self._options_of_space(),
        )

    def eigenvalue(self) -> float:
        """Measures the largest eigenvalue of the Hessian of the validation loss by alpha.

        On a batch of validation images, drawn anew for each epoch; batch norms take its statistics. What
        alpha's steps do not change counts as constant.
        """
        state, seed, epoch = self.state, self.config.search.seed, self.state.epoch
        started = time.perf_counter()
        order = torch.randperm(len(self.validation), generator=stream(seed, "eigenvalue images", epoch))
        drawn = self.validation.draw(order[: self.config.optimisers.batch_size])
        images, labels = self.validation.take(drawn.to(self.device))
        free = state.alive if state.moving is None else state.alive & state.moving[:, None]

        def loss_of(alpha: Tensor) -> Tensor:
            return self._loss(state.supernet(images, state.weights_of(alpha)), labels)

        draws = self.config.method.relaxation.draws
        with (
            drawing(draws, seed_for(seed, "eigenvalue", epoch), self.device),
            evaluation_mode(state.supernet, "batch", (), ()),
            frozen(state.supernet),
            for_second_derivatives(state.supernet),
        ):
            eigenvalue = largest_eigenvalue(loss_of, state.alpha, free)
        state.record.seconds["train"] += time.perf_counter() - started
        return eigenvalue

    def _evaluated(self) -> tuple[nn.Module, Tensor]:
        """The supernet in an evaluation and the weights of its ops [E, O], one draw for all variants.

        What edges have beside their operations stays as it is in every variant.
        """
        seed = seed_for(self.config.search.seed, "evaluation weights", self.state.epoch)
        with torch.no_grad(), drawing(self.config.method.relaxation.draws, seed, self.device):
            weights = self.state.weights_of(self.state.alpha)
        ops = self.state.alpha.shape[1]
        if weights.shape[1] == ops:
            return self.state.supernet, weights
        return WithFurtherWeights(self.state.supernet, weights[:, ops:]), weights[:, :ops]

    def _options_of_space(self) -> dict[str, Any]:
        """What only the evaluation of the fused supernet can, or only that of others asks for."""
        if isinstance(self.state.supernet, Supernet):
            return {"cuda_graphs": self.config.execution.cuda_graphs}
        return {"nones": self.config.space.nones}

    def _racing(self, images: int) -> Racing | None:
        """How ops race in an evaluation on so many images, if they do."""
        search = self.config.search
        if search.evaluation == "full":
            return None
        return Racing(images, self.config.method.criterion.name, search.race_confidence)

    def _train_weights(self, draw: Tensor) -> Tensor:
        """A weight step on what is drawn from the training images; its `step_sums`."""
        state, (mine, share) = self.state, self._part(draw)
        batch = self.training.take(mine)
        with torch.no_grad():
            weights = state.weights_of(state.alpha)
        step = weights_step(
            state.supernet,
            weights,
            batch,
            state.weights_optimizer,
            self.config.optimisers.gradient_clip,
            self._loss,
            self._combining(share),
        )
        return self._sums(step, mine, draw)

    def _train_alpha(self, draw: Tensor, training_draw: Tensor | None = None) -> Tensor:
        """An alpha step on what is drawn from the validation images; its `step_sums`."""
        state, (mine, share) = self.state, self._part(draw)
        step = alpha_step(
            state.supernet,
            state.alpha,
            state.alive,
            self.validation.take(mine),
            state.alpha_optimizer,
            tables=tuple(state.tables.values()),
            moving=state.moving,
            rule=self.config.method.alpha_rule,
            weights_of=state.weights_of,
            penalty=state.penalty,
            loss_of=self._loss,
            training=None if training_draw is None else self.training.take(training_draw),
            weights_optimizer=state.weights_optimizer,
            combine=self._combining(share),
        )
        return self._sums(step, mine, draw)

    def _train_both(self, draw: Tensor) -> Tensor:
        """A step of weights and alpha on what is drawn from the training images; its `step_sums`."""
        state, (mine, share) = self.state, self._part(draw)
        step = joint_step(
            state.supernet,
            state.alpha,
            state.alive,
            self.training.take(mine),
            state.weights_optimizer,
            state.alpha_optimizer,
            self.config.optimisers.gradient_clip,
            moving=state.moving,
            weights_of=state.weights_of,
            penalty=state.penalty,
            loss_of=self._loss,
            combine=self._combining(share),
        )
        return self._sums(step, mine, draw)

    def _part(self, draw: Tensor) -> tuple[Tensor, float]:
        """This process' part of a draw [R, B], with enough images for batch norms, and its share."""
        pixels = self.config.space.smallest(self.training.image_size)
        return self._processes.part(draw, math.ceil(2 / pixels))

    def _combining(self, share: float) -> Combine:
        """What makes gradients those of the whole batch."""
        return lambda gradients: self._processes.add_up(gradients, share)

    def _sums(self, step: tuple[Tensor, Tensor], mine: Tensor, draw: Tensor) -> Tensor:
        """The `step_sums` of the whole batch, of what a step on this process' part of it returns."""
        sums = step_sums(*step, mine.shape[1])
        if mine is draw and not self._processes.first:  # where all had the whole batch, it counts once
            sums.zero_()
        self._processes.add_up([sums])
        return sums

    def _draws(self, images: ImageHalf, purpose: str) -> list[Tensor]:
        """What each step of the epoch takes of the images, on the device; copied there all at once."""
        seed, epoch = self.config.search.seed, self.state.epoch
        size = self.config.batch_size(epoch)
        smallest = self.config.space.smallest(images.image_size)
        visited = images_of_epoch(self.config, len(images))
        drop_last = last_batch_is_too_small(visited, size, smallest)
        order = epoch_order(len(images), size, stream(seed, f"{purpose} order", epoch), drop_last, visited)
        draws = [
            images.draw(indices, stream(seed, f"{purpose} augmentation", epoch, step))
            for step, indices in enumerate(order)
        ]
        return list(torch.split(torch.cat(draws, dim=1).to(self.device), size, dim=1))
