"""Draws the cell of an architecture: four nodes from left to right, an arrow per operation."""

from __future__ import annotations

from math import cos, radians, sin
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch
from matplotlib.path import Path as Curve

from vpdarts_fast.report.style import INK, OP_COLOURS, new_figure, save_figure
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, NUM_NODES, Genotype

# Lengths are in units of the axes, about an inch each.
_SPACING = 2.6
_RADIUS = 0.3

_DEPARTURES = {(0, 1): 0, (1, 2): 0, (2, 3): 0, (0, 2): 42, (0, 3): 68, (1, 3): -42}
"""The angle in degrees at which each edge leaves its node; it arrives at the mirrored angle.

Edges between neighbours are straight. The two arcs above nest and the third goes below, so that no
two edges cross.
"""

_SLACK = 0.38
"""Distance of an arc's control points from its ends, as a fraction of the distance of the nodes."""


def draw_cell(genotype: Genotype, path: Path, *, title: str = "") -> None:
    """Writes a picture of the cell, 1500 pixels wide as PNG.

    In SVG the letters are outlines, so that the picture looks the same without the fonts; their
    text stands in comments.

    Args:
        genotype: The architecture.
        path: Ends in ``.png`` or ``.svg``; overwritten.
        title: Set above the cell.

    Raises:
        UserError: another suffix, or the file cannot be written.
    """
    save_figure(cell_figure(genotype, title), path, title or str(genotype))


def cell_figure(genotype: Genotype, title: str = "") -> Figure:
    """The picture that `draw_cell` writes."""
    figure, body = new_figure(10, 4.3, subheading=title)
    axes = body.subplots()
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_xlim(-1.2, (NUM_NODES - 1) * _SPACING + 1.2)
    axes.set_ylim(-1.4, 2.5)
    for edge, op in zip(EDGES, genotype.ops, strict=True):
        _draw_edge(axes, edge, op)
    for node in range(NUM_NODES):
        _draw_node(axes, node)
    return figure


def _draw_node(axes: Axes, node: int) -> None:
    x = node * _SPACING
    axes.add_patch(Circle((x, 0), _RADIUS, facecolor="white", edgecolor=INK, linewidth=2, zorder=3))
    centred: dict[str, Any] = {"ha": "center", "va": "center", "color": INK, "zorder": 4}
    axes.text(x, -0.01, str(node), fontsize=15, fontweight="bold", **centred)
    if node == 0:
        axes.text(x - 0.8, 0, "input", fontsize=13, **centred)
    if node == NUM_NODES - 1:
        axes.text(x + 0.85, 0, "output", fontsize=13, **centred)


def _draw_edge(axes: Axes, edge: tuple[int, int], op: str) -> None:
    """Draws a cubic Bezier curve with the op's name in its middle; ``none`` is thin and dashed."""
    source, target = (node * _SPACING for node in edge)
    angle = radians(_DEPARTURES[edge])
    slack = _SLACK * (target - source)
    near, far = _RADIUS + 0.05, _RADIUS + 0.05 + slack
    curve = Curve(
        [
            (source + near * cos(angle), near * sin(angle)),
            (source + far * cos(angle), far * sin(angle)),
            (target - far * cos(angle), far * sin(angle)),
            (target - near * cos(angle), near * sin(angle)),
        ],
        [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4],
    )
    absent, colour = op == "none", OP_COLOURS[op]
    axes.add_patch(
        FancyArrowPatch(
            path=curve,
            arrowstyle="-|>,head_length=7,head_width=4",
            color=colour,
            linewidth=1.5 if absent else 3,
            linestyle=(0, (4, 3)) if absent else "solid",
            mutation_scale=1,
            joinstyle="miter",
        )
    )
    axes.text(
        (source + target) / 2,
        (near / 4 + 3 * far / 4) * sin(angle),  # The curve at one half: (1 + 3 + 3 + 1) / 8.
        op,
        fontsize=13,
        ha="center",
        va="center",
        color=INK,
        bbox={"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": colour, "linewidth": 1.5},
    )
