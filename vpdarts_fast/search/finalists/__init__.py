"""Finalists: the search's cell against others, each trained from scratch for a short time.

`contestants` says which, `rounds` decides by rules what their scores mean, `training` makes the scores and
`progress` keeps them in the run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from vpdarts_fast.data import ImageHalf
from vpdarts_fast.search.config import SearchConfig
from vpdarts_fast.search.finalists.contestants import Calls, Genotype
from vpdarts_fast.search.finalists.progress import Progress
from vpdarts_fast.search.finalists.rounds import Decision, Rules, Rung, Score, Tournament
from vpdarts_fast.search.finalists.training import CellTraining, Images, finish
from vpdarts_fast.search.methods.alpha_rules import Loss

__all__ = ["Calls", "Decision", "Finalists", "Rung", "decision_to_json", "rung_to_json"]

LookUp = Callable[[Genotype], dict[str, float] | None]


class Finalists:
    """The comparison of one search, from its beginning or from where its file has it.

    Args:
        config: the settings.
        classes: of the images.
        training: the half that trains.
        validation: the half that judges.
        calls: the last evaluation.
        path: of finalists.pt.
        images: the digest of the images, for the file.
        loss: of logits and labels, what their training minimises.

    Attributes:
        steps: of all trainings so far, of at most `config.search.finalist_budget`.
    """

    def __init__(
        self,
        config: SearchConfig,
        classes: int,
        training: ImageHalf,
        validation: ImageHalf,
        calls: Calls,
        path: Path,
        images: str,
        loss: Loss = F.cross_entropy,
    ) -> None:
        self._loss = loss
        self._config, self._classes, self._calls = config, classes, calls
        self._images = Images(training, validation, config)
        origin = {"images": images, "search": str(calls.chosen)}
        self._progress = Progress(path, origin, self._images.judging, calls.space)
        self._progress.load()
        self.steps = 0

    def compare(
        self, earlier: Sequence[Genotype], on_step: Callable[[int], None], on_rung: Callable[[Rung], None]
    ) -> Decision:
        """Decides which cell to take: the search's, or one that is clearly better.

        Args:
            earlier: the cells of earlier evaluations, the latest first.
            on_step: called with the steps so far before every step and batch; what it raises stops the
                comparison, and all is in the file.
            on_rung: hears of each rung.
        """
        config = self._config

        def train(genotype: Genotype, steps: int, repetition: int) -> Score:
            score = self._progress.scores.get((genotype, steps, repetition))
            if score is None:
                score = self._train(genotype, steps, repetition, on_step)
            self.steps += steps
            return score

        rules = Rules(
            config.search.finalists,
            config.search.finalist_steps,
            config.search.finalist_budget,
            config.search.finalist_margin,
        )
        return Tournament(self._calls, train, rules, on_rung).play(earlier)

    def _train(
        self, genotype: Genotype, steps: int, repetition: int, on_step: Callable[[int], None]
    ) -> Score:
        device = self._images.training.device
        training = CellTraining(genotype, steps, repetition, self._config, self._classes, device, self._loss)
        self._progress.restore(training)
        try:
            score = finish(training, self._images, lambda: on_step(self.steps + training.step))
        except Exception:
            self._progress.save(training)
            raise
        self._progress.scores[genotype, steps, repetition] = score
        self._progress.save()
        return score


def decision_to_json(decision: Decision, look_up: LookUp) -> dict[str, Any]:
    """Makes the entry `finalists` of result.json.

    Args:
        decision: what the finalists came to.
        look_up: gives a cell's accuracies in a benchmark, for people to read; None for a cell without.
    """
    return {
        "search": _answer(decision.search, look_up),
        "steps": decision.steps,
        "rounds": [
            {
                "incumbent": str(played.incumbent),
                "winner": str(played.winner),
                "tied": [str(cell) for cell in played.tied],
                "rungs": [rung_to_json(rung) for rung in played.rungs],
            }
            for played in decision.rounds
        ],
        "benchmark": {
            str(cell): look_up(cell)
            for played in decision.rounds
            for rung in played.rungs
            for cell in rung.scores
        },
    }


def _answer(genotype: Genotype, look_up: LookUp) -> dict[str, Any]:
    return {
        "architecture": str(genotype),
        "index": getattr(genotype, "index", None),
        "benchmark": look_up(genotype),
    }


def rung_to_json(rung: Rung) -> dict[str, Any]:
    """Makes plain values of a rung, cells as they began it; `close` marks those not clearly worse."""
    return {
        "steps": rung.steps,
        "images": len(next(iter(rung.scores.values()))[0].correct),
        "cells": [
            {
                "architecture": str(cell),
                "close": cell in rung.close,
                "accuracy": [score.accuracy for score in scores],
                "training_loss": [score.training_loss for score in scores],
                "seconds": [round(score.seconds, 3) for score in scores],
            }
            for cell, scores in rung.scores.items()
        ],
    }
