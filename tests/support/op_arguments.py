"""Arguments of the ops, for all tests that call them."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from op_contract import EDGES_OF_NODES, normal
from torch import Tensor


def masked_cell_args(
    v: int = 3,
    n: int = 2,
    c: int = 3,
    size: tuple[int, int] = (5, 7),
    dtype: torch.dtype = torch.float64,
    nodes: int = 4,
    shared: bool = True,
    own: bool = False,
) -> list[Tensor]:
    """own: every variant has statistics of its own."""
    edges = EDGES_OF_NODES[nodes]
    statistics = (v, edges, 2, c) if own else (edges, 2, c)
    scale = c**-0.5  # keeps the cell's values near 1, so that half precision does not overflow
    return [
        normal(1 if shared else v, n, c, *size, dtype=dtype),
        normal(edges, c, c, 1, 1, dtype=dtype, seed=1) * scale,
        normal(edges, c, c, 3, 3, dtype=dtype, seed=2) * (scale / 3),
        normal(*statistics, dtype=dtype, seed=3),
        normal(*statistics, dtype=dtype, seed=4).abs() + 0.5,
        normal(v, edges, 5, dtype=dtype, seed=5) / 2,
    ]


def leave_one_out_tables(edges: int) -> Tensor:
    """The base and every removal, [1 + 5 E, E, 5]."""
    base = normal(edges, 5, seed=6)
    tables = base.repeat(1 + 5 * edges, 1, 1)
    for number, (e, o) in enumerate(product(range(edges), range(5)), start=1):
        tables[number, e, o] = 0
    return tables


def mixed_sum_args(
    v: int = 2,
    k: int = 3,
    n: int = 2,
    c: int = 3,
    size: tuple[int, int] = (5, 7),
    dtype: torch.dtype = torch.float64,
    dropout: bool = True,
) -> list[Any]:
    xs, raw_1x1, raw_3x3, scales = (
        [normal(v, n, c, *size, dtype=dtype, seed=100 * block + e) for e in range(k)] for block in range(4)
    )
    skip_scale = [(scale > -0.8).to(dtype) * 1.25 for scale in scales] if dropout else []
    # means that are not zero
    raw_1x1 = [raw + 1 for raw in raw_1x1]
    return [xs, raw_1x1, raw_3x3, normal(v, k, 5, dtype=dtype, seed=500), skip_scale]


def mixed_cell_args(
    v: int = 1,
    n: int = 3,
    c: int = 3,
    size: tuple[int, int] = (5, 7),
    dtype: torch.dtype = torch.float64,
    nodes: int = 4,
    shared: bool = True,
    dropout: float = 0.25,
) -> list[Any]:
    edges = EDGES_OF_NODES[nodes]
    seeds = torch.arange(edges) * 1_000_003 - 2**40 if dropout else None
    return [
        normal(1 if shared else v, n, c, *size, dtype=dtype),
        normal(edges, c, c, 1, 1, dtype=dtype, seed=1) * c**-0.5,
        normal(edges, c, c, 3, 3, dtype=dtype, seed=2) * (c**-0.5 / 3),
        normal(v, edges, 5, dtype=dtype, seed=5) / 2,
        seeds,
        dropout,
    ]


def node_only(outputs: Any) -> list[Tensor]:
    """The statistics are not differentiable."""
    return [outputs[0]]


def residual_block_args(
    n: int = 2,
    channels: tuple[int, int] = (3, 5),
    size: tuple[int, int] = (5, 7),
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    c, c_out = channels
    return [
        normal(n, c, *size, dtype=dtype),
        normal(c_out, c, 3, 3, dtype=dtype, seed=1) * (c**-0.5 / 3),
        normal(c_out, c_out, 3, 3, dtype=dtype, seed=2) * (c_out**-0.5 / 3),
        normal(c_out, c, 1, 1, dtype=dtype, seed=3) * c**-0.5,
        normal(2, c_out, dtype=dtype, seed=4),
        normal(2, c_out, dtype=dtype, seed=5),
    ]


def trained_residual_block_args(
    n: int = 3,
    channels: tuple[int, int] = (3, 5),
    size: tuple[int, int] = (5, 7),
    dtype: torch.dtype = torch.float64,
    eps: float = 1e-3,
) -> list[Any]:
    c, c_out = channels
    return [
        normal(n, c, *size, dtype=dtype),
        normal(c_out, c, 3, 3, dtype=dtype, seed=1) * (c**-0.5 / 3),
        normal(c_out, c_out, 3, 3, dtype=dtype, seed=2) * (c_out**-0.5 / 3),
        normal(c_out, c, 1, 1, dtype=dtype, seed=3) * c**-0.5,
        normal(2, c_out, dtype=dtype, seed=4) + 1,
        normal(2, c_out, dtype=dtype, seed=5),
        eps,
    ]
