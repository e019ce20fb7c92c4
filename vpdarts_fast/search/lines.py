"""What the files of a run say of an epoch and of the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.runs.space_file import drawing_to_json
from vpdarts_fast.search.committee import Committee
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.finalists import Decision, decision_to_json
from vpdarts_fast.search.records import Mean, evaluation_to_json, numbers, plain


class Lines:
    """Says where a search is.

    Args:
        config: the settings of the search.
        committee: whose state it is.
        table: where cells are looked up.
        environment: what the search runs on.
    """

    def __init__(
        self,
        config: SearchConfig,
        committee: Committee,
        table: BenchmarkTable | None,
        environment: dict[str, Any],
    ) -> None:
        self._config, self._committee, self._table = config, committee, table
        self._environment = environment

    def epoch(self, eigenvalue: float | None) -> dict[str, Any]:
        """The line of metrics.jsonl of the epoch that has been trained; the eigenvalue is given."""
        states, evaluation = self._committee.states, self._committee.evaluation
        state = states[0]
        seconds = added([state.record.seconds for state in states])
        genotype = self._config.space.parse(state.record.genotype) if state.record.genotype else None
        return {
            "epoch": state.epoch,
            "phase": self._config.stage(state.epoch).name,
            "learning_rate": state.weights_optimizer.param_groups[0]["lr"],
            **losses(
                Mean.together([state.record.weights for state in states]),
                Mean.together([state.record.alpha for state in states]),
            ),
            "alpha": numbers(self._committee.alpha),
            "tables": plain(self._committee.tables),
            "decided": state.decided.tolist() if self._config.method.schedule.commits else None,
            "importance": evaluation and evaluation_to_json(evaluation, self._config.search.batch_norm),
            **self._chosen(genotype),
            "drawing": drawing_to_json(self._config.space, genotype) if genotype else None,
            "decay": state.record.decay,
            "tau": state.record.tau,
            "watched": dataclasses.asdict(self._committee.watched(eigenvalue)),
            "members": self._members_alone(),
            "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
            "environment": self._environment,
        }

    def result(
        self,
        genotype: Any,
        decision: Decision | None,
        seconds: Mapping[str, float],
        stopped: int | None,
        limits: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """What result.json holds.

        Args:
            genotype: what was found.
            decision: of the finalists, if there were any.
            seconds: of each phase.
            stopped: behind how many epochs the search takes its cell, if it ended early.
            limits: what `limited_to_json` says of them, if there were any.
        """
        state, evaluation = self._committee.states[0], self._committee.evaluation
        return {
            "architecture": str(genotype),
            "index": index_of(genotype),
            "space": self._config.space.name,
            "drawing": drawing_to_json(self._config.space, genotype),
            "criterion": self._config.method.criterion.name,
            "base_accuracy": evaluation.base_accuracy if evaluation else None,
            "benchmark": self._look_up(genotype),
            "importance": evaluation and evaluation_to_json(evaluation, self._config.search.batch_norm),
            "tau": state.record.tau,
            "alpha": numbers(self._committee.alpha),
            "tables": plain(self._committee.tables),
            "members": self._members_alone(),
            "finalists": decision and decision_to_json(decision, self._look_up),
            "limits": limits,
            "seconds": seconds,
            "seed": self._config.search.seed,
            "stages": {stage.name: stage.epochs for stage in self._config.stages},
            "stopped": None if stopped is None else {"epochs": state.epoch, "cell": stopped},
        }

    def _members_alone(self) -> list[dict[str, Any]]:
        """What each member of a committee has learned, and would select by itself; [] for a single one."""
        alone = []
        for state in self._committee.states if len(self._committee.members) > 1 else []:
            genotype = None
            if state.record.genotype is not None:
                order = self._committee.importance_to(state).order(self._committee.choosable)
                genotype = self._config.space.select(order)
            alone.append(
                {
                    **losses(state.record.weights, state.record.alpha),
                    "alpha": numbers(state.alpha),
                    "tables": plain(state.tables),
                    "importance": state.record.evaluation,
                    **self._chosen(genotype),
                }
            )
        return alone

    def _chosen(self, genotype: Any) -> dict[str, Any]:
        """A cell as the files have it; None without one."""
        return {
            "genotype": str(genotype) if genotype else None,
            "index": index_of(genotype),
            "benchmark": self._look_up(genotype) if genotype else None,
        }

    def _look_up(self, genotype: Any) -> dict[str, float] | None:
        return self._table.accuracy(genotype) if self._table else None


def index_of(genotype: Any) -> int | None:
    """The number that a benchmark has for a cell, in spaces that have one."""
    number: int | None = getattr(genotype, "index", None)
    return number


def added(seconds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Adds seconds up by phase; phases stand in the order in which they occur first."""
    phases = dict.fromkeys(phase for values in seconds for phase in values)
    return {phase: sum(values.get(phase, 0.0) for values in seconds) for phase in phases}


def losses(weights: Mean, alpha: Mean) -> dict[str, float | None]:
    """Sums up an epoch's steps by mean loss and accuracy in per cent, under the names that the files have."""
    names = ("weights_loss", "weights_accuracy", "alpha_loss", "alpha_accuracy")
    return dict(zip(names, (*weights.summary(), *alpha.summary()), strict=True))
