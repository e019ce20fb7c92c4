"""Regularised evolution (Real et al., AAAI 2019) as the NAS-Bench-201 paper runs it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vpdarts_fast.errors import UserError
from vpdarts_fast.search.tabular.learner import Cell, Learner, TabularMethod, exchanged, random_cell
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, NUM_NODES, OPS


class _Evolution(Learner):
    def __init__(self, settings: Evolution, generator: np.random.Generator) -> None:
        self._settings, self._generator = settings, generator
        self._population: deque[tuple[Cell, float]] = deque(maxlen=settings.population)

    def ask(self) -> Cell:
        if len(self._population) < self._settings.population:
            return random_cell(self._generator)
        drawn = self._generator.integers(len(self._population), size=self._settings.tournament)
        parent, _ = max((self._population[i] for i in drawn), key=lambda member: member[1])
        return mutated(parent, self._generator)

    def tell(self, cell: Cell, accuracy: float) -> None:
        self._population.append((cell, accuracy))  # and the oldest goes


def mutated(cell: Cell, generator: np.random.Generator) -> Cell:
    """Another operation on one edge: a node is drawn, then an edge into it, then one of the other ops.

    So edges are not equally likely: 0->1 is drawn as often as all three into node 3.
    """
    target = int(generator.integers(1, NUM_NODES))
    edge = EDGES.index((int(generator.integers(target)), target))
    op = int(generator.integers(len(OPS) - 1))
    return exchanged(cell, edge, op + (op >= cell[edge]))


@dataclass(frozen=True)
class Evolution(TabularMethod):
    """The best of a sample of the population has a child, which differs in one op; the oldest dies.

    The first cells are drawn at random and cost as much as all others.

    Raises:
        UserError: a population or tournament of less than one.
    """

    name: ClassVar[str] = "evolution"
    population: int = 10
    """How many cells live at once."""
    tournament: int = 3
    """How many are drawn, with replacement, of which the best has the child."""

    def __post_init__(self) -> None:
        for field, value in (("population", self.population), ("tournament", self.tournament)):
            if value < 1:
                raise UserError(f"{field} of regularised evolution must be at least 1; got {value}")

    def learner(self, generator: np.random.Generator) -> Learner:
        """Begins a run, all draws of which come from the generator."""
        return _Evolution(self, generator)
