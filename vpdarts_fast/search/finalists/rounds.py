"""Successive halving of cells trained from scratch, by rules that know what a short training can tell.

Short trainings favour cells with skip connections, and each has a chance of its own. So a rung of a round
decides only what is clear at its length, and what is close goes on to a longer one. Where the steps do not
reach for that, the last few are trained as long again with a second seed, and if the search's cell is still
close it stays. Nothing is trained here: a callback gives the scores.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from torch import Tensor

from vpdarts_fast.search.config import SEEDED_TWICE
from vpdarts_fast.search.finalists.contestants import Calls, Genotype, alternating

GROWTH = 4
"""A rung is so many times as long as the one before."""

SIGNIFICANCE = 0.01
"""Two cells differ if chance alone parts them on the same images by as much in fewer cases than this."""

MARGIN_STEPS = 400
"""Steps of the rung whose margin `Rules.margin` is."""


@dataclass(frozen=True)
class Rules:
    """How long the finalists may take, and what they may decide.

    Attributes:
        cells: how many begin a round.
        first_steps: of the first rung of a round.
        budget: steps of all trainings together.
        margin: percentage points by which a cell has to lead in a rung of `MARGIN_STEPS` steps to be clearly
            better. In a rung of n times the steps an n-th of it, since what a training favours for being
            short fades as it gets longer.
    """

    cells: int
    first_steps: int
    budget: int
    margin: float

    def margin_at(self, steps: int) -> float:
        """The margin in percentage points, for a rung of so many steps."""
        return self.margin * MARGIN_STEPS / steps


@dataclass(frozen=True)
class Score:
    """What a training of a cell came to.

    Attributes:
        correct: [images] bool, on which validation images it is right; the same images in the same order for
            all cells of a rung.
        training_loss: mean over its last epoch, or over all steps of less than one; None if not finite.
        seconds: that it took, with its evaluation.
        value: by another metric than accuracy, in per cent.
        share: then what each image counts for, float64 [images].
    """

    correct: Tensor
    training_loss: float | None
    seconds: float
    value: float | None = None
    share: Tensor | None = None

    @property
    def accuracy(self) -> float:
        """The share of images on which the cell is right, in per cent, or what its metric says."""
        if self.value is not None:
            return self.value
        return 100 * int(self.correct.sum()) / len(self.correct)


Train = Callable[[Genotype, int, int], Score]
"""Trains a cell from scratch for a number of steps with the seed of a repetition, from 0."""


@dataclass(frozen=True)
class Rung:
    """Cells that were trained alike.

    Attributes:
        steps: of each training.
        scores: of each cell, one for every repetition; the incumbent first.
        close: the cells that are not clearly worse than the best, the best first.
    """

    steps: int
    scores: Mapping[Genotype, Sequence[Score]]
    close: Sequence[Genotype]


@dataclass(frozen=True)
class Round:
    """An incumbent and its challengers.

    Attributes:
        rungs: from the shortest to the longest.
        winner: the incumbent unless it was clearly worse than another cell, then the best.
        tied: what could not be told apart from the best in the last rung, the winner among it.
    """

    incumbent: Genotype
    rungs: Sequence[Rung]
    winner: Genotype
    tied: Sequence[Genotype]


@dataclass(frozen=True)
class Decision:
    """What the finalists came to.

    Attributes:
        search: the answer without them.
        winner: the answer with them.
        rounds: what led to it; none where the search's cell has nothing to be compared with.
        steps: of all trainings.
        seconds: likewise.
    """

    search: Genotype
    winner: Genotype
    rounds: Sequence[Round]
    steps: int
    seconds: float


class Tournament:
    """Rounds of cells until an incumbent stays, or the budget does not reach for another rung.

    Args:
        calls: the last evaluation, which says what is compared with the search's cell.
        train: what gives the scores; asked for the same training once.
        rules: see there.
        on_rung: hears of each rung.
    """

    def __init__(
        self, calls: Calls, train: Train, rules: Rules, on_rung: Callable[[Rung], None] = lambda rung: None
    ) -> None:
        self._calls, self._train, self._rules, self._on_rung = calls, train, rules, on_rung
        self._scores: dict[tuple[Genotype, int, int], Score] = {}

    def play(self, earlier: Sequence[Genotype]) -> Decision:
        """Plays rounds, the first of the search's cell against `earlier` cells and closest calls in turn."""
        incumbent = self._calls.chosen
        closest = list(itertools.islice(self._calls.closest(), 1, self._rules.cells))
        challengers = alternating(earlier, closest)
        rounds: list[Round] = []
        while True:
            tried = {cell for cell, _, _ in self._scores} | {incumbent}
            fresh = [cell for cell in challengers if cell not in tried][: self._rules.cells - 1]
            played = self._round(incumbent, fresh)
            if not played.rungs:
                break
            rounds.append(played)
            if played.winner == incumbent:
                break
            incumbent = played.winner
            challengers = self._calls.neighbours(incumbent)
        seconds = sum(score.seconds for score in self._scores.values())
        return Decision(self._calls.chosen, incumbent, rounds, self._spent(), seconds)

    def _round(self, incumbent: Genotype, challengers: Sequence[Genotype]) -> Round:
        contestants, steps = [incumbent, *challengers], self._rules.first_steps
        close: Sequence[Genotype] = [incumbent]
        rungs: list[Rung] = []
        while len(contestants := self._affordable(contestants, steps)) > 1:
            rungs.append(self._rung(contestants, steps))
            self._on_rung(rungs[-1])
            close, begun = rungs[-1].close, len(contestants)
            contestants = self._go_on(close, begun, incumbent)
            if self._affordable(contestants, GROWTH * steps):
                steps *= GROWTH
            elif begun > SEEDED_TWICE:
                contestants = contestants[:SEEDED_TWICE]  # as long again, with a second seed
            else:
                break
        return Round(incumbent, rungs, incumbent if incumbent in close else close[0], close)

    def _rung(self, contestants: Sequence[Genotype], steps: int) -> Rung:
        repetitions = range(_repetitions(len(contestants)))
        scores = {
            cell: [self._score(cell, steps, repetition) for repetition in repetitions] for cell in contestants
        }
        ranked = sorted(contestants, key=lambda cell: -_mean_accuracy(scores[cell]))  # stable: ties as asked
        margin = self._rules.margin_at(steps)
        close = [cell for cell in ranked if not is_clearly_better(scores[ranked[0]], scores[cell], margin)]
        return Rung(steps, scores, close)

    def _go_on(self, close: Sequence[Genotype], contestants: int, incumbent: Genotype) -> list[Genotype]:
        """The best half of the contestants, if so many are close, and the incumbent always, first."""
        kept = list(close)
        if contestants > SEEDED_TWICE:
            kept = kept[: math.ceil(contestants / 2)]
            if incumbent in close and incumbent not in kept:
                kept[-1] = incumbent
        return sorted(kept, key=lambda cell: cell != incumbent)

    def _affordable(self, contestants: Sequence[Genotype], steps: int) -> list[Genotype]:
        """As many of the first contestants as the steps that are left can train."""
        left = self._rules.budget - self._spent()
        for count in range(len(contestants), 1, -1):
            asked = [
                (cell, steps, repetition)
                for cell in contestants[:count]
                for repetition in range(_repetitions(count))
            ]
            if steps * sum(training not in self._scores for training in asked) <= left:
                return list(contestants[:count])
        return []

    def _score(self, cell: Genotype, steps: int, repetition: int) -> Score:
        training = cell, steps, repetition
        if training not in self._scores:
            self._scores[training] = self._train(*training)
        return self._scores[training]

    def _spent(self) -> int:
        return sum(steps for _, steps, _ in self._scores)


def _repetitions(contestants: int) -> int:
    """How many seeds each of so many cells is trained with."""
    return 2 if contestants <= SEEDED_TWICE else 1


def _mean_accuracy(scores: Sequence[Score]) -> float:
    return sum(score.accuracy for score in scores) / len(scores)


def is_clearly_better(better: Sequence[Score], worse: Sequence[Score], margin: float) -> bool:
    """Whether a cell leads another with every seed, by the margin on average, and not by chance of images.

    Chance of images is what the paired sign test rules out: an image counts for the cell that is right on it
    with more seeds.
    """
    leads = [one.accuracy - other.accuracy for one, other in zip(better, worse, strict=True)]
    if min(leads) <= 0 or sum(leads) / len(leads) < margin:
        return False
    difference = sum(
        one.correct.int() - other.correct.int() for one, other in zip(better, worse, strict=True)
    )
    assert isinstance(difference, Tensor)
    share = better[0].share
    if share is not None:
        return weighted_sign_test(difference.sign(), share) < SIGNIFICANCE
    return sign_test(int((difference > 0).sum()), int((difference < 0).sum())) < SIGNIFICANCE


def weighted_sign_test(signs: Tensor, share: Tensor) -> float:
    """The probability that chance splits images that count for different shares as unevenly, or more.

    By the normal distribution of a sum in which each image that tells two cells apart has a fair coin's sign.

    Args:
        signs: [images], 1 for the one cell, -1 for the other, 0 for neither.
        share: float64 [images], what each counts for.
    """
    parts = share * signs
    spread = float(parts.square().sum().sqrt())
    return 2 * (1 - NormalDist().cdf(abs(float(parts.sum())) / spread)) if spread else 1.0


def sign_test(wins: int, losses: int) -> float:
    """The probability that a fair coin splits so many tosses as unevenly, or more (McNemar's exact test)."""
    tosses, term, total = wins + losses, 1, 0
    for heads in range(min(wins, losses) + 1):
        total += term
        term = term * (tosses - heads) // (heads + 1)
    return min(1.0, 2 * total / (1 << tosses))
