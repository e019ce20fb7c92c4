"""Parts that nothing in the package knows, for tests: a relaxation, a criterion, a regulariser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vpdarts_fast.evaluation.leave_one_out import LeaveOneOut
from vpdarts_fast.search.methods.criteria import Criterion, Importance
from vpdarts_fast.search.methods.moment import Moment
from vpdarts_fast.search.methods.regularisers import Regulariser
from vpdarts_fast.search.methods.relaxations import Relaxation


@dataclass(frozen=True)
class Sigmoid(Relaxation):
    """A sigmoid of each alpha, with noise from the step's random numbers."""

    name: ClassVar[str] = "test-sigmoid"
    draws: ClassVar[bool] = True

    sharpness: float = 2.0
    """Alpha is multiplied with it."""

    def weights(self, alpha: Tensor, alive: Tensor, moment: Moment) -> Tensor:
        noise = 0.01 * torch.randn_like(alpha)
        return torch.sigmoid(self.sharpness * alpha + noise) * alive

    def strength(self, alpha: Tensor, alive: Tensor) -> Tensor:
        return torch.sigmoid(self.sharpness * alpha) * alive


@dataclass(frozen=True)
class Both(Criterion):
    """The loss without an op, and half of its accuracy."""

    name: ClassVar[str] = "test-both"

    def importance(self, strength: Tensor, evaluation: LeaveOneOut | None) -> Importance:
        assert evaluation is not None
        return Importance(evaluation.loss - evaluation.accuracy / 200, strength)


@dataclass(frozen=True)
class Pull(Regulariser):
    """Pulls alpha to where it was on average in all steps so far, which is what the part keeps."""

    name: ClassVar[str] = "test-pull"

    force: float = 0.5
    """Of the pull."""

    def new_state(self, shape: tuple[int, int]) -> dict[str, Tensor]:
        return {"sum": torch.zeros(shape), "steps": torch.zeros((), dtype=torch.int64)}

    def term(self, alpha: Tensor, alive: Tensor, moment: Moment) -> Tensor | None:
        moment.state["sum"].add_(alpha.detach())
        moment.state["steps"].add_(1)
        mean = moment.state["sum"] / moment.state["steps"]
        return self.force * ((alpha - mean).square() * alive).sum()
