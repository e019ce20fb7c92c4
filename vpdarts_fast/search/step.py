"""One training step of each phase (paper, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpdarts_fast.evaluation.validation import Batch
from vpdarts_fast.search.methods.alpha_rules import AlphaRule, FirstOrder, Loss, Problem
from vpdarts_fast.search.records import Mean

Combine = Callable[[Sequence[Tensor]], None]
"""Replaces gradients, in place, by their mean over the batches of several processes."""


def alone(gradients: Sequence[Tensor]) -> None:
    """There is one process, whose gradients stay as they are."""


def weights_step(
    supernet: nn.Module,
    weights: Tensor,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    gradient_clip: float,
    loss_of: Loss = F.cross_entropy,
    combine: Combine = alone,
) -> tuple[Tensor, Tensor]:
    """Trains the supernet on a training batch, the weights [E, O + further] of its edges fixed.

    Returns the mean loss [] and how many were right []. Nothing is read back from the device, here and in
    `alpha_step`, so that it need not be waited for.
    """
    fixed = weights.detach()
    network = partial(supernet_with, supernet, fixed)
    return training_step(network, batch, optimizer, gradient_clip, loss_of, combine)


def supernet_with(supernet: nn.Module, weights: Tensor, images: Tensor) -> Tensor:
    """Computes the logits [N, classes] of images with given weights of the edges."""
    logits: Tensor = supernet(images, weights)
    return logits


def training_step(
    network: Callable[[Tensor], Tensor],
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    gradient_clip: float,
    loss_of: Loss = F.cross_entropy,
    combine: Combine = alone,
) -> tuple[Tensor, Tensor]:
    """Trains a network that is called with images alone on a training batch.

    It returns what `weights_step` does.
    """
    images, labels = batch
    logits = network(images)
    loss = loss_of(logits, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    # The optimiser's list of them: to find hundreds of parameters among the modules takes milliseconds.
    parameters = optimizer.param_groups[0]["params"]
    combine([parameter.grad for parameter in parameters if parameter.grad is not None])
    torch.nn.utils.clip_grad_norm_(parameters, gradient_clip)
    optimizer.step()
    return loss.detach(), (logits.argmax(1) == labels).sum()


def alpha_step(
    supernet: nn.Module,
    alpha: Tensor,
    alive: Tensor,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    *,
    tables: Sequence[Tensor] = (),
    moving: Tensor | None = None,
    rule: AlphaRule | None = None,
    weights_of: Callable[[Tensor], Tensor] = lambda alpha: alpha,
    penalty: Callable[[Tensor], Tensor | None] = lambda alpha: None,
    loss_of: Loss = F.cross_entropy,
    training: Batch | None = None,
    weights_optimizer: torch.optim.Optimizer | None = None,
    combine: Combine = alone,
) -> tuple[Tensor, Tensor]:
    """Trains alpha [E, O] on a validation batch, the supernet fixed; ops not `alive` [E, O] stay at 0.

    What is left out is as in VP-DARTS: a first-order step of raw alphas.

    Args:
        supernet: called with images and weights [E, O + further].
        alpha: [E, O], a leaf that requires a gradient.
        alive: [E, O] bool.
        batch: of validation images.
        optimizer: of alpha and the tables.
        tables: what is trained beside alpha, leaves that require gradients.
        moving: [E] bool, the edges whose alphas change; None for all.
        rule: how the gradient is found.
        weights_of: alpha [E, O] -> what the supernet is called with, [E, O + further].
        penalty: alpha [E, O] -> what is added to the loss [], or None.
        loss_of: logits and labels -> loss [].
        training: the batch of the weights step beside it, for rules that look at it.
        weights_optimizer: of the supernet, for the same.
        combine: what other processes have computed of their images comes in.

    Returns:
        The mean loss [] and how many were right [].
    """
    problem = Problem(
        supernet, alpha, tables, weights_of, penalty, loss_of, training, batch, weights_optimizer
    )
    rule = rule or FirstOrder()
    gradients, loss, logits = rule.gradient(problem)
    combine([gradient for gradient in gradients if gradient is not None])
    for table, gradient in zip((alpha, *tables), gradients, strict=True):
        table.grad = gradient
    _step_of_alpha(optimizer, alpha, alive, moving)
    return loss, (logits.argmax(1) == (training if rule.joint and training else batch)[1]).sum()


def joint_step(
    supernet: nn.Module,
    alpha: Tensor,
    alive: Tensor,
    batch: Batch,
    weights_optimizer: torch.optim.Optimizer,
    alpha_optimizer: torch.optim.Optimizer,
    gradient_clip: float,
    *,
    moving: Tensor | None = None,
    weights_of: Callable[[Tensor], Tensor] = lambda alpha: alpha,
    penalty: Callable[[Tensor], Tensor | None] = lambda alpha: None,
    loss_of: Loss = F.cross_entropy,
    combine: Combine = alone,
) -> tuple[Tensor, Tensor]:
    """Trains the supernet and alpha [E, O] on one training batch, by one backward pass.

    Arguments and what it returns are those of `weights_step` and `alpha_step`.
    """
    alpha_optimizer.zero_grad(set_to_none=True)

    def network(images: Tensor) -> Tensor:
        logits: Tensor = supernet(images, weights_of(alpha))
        return logits

    def loss_with_penalty(logits: Tensor, labels: Tensor) -> Tensor:
        loss, term = loss_of(logits, labels), penalty(alpha)
        return loss if term is None else loss + (term - term.detach())

    found = training_step(network, batch, weights_optimizer, gradient_clip, loss_with_penalty, combine)
    tables = alpha_optimizer.param_groups[0]["params"]
    combine([table.grad for table in tables if table.grad is not None])
    _step_of_alpha(alpha_optimizer, alpha, alive, moving)
    return found


def _step_of_alpha(
    optimizer: torch.optim.Optimizer, alpha: Tensor, alive: Tensor, moving: Tensor | None
) -> None:
    """Takes the optimiser's step; ops that are not alive stay at 0, edges that do not move as they are."""
    before = alpha.detach().clone() if moving is not None else None
    optimizer.step()
    with torch.no_grad():
        alpha *= alive
        if moving is not None and before is not None:
            alpha.copy_(torch.where(moving[:, None], alpha, before))


@dataclass(frozen=True)
class Step:
    """What is trained at every so many training steps of an epoch.

    Attributes:
        train: what does it, called with a draw of each of the images in `seen`; returns `step_sums`.
        seen: for each kind of images that it sees, the draws of all training steps.
        means: where loss and accuracy are added up.
        every: at each how many training steps.
        first: the first of them, from 0.
    """

    train: Callable[..., Tensor]
    seen: Sequence[Sequence[Tensor]]
    means: Sequence[Mean]
    every: int = 1
    first: int = 0

    def take(self, number: int) -> None:
        """Trains, if it does at the training step of that number."""
        if number % self.every != self.first:
            return
        draws = [images[number] for images in self.seen]
        sums = self.train(*draws)
        for mean in self.means:
            mean.add(sums, draws[0].shape[1])
