"""finalists.pt: the trainings that are done, and the one that is not, so that a stopped search goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.runs import checkpoint
from vpdarts_fast.runs.formats import FINALISTS, shown
from vpdarts_fast.runs.values import mapping, number, tensor_like, whole
from vpdarts_fast.search.finalists.rounds import Score
from vpdarts_fast.search.finalists.training import CellTraining
from vpdarts_fast.spaces.space import Space

Training = tuple[Any, int, int]
"""Cell, steps and repetition."""


class Progress:
    """What finalists.pt holds.

    Args:
        path: of the file.
        origin: says which search it belongs to: of the images and of its cell; compared when it is read.
        judging: steps -> how many validation images judge a training.
        space: of the cells.

    Attributes:
        scores: of the trainings that are done.
        unfinished: the state of a training that was stopped.
    """

    def __init__(
        self, path: Path, origin: dict[str, str], judging: Callable[[int], int], space: Space[Any]
    ) -> None:
        self._path, self._origin, self._judging, self._space = path, origin, judging, space
        self.scores: dict[Training, Score] = {}
        self.unfinished: dict[str, Any] | None = None

    def load(self) -> None:
        """Reads the file, if there is one.

        Raises:
            UserError: it is damaged, or of another search.
        """
        if not self._path.exists():
            return
        content = checkpoint.load(self._path, FINALISTS)
        with FINALISTS.reading(str(self._path)):
            for name, value in self._origin.items():
                if content[name] != value:
                    raise ValueError(f"its {name} is {shown(content[name])}; the search's is {value}")
            scores = dict(map(self._score, content["trainings"]))
            unfinished = content["unfinished"]
            if unfinished is not None:
                self._training(mapping(unfinished, "unfinished"))
        self.scores, self.unfinished = scores, unfinished

    def save(self, current: CellTraining | None = None) -> None:
        """Writes the file, with the training that goes on."""
        trainings = [
            {
                "architecture": str(genotype),
                "steps": steps,
                "repetition": repetition,
                "correct": score.correct,
                "training_loss": score.training_loss,
                "seconds": score.seconds,
                "value": score.value,
                "share": score.share,
            }
            for (genotype, steps, repetition), score in self.scores.items()
        ]
        self.unfinished = current.state_dict() if current is not None else None
        content = {**self._origin, "trainings": trainings, "unfinished": self.unfinished}
        checkpoint.save(self._path, content, FINALISTS)

    def restore(self, training: CellTraining) -> None:
        """Puts a training where it was stopped, if it was.

        Raises:
            UserError: what is saved does not fit it.
        """
        key = training.genotype, training.steps, training.repetition
        if self.unfinished is None or self._training(self.unfinished) != key:
            return
        try:
            with FINALISTS.reading(str(self._path)):
                training.load_state_dict(self.unfinished)
        except RuntimeError as error:  # of `load_state_dict`
            raise FINALISTS.damaged(str(self._path), error) from error

    def _score(self, entry: Any) -> tuple[Training, Score]:
        training = self._training(mapping(entry, "a training"))
        template = torch.zeros(self._judging(training[1]), dtype=torch.bool)
        correct: Tensor = tensor_like(entry["correct"], template, "correct")
        loss, value, share = entry["training_loss"], entry["value"], entry["share"]
        if (value is None) != (share is None):
            raise ValueError("value and share belong together")
        return training, Score(
            correct,
            None if loss is None else number(loss, "training_loss", 0),
            number(entry["seconds"], "seconds", 0),
            None if value is None else number(value, "value", 0),
            None if share is None else tensor_like(share, template.double(), "share"),
        )

    def _training(self, entry: Any) -> Training:
        try:
            genotype = self._space.parse(str(entry["architecture"]))
        except UserError as error:
            raise ValueError(str(error)) from error
        return genotype, whole(entry["steps"], "steps", 1), whole(entry["repetition"], "repetition", 0, 1)
