"""What becomes of the weights of the ops without one of them."""

from __future__ import annotations

import torch
from torch import Tensor

from vpdarts_fast.evaluation.validation import Removal


def removals(weights: Tensor, removal: Removal = "zero", nones: Tensor | None = None) -> Tensor:
    """Makes the table of the weights without each op in turn (`reference.without_op`).

    Args:
        weights: [E, O], of the ops.
        removal: as `vpdarts_fast.evaluation.leave_one_out.leave_one_out` has it.
        nones: [E, O] bool, which ops add nothing to their edges, so that without one all others stay.

    Returns:
        [E*O, E, O]; table e*O + o is that without op o on edge e.
    """
    edges, ops = weights.shape
    tables = weights.detach().repeat(edges * ops, 1, 1)
    tables.view(edges * ops, -1).fill_diagonal_(0)
    if removal == "renormalised":
        changed = tables.view(edges, ops, edges, ops).diagonal(dim1=0, dim2=2)  # [removed op, op, edge]
        adds = torch.ones_like(weights, dtype=torch.bool) if nones is None else ~nones
        magnitude = (changed.abs() * adds.T).sum(1, keepdim=True)
        factor = (weights.detach().abs() * adds).sum(1) / magnitude
        factor = factor.where(factor.isfinite() & adds.T[:, None], 1.0)  # of each removed op
        changed.mul_(factor.where(adds.T, 1.0))  # on each op that adds something
    return tables
