"""Heat maps over the epochs of a search: a row per edge and operation, a column per epoch."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.markers import CARETLEFT
from matplotlib.patches import Rectangle

from vpdarts_fast.report.run_files import Array, Run
from vpdarts_fast.report.style import INK, OP_COLOURS, edge_name, mark_phases, new_figure
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, OPS, Genotype

ROWS = len(EDGES) * len(OPS)

# White is zero: an op that contributes nothing, or whose removal changes nothing.
_COLOURS = mpl.colormaps["RdBu_r"].with_extremes(bad="#BBBBBB")

_IMPORTANCE_TICKS = (-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100)


def alpha_figure(run: Run) -> Figure:
    """Alpha after each epoch; triangles on the right point at the run's architecture."""
    figure, body = new_figure(10, 7.5, "alpha after each epoch  (◀ chosen)", run.title)
    axes = body.subplots()
    values = np.stack([epoch.alpha.ravel() for epoch in run.epochs], axis=1)
    limit = _limit(values, at_least=1e-3)
    image = _draw_values(axes, values, Normalize(-limit, limit), [str(epoch.number) for epoch in run.epochs])
    axes.set_xlabel("epoch", fontsize=11)
    _mark(axes, len(run.epochs) - 0.5, run.genotype, CARETLEFT)
    mark_phases(axes, 0, run.warmup_epochs, len(run.epochs))
    _add_colour_bar(body, axes, image, values, "alpha")
    return figure


def importance_figure(run: Run) -> Figure | None:
    """Accuracy lost without each op, per leave-one-out evaluation; dots mark the op that was kept.

    `None` where the run has no evaluation (yet): in warm-up, or when alpha's magnitude selects.
    """
    evaluations = [
        (str(epoch.number), epoch.importance, epoch.genotype)
        for epoch in run.epochs
        if epoch.importance is not None
    ]
    if run.result and run.result.importance is not None:
        evaluations.append(("final", run.result.importance, run.result.genotype))
    if not evaluations:
        return None
    figure, body = new_figure(10, 7.5, "accuracy lost without the operation  (● kept)", run.title)
    axes = body.subplots()
    values = np.stack([importance.lost.ravel() for _, importance, _ in evaluations], axis=1)
    # A few removals cost tens of points while those to be ranked differ by less than one.
    limit = _limit(values, at_least=3.0)
    norm = SymLogNorm(linthresh=1.0, vmin=-limit, vmax=limit)
    image = _draw_values(axes, values, norm, [label for label, _, _ in evaluations])
    axes.set_xlabel("before epoch", fontsize=11)
    for column, (_, _, genotype) in enumerate(evaluations):
        _mark(axes, column, genotype, "o")
    if evaluations[-1][0] == "final" and len(evaluations) > 1:
        axes.axvline(len(evaluations) - 1.5, color=INK, linewidth=1)
    _add_colour_bar(body, axes, image, values, "percentage points (logarithmic beyond ±1)", _IMPORTANCE_TICKS)
    return figure


def _draw_values(axes: Axes, values: Array, norm: Normalize, columns: Sequence[str]) -> AxesImage:
    """Draws [30, columns] values, the rows labelled by op and edge, the columns as given."""
    image = axes.imshow(values, cmap=_COLOURS, norm=norm, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(ROWS), labels=OPS * len(EDGES), fontsize=8.5)
    axes.tick_params(axis="y", length=0, pad=11)
    for row in range(ROWS):
        swatch = Rectangle((-0.016, row - 0.5), 0.012, 1, facecolor=OP_COLOURS[OPS[row % len(OPS)]])
        swatch.set(transform=axes.get_yaxis_transform(), clip_on=False)
        axes.add_patch(swatch)
    for number, edge in enumerate(EDGES):
        top = number * len(OPS) - 0.5
        if number:
            axes.axhline(top, color=INK, linewidth=1)
        axes.annotate(
            edge_name(edge),
            (0, top + len(OPS) / 2),
            xycoords=axes.get_yaxis_transform(),
            xytext=(-92, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=13,
            fontweight="bold",
            color=INK,
        )
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


def _mark(axes: Axes, x: float, genotype: Genotype | None, marker: str | int) -> None:
    """Marks the genotype's op on each edge at x, in columns; nothing without a genotype."""
    if genotype is None:
        return
    rows = [edge * len(OPS) + choice for edge, choice in enumerate(genotype.choices)]
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


def _limit(values: Array, *, at_least: float) -> float:
    """The largest finite magnitude."""
    return float(np.max(np.abs(values), where=np.isfinite(values), initial=at_least))
