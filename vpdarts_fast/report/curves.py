"""Losses and accuracies over the epochs of a search."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vpdarts_fast.report.run import Run
from vpdarts_fast.report.style import SERIES_COLOURS, mark_phases, new_figure

_NAN = float("nan")

SIGNS = {"skips": "skip connections", "entropy": "entropy of ops (nats)", "eigenvalue": "eigenvalue by alpha"}
"""What is watched, and what it is called."""


def curves_figure(run: Run) -> Figure:
    """Losses, accuracies, signs of a collapse and, with a benchmark table, what the cell is worth.

    An evaluation at the beginning of epoch e stands at e; what belongs to the result stands one
    epoch behind the last.
    """
    columns = list(dict.fromkeys(column for epoch in run.epochs for column in epoch.benchmark))
    signs = [name for name in SIGNS if any(name in epoch.watched for epoch in run.epochs)]
    panels = 2 + bool(signs) + bool(columns)
    figure, body = new_figure(10, 1.1 + 2.1 * panels, "search curves", run.title)
    losses, accuracies, *rest = body.subplots(panels, sharex=True)
    numbers = [epoch.number for epoch in run.epochs]
    with_result = [*numbers, numbers[-1] + 1]

    _draw_curve(losses, 0, "weights", numbers, [epoch.weights_loss for epoch in run.epochs])
    _draw_curve(losses, 1, "alpha", numbers, [epoch.alpha_loss for epoch in run.epochs])
    losses.set_ylabel("loss", fontsize=11)

    _draw_curve(accuracies, 0, "weights", numbers, [epoch.weights_accuracy for epoch in run.epochs])
    _draw_curve(accuracies, 1, "alpha", numbers, [epoch.alpha_accuracy for epoch in run.epochs])
    evaluations = [*(epoch.importance for epoch in run.epochs), run.result.importance if run.result else None]
    base = [evaluation.base_accuracy if evaluation else _NAN for evaluation in evaluations]
    _draw_curve(accuracies, 2, "leave-one-out base", with_result, base)
    accuracies.set_ylabel("accuracy (%)", fontsize=11)

    if signs:
        watched, *rest = rest
        for position, name in enumerate(signs):
            values = [epoch.watched.get(name, _NAN) for epoch in run.epochs]
            _draw_curve(watched, position, SIGNS[name], numbers, values)
        watched.set_ylabel("watched", fontsize=11)
        _finish(watched)
        mark_phases(watched, numbers[0], run.phases, names=False)

    for axes in rest:
        tables = [*(epoch.benchmark for epoch in run.epochs), run.result.benchmark if run.result else {}]
        for position, column in enumerate(columns):
            values = [table.get(column, _NAN) for table in tables]
            _draw_curve(axes, position, column, with_result, values, last_value=True)
        axes.set_ylabel("benchmark (%)", fontsize=11)

    for axes in (losses, accuracies, *rest):
        _finish(axes)
        mark_phases(axes, numbers[0], run.phases, names=axes is losses)
    axes.set_xlim(numbers[0] - 0.5, numbers[-1] + (1.5 if run.result else 0.5))
    axes.set_xlabel("epoch", fontsize=11)
    return figure


def _draw_curve(
    axes: Axes,
    position: int,
    label: str,
    epochs: Sequence[int],
    values: Sequence[float],
    *,
    last_value: bool = False,
) -> None:
    """Draws a curve unless all of it is NaN; the position picks its colour, then its line style."""
    present = [value for value in values if not isnan(value)]
    if not present:
        return
    row, column = divmod(position, len(SERIES_COLOURS))
    axes.plot(
        epochs,
        values,
        linestyle=("-", "--", ":")[row % 3],
        color=SERIES_COLOURS[column],
        label=f"{label}\nlast: {present[-1]:.2f}" if last_value else label,
        linewidth=2,
        marker="o",
        markersize=4,
    )


def _finish(axes: Axes) -> None:
    """Grid, whole epochs, and the legend beside the panel, where it covers nothing."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=10)
