"""What all pictures share: colours, names, figures without global state, saving.

Figures are made from `matplotlib.figure.Figure` and never through pyplot: drawing needs no display,
leaves no state behind and may happen in any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from vpdarts_fast.errors import UserError

# Both palettes are parts of Okabe and Ito's, which stays distinguishable under the common colour
# vision deficiencies. They are disjoint, so that a curve is never taken for an operation.
OP_COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "none": "#8C8C8C",
        "skip_connect": "#0072B2",
        "nor_conv_1x1": "#E69F00",
        "nor_conv_3x3": "#D55E00",
        "avg_pool_3x3": "#009E73",
    }
)
"""The colour of each candidate operation, the same in every picture."""

SERIES_COLOURS = ("#000000", "#56B4E9", "#CC79A7", "#882255")
"""Colours of curves that do not stand for an operation."""

INK = "#222222"
"""Text, nodes and marks."""

DOTS_PER_INCH = 150


def edge_name(edge: tuple[int, int]) -> str:
    """An edge (source, target) as readers write it: ``0→1``."""
    return f"{edge[0]}→{edge[1]}"


def new_figure(
    width: float, height: float, heading: str = "", subheading: str = ""
) -> tuple[Figure, SubFigure]:
    """A figure of that size in inches under one or two lines of heading, and the part to draw in.

    The subheading, an architecture string as a rule, is set in a smaller typewriter font.
    """
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white", layout="constrained")
    if heading:
        figure.suptitle(heading, fontsize=13, fontweight="bold", color=INK)
    body: SubFigure = figure.subfigures(squeeze=False)[0, 0]
    if subheading:
        body.suptitle(subheading, fontsize=9, family="monospace", color=INK)
    return figure, body


def mark_phases(axes: Axes, first: float, warmup: int, total: int, *, names: bool = True) -> None:
    """Draws the boundary between warm-up and pruning and names both above the axes.

    Args:
        axes: With epochs one unit apart along x.
        first: Where the first epoch stands.
        warmup: The number of warm-up epochs.
        total: The number of epochs.
        names: Whether to write the names.
    """
    if 0 < warmup < total:
        axes.axvline(first + warmup - 0.5, color=INK, linewidth=1.5, linestyle=(0, (4, 3)))
    for name, begin, end in (("warm-up", 0, warmup), ("pruning", warmup, total)):
        if names and begin < end:
            axes.annotate(
                name,
                (first + (begin + end - 1) / 2, 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=11,
                color=INK,
            )


def save_figure(figure: Figure, path: Path, title: str) -> None:
    """Writes the figure in the format of the path's suffix, ``.png`` or ``.svg``.

    The title goes into the metadata; a date does not, so that the same run gives the same PNG.

    Raises:
        UserError: another suffix, or the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in {".png", ".svg"}:
        raise UserError(f"cannot draw {path}: expected a name that ends in .png or .svg")
    metadata = {"Title": title, "Date": None} if suffix == ".svg" else {"Title": title}
    try:
        figure.savefig(path, format=suffix[1:], metadata=metadata)
    except OSError as error:
        raise UserError(f"cannot write the picture {path}: {error.strerror or error}") from error
