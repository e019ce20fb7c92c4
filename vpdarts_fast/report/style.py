"""What all pictures share: colours, names, figures without global state, saving.

Figures are made from `matplotlib.figure.Figure` and never through pyplot: drawing needs no display,
leaves no state behind and may happen in any thread.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.space import AlphaTable, CellDrawing

# The first five and most of those of curves are of Okabe and Ito's palette, which stays distinguishable under
# the common colour vision deficiencies; ops that differ in their size alone are two shades of one colour. No
# curve has the colour of an operation.
OP_COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "none": "#8C8C8C",
        "skip_connect": "#0072B2",
        "nor_conv_1x1": "#E69F00",
        "nor_conv_3x3": "#D55E00",
        "avg_pool_3x3": "#009E73",
        "max_pool_3x3": "#7CC9A6",
        "sep_conv_3x3": "#D55E00",
        "sep_conv_5x5": "#8A3B00",
        "dil_conv_3x3": "#E69F00",
        "dil_conv_5x5": "#D9C500",
        "noise": "#5D3A9B",
    }
)
"""The colour of each candidate operation of NAS-Bench-201 and DARTS, the same in every picture."""

FURTHER_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#E69F00", "#5D3A9B", "#8A3B00", "#7CC9A6", "#D9C500"),
    *("#3C6E3C", "#B5838D", "#4A6FE3", "#A6761D"),
)
"""Colours of all other operations; see `op_colours`."""

CONCAT = "concat"
"""What a drawing calls an edge that only joins a node to the output; it is none of the operations."""

CONCAT_COLOUR = "#A6A6A6"

SERIES_COLOURS = ("#000000", "#56B4E9", "#CC79A7", "#882255")
"""Colours of curves that do not stand for an operation."""

INK = "#222222"
"""Text, nodes and marks."""

DOTS_PER_INCH = 150

_MOST_DOTS = 30_000
"""Of the longer side of a picture, which has fewer per inch instead."""

_COLUMNS_PER_INCH = 13.2
"""Letters of the subheading."""
_LINE_HEIGHT = 0.15
"""Of the subheading, in inches."""


def op_colours(tables: Sequence[AlphaTable], cells: Sequence[CellDrawing] = ()) -> dict[str, str]:
    """The colour of each operation, the same in all pictures of one run.

    Names that are not in `OP_COLOURS` get, in their order, the next of `FURTHER_COLOURS` that none of the
    others has; where these run out, they begin anew.

    Args:
        tables: of the space.
        cells: drawings, whose operations may have other names than those of the tables.
    """
    of_tables = {op for table in tables for names in table.ops for op in names}
    of_cells = {op for cell in cells for _, _, op in cell.edges} - of_tables - {CONCAT}
    names = [*sorted(of_tables), *sorted(of_cells)]
    colours = {name: OP_COLOURS[name] for name in names if name in OP_COLOURS}
    free = [colour for colour in FURTHER_COLOURS if colour not in colours.values()]
    others = [name for name in names if name not in OP_COLOURS]
    return colours | dict(zip(others, itertools.cycle(free or FURTHER_COLOURS), strict=False))


def edge_name(edge: str) -> str:
    """An edge `0->1` as readers write it: `0→1`."""
    return edge.replace("->", "→")


def new_figure(
    width: float, height: float, heading: str = "", subheading: str = ""
) -> tuple[Figure, SubFigure]:
    """A figure of that size in inches under its headings, and the part to draw in.

    The subheading, the text of an architecture as a rule, is set in a smaller typewriter font. Where it takes
    more lines than one, the figure is higher by the others.
    """
    lines = textwrap.wrap(subheading, int(_COLUMNS_PER_INCH * width) - 4, break_on_hyphens=False)
    height += _LINE_HEIGHT * max(0, len(lines) - 1)
    dots = min(DOTS_PER_INCH, _MOST_DOTS / max(width, height))
    figure = Figure(figsize=(width, height), dpi=dots, facecolor="white", layout="constrained")
    if heading:
        figure.suptitle(heading, fontsize=13, fontweight="bold", color=INK)
    body: SubFigure = figure.subfigures(squeeze=False)[0, 0]
    if lines:
        body.suptitle("\n".join(lines), fontsize=9, family="monospace", color=INK, parse_math=False)
    return figure, body


def mark_phases(axes: Axes, first: float, phases: Sequence[str], *, names: bool = True) -> None:
    """Draws the boundaries between phases and names each above the axes.

    Args:
        axes: With epochs one unit apart along x.
        first: Where the first epoch stands.
        phases: The phase of each epoch.
        names: Whether to write the names.
    """
    begin = 0
    for name, epochs in itertools.groupby(phases):
        end = begin + len(list(epochs))
        if begin:
            axes.axvline(first + begin - 0.5, color=INK, linewidth=1.5, linestyle=(0, (4, 3)))
        if names:
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
        begin = end


def save_figure(figure: Figure, path: Path, title: str) -> None:
    """Writes the figure in the format of the path's suffix, `.png` or `.svg`.

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
