"""Rows of methods over a benchmark table: many runs in this process, kept in one file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.paper.outcome import Outcome
from vpdarts_fast.paper.published import COLUMNS, Published
from vpdarts_fast.runs.files import write_atomically
from vpdarts_fast.runs.formats import TABULAR_RUNS, shown
from vpdarts_fast.runs.values import whole
from vpdarts_fast.search.tabular.learner import TabularMethod
from vpdarts_fast.search.tabular.running import search_table
from vpdarts_fast.spaces.nas_bench_201.genotype import NUM_ARCHITECTURES

EVALUATIONS = 100
"""Of each run: what the 12,000 seconds of the NAS-Bench-201 paper pay for."""


def tabular_outcome(
    method: TabularMethod,
    runs: int,
    seed: int,
    path: Path,
    published: Published | None,
    on_run: Callable[[int], object] = lambda run: None,
) -> Outcome:
    """Runs a method, or reads the file of the same runs.

    Args:
        method: with its settings.
        runs: how many.
        seed: of all draws.
        path: of the file.
        published: what the paper has.
        on_run: called with the number of each run when it has ended.

    Raises:
        UserError: the file is damaged, or cannot be written.
    """
    asked = {
        "method": method.name,
        "settings": dataclasses.asdict(method),
        "evaluations": EVALUATIONS,
        "runs": runs,
        "seed": seed,
    }
    kept = TABULAR_RUNS.read_json(path) if path.exists() else {}
    if {name: kept.get(name) for name in asked} != asked:
        found = search_table(method, evaluations=EVALUATIONS, runs=runs, seed=seed, on_run=on_run)
        kept = {**asked, "found": found.found.tolist(), "seconds": found.seconds}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (TABULAR_RUNS.to_json(kept) + "\n").encode())
    with TABULAR_RUNS.reading(str(path)):
        cells = [whole(cell, "a cell", 0, NUM_ARCHITECTURES - 1) for cell in kept["found"]]
        if len(cells) != runs:
            raise ValueError(f"found must have {runs:,} cells; got {shown(len(cells))}")
    table = BenchmarkTable.published()
    accuracies = {data: table.column(column)[cells].tolist() for data, column in COLUMNS.items()}
    return Outcome(method.name, published, accuracies, [], [path])
