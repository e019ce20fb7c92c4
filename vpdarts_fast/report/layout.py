"""Where the arrows of a cell run whose nodes stand in a row: straight, or in arcs above and below it.

Lengths are in units of the drawing, about an inch each. Arcs of one side that lie over each other have
different levels, so that their labels are at different heights.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from math import cos, radians, sin

import numpy as np
from numpy.typing import NDArray

Edge = tuple[int, int]
"""(source, target), numbers of nodes; the source stands to the left."""
Point = tuple[float, float]
Curve = tuple[Point, Point, Point, Point]
"""The points that a cubic Bezier curve is drawn by."""

RADIUS = 0.3
"""Half the height of a node, which is a circle or, around a longer name, a capsule."""

_GAP = 0.05
"""Between an arrow and its nodes."""

_ANGLES = (0.0, 42.0, 68.0, 76.0, 80.0)
"""Degrees at which an arrow leaves its node, by its level; it arrives at the mirrored angle."""
_APART = 17.0
"""Degrees between arrows of one side that leave, or arrive at, the same node, at least."""

_RISES = (0.0, 2.326 * sin(radians(_ANGLES[1])), 3.314 * sin(radians(_ANGLES[2])))
"""Height of an arc's control points by its level, a little more than that of the arc."""
_FURTHER_RISE = 1.0
"""What each further level adds to it."""

_MARGINS = (0.6, 1.4, 2.5)
"""How far a side of the drawing reaches, by its highest level."""
_FURTHER_MARGIN = 0.75
"""What each further level adds."""

_ALL_TRIED = 11
"""Up to so many arcs, all ways to put them above and below are tried."""

_PLACES = (0.5, 0.42, 0.58, 0.34, 0.66, 0.27, 0.73, 0.2, 0.8)
"""Where on its arrow a label may be, the best first."""


@dataclass(frozen=True)
class Arrow:
    """An edge's way.

    Attributes:
        edge: its nodes.
        side: 1 above the row, -1 below, 0 straight.
        level: from 1, higher arcs have higher ones; 0 straight.
        angles: in degrees, at which it leaves its source and arrives at its target.
    """

    edge: Edge
    side: int = 0
    level: int = 0
    angles: tuple[float, float] = (0.0, 0.0)

    def curve(self, spacing: float, stretches: Sequence[float]) -> Curve:
        """The points that a cubic Bezier curve from node to node is drawn by.

        Args:
            spacing: between the middles of neighbours.
            stretches: of each node, how far it reaches beyond `RADIUS` to both sides.
        """
        near = RADIUS + _GAP
        rise = _beyond(_RISES, self.level, _FURTHER_RISE)
        source, target = (node * spacing for node in self.edge)
        source, target = source + stretches[self.edge[0]], target - stretches[self.edge[1]]
        ends = []
        for end, direction, degrees in ((source, 1, self.angles[0]), (target, -1, self.angles[1])):
            angle = radians(degrees)
            far = rise / sin(angle) if self.side else near + 0.38 * (target - source)
            ends.append(
                [
                    (end + direction * length * cos(angle), self.side * length * sin(angle))
                    for length in (near, far)
                ]
            )
        (first, second), (fourth, third) = ends
        return first, second, third, fourth


@dataclass(frozen=True)
class Box:
    """A rectangle with its sides along the axes, by its middle."""

    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """The area that both have."""
        width = (self.width + other.width) / 2 - abs(self.x - other.x)
        height = (self.height + other.height) / 2 - abs(self.y - other.y)
        return max(0.0, width) * max(0.0, height)

    def crossed_by(self, points: NDArray[np.float64]) -> bool:
        """Whether one of the points [n, 2] is in it."""
        x, y = points.T
        return bool(np.any((abs(x - self.x) <= self.width / 2) & (abs(y - self.y) <= self.height / 2)))


@cache
def arrange(edges: tuple[Edge, ...], minor: frozenset[int] = frozenset()) -> tuple[Arrow, ...]:
    """A way for each edge: straight between neighbours, and else the side with the fewest crossings.

    Args:
        edges: in the order of the arrows that are returned.
        minor: the positions of edges whose crossings matter less, and which have no labels.
    """
    straight: dict[Edge, int] = {}
    for position in sorted(range(len(edges)), key=lambda position: position in minor):
        source, target = edges[position]
        if target == source + 1:
            straight.setdefault((source, target), position)
    arcs = sorted(
        set(range(len(edges))) - set(straight.values()),
        key=lambda position: (edges[position][1] - edges[position][0], edges[position], position),
    )
    weights = {
        (one, other): 1 if one in minor or other in minor else 4
        for one, other in itertools.combinations(arcs, 2)
        if _cross(edges[one], edges[other])
    }
    best = min(_ways(arcs, weights), key=lambda sides: _untidiness(sides, arcs, edges, minor))
    levels = _levels(best, arcs, edges)
    ends = [_angles_at(end, best, levels, edges) for end in (0, 1)]
    return tuple(
        Arrow(edge, best[position], levels[position], (ends[0][position], ends[1][position]))
        if position in best
        else Arrow(edge)
        for position, edge in enumerate(edges)
    )


def reach(arrows: Sequence[Arrow], side: int) -> float:
    """How far above (1) or below (-1) the row of nodes a drawing reaches."""
    highest = max((arrow.level for arrow in arrows if arrow.side == side), default=0)
    return _beyond(_MARGINS, highest, _FURTHER_MARGIN)


def point_of(curve: Curve, place: float) -> Point:
    """The point of a cubic Bezier curve at a place in 0..1."""
    rest = 1 - place
    factors = (rest**3, 3 * rest**2 * place, 3 * rest * place**2, place**3)
    x, y = (sum(f * point[axis] for f, point in zip(factors, curve, strict=True)) for axis in (0, 1))
    return x, y


@dataclass
class Labels:
    """Finds a place on its arrow for one label after the other.

    Attributes:
        curves: of all arrows.
        taken: boxes that no label may cover, to which those of the labels are added.
    """

    curves: Sequence[Curve]
    taken: list[Box] = field(default_factory=list)

    def __post_init__(self) -> None:
        places = [step / 60 for step in range(61)]
        self._points = [np.array([point_of(curve, place) for place in places]) for curve in self.curves]

    def place(self, number: int, width: float, height: float) -> Point:
        """The middle of a label of that size on the curve of that number, where it covers least."""

        def covered(place: float) -> tuple[float, float]:
            box = Box(*point_of(self.curves[number], place), width, height)
            others = self._points[:number] + self._points[number + 1 :]
            crossed = sum(map(box.crossed_by, others))
            grown = Box(box.x, box.y, width + 0.1, height + 0.1)
            return 100 * sum(map(grown.overlap, self.taken)) + crossed, abs(place - 0.5)

        x, y = point_of(self.curves[number], min(_PLACES, key=covered))
        self.taken.append(Box(x, y, width, height))
        return x, y


def _cross(one: Edge, other: Edge) -> bool:
    """Whether arcs of one side cross."""
    first, second = sorted((one, other))
    return first[0] < second[0] < first[1] < second[1]


def _ways(arcs: Sequence[int], weights: dict[tuple[int, int], int]) -> list[dict[int, int]]:
    """Sides of all arcs, 1 or -1, with the fewest crossings: all such ways, or one where arcs are many."""
    if len(arcs) <= _ALL_TRIED:
        ways = np.array(list(itertools.product((1, -1), repeat=len(arcs))), dtype=np.int64)
        counts = np.zeros(len(ways), dtype=np.int64)
        for (one, other), weight in weights.items():
            counts += weight * (ways[:, arcs.index(one)] == ways[:, arcs.index(other)])
        return [dict(zip(arcs, way, strict=True)) for way in ways[counts == counts.min()].tolist()]

    def crossings(sides: dict[int, int]) -> int:
        return sum(weight for (one, other), weight in weights.items() if sides[one] == sides[other])

    sides = {arc: 1 if number % 2 else -1 for number, arc in enumerate(arcs)}
    for _ in arcs:
        before = crossings(sides)
        for arc in arcs:
            turned = {**sides, arc: -sides[arc]}
            if crossings(turned) < crossings(sides):
                sides = turned
        if crossings(sides) == before:
            break
    return [sides]


def _levels(sides: dict[int, int], arcs: Sequence[int], edges: Sequence[Edge]) -> dict[int, int]:
    """The level of each arc: above those of its side over which it lies, the shorter ones first."""
    levels: dict[int, int] = {}
    for arc in arcs:
        below = [
            levels[other]
            for other in levels
            if sides[other] == sides[arc]
            and edges[other][0] < edges[arc][1]
            and edges[arc][0] < edges[other][1]
        ]
        levels[arc] = 1 + max(below, default=0)
    return levels


def _angles_at(
    end: int, sides: dict[int, int], levels: dict[int, int], edges: Sequence[Edge]
) -> dict[int, float]:
    """Of each arc its angle at its source (0) or target (1), by its level: arrows of one side keep apart."""
    bundles: dict[tuple[int, int], list[int]] = {}
    for arc, side in sides.items():
        bundles.setdefault((edges[arc][end], side), []).append(arc)
    angles = {}
    for bundle in bundles.values():
        bundle.sort(key=lambda arc: levels[arc], reverse=True)
        steepest = _beyond(_ANGLES, levels[bundle[0]], 0.0)
        apart = min(_APART, (steepest - 15) / len(bundle))
        before = steepest + apart
        for arc in bundle:
            before = angles[arc] = min(_beyond(_ANGLES, levels[arc], 0.0), before - apart)
    return angles


def _beyond(values: Sequence[float], index: int, step: float) -> float:
    """values[index], or the last one and so many steps more."""
    last = len(values) - 1
    return values[min(index, last)] + step * max(0, index - last)


def _untidiness(
    sides: dict[int, int], arcs: Sequence[int], edges: Sequence[Edge], minor: frozenset[int]
) -> tuple[int, int, int]:
    """Of ways with as many crossings: how high both sides are, then all arcs; then those below."""
    levels = _levels(sides, arcs, edges)
    heights = [max((levels[arc] for arc in arcs if sides[arc] == side), default=0) for side in (1, -1)]
    return sum(heights), sum(levels.values()), sum(side < 0 for side in sides.values())
