"""What the runs of a row came to, and its way into Markdown, CSV and a picture."""

from __future__ import annotations

import csv
import io
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Table

from vpdarts_fast.paper.published import COLUMNS, Published
from vpdarts_fast.report.style import FURTHER_COLOURS, INK, new_figure
from vpdarts_fast.search.run_folder import RunFolder


@dataclass(frozen=True)
class Outcome:
    """The finished runs of a row.

    Attributes:
        name: of the row.
        published: what the paper has; None where it has nothing.
        accuracies: by data set (`COLUMNS`), the test accuracy of each run's cell, in per cent.
        seconds: of each run's search; empty where the search trains nothing.
        folders: of the runs, or the file of all of them.
        architectures: the cell of each run; of many runs none.
    """

    name: str
    published: Published | None
    accuracies: Mapping[str, Sequence[float]]
    seconds: Sequence[float]
    folders: Sequence[Path]
    architectures: Sequence[str] = ()

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return len(next(iter(self.accuracies.values())))


def outcome_of(name: str, published: Published | None, folders: Sequence[Path]) -> Outcome | None:
    """Reads the finished ones of a row's runs; None where there are none.

    Raises:
        UserError: a result is damaged.
    """
    results = [(folder, RunFolder(folder).result()) for folder in folders if folder.exists()]
    finished = [(folder, result) for folder, result in results if result and result["benchmark"]]
    if not finished:
        return None
    return Outcome(
        name,
        published,
        {data: [result["benchmark"][column] for _, result in finished] for data, column in COLUMNS.items()},
        [sum(result["seconds"].values()) for _, result in finished],
        [folder for folder, _ in finished],
        [result["architecture"] for _, result in finished],
    )


def spread(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean, standard deviation and variance of a sample; no spread of one value."""
    if len(values) < 2:
        return values[0], None, None
    return statistics.fmean(values), statistics.stdev(values), statistics.variance(values)


def markdown(title: str, outcomes: Sequence[Outcome], beside: Path, notes: Sequence[str]) -> str:
    """Makes a Markdown document: a table with the paper's numbers beside, links to all runs, and notes.

    Args:
        title: its headline.
        outcomes: one for each row.
        beside: the folder of the document, from which links go.
        notes: paragraphs behind the table.
    """
    heads = ["method", "runs"]
    for data in COLUMNS:
        heads += [data, "paper"]
    lines = [
        f"# {title}",
        "",
        _line([*heads, "seconds", "paper, hours", "cells"]),
        _line(["---"] * (len(heads) + 3)),
    ]
    for outcome in outcomes:
        cells = [outcome.name, str(outcome.runs)]
        for place, values in enumerate(outcome.accuracies.values()):
            mean, deviation, variance = spread(values)
            cells.append(
                f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f} ({variance:.2f})"
            )
            cells.append(
                ""
                if outcome.published is None
                else "{:.2f} ± {:.2f}".format(*outcome.published.accuracies[place])
            )
        hours = outcome.published and outcome.published.hours
        cells += [f"{statistics.fmean(outcome.seconds):,.0f}" if outcome.seconds else ""]
        cells += ["" if hours is None else f"{hours:.1f}", _links(outcome, beside)]
        lines.append(_line(cells))
    lines += [
        "",
        "Ours: mean ± standard deviation (variance) of the test accuracy after 200 epochs, per cent.",
    ]
    for note in notes:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def terminal_table(title: str, outcomes: Sequence[Outcome]) -> Table:
    """Makes the same table for a terminal: under each of our numbers the paper's."""
    table = Table(title=title, box=SIMPLE)
    table.add_column("method")
    for head in ("runs", *COLUMNS, "seconds"):
        table.add_column(head, justify="right", no_wrap=True)
    for outcome in outcomes:
        cells = []
        for place, values in enumerate(outcome.accuracies.values()):
            mean, deviation, _ = spread(values)
            ours = f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"
            paper = outcome.published and "{:.2f} ± {:.2f}".format(*outcome.published.accuracies[place])
            cells.append(f"{ours}\n[dim]{paper}[/dim]" if paper else ours)
        seconds = f"{statistics.fmean(outcome.seconds):,.0f}" if outcome.seconds else ""
        if outcome.published and outcome.published.hours:
            seconds += f"\n[dim]{outcome.published.hours} h[/dim]"
        table.add_row(outcome.name, str(outcome.runs), *cells, seconds)
    table.caption = "ours above, the paper's below; mean ± deviation (the paper's own rows: ± variance)"
    return table


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _links(outcome: Outcome, beside: Path) -> str:
    """One for each run, with the cell's accuracy on CIFAR-10."""
    if len(outcome.folders) != outcome.runs:
        return ", ".join(f"[all]({os.path.relpath(path, beside)})" for path in outcome.folders)
    first = next(iter(outcome.accuracies.values()))
    return ", ".join(
        f"[{value:.2f}]({os.path.relpath(path, beside)})"
        for value, path in zip(first, outcome.folders, strict=True)
    )


def csv_text(outcomes: Sequence[Outcome], beside: Path) -> str:
    """Makes comma-separated values: a line for each row and data set."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["method", "runs", "dataset", "mean", "standard_deviation", "variance", "seconds", "paper_accuracy",
         "paper_spread", "paper_hours", "folders"]
    )  # fmt: skip
    for outcome in outcomes:
        for place, (data, values) in enumerate(outcome.accuracies.items()):
            paper = outcome.published.accuracies[place] if outcome.published else (None, None)
            writer.writerow(
                [outcome.name, outcome.runs, data, *spread(values),
                 statistics.fmean(outcome.seconds) if outcome.seconds else None, *paper,
                 outcome.published.hours if outcome.published else None,
                 " ".join(os.path.relpath(path, beside) for path in outcome.folders)]
            )  # fmt: skip
    return text.getvalue()


def accuracy_over_cost(title: str, outcomes: Sequence[Outcome]) -> Figure:
    """Draws the mean accuracy on CIFAR-10 over the seconds of a search, with its deviation.

    Methods that train nothing stand as lines; what the paper has is hollow, at the paper's hours.
    """
    figure, body = new_figure(9.5, 5.2, "accuracy over search cost", title)
    axes = body.subplots()
    data = next(iter(COLUMNS))
    for number, outcome in enumerate(outcomes):
        colour = FURTHER_COLOURS[number % len(FURTHER_COLOURS)]
        mean, deviation, _ = spread(outcome.accuracies[data])
        if not outcome.seconds:
            axes.axhline(mean, color=colour, linewidth=1, linestyle="--", label=outcome.name)
            continue
        axes.errorbar(
            statistics.fmean(outcome.seconds), mean, deviation or 0, fmt="o", color=colour, capsize=3,
            label=outcome.name,
        )  # fmt: skip
        if outcome.published and outcome.published.hours:
            (paper, _), *_ = outcome.published.accuracies
            axes.plot(3600 * outcome.published.hours, paper, "o", markerfacecolor="none", color=colour)
    axes.set_xscale("log")
    axes.set_xlabel("seconds of a search (hollow: the paper's GPU-hours)", fontsize=11, color=INK)
    axes.set_ylabel(f"test accuracy on {data} (%)", fontsize=11, color=INK)
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    return figure


def accuracy_over_proportion(title: str, outcomes: Mapping[float, Outcome]) -> Figure:
    """Draws mean and deviation of the accuracy on each data set over the share of validation images."""
    figure, body = new_figure(8, 7.5, "accuracy over the share of validation images", title)
    for axes, (number, data) in zip(
        body.subplots(len(COLUMNS), sharex=True), enumerate(COLUMNS), strict=True
    ):
        spreads = [spread(outcome.accuracies[data]) for outcome in outcomes.values()]
        axes.errorbar(
            [100 * share for share in outcomes], [mean for mean, *_ in spreads],
            [deviation or 0 for _, deviation, _ in spreads], fmt="o-", capsize=3,
            color=FURTHER_COLOURS[number],
        )  # fmt: skip
        axes.set_ylabel(f"{data} (%)", fontsize=11)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("validation images that an evaluation draws (%)", fontsize=11)
    return figure
