"""Random search: uniformly drawn cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vpdarts_fast.search.tabular.learner import Cell, Learner, TabularMethod, random_cell


class _Random(Learner):
    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def ask(self) -> Cell:
        return random_cell(self._generator)

    def tell(self, cell: Cell, accuracy: float) -> None:
        """Learns nothing."""


@dataclass(frozen=True)
class RandomSearch(TabularMethod):
    """Draws every edge's operation uniformly, again and again; a cell that was drawn before is paid again.

    It is the random search of the NAS-Bench-201 paper (Dong and Yang, 2020).
    """

    name: ClassVar[str] = "random"

    def learner(self, generator: np.random.Generator) -> Learner:
        """Begins a run, all draws of which come from the generator."""
        return _Random(generator)
