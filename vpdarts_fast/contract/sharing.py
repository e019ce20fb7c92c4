"""Which node values variants share: until the first edge that differs, they are the same.

A node's value is fixed by the values of the nodes before it and the alphas of its incoming edges. So
a cell whose input all variants share needs, for leave-one-out, 5 distinct values of node 1, 13 of
node 2 and 25 of node 3, instead of 25 of each.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.weak import WeakTensorKeyDictionary

from vpdarts_fast.contract.transforms import in_transform

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
    """The values [U, N, C, H, W] of these numbers, kept channels last: [len(numbers), N, C, H, W]."""
    if list(numbers) == list(range(len(values))):
        return values
    return values.movedim(2, 4).index_select(0, index(tuple(numbers), values.device)).movedim(4, 2)


def index(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """The numbers [U] int64 on the device; copied there once, since a copy waits and cannot be captured."""
    if _is_recorded():
        return torch.tensor(numbers, device=device)
    return kept_index(numbers, device)


def can_be_read(alpha: Tensor) -> bool:
    """Whether alpha's values are at hand, and what is done by them is done in this call alone."""
    return alpha.device.type == "cpu" and not _is_recorded()


def _is_recorded() -> bool:
    """Whether what runs now may run again with other values, or has none."""
    return torch.compiler.is_compiling() or in_transform() or _is_traced()


def _is_traced() -> bool:
    """Whether a mode of PyTorch's own is on: what is made then may have no data, or be of no use later."""
    return any(mode.is_infra_mode() for mode in _get_current_dispatch_mode_stack())


@lru_cache(maxsize=4096)  # a leave-one-out evaluation has some dozens, which its CUDA graphs need to its end
def kept_index(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """The numbers as `index` has them, for calls in which the tensor can be kept."""
    with torch.inference_mode(False):  # also of use where gradients are computed
        return torch.tensor(numbers, device=device)


_KNOWN: MutableMapping[Tensor, tuple[int, list[list[Row]]]] = WeakTensorKeyDictionary()
"""Alpha on a device -> its version and its rows."""


def tables_on(device: torch.device, tables: Tensor) -> Tensor:
    """Alpha tables [V, E, O] from the CPU on a device, where `alpha_rows` knows them without a read-back."""
    return _remember(tables.to(device, copy=True), alpha_rows(tables))


def some_tables(alpha: Tensor, variants: slice | list[int]) -> Tensor:
    """The tables of some variants, as well known as alpha [V, E, O] is."""
    rows = alpha_rows(alpha)
    chosen = rows[variants] if isinstance(variants, slice) else [rows[variant] for variant in variants]
    return _remember(alpha[variants], chosen)


def _remember(alpha: Tensor, rows: list[list[Row]]) -> Tensor:
    if not alpha.is_inference():  # or its changes are not counted
        _KNOWN[alpha] = alpha._version, rows
    return alpha


def alpha_rows(alpha: Tensor) -> list[list[Row]]:
    """Alpha [V, E, O] as hashable rows; waits for the device unless they are known and not changed since.

    Within a transform values cannot be read, or not for good: all rows count as different then.
    """
    if in_transform():
        return [[(float(v), float(e)) for e in range(alpha.shape[1])] for v in range(len(alpha))]
    if (known := _KNOWN.get(alpha)) is not None and known[0] == alpha._version:
        return known[1]
    return [[tuple(row) for row in table] for table in alpha.tolist()]
