"""`python -m vpdarts_fast.analysis.kendall RUN...`: how well each signal ranks ops (paper, Figure 5)."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vpdarts_fast.analysis.evaluation import (
    RUN_FILE,
    Evaluated,
    EvaluatedRun,
    evaluate_run,
    open_runs,
    run_folders,
    snapshot_paths,
    snapshot_to_json,
)
from vpdarts_fast.analysis.picture import kendall_figure
from vpdarts_fast.analysis.signals import SIGNALS, Signal, Spread, Summary, Verdict, judge, summarise
from vpdarts_fast.benchmark_table import BenchmarkTable
from vpdarts_fast.bounds import check_bound
from vpdarts_fast.command_line import command, table_console
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.leave_one_out import Removal
from vpdarts_fast.report.style import edge_name, save_figure
from vpdarts_fast.runs.files import write_atomically
from vpdarts_fast.runs.formats import KENDALL
from vpdarts_fast.runtime import machine
from vpdarts_fast.search.ranking import Array, true_ranks
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, OPS


@dataclass(frozen=True)
class Command:
    """Compares rankings of ops with the true one, on the snapshots of searches that ran with --snapshots.

    For every snapshot, batch-norm mode and criterion, and for alpha's magnitude: Kendall's tau on each edge,
    and the benchmark accuracy of the cell that selection would take. Several runs are seeds of one search.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Folders that searches have written."""
    benchmark_table: Path | None = None
    """Accuracies (csv or csv.gz) of all architectures. Default: those of NAS-Bench-201."""
    data: Path | None = None
    """The images, as for the search. Default: where the run took them from."""
    images: int = 1000
    """Validation images to evaluate on, at most; the same for all modes and epochs of a run."""
    removal: Removal = "zero"
    """Leaving an op out: zero (its alpha is 0) or renormalised (the others of its edge are scaled up)."""
    every: int = 1
    """Evaluate every n-th snapshot only, and the last."""
    column: str = "cifar10_test_200ep"
    """The table's accuracy that makes the true ranking."""
    out: Path | None = None
    """Folder for kendall.json, kendall.csv and kendall.png over all runs. Default: the run's own folder; of
    several runs, each its own."""
    reuse: bool = False
    """Take evaluations on as many images, with this --removal, from the kendall.json of a run; the rest is
    computed."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int | None = None
    """CPU threads. Default: PyTorch's."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("name at least one RUN")
        for name in ("images", "every", "threads"):
            check_bound(name, getattr(self, name), f"--{name}")


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status; None takes the arguments of the process."""
    analyse(tyro.cli(Command, args=arguments, prog="python -m vpdarts_fast.analysis.kendall"))
    return 0


def analyse(request: Command) -> None:
    """Evaluates, prints and writes; each run's file is written as soon as the run is evaluated."""
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    machine.reuse_memory()
    path = request.benchmark_table
    table = BenchmarkTable.load(path) if path else BenchmarkTable.published()
    ranks = true_ranks(table, request.column)
    opened = open_runs(run_folders(request.runs))
    for folder, _ in opened:  # all of them, before the first is evaluated
        snapshot_paths(folder)
    if request.out is not None and request.out.exists() and not request.out.is_dir():
        raise UserError(f"cannot make the folder {request.out}: there is a file of this name (--out)")
    evaluated = []
    for folder, config in opened:
        with _progress(folder) as progress:
            run = evaluate_run(
                folder,
                config,
                data=request.data,
                images=request.images,
                every=request.every,
                reuse=request.reuse,
                removal=request.removal,
                device=request.device,
                progress=progress,
            )
        evaluated.append((run, judge(run, ranks, table)))
        write_run(*evaluated[-1], request.column, table.columns)
    summaries = summarise([verdicts for _, verdicts in evaluated])
    print_tables(ranks, summaries, [run for run, _ in evaluated], request.column)
    if request.out is not None:
        write_all(request.out, evaluated, summaries, ranks, request.column, table.columns)
    print("written: " + ", ".join(map(str, [request.out] if request.out else [f for f, _ in opened])))


def write_run(run: EvaluatedRun, verdicts: list[Verdict], column: str, columns: Sequence[str]) -> None:
    """Writes kendall.json, kendall.csv and kendall.png of one run into its folder."""
    content = {
        "seed": run.config.search.seed,
        "images": run.images,
        "removal": run.removal,
        "column": column,
        "snapshots": [
            {
                **snapshot_to_json(snapshot),
                "signals": [verdict_to_json(v) for v in verdicts if v.epoch == snapshot.epoch],
            }
            for snapshot in run.snapshots
        ],
    }
    write_atomically(run.folder / RUN_FILE, (KENDALL.to_json(content, indent=1) + "\n").encode())
    write_atomically(run.folder / "kendall.csv", csv_text([(run, verdicts)], columns).encode())
    figure = kendall_figure(
        summarise([verdicts]), column, f"seed {run.config.search.seed}, {run.images} images"
    )
    save_figure(figure, run.folder / "kendall.png", "Kendall's tau")


def write_all(
    out: Path,
    evaluated: list[tuple[EvaluatedRun, list[Verdict]]],
    summaries: list[Summary],
    ranks: Array,
    column: str,
    columns: Sequence[str],
) -> None:
    """Writes the same files over all runs, into the folder `out`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror or error}") from error
    content = {
        "column": column,
        "true_ranks": ranks.tolist(),
        "runs": [
            {"folder": str(run.folder), "seed": run.config.search.seed, "images": run.images,
             "removal": run.removal, "signals": [verdict_to_json(verdict) for verdict in verdicts]}
            for run, verdicts in evaluated
        ],
        "summary": [_summary_to_json(summary) for summary in summaries],
    }  # fmt: skip
    _write_json(out / "kendall.json", content)
    write_atomically(out / "kendall.csv", csv_text(evaluated, columns).encode())
    title = "seeds " + ", ".join(str(run.config.search.seed) for run, _ in evaluated)
    save_figure(kendall_figure(summaries, column, title), out / "kendall.png", "Kendall's tau")


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain values; null where there is no tau."""
    return {
        "epoch": verdict.epoch,
        "criterion": verdict.signal.criterion,
        "batch_norm": verdict.signal.batch_norm,
        "tau": [_number(value) for value in verdict.tau.tolist()],
        "mean_tau": _number(verdict.mean_tau),
        "architecture": str(verdict.genotype),
        "index": verdict.genotype.index,
        "benchmark": verdict.benchmark,
    }


def _summary_to_json(summary: Summary) -> dict[str, Any]:
    def spread(value: Spread) -> dict[str, float | None]:
        return {name: _number(part) for name, part in dataclasses.asdict(value).items()}

    return {
        "epoch": summary.epoch,
        "criterion": summary.signal.criterion,
        "batch_norm": summary.signal.batch_norm,
        "runs": summary.runs,
        "tau": spread(summary.tau),
        "benchmark": {name: spread(value) for name, value in summary.benchmark.items()},
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def csv_text(evaluated: list[tuple[EvaluatedRun, list[Verdict]]], columns: Sequence[str]) -> str:
    """The verdicts of all runs as csv: one line per run, epoch and signal."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    taus = [f"tau_{source}{target}" for source, target in EDGES]
    writer.writerow(["seed", "epoch", "criterion", "batch_norm", "tau", *taus, "arch", *columns])
    for run, verdicts in evaluated:
        for verdict in verdicts:
            line, seed = verdict_to_json(verdict), run.config.search.seed
            writer.writerow(
                [seed, verdict.epoch, line["criterion"], line["batch_norm"], line["mean_tau"],
                 *line["tau"], line["architecture"], *(verdict.benchmark[name] for name in columns)]
            )  # fmt: skip
    return text.getvalue()


def print_tables(ranks: Array, summaries: list[Summary], runs: list[EvaluatedRun], column: str) -> None:
    """Prints the true ranking, tau and selected accuracy over the epochs, and the last one's accuracies."""
    console = table_console()
    truth = Table("edge", *OPS, title=f"True ranking: mean rank by {column}")
    for edge, row in zip(EDGES, ranks, strict=True):
        truth.add_row(edge_name(f"{edge[0]}->{edge[1]}"), *(f"{rank:.2f}" for rank in row))
    console.print(truth)
    seeds = ", ".join(str(run.config.search.seed) for run in runs)
    about = f"seeds {seeds}; {min(run.images for run in runs)} images; removal {runs[0].removal}"
    for title, name in (("Kendall's tau, mean over edges", ""), (f"{column} of the selected cell", column)):
        rows = {
            str(epoch + 1): {s.signal: _value(s, name) for s in summaries if s.epoch == epoch}
            for epoch in sorted({summary.epoch for summary in summaries})
        }
        console.print(_signal_table(f"{title} ({about})", "before epoch", rows))
    last = max(summary.epoch for summary in summaries)
    final = [summary for summary in summaries if summary.epoch == last]
    rows = {name: {s.signal: _value(s, name) for s in final} for name in final[0].benchmark}
    console.print(_signal_table(f"The cell selected before epoch {last + 1}", "accuracy", rows))


def _signal_table(title: str, corner: str, rows: dict[str, dict[Signal, str]]) -> Table:
    """A column per signal."""
    heads = (
        f"{signal.batch_norm}\n{signal.criterion}" if signal.batch_norm else signal.criterion
        for signal in SIGNALS
    )
    table = Table(corner, *heads, title=title)
    for name, cells in rows.items():
        table.add_row(name, *(cells.get(signal, "-") for signal in SIGNALS))
    return table


def _value(summary: Summary, column: str) -> str:
    """Accuracy in a column or, without one, tau; with its deviation if there are several runs."""
    spread = summary.benchmark[column] if column else summary.tau
    return _shown(spread, summary.runs)


def _shown(spread: Spread, runs: int) -> str:
    if math.isnan(spread.mean):
        return "-"
    return f"{spread.mean:.2f}" + (f" ± {spread.deviation:.2f}" if runs > 1 else "")


@contextmanager
def _progress(folder: Path) -> Iterator[Evaluated]:
    """A bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(str(folder), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


if __name__ == "__main__":
    sys.exit(main())
