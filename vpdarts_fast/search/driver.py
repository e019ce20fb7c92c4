"""VP-DARTS, the loop (paper, section 3.4)."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.data import ImageData, ImageSet, epoch_order, split_halves
from vpdarts_fast.errors import UserError
from vpdarts_fast.graphs import Captured, recorder_for
from vpdarts_fast.leave_one_out import LeaveOneOut, leave_one_out
from vpdarts_fast.precision import computing_in
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.environment import change, checked, environment, images_digest
from vpdarts_fast.runs.formats import CHECKPOINT
from vpdarts_fast.search.config import SearchConfig, contradictions
from vpdarts_fast.search.finalists import Calls, Decision, Finalists, Rung, decision_to_json
from vpdarts_fast.search.preflight import check_search, images_evaluated, last_batch_is_too_small
from vpdarts_fast.search.pruning import Importance, make_criterion, make_pruning
from vpdarts_fast.search.run_folder import RunFolder
from vpdarts_fast.search.state import (
    EpochRecord,
    SearchState,
    evaluation_from_json,
    evaluation_to_json,
    numbers,
    step_sums,
)
from vpdarts_fast.search.step import alpha_step, weights_step
from vpdarts_fast.search.streams import seed_for, stream
from vpdarts_fast.spaces.genotype import Genotype


class Interrupted(Exception):
    """The search was asked to stop; everything is in the checkpoint."""


class Observer(Protocol):
    """Who watches a search."""

    def phase(self, description: str, total: int, done: int = 0) -> None:
        """A phase of an epoch begins, with so many units of work."""

    def advance(self, done: int, epochs: float) -> None:
        """So many units of the phase are done, and so many epochs of the search."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """An epoch is over; its line of metrics.jsonl."""

    def rung(self, rung: Rung) -> None:
        """Finalists were trained alike; their scores."""


class Search:
    """One search, from the first epoch or from a checkpoint to the found cell.

    Args:
        config: the settings.
        data: the images; `config.max_images` of them are used.
        run: where metrics, checkpoints and the result go.
        observer: hears of progress.
        table: where to look the epochs' cells up.
        stop: asked before every step and after every evaluation batch and epoch; True saves and raises
            `Interrupted`.

    Raises:
        UserError: the search could not be finished (`vpdarts_fast.search.preflight`).
    """

    def __init__(
        self,
        config: SearchConfig,
        data: ImageData,
        run: RunFolder,
        observer: Observer,
        table: BenchmarkTable | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config, self.run_folder, self.observer = config, run, observer
        self.table, self.stop = table, stop
        self.device = choose_device(config.device)
        check_search(config, data, table, self.device)
        images = limited(data, config)
        self.environment = environment(self.device, config.backend if config.fused else "none")
        self.environment_change: str | None = None
        self._images_digest = images_digest(images)
        halves = split_halves(images, config.seed)
        self.training, self.validation = (half.to(self.device) for half in halves)
        self.criterion, self.pruning = make_criterion(config), make_pruning(config)
        self.state = SearchState(config, data.num_classes, self.device)
        recorder = recorder_for(self.device) if config.cuda_graphs else None
        self._weights_step = Captured(self._train_weights, recorder)
        self._alpha_step = Captured(self._train_alpha, recorder)

    def resume(self) -> None:
        """Continues from the run's checkpoint.

        `environment_change` then says what differs from the machine and the software that it ran on before.

        Raises:
            UserError: the checkpoint is damaged, or a search with other settings or images wrote it.
        """
        path = self.run_folder.checkpoint
        content = checkpoint.load(path)
        if changed := contradictions(SearchConfig.from_json(content.get("config"), str(path)), self.config):
            raise UserError(f"{path} contradicts config.json:\n  " + "\n  ".join(changed))
        if content.get("images") not in (None, self._images_digest):
            raise UserError(
                f"{path} was trained on other images than those that {self.config.dataset} is now: name the "
                "data set that the run began with by --data, or start a new run"
            )
        steps = math.ceil(len(self.training) / self.config.batch_size)
        self.state.load_state_dict(content, str(path), epochs=self.config.epochs, steps=steps)
        with CHECKPOINT.reading(str(path)):
            self.environment_change = change(checked(content["environment"]), self.environment)

    @property
    def begun(self) -> bool:
        """Whether a step or an evaluation is done."""
        return bool(self.state.epoch or self.state.step or self.state.record.began)

    @property
    def position(self) -> str:
        """Where the search is, for people."""
        if self.state.epoch == self.config.epochs:
            return "the final evaluation" if self.state.record.choices is None else "the finalists"
        return f"epoch {self.state.epoch + 1}, step {self.state.step}"

    def search(self) -> dict[str, Any]:
        """Runs to the end and returns what result.json holds.

        Raises:
            Interrupted: `stop` said so.
            UserError: a loss is not finite, a file cannot be written, or the device lacks the precision.
        """
        with computing_in(self.config.precision, self.device):
            try:
                while self.state.epoch < self.config.epochs:
                    self._begin_epoch()
                    self._train_epoch()
                    self._end_epoch()
                return self._select()
            except Interrupted:
                self._save()  # not before: an evaluation changes the batch norms while it lasts
                raise

    def _begin_epoch(self) -> None:
        """Evaluates the ops and prunes, at the beginning of every pruning epoch."""
        state, pruning_epoch = self.state, self.state.epoch - self.config.warmup_epochs
        if pruning_epoch < 0 or state.record.began:
            return
        self._take_snapshot()
        if self.pruning.due(pruning_epoch) and pruning_epoch >= self.criterion.first_epoch:
            ranking = self._rank_ops().ranking(state.alive.cpu()).to(self.device)
            state.record.decay = self.pruning.apply(state.alpha, state.alive, ranking, pruning_epoch)
        state.record.began = True

    def _train_epoch(self) -> None:
        """Alternates a weight step on a training batch with an alpha step on a validation batch."""
        state, config, pruning = self.state, self.config, self.state.epoch >= self.config.warmup_epochs
        training = self._draws(self.training, "training")
        validation = self._draws(self.validation, "validation") if pruning else []
        state.publish_learning_rate()
        self.observer.phase("pruning" if pruning else "warm-up", len(training), state.step)
        while state.step < len(training):
            self._stop_if_asked()
            started = time.perf_counter()
            torch.manual_seed(seed_for(config.seed, "dropout", state.epoch, state.step))
            draw = training[state.step]
            state.record.weights.add(self._weights_step(draw), draw.shape[1])
            if pruning:
                draw = validation[state.step]
                state.record.alpha.add(self._alpha_step(draw), draw.shape[1])
            state.step += 1
            state.record.seconds["train"] += time.perf_counter() - started
            self.observer.advance(state.step, state.epoch + state.step / len(training))

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

    def _end_epoch(self) -> None:
        """Writes the epoch's metrics and the checkpoint."""
        state = self.state
        metrics = self._metrics()
        for phase in ("weights", "alpha"):
            self._check_finite(metrics[f"{phase}_loss"], phase)
        state.schedule.step()
        for phase, seconds in state.record.seconds.items():
            state.seconds[phase] = state.seconds.get(phase, 0.0) + seconds
        state.epoch, state.step, state.record = state.epoch + 1, 0, EpochRecord()
        self.run_folder.append_metrics(metrics)
        self._save()
        self.observer.epoch(metrics)
        self._stop_if_asked()

    def _select(self) -> dict[str, Any]:
        """Evaluates once more and takes the most important op of each edge, or a finalist that is better."""
        state = self.state
        self._take_snapshot()
        calls = Calls(self._rank_ops(), state.alive.cpu())
        genotype, decision = calls.chosen, None
        seconds = dict(state.seconds)
        seconds["leave_one_out"] = seconds.get("leave_one_out", 0.0) + state.record.seconds["leave_one_out"]
        if self.config.finalists:
            self._save()
            decision = self._compare(calls)
            genotype, seconds["finalists"] = decision.winner, decision.seconds
        evaluation = state.record.evaluation
        result = {
            "architecture": str(genotype),
            "index": genotype.index,
            "criterion": self.config.criterion,
            "base_accuracy": evaluation["base_accuracy"] if evaluation else None,
            "benchmark": self._look_up(genotype),
            "importance": evaluation,
            "alpha": numbers(state.alpha),
            "finalists": decision and decision_to_json(decision, self._look_up),
            "seconds": seconds,
            "seed": self.config.seed,
            "warmup_epochs": self.config.warmup_epochs,
            "pruning_epochs": self.config.pruning_epochs,
        }
        self.run_folder.write_result(result)
        return result

    def _compare(self, calls: Calls) -> Decision:
        """The search's cell against those of earlier epochs and its neighbours, trained from scratch."""
        epochs = reversed(self.run_folder.metrics())
        earlier = [Genotype.from_string(epoch["genotype"]) for epoch in epochs if epoch["genotype"]]
        self.observer.phase("finalists", self.config.finalist_budget)

        def on_step(steps: int) -> None:
            self._stop_if_asked()
            self.observer.advance(steps, self.state.epoch)

        return Finalists(
            self.config,
            self.state.supernet.num_classes,
            self.training,
            self.validation,
            calls,
            self.run_folder.finalists,
            self._images_digest,
        ).compare(earlier, on_step, self.observer.rung)

    def _rank_ops(self) -> Importance:
        """How important each op is; notes the evaluation in the epoch's record, or takes it from there."""
        state, record = self.state, self.state.record
        if self.criterion.needs_evaluation and record.evaluation is None:
            record.evaluation = evaluation_to_json(self._evaluate(), self.config.batch_norm)
        evaluation = record.evaluation and evaluation_from_json(record.evaluation)
        importance = self.criterion.importance(state.alpha, evaluation or None)
        record.choices = importance.ranking(state.alive.cpu())[:, 0].tolist()
        return importance

    def _evaluate(self) -> LeaveOneOut:
        """Leave-one-out on a fresh random share of the validation set."""
        state, config = self.state, self.config
        started = time.perf_counter()
        generator = stream(config.seed, "evaluation images", state.epoch)
        count = images_evaluated(config, len(self.validation))
        drawn = self.validation.draw(torch.randperm(len(self.validation), generator=generator)[:count])
        parts = math.ceil(count / config.evaluation_batch_size)
        self.observer.phase("leave-one-out", count)

        def on_batch(done: int) -> None:
            self.observer.advance(done, state.epoch)
            self._stop_if_asked()

        evaluation = leave_one_out(
            state.supernet,
            map(self.validation.take, drawn.to(self.device).tensor_split(parts, dim=1)),
            state.alpha,
            batch_norm=config.batch_norm,
            fused=config.fused,
            memory_budget=config.memory_budget_mib and config.memory_budget_mib << 20,
            on_batch=on_batch,
            cuda_graphs=config.cuda_graphs,
        )
        if not evaluation.loss.isfinite().all():
            self._check_finite(math.nan, "leave-one-out")
        state.record.seconds["leave_one_out"] += time.perf_counter() - started
        return evaluation

    def _draws(self, images: ImageSet, purpose: str) -> list[Tensor]:
        """What each step of the epoch takes of the images, on the device; copied there all at once."""
        seed, size, epoch = self.config.seed, self.config.batch_size, self.state.epoch
        height, width = images.images.shape[1:3]
        drop_last = last_batch_is_too_small(len(images), size, (height, width))
        order = epoch_order(len(images), size, stream(seed, f"{purpose} order", epoch), drop_last)
        draws = [
            images.draw(indices, stream(seed, f"{purpose} augmentation", epoch, step))
            for step, indices in enumerate(order)
        ]
        return list(torch.split(torch.cat(draws, dim=1).to(self.device), size, dim=1))

    def _metrics(self) -> dict[str, Any]:
        state, record = self.state, self.state.record
        genotype = Genotype.from_choices(record.choices) if record.choices else None
        weights_loss, weights_accuracy = record.weights.summary()
        alpha_loss, alpha_accuracy = record.alpha.summary()
        return {
            "epoch": state.epoch,
            "phase": "warm-up" if state.epoch < self.config.warmup_epochs else "pruning",
            "learning_rate": state.schedule.get_last_lr()[0],
            "weights_loss": weights_loss,
            "weights_accuracy": weights_accuracy,
            "alpha_loss": alpha_loss,
            "alpha_accuracy": alpha_accuracy,
            "alpha": numbers(state.alpha),
            "importance": record.evaluation,
            "genotype": str(genotype) if genotype else None,
            "index": genotype.index if genotype else None,
            "decay": record.decay,
            "benchmark": self._look_up(genotype) if genotype else None,
            "seconds": {phase: round(seconds, 3) for phase, seconds in record.seconds.items()},
            "environment": self.environment,
        }

    def _look_up(self, genotype: Genotype) -> dict[str, float] | None:
        return self.table.accuracy(genotype) if self.table else None

    def _take_snapshot(self) -> None:
        """Keeps what is about to be evaluated, if asked to."""
        if self.config.snapshots:
            self.run_folder.write_snapshot(self.state.epoch, self.state.snapshot())

    def _save(self) -> None:
        content = {
            "config": self.config.to_json(),
            "environment": self.environment,
            "images": self._images_digest,
            **self.state.state_dict(),
        }
        checkpoint.save(self.run_folder.checkpoint, content)

    def _stop_if_asked(self) -> None:
        if self.stop():
            raise Interrupted

    def _check_finite(self, loss: float | None, phase: str) -> None:
        if loss is not None and not math.isfinite(loss):
            raise UserError(
                f"the {phase} loss is {loss} in {self.position}: the search diverged. Start a new run with a "
                "smaller --learning-rate, --gradient-clip or --alpha-start"
            )


def limited(data: ImageData, config: SearchConfig) -> ImageData:
    """`config.max_images` training images, drawn at random."""
    if config.max_images is None or config.max_images >= len(data.train_images):
        return data
    generator = stream(config.seed, "images used")
    kept = torch.randperm(len(data.train_images), generator=generator, device="cpu")[: config.max_images]
    return dataclasses.replace(
        data, train_images=data.train_images[kept], train_labels=data.train_labels[kept]
    )


def choose_device(name: str) -> torch.device:
    """auto takes a GPU where there is one; `UserError` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device must be auto, cpu or cuda; got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: PyTorch finds no usable CUDA device here; use cpu or auto")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be auto, cpu or cuda; got {name!r}")
    return device
