"""Kendall's tau and what selection would give, over the epochs."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vpdarts_fast.analysis.evaluation import MODES, TAYLOR
from vpdarts_fast.analysis.signals import Signal, Spread, Summary
from vpdarts_fast.report.style import INK, SERIES_COLOURS, new_figure

COLOURS = dict(zip(MODES, SERIES_COLOURS, strict=True))


def kendall_figure(summaries: list[Summary], column: str, title: str) -> Figure:
    """Above tau (mean over edges), below the accuracy of the selected cell; a column for each criterion.

    Curves are means over the runs, and the bands their standard deviation. Alpha is in both, and the estimate
    by the gradient beside the loss.
    """
    figure, body = new_figure(10, 6.4, "Kendall's tau against the true ranking", title)
    panels = body.subplots(2, 2, sharex=True, sharey="row", squeeze=False)
    for place, criterion in enumerate(("accuracy", "loss")):
        above, below = panels[0][place], panels[1][place]
        signals = [Signal(criterion, mode) for mode in MODES] + [Signal("alpha")]
        signals += [Signal(TAYLOR)] if criterion == "loss" else []
        for signal in signals:
            mine = [summary for summary in summaries if summary.signal == signal]
            epochs = [summary.epoch + 1 for summary in mine]
            _draw(above, signal, epochs, [summary.tau for summary in mine])
            _draw(below, signal, epochs, [summary.benchmark[column] for summary in mine])
        above.set_title(f"{criterion} without the op", fontsize=11, color=INK)
        above.axhline(0, color=INK, linewidth=0.8)
        below.set_xlabel("before epoch", fontsize=11)
        for axes in (above, below):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
            axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("tau, mean over edges", fontsize=11)
    panels[1][0].set_ylabel(f"selected cell: {column} (%)", fontsize=9)
    panels[0][1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=10)
    return figure


def _draw(axes: Axes, signal: Signal, epochs: list[int], spreads: list[Spread]) -> None:
    """A curve and its band; nothing where the signal was never measured."""
    if all(math.isnan(spread.mean) for spread in spreads):
        return
    colour = COLOURS[signal.batch_norm] if signal.batch_norm else INK
    label = signal.batch_norm or {"alpha": "alpha", TAYLOR: "Taylor estimate"}[signal.criterion]
    style = "-" if signal.batch_norm else "--" if signal.criterion == TAYLOR else ":"
    means = [spread.mean for spread in spreads]
    axes.plot(epochs, means, style, color=colour, label=label, linewidth=2, marker="o", markersize=4)
    low = [spread.mean - spread.deviation for spread in spreads]
    high = [spread.mean + spread.deviation for spread in spreads]
    axes.fill_between(epochs, low, high, color=colour, alpha=0.12, linewidth=0)
