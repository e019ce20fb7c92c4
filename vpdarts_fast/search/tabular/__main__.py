"""``python -m vpdarts_fast.search.tabular``: methods that look accuracies up, many runs of each."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.command_line import command
from vpdarts_fast.errors import UserError
from vpdarts_fast.search.tabular.evolution import Evolution
from vpdarts_fast.search.tabular.learner import TabularMethod
from vpdarts_fast.search.tabular.local_search import LocalSearch
from vpdarts_fast.search.tabular.random_search import RandomSearch
from vpdarts_fast.search.tabular.reinforce import Reinforce
from vpdarts_fast.search.tabular.renas import Renas
from vpdarts_fast.search.tabular.running import SIGNAL, TabularRuns, search_table

FINAL = {
    "CIFAR-10": "cifar10_test_200ep",
    "CIFAR-100": "cifar100_test_200ep",
    "ImageNet16-120": "imagenet16_120_test_200ep",
}
"""What is reported of the cells that were found."""


@dataclass(frozen=True)
class Arguments:
    """Searches NAS-Bench-201 by looking accuracies up in its table, many runs of each method."""

    methods: tyro.conf.Positional[
        tuple[Literal["random", "reinforce", "evolution", "local-search", "renas"], ...]
    ] = ("random", "reinforce", "evolution", "local-search")
    """Which. ReNAS takes seconds a run, the others milliseconds."""
    evaluations: int | None = None
    """Cells that a run may evaluate. Default: 100, or as many as --budget-seconds pay for."""
    budget_seconds: float | None = None
    """Seconds of a run's evaluations together; of a --table that has them."""
    runs: int = 500
    """Of each method."""
    seed: int = 0
    """Of all draws; run r is the same in any number of runs."""
    signal: str = SIGNAL
    """The column of the table that methods are told."""
    table: Annotated[Path | None, tyro.conf.arg(metavar="TABLE")] = None
    """Another table than the one of the package (csv or csv.gz)."""
    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write what every run found to this file."""
    reinforce: Reinforce = field(default_factory=Reinforce)
    evolution: Evolution = field(default_factory=Evolution)
    local_search: LocalSearch = field(default_factory=LocalSearch)
    renas: Renas = field(default_factory=Renas)

    def all_methods(self) -> tuple[TabularMethod, ...]:
        """Lists every method there is, with its settings."""
        return RandomSearch(), self.reinforce, self.evolution, self.local_search, self.renas

    def chosen(self) -> list[TabularMethod]:
        """Lists those that are asked for, each once."""
        by_name = {method.name: method for method in self.all_methods()}
        return [by_name[name] for name in dict.fromkeys(self.methods)]


def lines(runs: Sequence[TabularRuns], table: BenchmarkTable) -> Iterator[str]:
    """Mean and standard deviation over the runs, and what each method has before random search."""
    columns = {name: column for name, column in FINAL.items() if column in table.columns}
    first = runs[0]
    yield (
        f"{len(first.found):,} runs of {_counts(first)} evaluations, told {first.signal}; "
        "mean and standard deviation, per cent:"
    )
    yield f"{'':14}" + "".join(f"{name:>18}" for name in columns) + f"{'seconds':>10}"
    for some in runs:
        cells = (f"{_mean_and_deviation(table.column(c)[some.found]):>18}" for c in columns.values())
        yield f"{some.method.name:14}" + "".join(cells) + f"{some.seconds:10.1f}"
    base = next((some for some in runs if some.method.name == RandomSearch.name), None)
    others = [some for some in runs if some is not base]
    if base is None or not others:
        return
    yield "more than random search, run by run, with the 95 % interval of the mean:"
    for some in others:
        differences = (table.column(c)[some.found] - table.column(c)[base.found] for c in columns.values())
        yield f"{some.method.name:14}" + "".join(f"{_with_interval(d):>18}" for d in differences)


def _counts(some: TabularRuns) -> str:
    """How many evaluations a run has, from the fewest to the most."""
    counts = (some.evaluated >= 0).sum(1)
    least, most = int(counts.min()), int(counts.max())
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def _mean_and_deviation(values: NDArray[np.float64]) -> str:
    return f"{values.mean():.2f} ± {_deviation(values):.2f}"


def _with_interval(differences: NDArray[np.float64]) -> str:
    half = 1.96 * _deviation(differences) / len(differences) ** 0.5
    return f"{differences.mean():+.2f} ± {half:.2f}"


def _deviation(values: NDArray[np.float64]) -> float:
    """The standard deviation of a sample; of one value none, 0."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def write_csv(path: Path, runs: Sequence[TabularRuns], table: BenchmarkTable) -> None:
    """A row for each run: method, number, cell, and all that the table says of it."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("method", "run", "evaluations", "arch", *table.columns))
        for some in runs:
            for run, index in enumerate(some.found.tolist()):
                values = table.accuracy(index).values()
                count = int((some.evaluated[run] >= 0).sum())
                writer.writerow((some.method.name, run, count, table.architectures[index], *values))


@contextmanager
def _progress(name: str, runs: int) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda run: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=runs)
        yield lambda run: bar.update(task, completed=run + 1)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status is 2 for a mistake of the user's."""
    parsed = tyro.cli(Arguments, prog="python -m vpdarts_fast.search.tabular", args=arguments)
    if not parsed.methods:
        raise UserError("name at least one method: random, reinforce, evolution, local-search or renas")
    if parsed.csv is not None and not parsed.csv.parent.is_dir():
        raise UserError(f"cannot write {parsed.csv}: there is no directory {parsed.csv.parent}")
    table = BenchmarkTable.published() if parsed.table is None else BenchmarkTable.load(parsed.table)
    runs = []
    for method in parsed.chosen():
        with _progress(method.name, parsed.runs) as on_run:
            runs.append(
                search_table(
                    method,
                    table,
                    signal=parsed.signal,
                    evaluations=parsed.evaluations,
                    budget_seconds=parsed.budget_seconds,
                    runs=parsed.runs,
                    seed=parsed.seed,
                    on_run=on_run,
                )
            )
    if parsed.csv is not None:
        write_csv(parsed.csv, runs, table)
    print("\n".join(lines(runs, table)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
