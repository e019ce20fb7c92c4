"""One training step of each phase (paper, section 3; first order)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpdarts_fast.evaluation.leave_one_out import Batch
from vpdarts_fast.spaces.nas_bench_201 import Supernet


def weights_step(
    supernet: Supernet, alpha: Tensor, batch: Batch, optimizer: torch.optim.Optimizer, gradient_clip: float
) -> tuple[Tensor, Tensor]:
    """Trains the weights on a training batch, alpha fixed.

    Returns the mean loss [] and how many were right []. Nothing is read back from the device, here and in
    `alpha_step`, so that it need not be waited for.
    """
    images, labels = batch
    logits = supernet(images, alpha.detach())
    loss = F.cross_entropy(logits, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    # The optimiser's list of them: to find hundreds of parameters among the modules takes milliseconds.
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], gradient_clip)
    optimizer.step()
    return loss.detach(), (logits.argmax(1) == labels).sum()


def alpha_step(
    supernet: Supernet, alpha: Tensor, alive: Tensor, batch: Batch, optimizer: torch.optim.Optimizer
) -> tuple[Tensor, Tensor]:
    """Trains alpha [E, O] on a validation batch, the weights fixed; ops not `alive` [E, O] stay at 0.

    Returns the mean loss [] and how many were right [].
    """
    images, labels = batch
    with frozen(supernet):
        logits = supernet(images, alpha)
    loss = F.cross_entropy(logits, labels)
    (alpha.grad,) = torch.autograd.grad(loss, alpha)
    optimizer.step()
    with torch.no_grad():
        alpha *= alive
    return loss.detach(), (logits.argmax(1) == labels).sum()


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
