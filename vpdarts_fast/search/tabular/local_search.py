"""Local search (White et al., UAI 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from vpdarts_fast.search.tabular.learner import Cell, Learner, TabularMethod, exchanged, random_cell
from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, NUM_ARCHITECTURES, OPS


class _LocalSearch(Learner):
    def __init__(self, settings: LocalSearch, generator: np.random.Generator) -> None:
        self._settings, self._generator = settings, generator
        self._known: dict[Cell, float] = {}
        self._incumbent: Cell | None = None
        self._waiting: list[Cell] = []

    def ask(self) -> Cell:
        while self._incumbent is not None and not self._waiting:
            self._step()
        if self._incumbent is None:
            return self._unknown_cell()
        return self._waiting[-1]

    def tell(self, cell: Cell, accuracy: float) -> None:
        self._known[cell] = accuracy
        if self._incumbent is None:
            self._move(cell)
            return
        self._waiting.pop()
        if self._settings.first_improvement and accuracy > self._known[self._incumbent]:
            self._move(cell)

    def _move(self, cell: Cell) -> None:
        """Makes a cell the incumbent; its neighbours that are not known are next, in random order."""
        self._incumbent = cell
        neighbours = [n for n in neighbours_of(cell) if n not in self._known]
        self._waiting = [neighbours[i] for i in self._generator.permutation(len(neighbours))]

    def _step(self) -> None:
        """All neighbours are known: the best of them is next or, from an optimum, a random cell."""
        assert self._incumbent is not None
        best = max(neighbours_of(self._incumbent), key=self._known.__getitem__)
        if self._known[best] > self._known[self._incumbent]:
            self._move(best)
        else:
            self._incumbent = None

    def _unknown_cell(self) -> Cell:
        while (cell := random_cell(self._generator)) in self._known:
            if len(self._known) == NUM_ARCHITECTURES:
                return cell  # nothing is left
        return cell


def neighbours_of(cell: Cell) -> list[Cell]:
    """The 24 cells that differ in the operation of one edge."""
    pairs = product(range(len(EDGES)), range(len(OPS)))
    return [exchanged(cell, edge, op) for edge, op in pairs if cell[edge] != op]


@dataclass(frozen=True)
class LocalSearch(TabularMethod):
    """From a random cell to better neighbours until there is none, then again from another random cell.

    Each cell is evaluated once.
    """

    name: ClassVar[str] = "local-search"
    first_improvement: bool = True
    """Go on from the first better neighbour; otherwise from the best of all 24."""

    def learner(self, generator: np.random.Generator) -> Learner:
        """Begins a run, all draws of which come from the generator."""
        return _LocalSearch(self, generator)
