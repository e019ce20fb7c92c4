"""`masked_cell` in Triton: weights folded once for each alpha row of an edge, then one implicit GEMM a node.

Values of a node that several variants share are computed once (`vpdarts_fast.contract.sharing`). Which these
are is the `Plan`, which depends on where alphas differ, not on their values; it is made on the host, once for
all cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vpdarts_fast.backends.triton.availability import interpreted
from vpdarts_fast.backends.triton.kernels.masked_cell import cell_node, fold_weights
from vpdarts_fast.backends.triton.layout import channels_last, device_of, empty_channels_last
from vpdarts_fast.contract.sharing import Row, alpha_rows, combinations, pick


@dataclass(frozen=True)
class Plan:
    """What is computed for V alpha tables.

    Attributes:
        edges, rows: [D] int32, the edge and the row v * E + e of alpha of every distinct pair of both.
        statistics: [D] int32, which row of the statistics normalises it.
        numbers, folds: for each node but the first, [U, k] int32: for each of its U distinct values and k
            incoming edges, the number of the source's value and of the pair.
        of: the number of the last node's value for each of the V variants.
    """

    edges: Tensor
    rows: Tensor
    statistics: Tensor
    numbers: tuple[Tensor, ...]
    folds: tuple[Tensor, ...]
    of: tuple[int, ...]


@lru_cache(maxsize=256)  # more than a leave-one-out evaluation has, whose CUDA graphs need them to its end
def plan(tables: tuple[tuple[Row, ...], ...], shared: bool, own: bool, device: torch.device) -> Plan:
    """Plans a cell for V alpha tables: which values are computed, and out of which.

    Args:
        tables: alpha as rows, as `alpha_rows` gives it.
        shared: whether all variants have one input.
        own: whether each variant has its own statistics.
        device: where the plan's tensors are to lie.
    """

    def integers(values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    variants, edges = len(tables), len(tables[0])
    if own:  # nothing is alike then: the number of the variant is part of a row
        tables = tuple(tuple((*row, float(v)) for row in table) for v, table in enumerate(tables))
    pairs: dict[tuple[int, Row], int] = {}
    rows: list[int] = []
    for v, table in enumerate(tables):
        for e, row in enumerate(table):
            if pairs.setdefault((e, row), len(pairs)) == len(rows):
                rows.append(v * edges + e)
    of = [[0] * variants if shared else list(range(variants))]
    numbers, folds = [], []
    while (first := len(of) * (len(of) - 1) // 2) < edges:
        incoming = range(first, first + len(of))
        distinct, number = combinations(of, tables, incoming)
        numbers.append(integers([c.sources for c in distinct]))
        folds.append(
            integers([[pairs[pair] for pair in zip(incoming, c.rows, strict=True)] for c in distinct])
        )
        of.append(number)
    of_pairs = [e for e, _ in pairs]
    return Plan(
        integers(of_pairs),
        integers(rows),
        integers(rows if own else of_pairs),
        tuple(numbers),
        tuple(folds),
        tuple(of[-1]),
    )


@torch.no_grad()
def masked_cell(
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    mean: Tensor,
    variance: Tensor,
    alpha: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """See `vpdarts_fast.contract.reference.masked_cell`.

    Statistics and alpha may be float32 beside half precision.
    """
    tables = tuple(map(tuple, alpha_rows(alpha)))
    some = plan(tables, len(x) == 1, mean.dim() == 4, x.device)
    return planned_cell(some, x, weight_1x1, weight_3x3, mean, variance, alpha, eps)


def planned_cell(
    plan: Plan,
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    mean: Tensor,
    variance: Tensor,
    alpha: Tensor,
    eps: float,
) -> Tensor:
    """`masked_cell` without a look at alpha, so that nothing is read back from the device."""
    _, images, channels, height, width = x.shape
    if x.numel() == 0:
        return empty_channels_last(x, (len(plan.of), *x.shape[1:]))
    widest = 32 if x.dtype == torch.float32 else 64  # or both accumulators do not fit into the registers
    block_c = min(max(triton.next_power_of_2(channels), 16), widest)
    padded = triton.cdiv(channels, block_c) * block_c
    pairs, across = len(plan.rows), padded // block_c
    weight = x.new_empty(pairs, 9, padded, padded)
    bias = x.new_empty(pairs, padded, dtype=torch.float32)
    alpha = alpha.contiguous()
    parameters = (tensor.contiguous() for tensor in (weight_1x1, weight_3x3, mean, variance))
    with device_of(x):
        fold_weights[pairs, across * across](
            *(weight, bias, *parameters, alpha, plan.edges, plan.rows, plan.statistics, eps),
            *(channels, padded, block_c),
        )
        pixels = images * height * width
        nodes = [channels_last(x)]
        for numbers, folds in zip(plan.numbers, plan.folds, strict=True):
            node = empty_channels_last(x, (len(numbers), *x.shape[1:]))
            cell_node[_grid(pixels, across, len(node))](
                *(node, tuple(nodes), numbers, folds, weight, bias, alpha, plan.rows, pixels, height, width),
                C=channels,
                PADDED=padded,
                OPERAND=_operand(x.dtype),
                PRECISION=float32_precision(),
                BLOCK_C=block_c,
            )
            nodes.append(node)
    return pick(nodes[-1], plan.of)


def _grid(pixels: int, across: int, values: int) -> Callable[[dict[str, Any]], tuple[int, int, int]]:
    return lambda sizes: (triton.cdiv(pixels, sizes["BLOCK_P"]), across, values)


def _operand(dtype: torch.dtype) -> tl.dtype:
    """What the products' operands are; the interpreter cannot multiply bfloat16, but float32 holds it."""
    wide = dtype == torch.float32 or (dtype == torch.bfloat16 and interpreted())
    return tl.float32 if wide else tl.bfloat16 if dtype == torch.bfloat16 else tl.float16


def float32_precision() -> str:
    """How float32 is multiplied: as PyTorch's own products are."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
