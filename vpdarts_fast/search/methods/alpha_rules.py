"""How a step of alpha finds its gradient: one class for each rule."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from vpdarts_fast.evaluation.validation import Batch
from vpdarts_fast.parts import Part

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of logits [N, classes] and labels [N]; a number []."""


@dataclass(frozen=True)
class Problem:
    """What an alpha step starts from.

    Attributes:
        supernet: called with images and weights [E, O + further].
        alpha: [E, O], a leaf that requires a gradient.
        tables: what the variation trains beside alpha, leaves of any shapes; `weights_of` depends on them.
        weights_of: alpha [E, O] -> what the supernet is called with, [E, O + further]; draws anew in every
            call, if it draws.
        penalty: alpha [E, O] -> the regulariser's term [], or None.
        loss: of logits and labels.
        training: the batch of the weights step beside it, if there is one.
        validation: the batch of this alpha step.
        weights_optimizer: of the supernet's weights, if there is one; its learning rate is that of the epoch.
    """

    supernet: nn.Module
    alpha: Tensor
    tables: Sequence[Tensor]
    weights_of: Callable[[Tensor], Tensor]
    penalty: Callable[[Tensor], Tensor | None]
    loss: Loss
    training: Batch | None
    validation: Batch
    weights_optimizer: torch.optim.Optimizer | None


class AlphaRule(Part, kind="alpha-rule"):
    """How a step of alpha finds its gradient; supernet and optimisers are afterwards as they were.

    Attributes:
        moves: whether alpha has steps at all.
        needs_training: whether it looks at the training batch.
    """

    moves: ClassVar[bool] = True
    needs_training: ClassVar[bool] = False

    @abstractmethod
    def gradient(self, problem: Problem) -> tuple[Sequence[Tensor], Tensor, Tensor]:
        """Finds the gradients of alpha and of each of the tables.

        Returns:
            The gradients, alpha's [E, O] first, and loss [] and logits [N, classes] of the validation batch.
        """


@dataclass(frozen=True)
class FirstOrder(AlphaRule):
    """The gradient of the validation loss at the weights as they are (DARTS' first order; VP-DARTS)."""

    name: ClassVar[str] = "first-order"

    @override
    def gradient(self, problem: Problem) -> tuple[Sequence[Tensor], Tensor, Tensor]:
        images, labels = problem.validation
        with frozen(problem.supernet):
            logits = problem.supernet(images, problem.weights_of(problem.alpha))
        loss = problem.loss(logits, labels)
        penalty = problem.penalty(problem.alpha)
        total = loss if penalty is None else loss + penalty
        gradients = torch.autograd.grad(total, (problem.alpha, *problem.tables))
        return gradients, loss.detach(), logits.detach()


@dataclass(frozen=True)
class Frozen(AlphaRule):
    """Alpha stays where it starts (the fixed alphas of DARTS-PT)."""

    name: ClassVar[str] = "frozen"
    moves: ClassVar[bool] = False

    def gradient(self, problem: Problem) -> tuple[Sequence[Tensor], Tensor, Tensor]:
        """Must not be called, as there is no step to find a gradient for.

        Raises:
            AssertionError: always.
        """
        raise AssertionError("alpha has no steps")


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """What is computed inside has no gradient with respect to the parameters.

    Fused operations compute every gradient that a tensor may have, whether it is asked for or not.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
