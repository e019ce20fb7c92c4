"""Which cells are compared, and in which order: what the search came by, and what lies beside its cell."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vpdarts_fast.search.pruning import Importance
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
