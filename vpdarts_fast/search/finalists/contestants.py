"""Which cells are compared, and in which order: what the search came by, and what lies beside its cell."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from vpdarts_fast.search.methods.criteria import Importance
from vpdarts_fast.spaces.space import Space

Genotype = Any
"""Of the space that is searched."""


@dataclass(frozen=True)
class Calls:
    """How close a call each choice of an op was, by an evaluation.

    Attributes:
        importance: of every op on its edge.
        alive: [E, O] bool, on the CPU; an op that is not can be chosen on no edge.
        space: what cells are of.
        limited: the most important cell that is `allowed`, if it is not that of the most important ops.
        allowed: says whether a cell may be taken at all; None if all may.
    """

    importance: Importance
    alive: Tensor
    space: Space[Genotype]
    limited: Genotype | None = None
    allowed: Callable[[Genotype], bool] | None = None

    @cached_property
    def chosen(self) -> Genotype:
        """The cell of the most important ops, or the limited one."""
        return self.limited or self.space.select(self.importance.order(self.alive))

    def lag(self, genotype: Genotype) -> tuple[float, float]:
        """Sums up over its ops by how much importance a cell is behind `chosen`, and by how much tie-break.

        (0, 0) for `chosen` itself, the larger the less the evaluation speaks for the cell.
        """
        best, own = self.space.chosen(self.chosen), self.space.chosen(genotype)
        score, tie_break = (
            float(table[best & ~own].double().sum() - table[own & ~best].double().sum())
            for table in (self.importance.score, self.importance.tie_break)
        )
        return score, tie_break

    def closest(self) -> Iterator[Genotype]:
        """Yields the allowed cells without removed ops: `chosen`, then by `lag`, then by how many ops differ.

        Best first: every other cell has a neighbour that is no worse, and is found from there.
        """
        waiting = [self._place(self.chosen)]
        found = {self.chosen}
        while waiting:
            *_, genotype = heapq.heappop(waiting)
            yield genotype
            for cell in self._alive_neighbours(genotype):
                if cell not in found:
                    found.add(cell)
                    heapq.heappush(waiting, self._place(cell))

    def neighbours(self, genotype: Genotype) -> list[Genotype]:
        """Lists the cells that differ from this one in one op, the closest calls first."""
        return sorted(self._alive_neighbours(genotype), key=self._place)

    def _alive_neighbours(self, genotype: Genotype) -> Iterator[Genotype]:
        for cell in self.space.neighbours(genotype):
            removed = (self.space.chosen(cell) & ~self.alive).any()
            if not removed and (self.allowed is None or self.allowed(cell)):
                yield cell

    def _place(self, genotype: Genotype) -> tuple[Any, ...]:
        """Cells are compared by it, the closest call first; all different."""
        ops = self.space.chosen(genotype)
        exchanged = int((ops & ~self.space.chosen(self.chosen)).sum())
        return *self.lag(genotype), exchanged, ops.flatten().nonzero().flatten().tolist(), genotype


def alternating(first: Sequence[Genotype], second: Sequence[Genotype]) -> list[Genotype]:
    """Takes one of each in turn, then the rest of the longer; what occurs twice counts where it is first."""
    pairs: Iterable[tuple[Genotype | None, Genotype | None]] = itertools.zip_longest(first, second)
    return list(dict.fromkeys(cell for pair in pairs for cell in pair if cell is not None))
