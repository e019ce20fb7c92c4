"""Draws a run again, or compares several: ``python -m vpdarts_fast.report RUN...``."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.box import SIMPLE
from rich.table import Table

from vpdarts_fast.command_line import command, table_console
from vpdarts_fast.errors import UserError
from vpdarts_fast.report.comparison import (
    Compared,
    compare,
    comparison_figure,
    run_folders,
    to_csv,
    to_json,
)
from vpdarts_fast.report.pictures import draw_pictures
from vpdarts_fast.report.style import save_figure
from vpdarts_fast.report.training import draw_training
from vpdarts_fast.runs.files import write_atomically
from vpdarts_fast.runs.training_files import is_training


@dataclass(frozen=True)
class Arguments:
    """Draws the pictures of a search or a training again; of several searches, compares them.

    Compared are the accuracy of the current cell over epochs and seconds, with bands over the seeds of a
    method, and Kendall's tau of each method's own ranking of the ops. A folder of several seeds stands for
    its runs.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Folders that searches have written, or one of a training."""
    out: Path = Path("comparison")
    """Of several runs: folder for comparison.json, comparison.csv and comparison.png."""
    column: str = "cifar10_test_200ep"
    """Of several runs: which accuracy of the benchmark table the picture shows."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    asked = tyro.cli(Arguments, args=arguments, prog="python -m vpdarts_fast.report")
    if not asked.runs:
        raise UserError("name at least one RUN, a folder that a search has written")
    if len(asked.runs) == 1 and not any(asked.runs[0].glob("seed-*")):
        draw = draw_training if is_training(asked.runs[0]) else draw_pictures
        for path in draw(asked.runs[0]):
            print(path)
        return 0
    compared = compare(run_folders(asked.runs))
    if not any(asked.column in point.accuracies for each in compared for point in each.points):
        raise UserError(
            f"no run has an accuracy {asked.column} (--column): cells are looked up in NAS-Bench-201 only"
        )
    table_console().print(_table(compared, asked.column))
    for path in _write(compared, asked):
        print(path)
    return 0


def _table(compared: Sequence[Compared], column: str) -> Table:
    """Where each method is at its last point."""
    table = Table(box=SIMPLE)
    table.add_column("method", no_wrap=True)
    for head in ("runs", "finished", "epochs", "seconds", column, "tau"):
        table.add_column(head, justify="right", no_wrap=True)
    for each in compared:
        *_, last = each.points
        spreads = (last.accuracies.get(column), last.tau)
        accuracy, tau = (f"{s.mean:.2f} ± {s.deviation:.2f}" if s else "" for s in spreads)
        counts = (str(len(each.folders)), str(each.finished), str(last.epoch), f"{last.seconds:,.0f}")
        table.add_row(each.label, *counts, accuracy, tau)
    return table


def _write(compared: Sequence[Compared], asked: Arguments) -> list[Path]:
    try:
        asked.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {asked.out}: {error.strerror or error} (--out)") from error
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(to_csv(compared))
    paths = [asked.out / f"comparison.{ending}" for ending in ("json", "csv", "png")]
    write_atomically(paths[0], (json.dumps(to_json(compared), indent=1) + "\n").encode())
    write_atomically(paths[1], text.getvalue().encode())
    save_figure(comparison_figure(compared, asked.column), paths[2], "methods compared")
    return paths


if __name__ == "__main__":
    sys.exit(main())
