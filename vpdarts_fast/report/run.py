"""What pictures show of a run: its epochs and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpdarts_fast.spaces.space import AlphaTable, CellDrawing

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """What a search has chosen, as its files have it; `str` of it is its text.

    Attributes:
        text: what the space writes it down as, an architecture string or a genotype.
        cells: what pictures show, one of each cell type.
        chosen: (row, column) of alpha [E, O] of each operation that it consists of, in ascending order.
    """

    text: str
    cells: tuple[CellDrawing, ...]
    chosen: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class LostAccuracy:
    """What a leave-one-out evaluation says.

    Attributes:
        base_accuracy: of the unmodified supernet, in per cent.
        lost: [E, O], percentage points of accuracy lost without the op: larger is more important, negative
            means that the supernet is better off without it. NaN where not evaluated, or where the edge has
            no such op.
    """

    base_accuracy: float
    lost: Array


@dataclass(frozen=True)
class Epoch:
    """One line of `metrics.jsonl`. Accuracies are in per cent; NaN where the run has no value.

    Attributes:
        number: from 0.
        phase: the name of its stage, as warm-up or pruning.
        weights_loss: of the steps that train the weights, as `weights_accuracy`.
        weights_accuracy: of these steps.
        alpha_loss: of the steps that train alpha, as `alpha_accuracy`.
        alpha_accuracy: of these steps.
        alpha: [E, O], after the epoch; NaN where an edge has no such op.
        decay: what the alphas of all ops but the chosen ones were multiplied with, at its beginning.
        importance: at the beginning of the epoch.
        genotype: what the evaluation at the beginning of the epoch chose, if there was one.
        benchmark: accuracies of `genotype` by column of the benchmark table, empty without a table.
        watched: what was watched at its end, by name; empty for a run of an older version.
        tau: Kendall's tau of the ranking at its beginning with the true one; NaN where there is none.
        seconds: that it took.
    """

    number: int
    phase: str
    weights_loss: float
    weights_accuracy: float
    alpha_loss: float
    alpha_accuracy: float
    alpha: Array
    decay: float
    importance: LostAccuracy | None
    genotype: Choice | None
    benchmark: Mapping[str, float]
    watched: Mapping[str, float]
    tau: float
    seconds: float


@dataclass(frozen=True)
class Finalists:
    """What finalists, cells trained from scratch for a short time, came to; each is named by its text.

    Attributes:
        search: the answer of the search alone.
        winners: of each round.
        accuracies: of each cell and each length in steps that it was trained for, in per cent, by seed.
        benchmark: accuracies of each cell by column of the benchmark table, empty without a table.
    """

    search: str
    winners: tuple[str, ...]
    accuracies: Mapping[tuple[str, int], tuple[float, ...]]
    benchmark: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class CostOfOps:
    """A cost of any cell's network.

    Attributes:
        base: of all but the operations.
        ops: of each edge, what its operations cost.
    """

    base: float
    ops: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class CellOnTheWay:
    """A cell that the choice within limits went by.

    Attributes:
        lag: the importance that it gives up.
        costs: of its network, as sums over its operations, by the name of a cost.
    """

    lag: float
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Limits:
    """What the network of the cell could cost at most, and does cost.

    Attributes:
        given: the limits, by the name of a cost.
        found: what the network of the cell costs.
        unlimited: what that of the cell would cost that had been found without limits.
        tables: of each cost that has a limit.
        lag: of each edge, the importance that each of its operations gives up; None where edges may be left.
        path: cells from the one without limits to the one within them.
    """

    given: Mapping[str, float]
    found: Mapping[str, float]
    unlimited: Mapping[str, float]
    tables: Mapping[str, CostOfOps]
    lag: tuple[tuple[float, ...], ...] | None
    path: tuple[CellOnTheWay, ...]


@dataclass(frozen=True)
class Result:
    """`result.json`.

    Attributes:
        genotype: what was found.
        importance: the evaluation that chose it, if one did.
        benchmark: its accuracies by column of the benchmark table, empty without a table.
        finalists: what they came to, if there were any.
        limits: on what the cell costs, if there were any.
        tau: of the last ranking, as in an epoch.
        seconds: of the whole search.
    """

    genotype: Choice
    importance: LostAccuracy | None
    benchmark: Mapping[str, float]
    finalists: Finalists | None
    limits: Limits | None
    tau: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """A run so far.

    Attributes:
        tables: the names of alpha's rows and columns, one table for each cell type.
        epochs: at least one, in ascending order.
        result: once there is one.
    """

    tables: tuple[AlphaTable, ...]
    epochs: tuple[Epoch, ...]
    result: Result | None

    @property
    def genotype(self) -> Choice | None:
        """What was found or, while the search goes on, the last epoch's choice; None in the warm-up."""
        return self.result.genotype if self.result else self.epochs[-1].genotype

    @property
    def title(self) -> str:
        """The text of the choice, with a remark while the search is not finished."""
        if self.result:
            return str(self.result.genotype)
        return f"{self.genotype or 'no cell yet'} (epoch {self.epochs[-1].number}, unfinished)"

    @property
    def phases(self) -> list[str]:
        """The phase of each epoch."""
        return [epoch.phase for epoch in self.epochs]
