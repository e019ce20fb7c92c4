"""`python -m vpdarts_fast.analysis.returns RUN...`: how often ops that were decayed are chosen again.

Soft pruning decays ops instead of deleting them, so that each may come back. Here is whether they do.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from vpdarts_fast.analysis.evaluation import run_folders
from vpdarts_fast.command_line import command
from vpdarts_fast.errors import UserError
from vpdarts_fast.report.run import Run
from vpdarts_fast.report.run_files import read_run
from vpdarts_fast.search import RunFolder
from vpdarts_fast.spaces.space import Space


@dataclass(frozen=True)
class Command:
    """Counts how often an op that soft pruning had decayed became the most important one of its edge."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Folders that searches have written; one of several seeds stands for all of them."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("name at least one RUN")


def returns(run: Run, space: Space[Any]) -> tuple[int, list[int]]:
    """How many decisions a run's evaluations made, one an op chosen, and which of them brought an op back.

    Of each of these, in their order, by how many evaluations in a row the op had been decayed before.

    Args:
        run: what the search has written.
        space: that was searched.
    """
    choices = [(epoch.genotype.chosen, epoch.decay) for epoch in run.epochs if epoch.genotype]
    if run.result:
        last = run.result.genotype.chosen
        if run.result.finalists:  # which may have taken another cell than the search's
            search = space.chosen(space.parse(run.result.finalists.search))
            last = tuple((row, op) for row, op in search.nonzero().tolist())
        choices.append((last, 1.0))
    decayed = np.zeros(space.shape, dtype=np.int64)
    decisions, epochs = 0, list[int]()
    for chosen, decay in choices:
        rows, ops = zip(*chosen, strict=True)
        epochs += filter(None, decayed[rows, ops].tolist())
        decayed += decay < 1  # not where it is NaN: nothing was decayed
        decayed[rows, ops] = 0
        decisions += len(chosen)
    return decisions, epochs


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status; None takes the arguments of the process."""
    request = tyro.cli(Command, args=arguments, prog="python -m vpdarts_fast.analysis.returns")
    for folder in run_folders(request.runs):
        run = read_run(folder)
        decisions, epochs = returns(run, RunFolder.open(folder)[1].space)
        text = f"{folder}: {decisions} decisions, {len(epochs)} of them for an op that had been decayed"
        if epochs:
            text += f", {min(epochs)} to {max(epochs)} times (median {statistics.median(epochs):g})"
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
