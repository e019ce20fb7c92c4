"""What makes an op important: one class and one entry in `CRITERIA` each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vpdarts_fast.evaluation.leave_one_out import LeaveOneOut


@dataclass(frozen=True)
class Importance:
    """How important each op is on its edge.

    Attributes:
        score: [E, O], the higher the more important.
        tie_break: [E, O], decides between equal scores; the lower op number wins what is left.
        images: [E, O], on how many images an op was evaluated; one that stayed longer in its edge's race
            is more important, whatever the scores are. None: all on as many.
    """

    score: Tensor
    tie_break: Tensor
    images: Tensor | None = None

    def ranking(self, alive: Tensor) -> Tensor:
        """Op numbers [E, O] int64 from the most to the least important; ops not `alive` [E, O] come last."""
        images = torch.zeros_like(self.score) if self.images is None else self.images
        keys = (-self.tie_break.numpy(), -self.score.numpy(), -images.numpy(), ~alive.numpy())
        return torch.from_numpy(np.lexsort(keys, axis=-1))


class Criterion(Protocol):
    """What makes an op important.

    Attributes:
        needs_evaluation: whether `importance` needs leave-one-out evaluation.
        first_epoch: the pruning epoch from which on it tells the ops apart.
    """

    needs_evaluation: bool
    first_epoch: int

    def importance(self, alpha: Tensor, evaluation: LeaveOneOut | None) -> Importance: ...


class AccuracyCriterion:
    """The lower the accuracy without an op, the more important it is (paper, Algorithm 1); ties by loss."""

    needs_evaluation = True
    first_epoch = 0

    def importance(self, alpha: Tensor, evaluation: LeaveOneOut | None) -> Importance:
        assert evaluation is not None
        return Importance(-evaluation.accuracy, evaluation.loss, evaluation.op_images)


class LossCriterion:
    """The higher the loss without an op, the more important it is; ties by accuracy."""

    needs_evaluation = True
    first_epoch = 0

    def importance(self, alpha: Tensor, evaluation: LeaveOneOut | None) -> Importance:
        assert evaluation is not None
        return Importance(evaluation.loss, -evaluation.accuracy, evaluation.op_images)


class AlphaCriterion:
    """The magnitude of alpha (the ablation of the paper's section 5.2)."""

    needs_evaluation = False
    first_epoch = 1  # alpha is frozen in the warm-up: until an epoch has trained it, all ops are equal

    def importance(self, alpha: Tensor, evaluation: LeaveOneOut | None) -> Importance:
        magnitude = alpha.detach().abs().double().cpu()
        return Importance(magnitude, torch.zeros_like(magnitude))


CRITERIA: Mapping[str, Criterion] = {
    "accuracy": AccuracyCriterion(),
    "loss": LossCriterion(),
    "alpha": AlphaCriterion(),
}
"""By the name that settings have for it."""
