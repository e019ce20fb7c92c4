"""``python -m vpdarts_fast.paper``: the paper's tables and figures, side by side with its own numbers."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import Progress

from vpdarts_fast.analysis.kendall import Command as Kendall
from vpdarts_fast.analysis.kendall import analyse
from vpdarts_fast.bounds import check_bound
from vpdarts_fast.command_line import StopRequest, command, table_console
from vpdarts_fast.errors import UserError
from vpdarts_fast.paper.outcome import (
    Outcome,
    accuracy_over_cost,
    accuracy_over_proportion,
    csv_text,
    markdown,
    outcome_of,
    terminal_table,
)
from vpdarts_fast.paper.published import FIGURE_5, Published
from vpdarts_fast.paper.rows import (
    PUBLISHED,
    Row,
    Size,
    What,
    config_of,
    own_settings,
    rows_of,
    shared_settings,
)
from vpdarts_fast.paper.tabular import tabular_outcome
from vpdarts_fast.report.style import save_figure
from vpdarts_fast.runs.files import write_atomically
from vpdarts_fast.runs.lock import claimed
from vpdarts_fast.search.jobs.cluster import RayWorkers
from vpdarts_fast.search.jobs.job import Job
from vpdarts_fast.search.jobs.local import LocalWorkers
from vpdarts_fast.search.jobs.queue import Workers
from vpdarts_fast.search.jobs.showing import run_and_show
from vpdarts_fast.search.running import prepared
from vpdarts_fast.search.settings import DATASET_NAMES

TITLES: Mapping[What, str] = {
    "table1": "Table 1: methods in NAS-Bench-201",
    "table2": "Table 2: hard and soft pruning",
    "table3": "Table 3: what makes an op important",
    "figure5": "Figure 5: Kendall's tau with the true ranking",
    "figure8": "Figure 8: shares of the validation images",
}


@dataclass(frozen=True)
class Arguments:
    """Makes a table or figure of VP-DARTS' paper, with the paper's numbers beside.

    Runs every method from every seed, all with common settings. Runs that are finished are kept; one that was
    interrupted goes on.
    """

    what: tyro.conf.Positional[What]
    """table1 (all methods), table2 (hard and soft pruning), table3 (alpha against accuracy), figure5
    (Kendall's tau) or figure8 (shares of the validation images)."""
    methods: tuple[str, ...] = ()
    """In place of those of the paper; any recipe of the search, and any method over a table."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of each method that trains a supernet."""
    preset: Size = "quick"
    """quick (embedded digits, minutes for all), reduced (CIFAR-10 with a small supernet) or paper (as large
    and as long as the paper's searches)."""
    lineage: Literal["quark0", "autodl"] = "autodl"
    """How the weights are trained, the same for all: as quark0/darts does, or as AutoDL-Projects."""
    jobs: int | None = None
    """Searches at a time. Default: as many as cores have --threads; with --ray, as there is room for."""
    threads: int = 1
    """Of each search."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="{local,auto,HOST:PORT}")] = None
    """Run the searches on a Ray cluster, each on as many CPUs as --threads, on a GPU where there are some:
    one of this machine (local), one that runs here (auto), or that of an address."""
    dataset: Annotated[str | None, tyro.conf.arg(metavar=DATASET_NAMES)] = None
    """Of the searches. Default: that of the preset."""
    data: Path | None = None
    """Its folder or file, as for the search."""
    download: bool = False
    """Fetch CIFAR-10 or CIFAR-100 if it is not there."""
    table_runs: int = 500
    """Runs of each method that looks accuracies up; a tenth of them for renas."""
    out: Path | None = None
    """Folder of all runs and of the results. Default: runs/paper- and the preset. Tables share their runs."""
    report_only: bool = False
    """Run nothing: make the table or figure of what is finished."""

    def __post_init__(self) -> None:
        for name in ("jobs", "threads"):
            check_bound("threads", getattr(self, name), f"--{name}")
        check_bound("images", self.table_runs, "--table-runs")
        check_bound("seed", self.seeds, "--seeds")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"--seeds must be different whole numbers from 0; got {self.seeds}")

    @property
    def folder(self) -> Path:
        """Of all runs and results."""
        return self.out or Path("runs") / f"paper-{self.preset}"

    @property
    def workers(self) -> Workers:
        """Who runs the searches."""
        if self.ray is not None:
            return RayWorkers(self.ray, self.threads, self.jobs)
        cores = len(os.sched_getaffinity(0))
        return LocalWorkers(self.jobs or max(1, cores // self.threads), self.threads)

    @property
    def images(self) -> dict[str, Any]:
        """Settings of the images."""
        asked = {"dataset": self.dataset, "data": self.data and self.data.expanduser().absolute()}
        return {name: value for name, value in asked.items() if value} | {"download": self.download}

    def jobs_of(self, row: Row) -> list[Job]:
        """The searches of a row, one for each seed."""
        config = config_of(row, self.preset, self.lineage, self.images)
        return [
            Job(
                f"{row.name}, seed {seed}",
                self.folder / row.name / f"seed-{seed}",
                config.replaced(seed=seed),
            )
            for seed in self.seeds
        ]


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 2 where a run failed."""
    asked = tyro.cli(Arguments, args=arguments, prog="python -m vpdarts_fast.paper")
    rows = rows_of(asked.what, asked.methods)
    jobs = {row.name: asked.jobs_of(row) for row in rows if row.tabular is None}
    console = table_console()
    failed: dict[str, str] = {}
    if not asked.report_only:
        failed = _run(
            [job for of_seed in zip(*jobs.values(), strict=True) for job in of_seed], asked, console
        )
    outcomes = [outcome for row in rows if (outcome := _outcome(row, jobs, asked, console)) is not None]
    if not outcomes:
        raise UserError(f"there is nothing to report: no search in {asked.folder} is finished")
    _report(asked, rows, outcomes, jobs, console)
    for name, reason in failed.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    return 2 if failed else 0


def _run(jobs: Sequence[Job], asked: Arguments, console: Console) -> dict[str, str]:
    """Runs the searches; what cannot begin says so before the first one does."""
    for job in {job.config.method.recipe: job for job in jobs if not job.finished}.values():
        prepared(job.config)
    try:
        with claimed(asked.folder), StopRequest(), asked.workers as workers:
            for job in jobs:
                job.prepare()
            return run_and_show(jobs, workers, console)
    except KeyboardInterrupt:
        again = shlex.join(["python", "-m", "vpdarts_fast.paper", *sys.argv[1:]])
        print(f"all searches are stopped, and nothing is lost; go on with: {again}", file=sys.stderr)
        raise


def _outcome(
    row: Row, jobs: Mapping[str, Sequence[Job]], asked: Arguments, console: Console
) -> Outcome | None:
    published: Published | None = PUBLISHED.get(asked.what, {}).get(row.name)
    if row.tabular is None:
        return outcome_of(row.name, published, [job.folder for job in jobs[row.name]])
    runs = max(1, asked.table_runs // 10) if row.tabular.name == "renas" else asked.table_runs
    path = asked.folder / row.name / "runs.json"
    with _bar(console, row.name, runs) as advance:
        return tabular_outcome(row.tabular, runs, asked.seeds[0], path, published, lambda run: advance())


@contextmanager
def _bar(console: Console, name: str, total: int) -> Iterator[Any]:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(name, total=total)
        yield lambda: progress.advance(task)


def _report(
    asked: Arguments,
    rows: Sequence[Row],
    outcomes: Sequence[Outcome],
    jobs: Mapping[str, Sequence[Job]],
    console: Console,
) -> None:
    """Prints the table and writes it, with its picture, into the folder of all runs."""
    title, folder = TITLES[asked.what], asked.folder
    text = markdown(title, outcomes, folder, _notes(asked, rows))
    write_atomically(folder / f"{asked.what}.md", text.encode())
    write_atomically(folder / f"{asked.what}.csv", csv_text(outcomes, folder).encode())
    console.print(terminal_table(title, outcomes))
    written = [f"{asked.what}.md", f"{asked.what}.csv"]
    if asked.what == "figure8":
        shares = {row.name: row.settings["validation_proportion"] for row in rows}
        figure = accuracy_over_proportion(title, {shares[each.name]: each for each in outcomes})
    elif asked.what != "figure5":
        figure = accuracy_over_cost(title, outcomes)
    if asked.what == "figure5":
        runs = tuple(job.folder for row in rows for job in jobs[row.name] if job.finished)
        analyse(Kendall(runs, out=folder / "figure5", data=asked.data, reuse=True, threads=asked.threads))
        said = ", ".join(f"{tau:.1f} by {signal}" for signal, tau in FIGURE_5.items())
        console.print(f"the paper's tau: {said}")
        written.append("figure5/kendall.png")
    else:
        save_figure(figure, folder / f"{asked.what}.png", title)
        written.append(f"{asked.what}.png")
    console.print("\n".join(str(folder / name) for name in written))


def _notes(asked: Arguments, rows: Sequence[Row]) -> list[str]:
    """The settings that all rows share, and what each method's own paper has instead."""
    searched = [row for row in rows if row.tabular is None]
    configs = [config_of(row, asked.preset, asked.lineage, asked.images) for row in searched]
    if not configs:
        return []
    shared = shared_settings(configs)
    notes = ["Common settings: " + ", ".join(f"{name} {value}" for name, value in shared.items()) + "."]
    for row, config in zip(searched, configs, strict=True):
        differing = [f"{name} {here} (own: {own})" for name, (own, here) in own_settings(row, config).items()]
        notes.append(f"{row.name}: {', '.join(differing)}.")
    return notes


if __name__ == "__main__":
    sys.exit(main())
