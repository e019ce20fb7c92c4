"""Which cells are compared, and in which order: what the search came by, and what lies beside its cell."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vpdarts_fast.search.criteria import Importance
from vpdarts_fast.spaces.genotype import EDGES, OPS, Genotype


@dataclass(frozen=True)
class Calls:
    """How close a call each choice of an op was, by an evaluation.

    Attributes:
        importance: of every op on its edge.
        alive: [E, O] bool, on the CPU; an op that is not can be chosen on no edge.
    """

    importance: Importance
    alive: Tensor

    @property
    def chosen(self) -> Genotype:
        """The most important op of each edge."""
        return Genotype.from_choices(self.importance.ranking(self.alive)[:, 0].tolist())

    def lag(self, genotype: Genotype) -> tuple[float, float]:
        """By how much importance a cell is behind `chosen`, summed over the edges; then by the tie-break's.

        (0, 0) for `chosen` itself, the larger the less the evaluation speaks for the cell.
        """
        edges = torch.arange(len(EDGES))
        best, ops = torch.tensor(self.chosen.choices), torch.tensor(genotype.choices)
        score, tie_break = (
            float((table[edges, best] - table[edges, ops]).double().sum())
            for table in (self.importance.score, self.importance.tie_break)
        )
        return score, tie_break

    def closest(self) -> Iterator[Genotype]:
        """All cells without a removed op: `chosen`, then by `lag`, equals by how many edges are exchanged.

        Best first: every other cell is one step down the ranking of an edge from a cell before it.
        """
        ranking = self.importance.ranking(self.alive)
        down = [edge.tolist()[: int(alive.sum())] for edge, alive in zip(ranking, self.alive, strict=True)]

        def candidate(positions: tuple[int, ...], edge: int) -> tuple[Any, ...]:
            genotype = Genotype.from_choices([ops[place] for ops, place in zip(down, positions, strict=True)])
            exchanged = sum(place > 0 for place in positions)
            return *self.lag(genotype), exchanged, genotype.choices, positions, edge

        first = candidate((0,) * len(down), 0)
        waiting = [first]
        while waiting:
            *_, choices, positions, last = heapq.heappop(waiting)
            yield Genotype.from_choices(choices)
            for edge in range(last, len(down)):  # each cell from one other only: edges in order
                if positions[edge] + 1 < len(down[edge]):
                    worse = (*positions[:edge], positions[edge] + 1, *positions[edge + 1 :])
                    heapq.heappush(waiting, candidate(worse, edge))

    def neighbours(self, genotype: Genotype) -> list[Genotype]:
        """The cells that differ from it on one edge, the closest calls first."""
        choices = genotype.choices
        cells = [
            Genotype.from_choices((*choices[:edge], op, *choices[edge + 1 :]))
            for edge in range(len(EDGES))
            for op in range(len(OPS))
            if op != choices[edge] and self.alive[edge, op]
        ]
        return sorted(cells, key=lambda cell: (self.lag(cell), cell.choices))


def alternating(first: Sequence[Genotype], second: Sequence[Genotype]) -> list[Genotype]:
    """One of each in turn, then what is left of the longer; what occurs twice counts where it comes first."""
    pairs: Iterable[tuple[Genotype | None, Genotype | None]] = itertools.zip_longest(first, second)
    return list(dict.fromkeys(cell for pair in pairs for cell in pair if cell is not None))
