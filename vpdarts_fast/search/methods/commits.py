"""Edges that are decided while a search goes on: which is next, and by which op (SGAS, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vpdarts_fast.spaces.space import Space

OPEN = -1
"""In place of the number of its operation, an edge that is not decided."""

DROPPED = -2
"""An edge that no choice can keep any more, as its node has all that it keeps."""


def nothing_decided(edges: int) -> Tensor:
    """Makes the decisions [E] int64, on the CPU, where all edges are open."""
    return torch.full((edges,), OPEN, dtype=torch.int64, device="cpu")


def choosable(alive: Tensor, decided: Tensor) -> Tensor:
    """Marks the ops that may be chosen, [E, O] bool: all that live of open edges, one of those decided."""
    ops = torch.arange(alive.shape[1], device=alive.device)
    return torch.where((decided == OPEN)[:, None], alive, ops == decided[:, None])


def decided_weights(weights: Tensor, decided: Tensor) -> Tensor:
    """Replaces the weights of the ops [E, O] of decided edges by 1 for the op and 0 for the others.

    All of a dropped edge are 0. No gradient goes to the weights of either.
    """
    ops = torch.arange(weights.shape[1], device=weights.device)
    return torch.where((decided == OPEN)[:, None], weights, (ops == decided[:, None]).to(weights.dtype))


def decide(decided: Tensor, strength: Tensor, space: Space[Any]) -> None:
    """Decides one more edge of each type of cells, where one is open.

    That is the open edge with the highest score, the first of equal ones, and its strongest op but `none`.
    Where a node then has as many edges as a choice keeps, its others are dropped.

    Args:
        decided: [E] int64 on the CPU, for each edge the number of its op, `OPEN` or `DROPPED`; changed.
        strength: [E, O] float64 on the CPU, of the ops by alpha alone (`Relaxation.strength`).
        space: that is searched.
    """
    choice = space.present & ~space.nones
    start = 0
    for table in space.tables:
        rows = slice(start, start + len(table.edges))
        scores = selection_scores(strength[rows], choice[rows], space.present[rows])
        scores = scores.masked_fill(decided[rows] != OPEN, -1.0)
        best = int(scores.argmax())
        if decided[rows][best] == OPEN:
            row = start + best
            decided[row] = int(strength[row].masked_fill(~choice[row], -1.0).argmax())
        start = rows.stop
    if space.kept is not None:
        for of_node in torch.split(decided, list(space.edges_of_nodes)):
            if (of_node >= 0).sum() >= space.kept:
                of_node[of_node == OPEN] = DROPPED


def selection_scores(strength: Tensor, choice: Tensor, present: Tensor) -> Tensor:
    """Scores the edges of a type of cells by importance times certainty (SGAS, criterion 1).

    Of an edge whose ops have the probabilities p, the importance is the sum of p over all ops but `none`, and
    the certainty 1 - H(q) / log(n), with the entropy H of q, which is p over these n ops, scaled to sum 1.
    Both are brought to 0..1 by the least and the largest of all edges, decided ones too.

    Args:
        strength: [E, O], not negative; p is that of an edge, scaled to sum 1.
        choice: [E, O] bool, all ops but `none`.
        present: [E, O] bool, all ops.

    Returns:
        [E], in 0..1.
    """
    p = strength * present
    p = p / p.sum(1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
    importance = 1 - (p * ~choice).sum(1)  # exactly 1 without `none`
    q = p * choice
    q = q / q.sum(1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
    entropy = -torch.special.xlogy(q, q).sum(1)
    count = choice.sum(1)
    certainty = torch.where(count > 1, 1 - entropy / count.clamp_min(2).to(p.dtype).log(), 1.0)
    return _spread(importance) * _spread(certainty)


def _spread(values: Tensor) -> Tensor:
    """Brings values [E] to 0..1; those that are all the same become 1, and decide nothing."""
    least, most = values.aminmax()
    return (values - least) / (most - least) if most > least else torch.ones_like(values)
