"""Which node values variants share: until the first edge that differs, they are the same.

A node's value is fixed by the values of the nodes before it and the alphas of its incoming edges. So
a cell whose input all variants share needs, for leave-one-out, 5 distinct values of node 1, 13 of
node 2 and 25 of node 3, instead of 25 of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Row = tuple[float, ...]
"""Alphas of one edge."""


@dataclass(frozen=True)
class Combination:
    """What one distinct value of a node is made of.

    Attributes:
        sources: for each node before it, the number of that node's value.
        rows: for each incoming edge, its alphas.
    """

    sources: tuple[int, ...]
    rows: tuple[Row, ...]


def combinations(
    before: Sequence[Sequence[int]], tables: Sequence[Sequence[Row]], incoming: range
) -> tuple[list[Combination], list[int]]:
    """The distinct values of the next node.

    Args:
        before: for each node before it, the number of its value in each of the V variants.
        tables: V alpha tables.
        incoming: the edges into the node, one from each node before it.

    Returns:
        The distinct combinations, in order of first use; for each variant, the number of its own.
    """
    wanted = [
        Combination(tuple(of[v] for of in before), tuple(table[e] for e in incoming))
        for v, table in enumerate(tables)
    ]
    numbers = {combination: u for u, combination in enumerate(dict.fromkeys(wanted))}
    return list(numbers), [numbers[combination] for combination in wanted]


def pick(values: Tensor, numbers: Sequence[int]) -> Tensor:
    """values[numbers], kept channels last: [U, N, C, H, W] -> [len(numbers), N, C, H, W]."""
    if list(numbers) == list(range(len(values))):
        return values
    index = torch.tensor(numbers, device=values.device)
    return values.movedim(2, 4).index_select(0, index).movedim(4, 2)


def alpha_rows(alpha: Tensor) -> list[list[Row]]:
    """Alpha [V, E, O] as hashable rows."""
    return [[tuple(row) for row in table] for table in alpha.tolist()]
