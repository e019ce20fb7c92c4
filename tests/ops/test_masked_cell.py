"""`masked_cell`: the op contract, held by every backend."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from op_arguments import leave_one_out_tables, masked_cell_args
from op_contract import (
    ALL,
    BOTH,
    CHANNELS,
    EDGES_OF_NODES,
    SIZES,
    Close,
    check_against_reference,
    every_layout,
    half_of,
    normal,
    served,
    sharing_patterns,
    sliced,
    transposed,
)
from torch import Tensor

from vpdarts_fast import ops
from vpdarts_fast.contract import reference
from vpdarts_fast.errors import UserError


@served("masked_cell", BOTH)
@pytest.mark.parametrize("c", CHANNELS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_masked_cell_values(
    backend: str, dtype: torch.dtype, c: int, shared: bool, assert_close: Close
) -> None:
    for v, n, size in half_of(CHANNELS.index(c) + shared, (1, 3), (0, 1, 4), SIZES):
        args = masked_cell_args(v, n, c, size, dtype, shared=shared)
        check_against_reference("masked_cell", args, backend, assert_close)


@served("masked_cell", BOTH)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_masked_cell_with_statistics_of_each_variant(
    backend: str, dtype: torch.dtype, shared: bool, assert_close: Close
) -> None:
    for (v, n, size), nodes in product([(1, 1, (5, 7)), (3, 2, (4, 4)), (4, 0, (3, 3))], EDGES_OF_NODES):
        args = masked_cell_args(v, n, 3, size, dtype, nodes, shared, own=True)
        check_against_reference("masked_cell", args, backend, assert_close)
    x, *weights, mean, variance, alpha = masked_cell_args(dtype=dtype, shared=shared, own=True)
    args = [x, *weights, transposed(mean), sliced(variance), alpha]
    check_against_reference("masked_cell", args, backend, assert_close)


@served("masked_cell", ALL)
def test_masked_cell_dtypes_of_statistics_of_each_variant(
    backend: str, dtype: torch.dtype, assert_close: Close
) -> None:
    args = masked_cell_args(c=8, dtype=dtype, own=True)
    check_against_reference("masked_cell", args, backend, assert_close)


@served("masked_cell", ALL)
def test_masked_cell_dtypes(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    check_against_reference("masked_cell", masked_cell_args(c=8, dtype=dtype), backend, assert_close)


@served("masked_cell", BOTH)
@pytest.mark.parametrize("nodes", EDGES_OF_NODES)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_masked_cell_leaves_one_out(
    backend: str, dtype: torch.dtype, nodes: int, shared: bool, assert_close: Close
) -> None:
    tables = leave_one_out_tables(EDGES_OF_NODES[nodes])
    args = masked_cell_args(len(tables), n=1, dtype=dtype, nodes=nodes, shared=shared)
    args[5] = tables.to(dtype)
    check_against_reference("masked_cell", args, backend, assert_close)


@served("masked_cell", BOTH)
@every_layout
def test_masked_cell_layouts(
    backend: str, dtype: torch.dtype, layout: Callable[[Tensor], Tensor], assert_close: Close
) -> None:
    for shared in (True, False):
        x, *weights, mean, variance, alpha = masked_cell_args(dtype=dtype, shared=shared)
        args = [
            layout(x),
            *(weight.transpose(1, 2).contiguous().transpose(1, 2) for weight in weights),
            transposed(mean),
            sliced(variance),
            transposed(alpha),
        ]
        check_against_reference("masked_cell", args, backend, assert_close)


@served("masked_cell", BOTH)
def test_masked_cell_takes_an_expanded_input(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    args = masked_cell_args(dtype=dtype)
    args[0] = args[0].expand(3, -1, -1, -1, -1)
    check_against_reference("masked_cell", args, backend, assert_close)


@served("masked_cell", BOTH)
@pytest.mark.parametrize(
    "row",
    [[0.0] * 5, [0.2] * 5, [9.0, 0, 0, 0, 0], [0, -1, -0.5, 0, 2]],
    ids=["zero", "equal", "none", "mixed"],
)
def test_masked_cell_alphas(backend: str, dtype: torch.dtype, row: list[float], assert_close: Close) -> None:
    *others, _ = masked_cell_args(dtype=dtype)
    alpha = torch.tensor(row, dtype=dtype).expand(3, 6, 5)
    check_against_reference("masked_cell", [*others, alpha], backend, assert_close)
    x, w1, w3, mean, variance = others
    out = ops.masked_cell(x, w1, w3, mean, variance, alpha, backend=backend)
    assert bool(out.any()) == any(row[1:])


@served("masked_cell", BOTH)
def test_masked_cell_eps(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    x, w1, w3, mean, variance, alpha = masked_cell_args(dtype=dtype)
    expected = reference.masked_cell(x, w1, w3, mean, variance, alpha, 0.3)
    assert_close(ops.masked_cell(x, w1, w3, mean, variance, alpha, 0.3, backend=backend), expected)
    assert not torch.allclose(expected, reference.masked_cell(x, w1, w3, mean, variance, alpha))


@served("masked_cell", BOTH)
@settings(max_examples=60, deadline=None)
@given(pattern=sharing_patterns())
def test_masked_cell_shares_what_is_shared(
    backend: str, dtype: torch.dtype, pattern: tuple[int, bool, Tensor], assert_close: Close
) -> None:
    nodes, shared, tables = pattern
    args = masked_cell_args(len(tables), n=1, c=2, size=(3, 4), dtype=dtype, nodes=nodes, shared=shared)
    args[5] = tables.to(dtype)
    check_against_reference("masked_cell", args, backend, assert_close)
    kind = [v // 2 for v in range(len(tables))]  # neighbours share their statistics
    args[3:5] = [normal(len(tables), *some.shape, dtype=dtype, seed=7)[kind] for some in args[3:5]]
    args[4] = args[4].abs() + 0.5
    check_against_reference("masked_cell", args, backend, assert_close)


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (2, 3, 5, 7), r"x must be \[V, N, C, H, W\]; got \[2, 3, 5, 7\]"),
        (0, (2, 2, 3, 5, 7), "x must hold 1 or V = 3 variants; got 2"),
        (0, (1, 2, 4, 5, 7), r"weight_1x1 must be \[6, 4, 4, 1, 1\]"),
        (1, (6, 3, 3, 3, 3), "weight_1x1 must be"),
        (2, (6, 3, 3, 1, 1), r"weight_3x3 must be \[6, 3, 3, 3, 3\]; got \[6, 3, 3, 1, 1\]"),
        (2, (5, 3, 3, 3, 3), "weight_3x3 must be"),
        (3, (6, 3), r"mean must be \[6, 2, 3\]; got \[6, 3\]"),
        (4, (6, 2, 4), r"variance must be \[6, 2, 3\]"),
        (3, (2, 6, 2, 3), r"mean must be \[3, 6, 2, 3\]; got \[2, 6, 2, 3\]"),
        (4, (3, 6, 2, 3), r"variance must be \[6, 2, 3\]"),
        (5, (6, 5), r"alpha must be \[V, E, 5\]"),
        (5, (3, 5, 5), r"alpha must be .*; got \[3, 5, 5\]"),
        (5, (3, 6, 4), "alpha must be"),
        (5, (0, 6, 5), "x must hold 1 or V = 0 variants"),
    ],
)
def test_masked_cell_refuses(position: int, shape: tuple[int, ...], message: str) -> None:
    args: list[Any] = list(masked_cell_args())
    args[position] = normal(*shape)
    with pytest.raises(UserError, match=f"masked_cell: {message}"):
        ops.masked_cell(*args)
