"""What a search over a benchmark table is made of: a learner, asked for cells and told their accuracies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vpdarts_fast.spaces.nas_bench_201.genotype import EDGES, OPS

Cell = tuple[int, ...]
"""A cell of NAS-Bench-201: the number of the operation on each edge (`Genotype.choices`)."""


class Learner(ABC):
    """One run of a method: it is asked for a cell, told its accuracy, and so on until the budget ends."""

    @abstractmethod
    def ask(self) -> Cell:
        """Names the cell to evaluate next."""

    @abstractmethod
    def tell(self, cell: Cell, accuracy: float) -> None:
        """Takes the accuracy, in per cent, of the cell that was asked for last."""


@dataclass(frozen=True)
class TabularMethod(ABC):
    """A method and its settings; immutable, so that it makes any number of runs.

    Attributes:
        name: as the command line has it.
    """

    name: ClassVar[str]

    @abstractmethod
    def learner(self, generator: np.random.Generator) -> Learner:
        """Begins a run, all draws of which come from the generator."""


def random_cell(generator: np.random.Generator) -> Cell:
    """Draws the operation of every edge uniformly."""
    return tuple(generator.integers(len(OPS), size=len(EDGES)).tolist())


def exchanged(cell: Cell, edge: int, op: int) -> Cell:
    """The same cell with another operation on one edge."""
    return (*cell[:edge], op, *cell[edge + 1 :])
