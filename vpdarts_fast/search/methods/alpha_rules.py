"""How a step of alpha finds its gradient: one class for each rule."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from vpdarts_fast.contract.derivatives import for_second_derivatives, frozen
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

    def minimised(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss [] of a batch without the regulariser's term, and logits [N, classes]; draws anew."""
        images, labels = batch
        logits = self.supernet(images, self.weights_of(self.alpha))
        return self.loss(logits, labels), logits

    def penalised(self, loss: Tensor) -> Tensor:
        """The loss [] with the regulariser's term, if there is one."""
        penalty = self.penalty(self.alpha)
        return loss if penalty is None else loss + penalty

    @property
    def seen(self) -> Batch:
        """The training batch, for a rule that `needs_training`."""
        assert self.training is not None, "a rule that needs_training is given a training batch"
        return self.training


class AlphaRule(Part, kind="alpha-rule"):
    """How a step of alpha finds its gradient.

    Parameters and optimisers are afterwards as they were; running statistics have seen what was computed.

    Attributes:
        moves: whether alpha has steps at all.
        needs_training: whether it looks at the training batch.
        joint: one backward pass of the training loss gives the gradients of the weights and of alpha, which
            take their steps together; `gradient` is then for epochs that train alpha alone.
        capturable: whether a step can be recorded as a CUDA graph.
    """

    moves: ClassVar[bool] = True
    needs_training: ClassVar[bool] = False
    joint: ClassVar[bool] = False
    capturable: ClassVar[bool] = True

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
        return _first_order(problem, problem.validation)


def _first_order(problem: Problem, batch: Batch) -> tuple[Sequence[Tensor], Tensor, Tensor]:
    with frozen(problem.supernet):
        loss, logits = problem.minimised(batch)
    gradients = torch.autograd.grad(problem.penalised(loss), (problem.alpha, *problem.tables))
    return gradients, loss.detach(), logits.detach()


@dataclass(frozen=True)
class Joint(AlphaRule):
    """Weights and alpha descend one loss together, on the training batch (SNAS, section 2.2)."""

    name: ClassVar[str] = "joint"
    needs_training: ClassVar[bool] = True
    joint: ClassVar[bool] = True

    @override
    def gradient(self, problem: Problem) -> tuple[Sequence[Tensor], Tensor, Tensor]:
        return _first_order(problem, problem.seen)


@dataclass(frozen=True)
class Unrolled(AlphaRule):
    """The gradient through one step of the weights (DARTS' second order, Eqs. 7 and 8).

    With the weights w, their learning rate x, and w' = w - x d where d is the direction of plain momentum:
    grad_alpha L_val(w') - x (grad_alpha L_train(w + e v) - grad_alpha L_train(w - e v)) / 2e, where
    v = grad_w' L_val(w') and e is 0.01 over the norm of v.
    """

    name: ClassVar[str] = "unrolled"
    needs_training: ClassVar[bool] = True
    capturable: ClassVar[bool] = False
    DISTANCE: ClassVar[float] = 0.01

    @override
    def gradient(self, problem: Problem) -> tuple[Sequence[Tensor], Tensor, Tensor]:
        leaves = (problem.alpha, *problem.tables)
        weights, same_draws = _trained(problem.supernet), _Draws()
        kept = [weight.detach().clone() for weight in weights]
        try:
            loss, _ = same_draws(problem.minimised, problem.seen)
            rate = _descend(problem.weights_optimizer, weights, _gradients(loss, weights))
            loss, logits = problem.minimised(problem.validation)
            found = _gradients(problem.penalised(loss), (*leaves, *weights))
            direct, v = found[: len(leaves)], found[len(leaves) :]
            e = self.DISTANCE / _norm(v).clamp_min(torch.finfo(loss.dtype).tiny)
            both = []
            for sign in (1, -1):
                with torch.no_grad():
                    for weight, start, towards in zip(weights, kept, v, strict=True):
                        weight.copy_(start + sign * e * towards)
                with frozen(problem.supernet):
                    there, _ = same_draws(problem.minimised, problem.seen)
                both.append(_gradients(there, leaves))
        finally:
            with torch.no_grad():
                for weight, start in zip(weights, kept, strict=True):
                    weight.copy_(start)
        gradients = [
            at - rate * (plus - minus) / (2 * e) for at, plus, minus in zip(direct, *both, strict=True)
        ]
        return gradients, loss.detach(), logits.detach()


@dataclass(frozen=True)
class Implicit(AlphaRule):
    """The gradient through the weights' optimum, by the implicit function theorem (iDARTS, Eqs. 5 and 11).

    grad_alpha L_val - x grad_alpha <grad_w L_train, u>, where u = sum over k = 0..K of (I - x H)^k v, with
    v = grad_w L_val, the weights' learning rate x and the Hessian H of L_train by the weights. Products with
    H, and the mixed derivative, are exact.
    """

    name: ClassVar[str] = "implicit"
    needs_training: ClassVar[bool] = True
    capturable: ClassVar[bool] = False

    neumann_terms: int = 2
    """K: how many powers of I - x H the implicit gradient has, beside the first term."""

    @override
    def gradient(self, problem: Problem) -> tuple[Sequence[Tensor], Tensor, Tensor]:
        leaves, weights = (problem.alpha, *problem.tables), _trained(problem.supernet)
        rate = _rate(problem.weights_optimizer)
        loss, logits = problem.minimised(problem.validation)
        found = _gradients(problem.penalised(loss), (*leaves, *weights))
        direct, power = found[: len(leaves)], found[len(leaves) :]
        with for_second_derivatives(problem.supernet):
            trained, _ = problem.minimised(problem.seen)
        slope = _gradients(trained, weights, create=True)
        total = list(power)
        for _ in range(self.neumann_terms):
            curved = _gradients(_dot(slope, power), weights, keep=True)
            power = [value - rate * bend for value, bend in zip(power, curved, strict=True)]
            total = [sum_ + value for sum_, value in zip(total, power, strict=True)]
        mixed = _gradients(_dot(slope, total), leaves)
        gradients = [at - rate * through for at, through in zip(direct, mixed, strict=True)]
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


class _Draws:
    """Calls functions that draw, each with the same random numbers as the first one."""

    def __init__(self) -> None:
        self._seed = int(torch.randint(2**62, (), device="cpu"))

    def __call__(
        self, function: Callable[[Batch], tuple[Tensor, Tensor]], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[batch[0].device] if batch[0].is_cuda else []):
            torch.manual_seed(self._seed)
            return function(batch)


def _trained(supernet: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in supernet.parameters() if parameter.requires_grad]


def _gradients(
    loss: Tensor, leaves: Sequence[Tensor], *, keep: bool = False, create: bool = False
) -> list[Tensor]:
    """Of every leaf, 0 of one that the loss does not depend on.

    `keep` keeps the graph for another call; `create` makes one by which the gradients have gradients.
    """
    found = torch.autograd.grad(
        loss, tuple(leaves), allow_unused=True, retain_graph=keep or create, create_graph=create
    )
    return [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, found, strict=True)
    ]


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors])
    )
    return norm


def _rate(optimizer: torch.optim.Optimizer | None) -> float:
    """The learning rate of the weights."""
    assert optimizer is not None, "a rule that looks ahead is given the optimiser of the weights"
    rate: float = optimizer.param_groups[0]["lr"]
    return rate


def _descend(
    optimizer: torch.optim.Optimizer | None, weights: Sequence[nn.Parameter], gradients: Sequence[Tensor]
) -> float:
    """Takes the step of SGD with plain momentum that the optimiser would, and leaves its state; the rate."""
    rate = _rate(optimizer)
    assert optimizer is not None
    settings = optimizer.param_groups[0]
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            direction: Tensor = gradient + settings["weight_decay"] * weight
            before = optimizer.state.get(weight, {}).get("momentum_buffer")
            if before is not None:
                direction = direction + settings["momentum"] * before
            weight.sub_(rate * direction)
    return rate
