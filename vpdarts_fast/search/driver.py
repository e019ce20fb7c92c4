"""VP-DARTS, the loop (paper, section 3.4)."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.data import GIVEN, SearchImages
from vpdarts_fast.errors import UserError
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.environment import change, checked, environment
from vpdarts_fast.runs.formats import CHECKPOINT
from vpdarts_fast.runs.values import mapping
from vpdarts_fast.runtime.precision import computing_in
from vpdarts_fast.runtime.processes import ALONE, Processes
from vpdarts_fast.search.committee import Committee
from vpdarts_fast.search.config import SearchConfig, contradictions
from vpdarts_fast.search.finalists import Calls, Decision, Finalists
from vpdarts_fast.search.images import sized
from vpdarts_fast.search.limits import Limits, limited_to_json
from vpdarts_fast.search.lines import Lines, added
from vpdarts_fast.search.losses import losses_of
from vpdarts_fast.search.member import Member
from vpdarts_fast.search.methods.alpha_rules import Loss
from vpdarts_fast.search.methods.commits import OPEN
from vpdarts_fast.search.methods.criteria import Importance
from vpdarts_fast.search.methods.schedules import Commit, Perturb, Prune, Widen
from vpdarts_fast.search.observer import Interrupted, MemberWatch, Observer, OpsEvaluated
from vpdarts_fast.search.preflight import (
    check_processes,
    check_search,
    choose_device,
    images_of_epoch,
    limited,
)
from vpdarts_fast.search.ranking import mean_tau
from vpdarts_fast.search.records import evaluation_to_json, watched_from_json
from vpdarts_fast.search.run_folder import RunFolder
from vpdarts_fast.search.state import SearchState
from vpdarts_fast.search.streams import stream


class Search:
    """One search, from the first epoch or from a checkpoint to the found cell.

    Args:
        config: the settings.
        data: the images; `config.images.max_images` of them are used.
        run: where metrics, checkpoints and the result go.
        observer: hears of progress.
        table: where to look the epochs' cells up.
        stop: asked before every step and after every evaluation batch and epoch; True raises `Interrupted`.
        loss: of logits and labels, what all training minimises, where the settings name no other than
            cross-entropy; evaluations then measure cross-entropy.
        on_evaluation: hears of every evaluation of the ops, and may hear of the last one again on resume.
        processes: that run the search together; the first one writes.

    Raises:
        UserError: the search could not be finished (`vpdarts_fast.search.preflight`).
    """

    def __init__(
        self,
        config: SearchConfig,
        data: SearchImages,
        run: RunFolder,
        observer: Observer,
        table: BenchmarkTable | None = None,
        stop: Callable[[], bool] = lambda: False,
        loss: Loss = F.cross_entropy,
        on_evaluation: Callable[[OpsEvaluated], object] = lambda evaluated: None,
        processes: Processes = ALONE,
    ) -> None:
        if not (data.capturable and config.method.capturable) or processes.count > 1:
            config = config.replaced(cuda_graphs=False)
        config = sized(config, data)
        self.config, self.run_folder, self.observer = config, run, observer
        self.table, self.stop, self._on_evaluation = table, stop, on_evaluation
        self.processes = processes
        check_processes(config, processes)
        self.device = choose_device(config.execution.device)
        check_search(config, data, table, self.device)
        images = limited(data, config)
        loss, objective = losses_of(config, images, loss, self.device)
        self._loss = loss
        self.environment = environment(
            self.device, config.execution.backend if config.execution.fused else "none"
        )
        self.environment_change: str | None = None
        self._images_digest, self.num_classes = images.digest(), data.num_classes
        halves = images.halves(config.search.seed, config.images.split)
        self.training, self.validation = (half.to(self.device) for half in halves)
        self.space, self.criterion, self.pruning = (
            config.space,
            config.method.criterion,
            config.method.pruning,
        )
        given = data.num_classes, self.device, self.training, self.validation, loss, objective, processes
        self.members = [Member(config, number, *given) for number in range(config.search.committee)]
        self.committee = Committee(config, self.members)
        self.lines = Lines(config, self.committee, table, self.environment)
        self.limits = None
        if config.limits.given:
            self.limits = Limits(config, data.num_classes, data.image_size)
            self.limits.check()

    @property
    def state(self) -> SearchState:
        """The state of the first member, whose epoch is that of the search."""
        return self.members[0].state

    def resume(self) -> None:
        """Continues from the run's checkpoint.

        `environment_change` then says what differs from the machine and the software that it ran on before.

        Raises:
            UserError: the checkpoint is damaged, or a search with other settings or images wrote it.
        """
        path = self.run_folder.checkpoint
        content = checkpoint.load(path)
        saved_config = SearchConfig.from_json(content.get("config"), str(path))
        if changed := contradictions(saved_config, self.config):
            raise UserError(f"{path} contradicts config.json:\n  " + "\n  ".join(changed))
        if content.get("images") not in (None, self._images_digest):
            dataset = self.config.images.dataset
            by = "" if dataset == GIVEN else " by --data"
            raise UserError(
                f"{path} was trained on other images than those that {dataset} is now: name the data set "
                f"that the run began with{by}, or start a new run"
            )
        with CHECKPOINT.reading(str(path)):
            saved = [content, *(mapping(member, "a member") for member in content["members"])]
            if len(saved) != len(self.members):
                raise ValueError(f"it holds {len(saved)} of the committee's {len(self.members)} supernets")
        for member, values in zip(self.members, saved, strict=True):
            member.state.load_state_dict(values, str(path), epochs=self.config.epochs, steps=self._steps(0))
        with CHECKPOINT.reading(str(path)):
            self.environment_change = change(checked(content["environment"]), self.environment)

    @property
    def begun(self) -> bool:
        """Whether a step or an evaluation is done."""
        return bool(self.state.epoch or self.state.step or self.state.record.began)

    def _steps(self, epoch: int) -> int:
        """Of an epoch, at most."""
        return math.ceil(images_of_epoch(self.config, len(self.training)) / self.config.batch_size(epoch))

    @property
    def position(self) -> str:
        """Says where the search is, for people."""
        if self.state.epoch == self.config.epochs:
            return "the final evaluation" if self.state.record.genotype is None else "the finalists"
        for number, member in enumerate(self.members, start=1):
            if number == len(self.members) or member.state.step < self._steps(self.state.epoch):
                break
        of_committee = f"supernet {number}, " if len(self.members) > 1 else ""
        return f"epoch {self.state.epoch + 1}, {of_committee}step {member.state.step}"

    def search(self) -> dict[str, Any]:
        """Runs to the end and returns what result.json holds.

        Raises:
            Interrupted: `stop` said so.
            UserError: a loss is not finite, a file cannot be written, or the device lacks the precision.
        """
        with computing_in(self.config.execution.precision, self.device):
            try:
                while self.state.epoch < self.config.epochs and self._stopped is None:
                    self._begin_epoch()
                    self._train_epoch()
                    self._end_epoch()
                return self._select()
            except Interrupted:
                self._save()  # not before: an evaluation changes the batch norms while it lasts
                raise

    @property
    def _stopped(self) -> int | None:
        """Behind how many epochs the search takes its cell, if it ends early; by what its files say."""
        found: int | None = None
        if self.processes.first:
            lines = (line["watched"] for line in self.run_folder.metrics())
            found = self.config.method.stopping.stops([watched_from_json(line) for line in lines if line])
        found = self.processes.tell(found)
        return found

    def _begin_epoch(self) -> None:
        """Lets happen what the schedule has for the beginning of the epoch, to all members alike."""
        schedule = self.config.method.schedule
        event = schedule.event(self.state.epoch, self.space)
        by_alpha = schedule.commits or not self.criterion.needs_evaluation
        if self.state.record.began or (event is None and not by_alpha):
            return
        if event is not None:
            self._take_snapshot()
        if isinstance(event, Prune):
            self._prune(event.epoch, event.epochs)
        elif isinstance(event, Perturb):
            self._decide_by_evaluation()
        elif isinstance(event, Commit):
            self.committee.decide()
        elif isinstance(event, Widen):
            self.committee.widen(event.ops)
        if by_alpha and self.state.record.genotype is None and self.state.epoch > self.config.frozen_epochs:
            self._note_cell(self.committee.importance_of_alpha)
        for state in self.committee.states:
            state.record.began = True

    def _prune(self, epoch: int, epochs: int) -> None:
        """Evaluates the ops and prunes, if that is due in the pruning epoch."""
        if self.pruning.due(epoch, epochs) and epoch >= self.criterion.first_epoch:
            ranking = self._rank_ops().ranking(self.committee.choosable).to(self.device)
            for state in self.committee.states:
                state.record.decay = self.pruning.apply(state.alpha, state.alive, ranking, epoch, epochs)

    def _decide_by_evaluation(self) -> None:
        """Decides an open edge, drawn at random, by what its ops are worth."""
        choosable, epoch = self.committee.choosable, self.state.epoch
        edges = (self.state.decided.cpu() == OPEN).nonzero().flatten()
        draw = torch.randint(len(edges), (), generator=stream(self.config.search.seed, "edge", epoch))
        edge = int(edges[draw])
        only = torch.zeros_like(choosable)
        only[edge] = choosable[edge]
        self._evaluate(only)
        self.committee.decide_edge(edge)

    def _train_epoch(self) -> None:
        """One member after the other."""
        for number, member in enumerate(self.members):
            member.train_epoch(self._watch(number))

    def _watch(self, number: int) -> MemberWatch:
        members, epoch = len(self.members), self.state.epoch
        return MemberWatch(self.observer, number, members, epoch, self.stop_if_asked)

    def _end_epoch(self) -> None:
        """Writes the epoch's metrics and the checkpoint."""
        for state in self.committee.states:
            for phase, mean in (("weights", state.record.weights), ("alpha", state.record.alpha)):
                self._check_finite(mean.summary()[0], phase)
        metrics = self.lines.epoch(self._eigenvalue())
        for member in self.members:
            member.end_epoch()
        if self.processes.first:
            self.run_folder.append_metrics(metrics)
        self._save()
        self.observer.epoch(metrics)
        self.stop_if_asked()

    def _select(self) -> dict[str, Any]:
        """Evaluates once more and takes the most important op of each edge, or a finalist that is better."""
        self._take_snapshot()
        calls, limited = Calls(self._rank_ops(), self.committee.choosable, self.space), None
        if self.limits is not None:
            self._save()
            limited = self.limits.choose(calls)
            calls = dataclasses.replace(calls, limited=limited.genotype, allowed=self.limits.within)
        genotype, decision = self._earlier_cell() or calls.chosen, None
        states = self.committee.states
        seconds = added([state.seconds for state in states])
        evaluating = sum(state.record.seconds["leave_one_out"] for state in states)
        seconds["leave_one_out"] = seconds.get("leave_one_out", 0.0) + evaluating
        if self.config.search.finalists:
            self._save()
            decision = self._compared(calls)
            genotype = self.space.parse(self.processes.tell(decision and str(decision.winner)))
            seconds["finalists"] = decision.seconds if decision else 0.0
        of_limits = None
        if self.limits is not None and limited is not None:
            of_limits = limited_to_json(self.limits, limited, genotype, calls)
        result = self.lines.result(genotype, decision, seconds, self._stopped, of_limits)
        if self.processes.first:
            self.run_folder.write_result(result)
        return result

    def _earlier_cell(self) -> Any | None:
        """The cell of an earlier epoch, if the search ended because of what came after it."""
        stopped = self._stopped
        if stopped is None or stopped >= self.state.epoch:
            return None
        text = self.run_folder.metrics()[stopped]["genotype"]  # as the epoch behind it found it
        return None if text is None else self.space.parse(text)

    def _compared(self, calls: Calls) -> Decision | None:
        """What the finalists come to; the first process trains them, and the others wait and have None."""
        decision, stopped = None, False
        if self.processes.first:
            try:
                decision = self._compare(calls)
            except Interrupted:
                stopped = True
        if self.processes.tell(stopped):
            raise Interrupted
        return decision

    def _compare(self, calls: Calls) -> Decision:
        """The search's cell against those of earlier epochs and its neighbours, trained from scratch."""
        epochs = reversed(self.run_folder.metrics())
        earlier = [self.space.parse(epoch["genotype"]) for epoch in epochs if epoch["genotype"]]
        if calls.allowed is not None:
            earlier = [cell for cell in earlier if calls.allowed(cell)]
        self.observer.phase("finalists", self.config.search.finalist_budget)

        def on_step(steps: int) -> None:
            if self.stop():
                raise Interrupted
            self.observer.advance(steps, self.state.epoch)

        return Finalists(
            self.config,
            self.num_classes,
            self.training,
            self.validation,
            calls,
            self.run_folder.finalists,
            self._images_digest,
            self._loss,
        ).compare(earlier, on_step, self.observer.rung)

    def _rank_ops(self) -> Importance:
        """How important each op is to the members on average; notes their evaluations in their records."""
        if self.criterion.needs_evaluation and not self.committee.settled:
            self._evaluate()
        importance = self.committee.importance
        self._note_cell(importance)
        return importance

    def _evaluate(self, only: Tensor | None = None) -> None:
        """Evaluates the members without each op, or `only` some [E, O], unless they are already."""
        if self.committee.evaluation is not None:
            return
        evaluations = [
            member.evaluate(self._watch(number), only) for number, member in enumerate(self.members)
        ]
        for state, evaluation in zip(self.committee.states, evaluations, strict=True):
            if not evaluation.loss.isfinite().all():
                self._check_finite(math.nan, "leave-one-out")
            state.record.evaluation = evaluation_to_json(evaluation, self.config.search.batch_norm)

    def _note_cell(self, importance: Importance) -> None:
        """Notes the cell that this importance would select in the members' records, and says so."""
        genotype = self.space.select(importance.order(self.committee.choosable))
        tau = mean_tau(importance, self.table)
        for state in self.committee.states:
            state.record.genotype, state.record.tau = str(genotype), tau
        evaluation = self.committee.evaluation
        self._on_evaluation(OpsEvaluated(self.state.epoch, importance, evaluation, genotype))

    def _eigenvalue(self) -> float | None:
        """Of the loss' curvature by alpha, the mean over the members; None where it is not measured."""
        if not self.config.measures_eigenvalue:
            return None
        return statistics.fmean(member.eigenvalue() for member in self.members)

    def _take_snapshot(self) -> None:
        """Keeps what is about to be evaluated, if asked to."""
        if self.config.reporting.snapshots and self.processes.first:
            first, *others = (state.snapshot() for state in self.committee.states)
            self.run_folder.write_snapshot(self.state.epoch, {**first, "members": others})

    def _save(self) -> None:
        if not self.processes.first:
            return
        content = {
            "config": self.config.to_json(),
            "environment": self.environment,
            "images": self._images_digest,
            **self.state.state_dict(),
            "members": [state.state_dict() for state in self.committee.states[1:]],
        }
        checkpoint.save(self.run_folder.checkpoint, content)

    def stop_if_asked(self) -> None:
        """Raises `Interrupted` if `stop` says so, in one of the processes."""
        if self.processes.any(self.stop()):
            raise Interrupted

    def _check_finite(self, loss: float | None, phase: str) -> None:
        if loss is not None and not math.isfinite(loss):
            raise UserError(
                f"the {phase} loss is {loss} in {self.position}: the search diverged. Start a new run with a "
                "smaller --learning-rate, --gradient-clip or --alpha-start"
            )
