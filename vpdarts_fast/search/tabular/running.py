"""Runs of a method over a benchmark table: ask for a cell, look its accuracy up, tell it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.benchmark_table.table import SECONDS
from vpdarts_fast.errors import UserError
from vpdarts_fast.search.tabular.learner import Cell, TabularMethod
from vpdarts_fast.spaces.nas_bench_201.genotype import NUM_ARCHITECTURES, all_genotypes

SIGNAL = "cifar10_valid_12ep"
"""What methods are told: the accuracy on validation images after the benchmark's short training."""


@dataclass(frozen=True)
class TabularRuns:
    """R independent runs of a method, of at most N evaluations each.

    Attributes:
        method: with its settings.
        signal: the column of the table that it was told.
        evaluated: int64 [R, N], the official indices of the cells, in the order of their evaluation; -1
            behind the last one of a run that has fewer.
        found: int64 [R], the one of each run with the highest signal, the first of equal ones.
        seconds: that all runs took.
    """

    method: TabularMethod
    signal: str
    evaluated: NDArray[np.int64]
    found: NDArray[np.int64]
    seconds: float


def search_table(
    method: TabularMethod,
    table: BenchmarkTable | None = None,
    *,
    signal: str = SIGNAL,
    evaluations: int | None = None,
    budget_seconds: float | None = None,
    runs: int = 500,
    seed: int = 0,
    on_run: Callable[[int], object] = lambda run: None,
) -> TabularRuns:
    """Runs a method over a benchmark table.

    Run r draws from a generator of its own, seeded with (seed, r), so that it is the same in any number of
    runs. A cell that is asked for again counts again.

    Args:
        method: a `TabularMethod`.
        table: with all cells of NAS-Bench-201; that of the package if not given.
        signal: the column, in per cent, that the method is told and that decides in the end.
        evaluations: how many cells a run may evaluate, 100 if there is no other budget; 90 to 110 cost what
            the 12,000 seconds of the NAS-Bench-201 paper do on CIFAR-10.
        budget_seconds: of each run's evaluations together, by the table; one that would exceed it is not
            begun, and ends the run.
        runs: R.
        seed: not negative.
        on_run: called with the number of each run when it has ended.

    Raises:
        UserError: the table is not complete or lacks the column or seconds, or a number is too small.
    """
    table = BenchmarkTable.published() if table is None else table
    accuracies = table.column(signal)
    if np.isnan(accuracies).any():
        raise UserError(
            f"a search over a table needs all {NUM_ARCHITECTURES:,} cells; "
            f"this one holds {table.held.sum():,}"
        )
    costs = _costs(table, budget_seconds)
    if evaluations is None:
        evaluations = 100 if budget_seconds is None else int(budget_seconds // costs.min())
    for name, number, least in (("evaluations", evaluations, 1), ("runs", runs, 1), ("seed", seed, 0)):
        if number < least:
            raise UserError(f"{name} must be at least {least}; got {number}")
    started = time.perf_counter()
    evaluated = np.full((runs, evaluations), -1, np.int64)
    for run in range(runs):
        learner = method.learner(np.random.default_rng((seed, run)))
        left = np.inf if budget_seconds is None else budget_seconds
        for n in range(evaluations):
            cell = learner.ask()
            index = _indices()[cell]
            left -= costs[index]
            if left < 0:
                break
            evaluated[run, n] = index
            learner.tell(cell, float(accuracies[index]))
        on_run(run)
    worth = np.where(evaluated < 0, -np.inf, accuracies[evaluated])
    found = evaluated[np.arange(runs), worth.argmax(1)]
    if (found < 0).any():
        raise UserError(f"{budget_seconds:,} seconds do not pay for the first evaluation of every run")
    used = int((evaluated >= 0).sum(1).max())
    return TabularRuns(method, signal, evaluated[:, :used], found, time.perf_counter() - started)


def _costs(table: BenchmarkTable, budget_seconds: float | None) -> NDArray[np.float64]:
    """Seconds of each cell's evaluation, [15625]; 0 where they are not counted."""
    if budget_seconds is None:
        return np.zeros(NUM_ARCHITECTURES)
    if table.seconds is None:
        raise UserError(
            f"a budget in seconds needs a table with the column {SECONDS}, which this one lacks: convert the "
            "official files with python -m vpdarts_fast.benchmark_table convert, or give --evaluations"
        )
    return table.seconds


@functools.cache
def _indices() -> dict[Cell, int]:
    """Of every cell its official index."""
    return {genotype.choices: index for index, genotype in enumerate(all_genotypes())}
