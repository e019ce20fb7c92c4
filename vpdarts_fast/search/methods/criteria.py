"""What makes an op important: one class for each criterion."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from vpdarts_fast.evaluation.leave_one_out import LeaveOneOut
from vpdarts_fast.parts import Part


@dataclass(frozen=True)
class Importance:
    """How important each op is, on its edge and among all.

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
        """Ranks op numbers [E, O] int64, the most important first; ops not `alive` [E, O] come last."""
        return torch.from_numpy(np.lexsort(self._keys(alive), axis=-1))

    def order(self, alive: Tensor) -> Tensor:
        """Numbers all ops [E, O] int64 by their importance over all edges, from the least important on.

        The numbers are all different; the lower edge, then the lower op, wins where everything is equal. Ops
        that are not `alive` [E, O] have -1.
        """
        places = np.lexsort([key.ravel() for key in self._keys(alive)])
        numbers = np.empty(places.size, dtype=np.int64)
        numbers[places] = np.arange(places.size)[::-1]
        return torch.from_numpy(numbers.reshape(self.score.shape)).where(alive, -1)

    def _keys(self, alive: Tensor) -> tuple[np.ndarray, ...]:
        """For `np.lexsort`, the last one counts first."""
        images = torch.zeros_like(self.score) if self.images is None else self.images
        return (-self.tie_break.numpy(), -self.score.numpy(), -images.numpy(), ~alive.numpy())


class Criterion(Part, kind="criterion"):
    """What makes an op important.

    Attributes:
        needs_evaluation: whether `importance` needs leave-one-out evaluation.
        estimates: whether an estimate of it by the gradient will do (`vpdarts_fast.evaluation.taylor`).
        first_epoch: the pruning epoch from which on it tells the ops apart.
    """

    needs_evaluation: ClassVar[bool] = True
    estimates: ClassVar[bool] = False
    first_epoch: ClassVar[int] = 0

    @abstractmethod
    def importance(self, strength: Tensor, evaluation: LeaveOneOut | None) -> Importance:
        """Tells how important all ops are, by what the search knows of them.

        Args:
            strength: [E, O] float64 on the CPU, of the ops by alpha alone (`Relaxation.strength`).
            evaluation: leave-one-out, [E, O]; None where the criterion needs none.
        """


@dataclass(frozen=True)
class AccuracyCriterion(Criterion):
    """The lower the accuracy without an op, the more important it is (paper, Algorithm 1); ties by loss."""

    name: ClassVar[str] = "accuracy"

    @override
    def importance(self, strength: Tensor, evaluation: LeaveOneOut | None) -> Importance:
        assert evaluation is not None
        return Importance(-evaluation.accuracy, evaluation.loss, evaluation.op_images)


@dataclass(frozen=True)
class LossCriterion(Criterion):
    """The higher the loss without an op, the more important it is; ties by accuracy."""

    name: ClassVar[str] = "loss"

    @override
    def importance(self, strength: Tensor, evaluation: LeaveOneOut | None) -> Importance:
        assert evaluation is not None
        return Importance(evaluation.loss, -evaluation.accuracy, evaluation.op_images)


@dataclass(frozen=True)
class TaylorCriterion(LossCriterion):
    """The larger the change of the loss without an op, estimated to the first order, the more important."""

    name: ClassVar[str] = "taylor"
    estimates: ClassVar[bool] = True


@dataclass(frozen=True)
class AlphaCriterion(Criterion):
    """What alpha alone says: its magnitude if it is raw (section 5.2), else the expected weight of the op."""

    name: ClassVar[str] = "alpha"
    needs_evaluation: ClassVar[bool] = False
    first_epoch: ClassVar[int] = 1  # until an epoch has trained alpha, all ops are equal

    @override
    def importance(self, strength: Tensor, evaluation: LeaveOneOut | None) -> Importance:
        return Importance(strength, torch.zeros_like(strength))
