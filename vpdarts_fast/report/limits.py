"""How much importance cells give up for what their networks cost, and where the limits are."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vpdarts_fast.report.run import Limits, Run
from vpdarts_fast.report.style import INK, SERIES_COLOURS, new_figure

NAMES = {"parameters": "parameters", "macs": "multiply-adds of an image", "latency_ms": "ms for an image"}
"""What each cost is called."""

_ALL_CELLS = 100_000
"""So many cells are drawn at most."""


def limits_figure(run: Run) -> Figure | None:
    """A panel for each limit, with a point for each cell: what it costs, and the importance that it gives up.

    In spaces that choose an operation for each edge these are all cells, elsewhere those that the choice went
    by. The one found and the one without limits are named. None without limits.
    """
    limits = run.result.limits if run.result else None
    if limits is None:
        return None
    figure, body = new_figure(10, 1.1 + 2.6 * len(limits.given), "cost and importance", run.title)
    for axes, (cost, limit) in zip(
        np.ravel(body.subplots(len(limits.given))), limits.given.items(), strict=True
    ):
        costs, lags = points(limits, cost)
        axes.scatter(costs, lags, s=6, color="#BBBBBB", linewidths=0, rasterized=True, label="cells")
        axes.axvline(limit, color=INK, linestyle="--", linewidth=1.2, label=f"limit {limit:,g}")
        for number, (name, cell) in enumerate(
            (("without limits", limits.path[0]), ("found", limits.path[-1]))
        ):
            value = limits.unlimited[cost] if number == 0 else limits.found[cost]
            colour = SERIES_COLOURS[2 * number + 1]
            axes.plot([value], [cell.lag], marker="o", markersize=9, color=colour, linestyle="", label=name)
        axes.invert_yaxis()
        axes.set_xlabel(NAMES.get(cost, cost), fontsize=11)
        axes.set_ylabel("importance given up", fontsize=11)
        axes.grid(color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=10)
    return figure


def points(limits: Limits, cost: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each cell costs, and the importance that it gives up, one number a cell."""
    cells = 1 if limits.lag is None else np.prod([len(row) for row in limits.lag])
    if limits.lag is None or cells > _ALL_CELLS:
        path = limits.path
        return np.array([cell.costs[cost] for cell in path]), np.array([cell.lag for cell in path])
    table = limits.tables[cost]
    costs, lags = np.array([table.base]), np.zeros(1)
    for of_ops, lag_of_ops in zip(table.ops, limits.lag, strict=True):
        costs = np.add.outer(costs, of_ops).ravel()
        lags = np.add.outer(lags, lag_of_ops).ravel()
    return costs, lags
