"""What leaving each op out would do to the loss, estimated to the first order: one backward pass a batch.

Around the weights w of the ops the loss without one of them is, to the first order, L - w_o dL/dw_o, as of
importance in pruning (Molchanov et al., 2017); its magnitude is taken, so that an op whose removal would help
counts as one whose removal would hurt as much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpdarts_fast.contract.derivatives import frozen
from vpdarts_fast.errors import UserError
from vpdarts_fast.evaluation.objective import LossOfImages
from vpdarts_fast.evaluation.validation import (
    Batch,
    LeaveOneOut,
    checked_batches,
    checked_mask,
    evaluation_mode,
)


def taylor(
    supernet: nn.Module,
    batches: Iterable[Batch],
    weights: Tensor,
    *,
    nones: Tensor | None = None,
    only: Tensor | None = None,
    on_batch: Callable[[int], None] | None = None,
    losses: LossOfImages | None = None,
) -> LeaveOneOut:
    """Estimates the loss of a supernet without each op; batch norms take each batch's own statistics.

    Args:
        supernet: called with images [N, 3, H, W] and weights [E, O]; returns logits [N, classes]. Any mode;
            parameters, buffers and modes stay as they are.
        batches: images and labels [N] int64; iterated once.
        weights: [E, O], of the ops, the same in all batches.
        nones: [E, O] bool, which ops add nothing to their edges.
        only: [E, O] bool, the ops that are left out; None: all.
        on_batch: called with the number of images done after each batch; may raise to stop.
        losses: of each image; None is cross-entropy.

    Returns:
        The loss [E, O], L plus the magnitude of w dL/dw, with the gradient of the mean over all images, and
        of every op the accuracy of the unmodified supernet, as there is no estimate of another one.

    Raises:
        UserError: no images, labels of a wrong shape, or a table of a wrong one.
    """
    only = checked_mask(only, weights.shape)
    slope = torch.zeros_like(weights, dtype=torch.float64)
    loss_sum, right, count = 0.0, 0, 0
    with evaluation_mode(supernet, "batch", (), ()), frozen(supernet):
        for images, labels in checked_batches(batches):
            leaf = weights.detach().clone().requires_grad_()
            logits = supernet(images, leaf)
            if losses is None:
                loss = F.cross_entropy(logits, labels, reduction="sum")
            else:
                loss = losses(logits, labels).sum()
            (gradient,) = torch.autograd.grad(loss, leaf)
            slope += gradient
            loss_sum += float(loss.detach())
            right += int((logits.argmax(1) == labels).sum())
            count += len(labels)
            if on_batch is not None:
                on_batch(count)
    if not count:
        raise UserError("taylor: no images; `batches` was empty")
    change = (weights.detach().double() * slope / count).abs().cpu()
    for mask in (nones, None if only is None else ~only):
        change = change if mask is None else change.masked_fill(mask.cpu(), 0.0)
    base_accuracy, base_loss = 100 * right / count, loss_sum / count
    return LeaveOneOut(
        accuracy=torch.full_like(change, base_accuracy),
        loss=base_loss + change,
        base_accuracy=base_accuracy,
        base_loss=base_loss,
        images=count,
    )
