"""What each signal of importance is worth: tau and selection per snapshot, mean and spread over runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vpdarts_fast.analysis.evaluation import MODES, TAYLOR, EvaluatedRun, Snapshot
from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.evaluation.leave_one_out import BatchNorm
from vpdarts_fast.search.methods.criteria import Criterion
from vpdarts_fast.search.ranking import Array, kendall_tau
from vpdarts_fast.spaces.nas_bench_201.genotype import Genotype


@dataclass(frozen=True)
class Signal:
    """Something that ranks ops: a criterion and, where it needs an evaluation, a batch-norm mode."""

    criterion: str
    batch_norm: BatchNorm | None = None

    def __str__(self) -> str:
        return f"{self.batch_norm}, {self.criterion}" if self.batch_norm else self.criterion


def _is_measured(criterion: type[Criterion]) -> bool:
    """Whether it needs leave-one-out itself, in one batch-norm mode or another."""
    return criterion.needs_evaluation and not criterion.estimates


SIGNALS = tuple(
    Signal(name, mode)
    for name in Criterion.names()
    for mode in (MODES if _is_measured(Criterion.named(name)) else (None,))
)


@dataclass(frozen=True)
class Verdict:
    """What a signal says of one snapshot.

    Attributes:
        epoch: the epoch that was about to begin, from 0.
        tau: [E], NaN where the signal finds all ops of an edge equal.
        genotype: what selection by it would take.
        benchmark: the accuracies of that, in per cent.
    """

    epoch: int
    signal: Signal
    tau: Array
    genotype: Genotype
    benchmark: dict[str, float]

    @property
    def mean_tau(self) -> float:
        """The mean of tau over the edges that have one; NaN if none has."""
        defined = self.tau[~np.isnan(self.tau)]
        return float(defined.mean()) if len(defined) else math.nan


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (of the sample; 0 for a single value)."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Mean and deviation of the values that are not NaN; both are NaN where there is none."""
        present = [value for value in values if not math.isnan(value)]
        if not present:
            return cls(math.nan, math.nan)
        return cls(statistics.fmean(present), statistics.stdev(present) if len(present) > 1 else 0.0)


@dataclass(frozen=True)
class Summary:
    """What a signal says before an epoch, over the runs.

    Attributes:
        epoch: the epoch that was about to begin, from 0.
        signal: what ranks the ops.
        runs: how many runs there are.
        tau: Kendall's tau, mean over the edges.
        benchmark: of each column, the accuracy of the cell that selection would take, in per cent.
    """

    epoch: int
    signal: Signal
    runs: int
    tau: Spread
    benchmark: dict[str, Spread]


def judge(run: EvaluatedRun, ranks: Array, table: BenchmarkTable) -> list[Verdict]:
    """Every signal on every snapshot; ranks is [E, O]. Alpha's magnitude is left out until it has trained."""
    return [
        verdict
        for snapshot in run.snapshots
        for verdict in _verdicts(snapshot, snapshot.epoch - run.config.frozen_epochs, ranks, table)
    ]


def _verdicts(
    snapshot: Snapshot, pruning_epoch: int, ranks: Array, table: BenchmarkTable
) -> Iterator[Verdict]:
    for signal in SIGNALS:
        criterion = Criterion.named(signal.criterion)()
        if pruning_epoch < criterion.first_epoch:
            continue
        way = signal.batch_norm or TAYLOR
        evaluation = snapshot.evaluations[way] if criterion.needs_evaluation else None
        importance = criterion.importance(snapshot.strength.double(), evaluation)
        genotype = Genotype.from_choices(importance.ranking(snapshot.alive)[:, 0].tolist())
        tau = kendall_tau(importance, ranks)
        yield Verdict(snapshot.epoch, signal, tau, genotype, table.accuracy(genotype))


def summarise(runs: list[list[Verdict]]) -> list[Summary]:
    """Mean and spread over the runs' verdicts, in the order of epochs and `SIGNALS`."""
    groups: dict[tuple[int, Signal], list[Verdict]] = {}
    for verdicts in runs:
        for verdict in verdicts:
            groups.setdefault((verdict.epoch, verdict.signal), []).append(verdict)
    return [
        Summary(
            epoch,
            signal,
            len(group),
            Spread.of([verdict.mean_tau for verdict in group]),
            {name: Spread.of([v.benchmark[name] for v in group]) for name in group[0].benchmark},
        )
        for (epoch, signal), group in sorted(
            groups.items(), key=lambda item: (item[0][0], SIGNALS.index(item[0][1]))
        )
    ]
