"""`mixed_cell`: the op contract, held by every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from op_arguments import mixed_cell_args, node_only
from op_contract import (
    ALL,
    BOTH,
    CHANNELS,
    EDGES_OF_NODES,
    Close,
    backends_in,
    check_against_reference,
    check_gradients,
    check_second_derivatives,
    double,
    every_layout,
    gradients,
    half_of,
    normal,
    served,
    sharing_patterns,
    transposed,
    true_derivatives,
    weighted_sum,
)
from torch import Tensor

from vpdarts_fast import ops
from vpdarts_fast.contract import reference
from vpdarts_fast.errors import UserError

SIZES = ((1, 6), (2, 2), (4, 4), (5, 7), (9, 3), (16, 16))


@served("mixed_cell", BOTH)
@pytest.mark.parametrize("c", CHANNELS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_mixed_cell_values(
    backend: str, dtype: torch.dtype, c: int, shared: bool, assert_close: Close
) -> None:
    for v, n, size in half_of(CHANNELS.index(c) + shared, (1, 3), (2, 5), SIZES):
        args = mixed_cell_args(v, n, c, size, dtype, shared=shared)
        check_against_reference("mixed_cell", args, backend, assert_close)


@served("mixed_cell", ALL)
def test_mixed_cell_dtypes(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    check_against_reference("mixed_cell", mixed_cell_args(c=8, dtype=dtype), backend, assert_close)


@served("mixed_cell", BOTH)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_mixed_cell_gradients(
    backend: str, dtype: torch.dtype, size: tuple[int, int], dropout: float, assert_close: Close
) -> None:
    for ((v, n, c),) in half_of(SIZES.index(size) + (dropout > 0), ((1, 5, 3), (2, 4, 8), (1, 8, 16))):
        args = mixed_cell_args(v, n, c, size, dtype, dropout=dropout)
        check_gradients("mixed_cell", args, backend, assert_close, node_only)


@served("mixed_cell", BOTH)
@pytest.mark.parametrize("nodes", EDGES_OF_NODES)
def test_mixed_cell_of_any_number_of_nodes(
    backend: str, dtype: torch.dtype, nodes: int, assert_close: Close
) -> None:
    args = mixed_cell_args(nodes=nodes, dtype=dtype)
    check_against_reference("mixed_cell", args, backend, assert_close)
    check_gradients("mixed_cell", args, backend, assert_close, node_only)


@served("mixed_cell", BOTH)
@every_layout
def test_mixed_cell_layouts(
    backend: str, dtype: torch.dtype, layout: Callable[[Tensor], Tensor], assert_close: Close
) -> None:
    x, *weights, alpha, seeds, dropout = mixed_cell_args(c=8, dtype=dtype)
    weights = [weight.transpose(1, 2).contiguous().transpose(1, 2) for weight in weights]
    args = [layout(x), *weights, transposed(alpha), seeds, dropout]
    check_against_reference("mixed_cell", args, backend, assert_close)
    check_gradients("mixed_cell", args, backend, assert_close, node_only)


@served("mixed_cell", BOTH)
@pytest.mark.parametrize(
    "row",
    [[0.0] * 5, [0.2] * 5, [9.0, 0, 0, 0, 0], [0, -1, -0.5, 0, 2]],
    ids=["zero", "equal", "none", "mixed"],
)
def test_mixed_cell_alphas(backend: str, dtype: torch.dtype, row: list[float], assert_close: Close) -> None:
    args = mixed_cell_args(dtype=dtype)
    args[3] = torch.tensor(row, dtype=dtype).expand(1, 6, 5)
    check_against_reference("mixed_cell", args, backend, assert_close)
    check_gradients("mixed_cell", args, backend, assert_close, node_only)


@served("mixed_cell", BOTH)
def test_mixed_cell_normalises_with_its_own_statistics(
    backend: str, dtype: torch.dtype, assert_close: Close
) -> None:
    x, weight_1x1, weight_3x3, alpha, *_ = mixed_cell_args(dtype=dtype)
    _, mean, variance = ops.mixed_cell(x + 100, weight_1x1, weight_3x3, alpha, backend=backend)
    raw_1x1, raw_3x3 = reference.relu_conv(x[0].double() + 100, weight_1x1.double(), weight_3x3.double())
    for o, raws in enumerate((raw_1x1, raw_3x3)):  # of the edge that leaves the input first
        values = raws[0].transpose(0, 1).flatten(1)
        assert_close(mean[0, 0, o], values.mean(1))
        torch.testing.assert_close(variance[0, 0, o].double(), values.var(1, correction=0), rtol=1e-3, atol=0)


@served("mixed_cell", BOTH)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("v", [1, 2])
def test_mixed_cell_second_derivatives(
    backend: str, dtype: torch.dtype, v: int, dropout: float, assert_close: Close
) -> None:
    args = mixed_cell_args(v, 6, 8, (5, 7), dtype, dropout=dropout)
    check_second_derivatives("mixed_cell", args, backend, assert_close, node_only)


@backends_in("mixed_cell", torch.float64)
def test_mixed_cell_gradcheck(backend: str) -> None:
    x, weight_1x1, weight_3x3, alpha, *dropout = mixed_cell_args(c=2, size=(3, 4), nodes=3)
    leaves = [tensor.requires_grad_() for tensor in (x, weight_1x1, weight_3x3, alpha)]

    def node(*tensors: Tensor) -> Tensor:
        return ops.mixed_cell(*tensors, *dropout, backend=backend)[0]

    assert torch.autograd.gradcheck(node, leaves)


@served("mixed_cell", BOTH)
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (1, 2), (0, 1, 2)], ids=str)
def test_mixed_cell_gives_only_the_gradients_asked_for(
    backend: str, dtype: torch.dtype, wanted: tuple[int, ...], assert_close: Close
) -> None:
    args = mixed_cell_args(c=8, dtype=dtype)
    expected = gradients(reference.mixed_cell, double(args), node_only)
    for i in wanted:
        args[i].requires_grad_()
    node, mean, variance = ops.mixed_cell(*args, backend=backend)
    assert not mean.requires_grad and not variance.requires_grad
    weighted_sum([node]).backward()  # type: ignore[no-untyped-call]
    for i, arg in enumerate(args[:4]):
        assert (arg.grad is not None) == (i in wanted)
        if arg.grad is not None:
            assert_close(arg.grad, expected[i])


@served("mixed_cell", BOTH)
@settings(max_examples=40, deadline=None)
@given(pattern=sharing_patterns())
def test_mixed_cell_shares_what_is_shared(
    backend: str, dtype: torch.dtype, pattern: tuple[int, bool, Tensor], assert_close: Close
) -> None:
    nodes, shared, tables = pattern
    args = mixed_cell_args(len(tables), n=2, c=2, size=(3, 4), dtype=dtype, nodes=nodes, shared=shared)
    args[3] = tables.to(dtype)
    check_against_reference("mixed_cell", args, backend, assert_close)


def with_zeros(alpha: Tensor) -> Tensor:
    """Some of every column 0; of the first variant all that leaves node 0."""
    zeros = normal(*alpha.shape, seed=9) < 0
    zeros[0, [0, 1, 3]] = True
    return alpha.masked_fill(zeros, 0)


@served("mixed_cell", BOTH)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_mixed_cell_may_skip_what_has_alpha_0(
    backend: str, dtype: torch.dtype, dropout: float, assert_close: Close
) -> None:
    for v, shared, c in ((1, True, 3), (4, True, 8), (3, False, 17)):
        *others, alpha, seeds, dropout = mixed_cell_args(v, c=c, dtype=dtype, shared=shared, dropout=dropout)
        args = [*others, with_zeros(alpha), seeds, dropout, 1e-3, True]
        check_against_reference("mixed_cell", args, backend, assert_close)


@served("mixed_cell", BOTH)
@pytest.mark.parametrize("ops_of_edges", ["313131", "222222", "111111", "000000", "323034", "003003"])
def test_gradients_of_a_mixed_cell_that_skips(
    backend: str, dtype: torch.dtype, ops_of_edges: str, assert_close: Close
) -> None:
    """Those of the weights of what is skipped are 0, and none is kept of alpha."""
    x, *weights, _, seeds, dropout = mixed_cell_args(c=8, dtype=dtype)
    alpha = torch.eye(5, dtype=dtype)[[int(op) for op in ops_of_edges]][None]

    def skipping(x: Tensor, weight_1x1: Tensor, weight_3x3: Tensor) -> Tensor:
        return ops.mixed_cell(x, weight_1x1, weight_3x3, alpha, seeds, dropout, 1e-3, True, backend=backend)[
            0
        ]

    def plain(x: Tensor, weight_1x1: Tensor, weight_3x3: Tensor) -> Tensor:
        return reference.mixed_cell(x, weight_1x1, weight_3x3, alpha.double(), seeds, dropout, 1e-3)[0]

    inputs = [x, *weights]
    expected = true_derivatives(lambda exact: gradients(plain, exact, lambda node: [node]), inputs)
    for gradient, wanted in zip(gradients(skipping, inputs, lambda node: [node]), expected, strict=True):
        assert_close(gradient, wanted)


@served("mixed_cell", BOTH)
def test_nothing_is_skipped_where_alpha_has_a_gradient(
    backend: str, dtype: torch.dtype, assert_close: Close
) -> None:
    *others, alpha, seeds, dropout = mixed_cell_args(dtype=dtype)
    alpha[..., 2:4][normal(1, 6, 2, seed=9) < 0] = 0  # the skip connections stay, so that no node is 0
    args = [*others, alpha, seeds, dropout]
    assert 0 < int((alpha[..., 2:4] == 0).sum()) < 12
    _, mean, variance = ops.mixed_cell(*args, 1e-3, True, backend=backend)
    computed = args[3][..., 2:4] != 0
    assert torch.equal(mean.any(3), computed) and torch.equal(variance.any(3), computed)
    args[3].requires_grad_()
    for actual, expected in zip(
        ops.mixed_cell(*args, 1e-3, True, backend=backend),
        reference.mixed_cell(*double(args), 1e-3),
        strict=True,
    ):
        assert_close(actual.detach(), expected.detach())


@pytest.mark.parametrize(
    ("position", "bad", "message"),
    [
        (0, normal(3, 3, 5, 7), r"x must be \[V, N, C, H, W\]; got \[3, 3, 5, 7\]"),
        (0, normal(2, 3, 3, 5, 7), "x must hold 1 or V = 1 variants; got 2"),
        (0, normal(1, 1, 3, 1, 1), "x must hold two values per channel"),
        (0, normal(1, 0, 3, 4, 4), "x must hold two values per channel"),
        (1, normal(6, 3, 3, 3, 3), "weight_1x1 must be"),
        (2, normal(6, 3, 3, 1, 1), r"weight_3x3 must be \[6, 3, 3, 3, 3\]; got \[6, 3, 3, 1, 1\]"),
        (3, normal(1, 5, 5), r"alpha must be .*; got \[1, 5, 5\]"),
        (4, torch.zeros(5, dtype=torch.int64), r"skip_seed must be .*\[6\]; got \[5\]"),
        (4, torch.zeros(6), "skip_seed must be a dense int64 tensor; got a tensor of float32"),
        (5, 1 - 2**-33, r"skip_dropout must be a number in \[0, 1 - 2\^-32\]; got 0.99"),
        (5, float("nan"), r"skip_dropout must be a number in \[0, 1 - 2\^-32\]; got nan"),
    ],
)
def test_mixed_cell_refuses(position: int, bad: Any, message: str) -> None:
    args = mixed_cell_args()
    args[position] = bad
    with pytest.raises(UserError, match=f"mixed_cell: {message}"):
        ops.mixed_cell(*args)
