"""`relu_conv`: the op contract, held by every backend."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from op_contract import (
    ALL,
    BOTH,
    CHANNELS,
    SIZES,
    Close,
    backends_in,
    check_against_reference,
    check_gradients,
    check_second_derivatives,
    double,
    every_layout,
    flat,
    gradients,
    half_of,
    normal,
    served,
    transposed,
    weighted_sum,
)
from torch import Tensor

from vpdarts_fast import ops
from vpdarts_fast.contract import reference
from vpdarts_fast.errors import UserError


def relu_conv_args(
    k: int = 3, n: int = 2, c: int = 3, size: tuple[int, int] = (5, 7), dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        normal(n, c, *size, dtype=dtype),
        normal(k, c, c, 1, 1, dtype=dtype, seed=1),
        normal(k, c, c, 3, 3, dtype=dtype, seed=2),
    )


@served("relu_conv", BOTH)
@pytest.mark.parametrize("c", CHANNELS)
def test_relu_conv_values(backend: str, dtype: torch.dtype, c: int, assert_close: Close) -> None:
    for k, n, size in half_of(CHANNELS.index(c), (1, 3), (0, 1, 4), SIZES):
        check_against_reference("relu_conv", relu_conv_args(k, n, c, size, dtype), backend, assert_close)


@served("relu_conv", ALL)
def test_relu_conv_dtypes(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    check_against_reference("relu_conv", relu_conv_args(c=8, dtype=dtype), backend, assert_close)


@served("relu_conv", BOTH)
@every_layout
def test_relu_conv_layouts(
    backend: str, dtype: torch.dtype, layout: Callable[[Tensor], Tensor], assert_close: Close
) -> None:
    for c, size in ((3, (5, 7)), (16, (8, 8))):
        x, weight_1x1, weight_3x3 = relu_conv_args(c=c, size=size, dtype=dtype)
        args = layout(x), weight_1x1.transpose(1, 2), transposed(weight_3x3)
        check_against_reference("relu_conv", args, backend, assert_close)
        check_gradients("relu_conv", args, backend, assert_close)


@served("relu_conv", BOTH)
@pytest.mark.parametrize("k", [0, 1, 7])
def test_relu_conv_of_any_number_of_edges(
    backend: str, dtype: torch.dtype, k: int, assert_close: Close
) -> None:
    args = relu_conv_args(k, dtype=dtype)
    check_against_reference("relu_conv", args, backend, assert_close)
    if k > 0:
        check_gradients("relu_conv", args, backend, assert_close)


@served("relu_conv", BOTH)
def test_relu_conv_of_an_empty_batch_has_gradients(
    backend: str, dtype: torch.dtype, assert_close: Close
) -> None:
    check_gradients("relu_conv", relu_conv_args(n=0, dtype=dtype), backend, assert_close)


@served("relu_conv", BOTH)
@pytest.mark.parametrize("size", SIZES)
def test_relu_conv_gradients(
    backend: str, dtype: torch.dtype, size: tuple[int, int], assert_close: Close
) -> None:
    for k, n, c in ((1, 1, 1), (3, 4, 3), (2, 2, 8)):
        check_gradients("relu_conv", relu_conv_args(k, n, c, size, dtype), backend, assert_close)


@served("relu_conv", BOTH)
def test_relu_conv_second_derivatives(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    check_second_derivatives("relu_conv", relu_conv_args(dtype=dtype), backend, assert_close)


@backends_in("relu_conv", torch.float64)
def test_relu_conv_gradcheck(backend: str) -> None:
    args = [arg.requires_grad_() for arg in relu_conv_args(k=2, n=2, c=2, size=(3, 4))]
    assert torch.autograd.gradcheck(lambda *a: tuple(flat(ops.relu_conv(*a, backend=backend))), args)


@served("relu_conv", BOTH)
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
def test_relu_conv_gives_only_the_gradients_asked_for(
    backend: str, dtype: torch.dtype, wanted: tuple[int, ...], assert_close: Close
) -> None:
    args = list(relu_conv_args(dtype=dtype))
    expected = gradients(reference.relu_conv, double(args), flat)
    for i in wanted:
        args[i].requires_grad_()
    outputs = flat(ops.relu_conv(*args, backend=backend))
    weighted_sum(outputs).backward()  # type: ignore[no-untyped-call]
    for i, arg in enumerate(args):
        assert (arg.grad is not None) == (i in wanted)
        if arg.grad is not None:
            assert_close(arg.grad, expected[i])


@served("relu_conv", BOTH)
@pytest.mark.parametrize("used", [[0, 4], [1, 2, 3]], ids=str)
def test_relu_conv_where_only_some_outputs_are_used(
    backend: str, dtype: torch.dtype, used: list[int], assert_close: Close
) -> None:
    check_gradients(
        "relu_conv",
        relu_conv_args(dtype=dtype),
        backend,
        assert_close,
        lambda out: [flat(out)[i] for i in used],
    )


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (3, 5, 7), r"x must be \[N, C, H, W\]; got \[3, 5, 7\]"),
        (0, (2, 4, 5, 7), r"weight_1x1 must be .* = \[3, 4, 4, 1, 1\]"),
        (1, (3, 3, 3, 1), "weight_1x1 must be"),
        (1, (3, 3, 4, 1, 1), "weight_1x1 must be"),
        (1, (3, 3, 3, 3, 3), "weight_1x1 must be"),
        (1, (), "weight_1x1 must be"),
        (2, (3, 3, 3, 1, 1), "weight_3x3 must be"),
        (2, (2, 3, 3, 3, 3), r"weight_3x3 must be .* = \[3, 3, 3, 3, 3\]; got \[2, 3, 3, 3, 3\]"),
    ],
)
def test_relu_conv_refuses(position: int, shape: tuple[int, ...], message: str) -> None:
    args = list(relu_conv_args())
    args[position] = normal(*shape)
    with pytest.raises(UserError, match=f"relu_conv: {message}"):
        ops.relu_conv(*args)
