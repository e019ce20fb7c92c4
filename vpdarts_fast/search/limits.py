"""The most important cell whose network does not cost more than it may."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vpdarts_fast.errors import UserError
from vpdarts_fast.search.config import SearchConfig, flag
from vpdarts_fast.search.finalists.contestants import Calls
from vpdarts_fast.spaces.costs import COSTS, CellCosts, Cost
from vpdarts_fast.spaces.space import Space

Genotype = Any
"""Of the space that is searched."""

ALL_CELLS = 100_000
"""A space with so many cells, or fewer, is gone through as a whole."""


@dataclass(frozen=True)
class Limited:
    """A cell within the limits.

    Attributes:
        genotype: the cell.
        unlimited: the one that would be found without limits.
        path: the cells that the choice stood at, from `unlimited` to `genotype`.
    """

    genotype: Genotype
    unlimited: Genotype
    path: Sequence[Genotype]


class Limits:
    """The limits of a search.

    Args:
        config: the settings; a limit is given.
        num_classes: of the images.
        image_size: height and width of the images.
    """

    def __init__(self, config: SearchConfig, num_classes: int, image_size: tuple[int, int]) -> None:
        self.given, self.space = config.limits.given, config.space
        self.costs = CellCosts(config.space, num_classes, image_size)
        self._underestimated = dict.fromkeys(self.given, 1.0)

    def check(self) -> None:
        """Raises `UserError` for a limit that no cell of the space meets, with the least there is."""
        for cost, limit in self.given.items():
            cell = self._cheapest(cost)
            if (least := self.costs.of(cell, cost)) > limit:
                raise UserError(
                    f"{flag(f'max_{cost}')} {shown(limit)} is met by no cell of --space {self.space.name}: "
                    f"the smallest possible value is {shown(math.ceil(least * 100) / 100)}, of {cell}"
                )

    def choose(self, calls: Calls) -> Limited:
        """Finds the most important cell within the limits.

        Where a space has few cells all are gone through, the most important first. Elsewhere it starts from
        the search's own cell: of the exchanges of one op that bring it nearer to the limits, the one that
        gives up least importance for it, again and again; then exchanges within the limits win some back.

        Raises:
            UserError: no cell of the ops that are left is within the limits.
        """
        path = [calls.chosen]
        promising = filter(self.within, self._promising(calls, path))
        found = calls.chosen if self.within(calls.chosen) else next(promising, None)
        if found is None:
            named = " ".join(f"{flag(f'max_{cost}')} {shown(limit)}" for cost, limit in self.given.items())
            raise UserError(
                f"no cell of the operations that are left is within {named}: the search is kept; go on from "
                "here with --resume and a higher limit"
            )
        return Limited(found, calls.chosen, [*path, found])

    def costs_of(self, genotype: Genotype) -> dict[Cost, float]:
        """Counts and measures the network of a cell."""
        return {cost: self.costs.of(genotype, cost) for cost in COSTS}

    def within(self, genotype: Genotype) -> bool:
        """Whether its network, counted and measured, is within all limits."""
        for cost, limit in self.given.items():
            if self._sum(genotype, cost) > limit:
                return False
            if (value := self.costs.of(genotype, cost)) > limit:
                self._underestimated[cost] *= 1.01 * value / self._sum(genotype, cost)
                return False
        return True

    def _sum(self, genotype: Genotype, cost: Cost) -> float:
        """The sum over its ops; of a latency an estimate, which what has been measured makes larger."""
        return self._underestimated[cost] * self.costs.table(cost).of(self.space.chosen(genotype))

    def _promising(self, calls: Calls, path: list[Genotype]) -> Iterator[Genotype]:
        """Yields cells whose sums are within the limits, the best first; notes where it comes by."""
        few = math.prod(self.space.present.sum(1).tolist()) <= ALL_CELLS
        yield from self._all(calls) if few and self.space.kept is None else self._exchanging(calls, path)

    def _all(self, calls: Calls) -> Iterator[Genotype]:
        """Of all cells, in the order of `Calls.closest`."""
        choices = every_choice(calls)
        rows = np.arange(choices.shape[1])
        sums = {}
        for cost in self.given:
            table = self.costs.table(cost)
            sums[cost] = table.base + table.ops.numpy()[rows, choices].sum(1)
        for number, choice in enumerate(choices):
            if all(
                self._underestimated[cost] * sums[cost][number] <= limit for cost, limit in self.given.items()
            ):
                yield cell_of(choice, self.space)

    def _exchanging(self, calls: Calls, path: list[Genotype]) -> Iterator[Genotype]:
        """By exchanges of one op; again from the beginning with better estimates, where one was too low."""
        while True:
            cell = calls.chosen
            while (excess := self._excess(cell)) > 0:
                cheaper = [
                    (other, saved)
                    for other in calls.neighbours(cell)
                    if (saved := excess - self._excess(other)) > 0
                ]
                if not cheaper:
                    return
                lag, _ = calls.lag(cell)
                cell = min(cheaper, key=lambda pair: (calls.lag(pair[0])[0] - lag) / pair[1])[0]
                path.append(cell)
            better: Genotype | None = cell
            while better is not None:
                cell = better
                within = (other for other in calls.neighbours(cell) if self._excess(other) == 0)
                nearest = next(within, cell)
                better = nearest if calls.lag(nearest) < calls.lag(cell) else None
            yield cell

    def _excess(self, genotype: Genotype) -> float:
        """By how much a cell's sums are above the limits, each as a share of its limit; 0 within."""
        return sum(max(0.0, self._sum(genotype, cost) / limit - 1) for cost, limit in self.given.items())

    def _cheapest(self, cost: Cost) -> Genotype:
        """The cell that costs least, by the sum over its ops."""
        ops = self.costs.table(cost).ops
        places = ops.nan_to_num(torch.inf).flatten().argsort(stable=True).flip(0)
        order = torch.empty_like(places).scatter_(0, places, torch.arange(len(places), device="cpu"))
        return self.space.select(order.view(ops.shape).masked_fill(~self.space.present, -1))


def every_choice(calls: Calls) -> np.ndarray:
    """Lists the cells of a space that chooses an op for each edge, [cells, E], in `Calls.closest`'s order."""
    alive = [np.flatnonzero(row) for row in calls.alive.numpy()]
    grid = np.meshgrid(*alive, indexing="ij")
    choices: np.ndarray = np.stack([axis.ravel() for axis in grid], axis=1)
    rows = np.arange(choices.shape[1])
    best = calls.space.chosen(calls.chosen).int().argmax(1).numpy()
    lags = []
    for table in (calls.importance.score, calls.importance.tie_break):
        values = table.double().numpy()
        lags.append((values[rows, best] - values[rows, choices]).sum(1))
    exchanged = (choices != best).sum(1)
    return choices[np.lexsort((*choices.T[::-1], exchanged, lags[1], lags[0]))]


def cell_of(choice: np.ndarray, space: Space[Genotype]) -> Genotype:
    """Makes the cell of a choice [E] in such a space."""
    return space.select(F.one_hot(torch.from_numpy(choice), space.shape[1]))


def shown(value: float) -> str:
    """A cost for people."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"


def limited_to_json(limits: Limits, limited: Limited, found: Genotype, calls: Calls) -> dict[str, Any]:
    """Makes the entry `limits` of result.json, where finalists may have come to another cell in the end.

    `lag` says for each op by how much its edge's choice is more important, and `ops` what it costs beside
    `base`; sums of both are what pictures show of each cell.
    """
    space, without = calls.space, dataclasses.replace(calls, limited=None, allowed=None)
    best = space.chosen(limited.unlimited)
    score = calls.importance.score.double()
    tables = {cost: limits.costs.table(cost) for cost in limits.given}
    return {
        "given": dict(limits.given),
        "costs": limits.costs_of(found),
        "unlimited": {
            "architecture": str(limited.unlimited),
            "index": getattr(limited.unlimited, "index", None),
            "costs": limits.costs_of(limited.unlimited),
        },
        "path": [
            {
                "lag": without.lag(cell)[0],
                "costs": {cost: table.of(space.chosen(cell)) for cost, table in tables.items()},
            }
            for cell in (*limited.path, found)
        ],
        "lag": None if space.kept else ((score * best).sum(1, keepdim=True) - score).tolist(),
        "ops": {
            cost: {"base": table.base, "ops": table.ops.nan_to_num(0.0).tolist()}
            for cost, table in tables.items()
        },
    }
