"""Heat maps over the epochs of a search: a row per edge and operation, a column per epoch.

Each cell type has a figure of its own, whose height grows with its rows. The colours mean the same in all of
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.markers import CARETLEFT
from matplotlib.patches import Rectangle

from vpdarts_fast.report.run import Array, Choice, Run
from vpdarts_fast.report.style import INK, edge_name, mark_phases, new_figure, op_colours
from vpdarts_fast.spaces.space import AlphaTable

# White is zero: an op that contributes nothing, or whose removal changes nothing.
_COLOURS = mpl.colormaps["RdBu_r"].with_extremes(bad="#BBBBBB")

_IMPORTANCE_TICKS = (-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100)

_ROW_HEIGHT = 0.21
"""In inches."""
_LOWEST = 4.5
"""Inches of a figure; its rows are as high as that needs."""
_OPS_WIDTH = (29, 5.25)
"""Points that the names of operations take: these, and so many for each letter of the longest."""


@dataclass(frozen=True)
class _Rows:
    """The rows of a heat map: the operations of one cell type, edge by edge, in the order of alpha.

    Attributes:
        table: of the cell type.
        first: the row of alpha at which it begins.
        colours: of the operations.
    """

    table: AlphaTable
    first: int
    colours: dict[str, str]

    @property
    def places(self) -> list[tuple[int, int]]:
        """(row, column) of alpha for each row of the picture."""
        return [
            (self.first + edge, op) for edge, names in enumerate(self.table.ops) for op in range(len(names))
        ]

    @property
    def height(self) -> float:
        """Of the figure, in inches."""
        return max(1.2 + _ROW_HEIGHT * len(self.places), _LOWEST)

    def of(self, tables: Sequence[Array]) -> Array:
        """Tables [E, O] -> [rows, tables]."""
        rows, columns = zip(*self.places, strict=True)
        return np.stack([table[rows, columns] for table in tables], axis=1)

    def marked(self, choice: Choice | None) -> list[int]:
        """The rows of a choice's operations."""
        chosen = choice.chosen if choice else ()
        return [row for row, place in enumerate(self.places) if place in chosen]


def alpha_figures(run: Run) -> dict[str, Figure]:
    """Alpha after each epoch, a figure by the name of each cell type.

    Triangles on the right point at what the run has chosen.
    """
    tables = [epoch.alpha for epoch in run.epochs]
    limit = _limit(tables, at_least=1e-3)
    figures = {}
    for rows in _rows_of(run):
        heading = _heading(run, "alpha after each epoch  (◀ chosen)", rows)
        figure, body = new_figure(10, rows.height, heading, run.title)
        axes, values = body.subplots(), rows.of(tables)
        columns = [str(epoch.number) for epoch in run.epochs]
        image = _draw_values(axes, values, Normalize(-limit, limit), rows, columns)
        axes.set_xlabel("epoch", fontsize=11)
        _mark(axes, len(run.epochs) - 0.5, rows.marked(run.genotype), CARETLEFT)
        mark_phases(axes, 0, run.phases)
        _add_colour_bar(body, axes, image, values, "alpha")
        figures[rows.table.name] = figure
    return figures


def importance_figures(run: Run) -> dict[str, Figure]:
    """Accuracy lost without each op, per leave-one-out evaluation, a figure by the name of each cell type.

    Dots mark the ops that were kept. There are no figures where the run has no evaluation (yet): in warm-up,
    or when alpha's magnitude selects.
    """
    evaluations = [
        (str(epoch.number), epoch.importance.lost, epoch.genotype)
        for epoch in run.epochs
        if epoch.importance is not None
    ]
    if run.result and run.result.importance is not None:
        evaluations.append(("final", run.result.importance.lost, run.result.genotype))
    if not evaluations:
        return {}
    tables = [lost for _, lost, _ in evaluations]
    # A few removals cost tens of points while those to be ranked differ by less than one.
    limit = _limit(tables, at_least=3.0)
    figures = {}
    for rows in _rows_of(run):
        heading = _heading(run, "accuracy lost without the operation  (● kept)", rows)
        figure, body = new_figure(10, rows.height, heading, run.title)
        axes, values = body.subplots(), rows.of(tables)
        norm = SymLogNorm(linthresh=1.0, vmin=-limit, vmax=limit)
        image = _draw_values(axes, values, norm, rows, [label for label, _, _ in evaluations])
        axes.set_xlabel("before epoch", fontsize=11)
        for column, (_, _, choice) in enumerate(evaluations):
            _mark(axes, column, rows.marked(choice), "o")
        if evaluations[-1][0] == "final" and len(evaluations) > 1:
            axes.axvline(len(evaluations) - 1.5, color=INK, linewidth=1)
        label = "percentage points (logarithmic beyond ±1)"
        _add_colour_bar(body, axes, image, values, label, _IMPORTANCE_TICKS)
        figures[rows.table.name] = figure
    return figures


def _rows_of(run: Run) -> list[_Rows]:
    """Those of each cell type's figure."""
    colours = op_colours(run.tables)
    firsts = np.cumsum([0, *(len(table.edges) for table in run.tables)])
    return [_Rows(table, int(first), colours) for table, first in zip(run.tables, firsts, strict=False)]


def _heading(run: Run, text: str, rows: _Rows) -> str:
    return text if len(run.tables) == 1 else f"{rows.table.name}: {text}"


def _draw_values(
    axes: Axes, values: Array, norm: Normalize, rows: _Rows, columns: Sequence[str]
) -> AxesImage:
    """Draws [rows, columns] values, the rows labelled by op and edge, the columns as given."""
    image = axes.imshow(values, cmap=_COLOURS, norm=norm, aspect="auto", interpolation="nearest")
    ops = [op for names in rows.table.ops for op in names]
    axes.set_yticks(range(len(ops)), labels=ops, fontsize=8.5)
    axes.tick_params(axis="y", length=0, pad=11)
    for row, op in enumerate(ops):
        swatch = Rectangle((-0.016, row - 0.5), 0.012, 1, facecolor=rows.colours[op])
        swatch.set(transform=axes.get_yaxis_transform(), clip_on=False)
        axes.add_patch(swatch)
    base, of_letter = _OPS_WIDTH
    top = -0.5
    for edge, names in zip(rows.table.edges, rows.table.ops, strict=True):
        if top > 0:
            axes.axhline(top, color=INK, linewidth=1)
        axes.annotate(
            edge_name(edge),
            (0, top + len(names) / 2),
            xycoords=axes.get_yaxis_transform(),
            xytext=(-(base + of_letter * max(map(len, ops))), 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=13,
            fontweight="bold",
            color=INK,
            parse_math=False,
        )
        top += len(names)
    # At most 20 labels, the last column always among them.
    shown = range(len(columns) - 1, -1, -ceil(len(columns) / 20))
    axes.set_xticks(shown, labels=[columns[column] for column in shown], fontsize=10)
    return image


def _add_colour_bar(
    body: SubFigure,
    axes: Axes,
    image: AxesImage,
    values: Array,
    label: str,
    ticks: Sequence[float] | None = None,
) -> None:
    """A colour bar cut to the range of the values, which is rarely symmetric as the colours are."""
    finite = np.append(values[np.isfinite(values)], 0)
    low, high = finite.min(), max(finite.max(), finite.min() + 1e-3)
    bar = body.colorbar(image, ax=axes, fraction=0.04, pad=0.03)
    if ticks is not None:
        shown = [tick for tick in ticks if low <= tick <= high]
        bar.set_ticks(shown, labels=[str(tick) for tick in shown])
        bar.minorticks_off()
    bar.ax.set_ylim(low, high)
    bar.set_label(label, fontsize=11)


def _mark(axes: Axes, x: float, rows: Sequence[int], marker: str | int) -> None:
    """Marks rows at x, in columns."""
    if not rows:
        return
    axes.plot(
        [x] * len(rows),
        rows,
        linestyle="",
        marker=marker,
        markersize=7,
        color=INK,
        markeredgecolor="white",
        markeredgewidth=0.8,
        clip_on=False,
    )


def _limit(tables: Sequence[Array], *, at_least: float) -> float:
    """The largest finite magnitude."""
    values = np.stack(tables)
    return float(np.max(np.abs(values), where=np.isfinite(values), initial=at_least))
