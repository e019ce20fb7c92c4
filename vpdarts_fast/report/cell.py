"""Draws the cells of an architecture: nodes from left to right, an arrow per operation."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from math import cos, pi, sin
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Polygon
from matplotlib.path import Path as Curve

from vpdarts_fast.report.layout import RADIUS, Arrow, Box, Labels, arrange, reach
from vpdarts_fast.report.style import CONCAT, CONCAT_COLOUR, INK, new_figure, op_colours, save_figure
from vpdarts_fast.spaces.space import CellDrawing

# Lengths are in units of the axes, about an inch each.
_SPACING = 2.6
_SIDES = 1.2
"""Between the outer nodes and the borders."""
_LETTER = 0.61 / 72
"""The width of a letter, per point of its size."""
_OP_SIZE, _NODE_SIZE = 13, 15
"""Of letters, in points."""
_LONGEST_NODE = 24
"""Letters of a node's name; longer ones are cut."""


def draw_cell(
    cells: Sequence[CellDrawing],
    path: Path,
    *,
    title: str = "",
    colours: Mapping[str, str] | None = None,
) -> None:
    """Writes a picture of the cells, one below the other; one of four nodes is 1500 pixels wide as PNG.

    In SVG the letters are outlines, so that the picture looks the same without the fonts; their text stands
    in comments.

    Args:
        cells: of an architecture, one of each type.
        path: ends in `.png` or `.svg`; overwritten.
        title: set above the cells.
        colours: of the operations; the others are as `vpdarts_fast.report.style.op_colours` has them.

    Raises:
        UserError: another suffix, or the file cannot be written.
    """
    save_figure(cell_figure(cells, title, colours), path, title or ", ".join(cell.name for cell in cells))


def cell_figure(
    cells: Sequence[CellDrawing], title: str = "", colours: Mapping[str, str] | None = None
) -> Figure:
    """The picture that `draw_cell` writes."""
    colours = {**op_colours((), cells), **(colours or {})}
    spacing = _spacing(cells)
    stretch = max(_stretch(cell.nodes[end]) for cell in cells for end in (0, -1))
    ways = [_ways(cell) for cell in cells]
    above, below = ([reach(arrows, side) for arrows in ways] for side in (1, -1))
    heights = [up + down for up, down in zip(above, below, strict=True)]
    width = (max(len(cell.nodes) for cell in cells) - 1) * spacing + 2 * (_SIDES + stretch)
    names = 0.3 * len(cells) if len(cells) > 1 else 0.0
    figure, body = new_figure(width - 0.2, 0.4 + names + sum(heights), subheading=title)
    rows = body.subplots(len(cells), squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, cell, arrows, up, down in zip(rows[:, 0], cells, ways, above, below, strict=True):
        axes.set_aspect("equal")
        axes.set_axis_off()
        axes.set_xlim(-_SIDES - stretch, width - _SIDES - stretch)
        axes.set_ylim(-down, up)
        if len(cells) > 1:
            axes.set_title(cell.name, loc="left", fontsize=14, fontweight="bold", color=INK, parse_math=False)
        _draw(axes, cell, arrows, colours, spacing)
    return figure


def _ways(cell: CellDrawing) -> tuple[Arrow, ...]:
    edges = tuple((source, target) for source, target, _ in cell.edges)
    minor = frozenset(position for position, (_, _, op) in enumerate(cell.edges) if op == CONCAT)
    return arrange(edges, minor)


def _spacing(cells: Sequence[CellDrawing]) -> float:
    """The distance of neighbours, so that what is between them has room."""
    labels = [
        _label_size(op)[0]
        for cell in cells
        for (source, target, op) in cell.edges
        if target == source + 1 and op != CONCAT
    ]
    pairs = [map(_stretch, pair) for cell in cells for pair in itertools.pairwise(cell.nodes)]
    nodes = 2 * RADIUS + max(map(sum, pairs), default=0.0)
    return max(_SPACING, nodes + 0.5 + max(labels, default=0.0))


def _stretch(node: str) -> float:
    """How far a node of that name reaches beyond `RADIUS` to both sides."""
    return max(0.0, _letters(node) * _LETTER * _NODE_SIZE / 2 + 0.08 - RADIUS)


def _draw(
    axes: Axes,
    cell: CellDrawing,
    arrows: Sequence[Arrow],
    colours: Mapping[str, str],
    spacing: float,
) -> None:
    stretches = [_stretch(name) for name in cell.nodes]
    curves = [arrow.curve(spacing, stretches) for arrow in arrows]
    nodes = [
        Box(node * spacing, 0, 2 * (RADIUS + stretch), 2 * RADIUS) for node, stretch in enumerate(stretches)
    ]
    labels, middles = Labels(curves, nodes), {}
    for number in sorted(range(len(arrows)), key=lambda number: arrows[number].level):
        if cell.edges[number][2] != CONCAT:
            middles[number] = labels.place(number, *_label_size(cell.edges[number][2]))
    for number, (_, _, op) in enumerate(cell.edges):
        colour = colours.get(op, CONCAT_COLOUR)
        _draw_arrow(axes, curves[number], op, colour)
        if number in middles:
            _draw_label(axes, middles[number], op, colour)
    inputs, outputs = _inputs(cell), _outputs(cell)
    for node, (name, stretch) in enumerate(zip(cell.nodes, stretches, strict=True)):
        _draw_node(axes, node * spacing, name, stretch)
        centred: dict[str, Any] = {"ha": "center", "va": "center", "color": INK, "zorder": 4}
        if node in inputs:
            axes.text(node * spacing - 0.8 - stretch, 0, "input", fontsize=13, **centred)
        if node in outputs:
            axes.text(node * spacing + 0.85 + stretch, 0, "output", fontsize=13, **centred)


def _inputs(cell: CellDrawing) -> range:
    """The first nodes, as many as nothing leads to; at least one."""
    targets = {target for _, target, _ in cell.edges}
    return range(min(targets, default=1))


def _outputs(cell: CellDrawing) -> range:
    """The last nodes, as many as lead nowhere; at least one."""
    sources = {source for source, _, _ in cell.edges}
    count = len(cell.nodes)
    return range(max(sources, default=count - 2) + 1, count)


def _draw_node(axes: Axes, x: float, name: str, stretch: float) -> None:
    style: dict[str, Any] = {"facecolor": "white", "edgecolor": INK, "linewidth": 2, "zorder": 3}
    if stretch:
        outline = [
            (x + side * (stretch + RADIUS * cos(angle)), side * RADIUS * sin(angle))
            for side in (1, -1)
            for angle in (pi * step / 40 for step in range(-20, 21))
        ]
        axes.add_patch(Polygon(outline, **style))
    else:
        axes.add_patch(Circle((x, 0), RADIUS, **style))
    index = _INDEXED.fullmatch(name)
    axes.text(
        x,
        -0.01,
        f"${name}$" if index else _shortened(name),
        fontsize=_NODE_SIZE,
        fontweight="bold",
        ha="center",
        va="center",
        color=INK,
        zorder=4,
        parse_math=index is not None,
    )


_INDEXED = re.compile(r"[A-Za-z]_\{[A-Za-z0-9+-]{1,8}\}")
"""Names of nodes that are set as formulas, as `c_{k-1}`."""


def _letters(node: str) -> float:
    """How wide a node's name is, in letters."""
    return 3 if _INDEXED.fullmatch(node) else len(_shortened(node)) * 1.05


def _shortened(node: str) -> str:
    return node if len(node) <= _LONGEST_NODE else node[: _LONGEST_NODE - 1] + "…"


def _label_size(op: str) -> tuple[float, float]:
    """Width and height of the box around an operation's name."""
    return (_LETTER * len(op) + 0.7 / 72) * _OP_SIZE, 1.7 * _OP_SIZE / 72


def _draw_arrow(axes: Axes, curve: Sequence[tuple[float, float]], op: str, colour: str) -> None:
    """Draws a curve with its head; `none` is thin and dashed, `concat` thin."""
    absent, joins = op == "none", op == CONCAT
    axes.add_patch(
        FancyArrowPatch(
            path=Curve(list(curve), [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]),
            arrowstyle="-|>,head_length=7,head_width=4",
            color=colour,
            linewidth=1.5 if absent else 1.2 if joins else 3,
            linestyle=(0, (4, 3)) if absent else "solid",
            mutation_scale=1,
            joinstyle="miter",
        )
    )


def _draw_label(axes: Axes, middle: tuple[float, float], op: str, colour: str) -> None:
    axes.text(
        *middle,
        op,
        fontsize=_OP_SIZE,
        ha="center",
        va="center",
        color=INK,
        bbox={"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": colour, "linewidth": 1.5},
        parse_math=False,
    )
