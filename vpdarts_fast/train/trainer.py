"""A training, from its first epoch or a checkpoint to its result."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.data import ImageHalf
from vpdarts_fast.errors import UserError
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.environment import change, checked, environment
from vpdarts_fast.runs.formats import TRAINING_CHECKPOINT
from vpdarts_fast.runs.space_file import drawing_to_json
from vpdarts_fast.runs.values import mapping
from vpdarts_fast.runtime.precision import computing_in
from vpdarts_fast.runtime.processes import ALONE, Processes
from vpdarts_fast.search.lines import index_of
from vpdarts_fast.search.losses import named_loss
from vpdarts_fast.search.observer import Interrupted
from vpdarts_fast.search.preflight import choose_device
from vpdarts_fast.train.comparison import compared
from vpdarts_fast.train.config import TrainConfig, contradictions
from vpdarts_fast.train.evaluating import Scores, evaluate
from vpdarts_fast.train.folder import TrainFolder
from vpdarts_fast.train.images import Data, Images, check_auxiliary
from vpdarts_fast.train.networks import check_memory, cost_of, network_to_train
from vpdarts_fast.train.state import TrainingState


class TrainObserver(Protocol):
    """Who watches a training."""

    def phase(self, description: str, total: int, done: int = 0) -> None:
        """A phase of an epoch begins, with so many units of work."""

    def advance(self, done: int, epochs: float) -> None:
        """So many units of the phase are done, and so many epochs of the training."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """An epoch is over; `metrics` is its line of metrics.jsonl."""


class Training:
    """One training.

    Args:
        config: the settings.
        data: the images.
        run: where metrics, checkpoints and the result go.
        observer: hears of progress.
        table: where a cell of NAS-Bench-201 is looked up.
        stop: asked before every step and batch; True raises `Interrupted`.
        processes: that train together; the first one evaluates and writes.

    Attributes:
        state: what changes.
        images: what it sees.
        environment_change: what is not as it was when the training was stopped, for people.

    Raises:
        UserError: network and images do not fit each other.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Data,
        run: TrainFolder,
        observer: TrainObserver,
        table: BenchmarkTable | None = None,
        stop: Callable[[], bool] = lambda: False,
        processes: Processes = ALONE,
    ) -> None:
        self.processes = processes
        self.config, self.run_folder, self.observer, self._table = config, run, observer, table
        self._data, self._stop = data, stop
        self.device = choose_device(config.execution.device)
        self.images = Images.of(data, config, self.device)
        training_images = len(self.images.training)
        check_memory(config, data.num_classes, data.image_size, training_images, self.device, processes)
        self.environment = environment(self.device, "auto" if config.execution.fused else "none")
        self.environment_change: str | None = None
        self.steps = len(self.images.order(config, 0))
        self._averaged: nn.Module | None = None
        loss = named_loss(config.training, self.images.labels, data.num_classes, self.device)
        self.state = TrainingState(
            config,
            data.num_classes,
            self.device,
            self.steps,
            F.cross_entropy if loss is None else loss,
            processes,
        )
        check_auxiliary(data, config)

    @property
    def begun(self) -> bool:
        """Whether there is anything to lose."""
        return bool(self.state.epoch or self.state.step)

    @property
    def position(self) -> str:
        """Where the training is, for people."""
        if self.state.epoch == self.config.training.epochs:
            return "the test"
        return f"epoch {self.state.epoch + 1}, step {self.state.step}"

    def resume(self) -> None:
        """Puts the training where its checkpoint has it.

        Raises:
            UserError: the checkpoint is damaged, or of other settings or images.
        """
        source = str(self.run_folder.checkpoint)
        content = checkpoint.load(self.run_folder.checkpoint, TRAINING_CHECKPOINT)
        with TRAINING_CHECKPOINT.reading(source):
            saved = TrainConfig.from_json(mapping(content["config"], "config"), f"{source}, config,")
            recorded, images = checked(content["environment"]), content["images"]
        if changed := contradictions(saved, self.config):
            raise UserError(f"{source} is of other settings:\n  " + "\n  ".join(changed))
        if images != self.images.digest:
            raise UserError(
                f"{source} was written with other images of {self._data.name}: name the same ones with --data"
            )
        self.environment_change = change(recorded, self.environment)
        self.state.load_state_dict(content, source)

    def train(self) -> dict[str, Any]:
        """Trains to the end, and returns what result.json holds.

        Raises:
            Interrupted: it was asked to stop; everything is in the checkpoint.
            UserError: it diverged, or a file cannot be written.
        """
        epochs = self.config.training.epochs
        with torch.random.fork_rng(), computing_in(self.config.execution.precision, self.device):
            try:
                while self.state.epoch < epochs:
                    self._train_epoch()
                    self._end_epoch()
            except Interrupted:
                if self.begun:
                    self.state.check_finite()
                    self._save()
                raise
            return self._in_first(self._finish)

    def _in_first(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the first process comes to while the others wait, who have nothing; all stop where it does."""
        found: dict[str, Any] = {}
        stopped = False
        if self.processes.first:
            try:
                found = work()
            except Interrupted:
                stopped = True
        if self.processes.tell(stopped):
            raise Interrupted
        return found

    def _train_epoch(self) -> None:
        state = self.state
        order = self.images.order(self.config, state.epoch)
        self.observer.phase("train", len(order), state.step)
        while state.step < len(order):
            self._stop_if_asked()
            started = time.perf_counter()
            indices = order[state.step]
            batch, share = self.images.batch(indices, self.config, state.epoch, state.step, self.processes)
            state.train(batch, len(indices), share, self.processes)
            state.epoch_seconds["train"] += time.perf_counter() - started
            self.observer.advance(state.step, state.epoch + state.step / len(order))

    def _end_epoch(self) -> None:
        """Validates, writes the epoch's metrics and the checkpoint."""
        state = self.state
        state.check_finite()
        loss, accuracy = state.record.summary()
        line: dict[str, Any] = {
            "epoch": state.epoch,
            "learning_rate": state.optimizer.param_groups[0]["lr"],
            "drop_path": state.drop_path,
            "training": {"loss": loss, "accuracy": accuracy},
            "validation": None,
            "average": None,
        }
        if self.images.validation is not None:
            line |= self._in_first(self._validated)
        last = state.epoch + 1 == self.config.training.epochs
        line["seconds"] = {name: round(value, 3) for name, value in state.epoch_seconds.items()}
        state.begin_next_epoch()
        line["environment"] = self.environment
        if self.processes.first:
            self.run_folder.append_metrics(line)
        self._save()
        self.observer.epoch(line)
        if not last:
            self._stop_if_asked()

    def _finish(self) -> dict[str, Any]:
        """Tests the network, once."""
        data, config = self._data, self.config
        found = self._evaluated(self.images.test, "test")
        test, beside = found["validation"], found.get("average")
        if beside is not None:  # the average is the network that is exported
            test, beside = beside, test
        *_, last = self.run_folder.metrics()
        validation = last["average"] or last["validation"]
        genotype = config.genotype
        result = {
            "architecture": str(genotype),
            "index": index_of(genotype),
            "space": config.space.name,
            "drawing": drawing_to_json(config.space, genotype),
            "preset": config.preset,
            "dataset": data.name,
            "classes": list(data.classes),
            "images": {
                "training": len(self.images.training),
                "validation": 0 if self.images.validation is None else len(self.images.validation),
                "test": len(self.images.test),
            },
            "epochs": config.training.epochs,
            "seed": config.training.seed,
            "training": last["training"],
            "validation": validation,
            "test": test.to_json(),
            "test_without_average": beside and beside.to_json(),
            **cost_of(config, data.num_classes, data.image_size),
            "benchmark": self._table.accuracy(genotype) if self._table else None,
            "compared": compared(config, self._table, test.summary(), validation),
            "seconds": {name: round(value, 3) for name, value in self.state.total_seconds.items()},
        }
        self.run_folder.write_result(result)
        return result

    def _validated(self) -> dict[str, Any]:
        assert self.images.validation is not None
        found = self._evaluated(self.images.validation, "validate")
        return {name: scores.summary() for name, scores in found.items()}

    def _evaluated(self, images: ImageHalf, phase: str) -> dict[str, Scores]:
        """Scores of the network, called validation, and of the average of its weights, if there is one."""
        networks = {"validation": self.state.network}
        if self.state.average is not None:
            if self._averaged is None:
                self._averaged = network_to_train(self.config, self._data.num_classes, self.device)
            self._averaged.load_state_dict(self.state.average.tensors)
            networks["average"] = self._averaged
        found = {}
        started = time.perf_counter()
        for name, network in networks.items():
            size = self.config.training.evaluation_batch_size
            batches = -(-len(images) // size)
            self.observer.phase(phase, batches)

            def on_batch(done: int) -> None:
                if self._stop():
                    raise Interrupted
                self.observer.advance(done, self.state.epoch)

            found[name] = evaluate(network, images, self._data.num_classes, size, on_batch)
        self.state.epoch_seconds["evaluate"] += time.perf_counter() - started
        return found

    def _save(self) -> None:
        if not self.processes.first:
            return
        content = {
            "config": self.config.to_json(),
            "environment": self.environment,
            "images": self.images.digest,
            **self.state.state_dict(),
        }
        checkpoint.save(self.run_folder.checkpoint, content, TRAINING_CHECKPOINT)

    def _stop_if_asked(self) -> None:
        if self.processes.any(self._stop()):
            raise Interrupted
