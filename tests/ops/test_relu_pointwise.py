"""`relu_pointwise`: the op contract, held by every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
from torch import Tensor, nn

from vpdarts_fast import ops
from vpdarts_fast.contract import reference
from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.blocks import ReLUConvBN
from vpdarts_fast.spaces.darts.operations import FactorizedReduce

OP = "relu_pointwise"
FORMS = {"one": (1, 1), "one of stride 2": (2, 1), "two": (2, 2)}
"""Stride and number of convolutions."""
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def args_of(
    form: tuple[int, int],
    n: int = 2,
    c: int = 3,
    size: tuple[int, int] = (5, 7),
    dtype: torch.dtype = torch.float64,
    outs: tuple[int, int] = (3, 2),
) -> list[Any]:
    stride, count = form
    weights = [normal(out, c, 1, 1, dtype=dtype, seed=i + 1) * c**-0.5 for i, out in enumerate(outs[:count])]
    return [normal(n, c, *size, dtype=dtype), weights, stride]


@every_form
@served(OP, BOTH)
@pytest.mark.parametrize("c", CHANNELS)
def test_relu_pointwise_values(
    backend: str, dtype: torch.dtype, c: int, form: tuple[int, int], assert_close: Close
) -> None:
    for outs, n, size in half_of(CHANNELS.index(c), ((1, 1), (4, 4), (3, 14), (40, 8)), (0, 1, 4), SIZES):
        check_against_reference(OP, args_of(form, n, c, size, dtype, outs), backend, assert_close)


@every_form
@served(OP, ALL)
def test_relu_pointwise_dtypes(
    backend: str, dtype: torch.dtype, form: tuple[int, int], assert_close: Close
) -> None:
    check_against_reference(OP, args_of(form, c=8, dtype=dtype), backend, assert_close)


@every_form
@served(OP, BOTH)
@every_layout
def test_relu_pointwise_layouts(
    backend: str,
    dtype: torch.dtype,
    layout: Callable[[Tensor], Tensor],
    form: tuple[int, int],
    assert_close: Close,
) -> None:
    for c, size in ((3, (5, 7)), (16, (8, 8))):
        x, weights, stride = args_of(form, c=c, size=size, dtype=dtype, outs=(16, 16))
        args = [layout(x), [transposed(weight) for weight in weights], stride]
        check_against_reference(OP, args, backend, assert_close)
        check_gradients(OP, args, backend, assert_close)


@every_form
@served(OP, BOTH)
@pytest.mark.parametrize("size", SIZES)
def test_relu_pointwise_gradients(
    backend: str, dtype: torch.dtype, size: tuple[int, int], form: tuple[int, int], assert_close: Close
) -> None:
    for n, c, outs in ((0, 2, (2, 2)), (1, 1, (1, 3)), (4, 3, (5, 1)), (2, 8, (16, 16)), (3, 33, (7, 30))):
        check_gradients(OP, args_of(form, n, c, size, dtype, outs), backend, assert_close)


@every_form
@served(OP, BOTH)
def test_relu_pointwise_second_derivatives(
    backend: str, dtype: torch.dtype, form: tuple[int, int], assert_close: Close
) -> None:
    check_second_derivatives(OP, args_of(form, dtype=dtype), backend, assert_close)


@every_form
@backends_in(OP, torch.float64)
def test_relu_pointwise_gradcheck(backend: str, form: tuple[int, int]) -> None:
    x, weights, stride = args_of(form, c=2, size=(3, 4))

    def op(x: Tensor, *weights: Tensor) -> Tensor:
        return ops.relu_pointwise(x, weights, stride, backend=backend)

    assert torch.autograd.gradcheck(op, [arg.requires_grad_() for arg in (x, *weights)])


@every_form
@served(OP, BOTH)
@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)], ids=str)
def test_relu_pointwise_gives_only_the_gradients_asked_for(
    backend: str, dtype: torch.dtype, wanted: tuple[int, ...], form: tuple[int, int], assert_close: Close
) -> None:
    args = args_of(form, dtype=dtype)
    expected = gradients(reference.relu_pointwise, double(args), lambda out: [out])
    tensors = flat(args[:2])
    for i in wanted:
        tensors[i].requires_grad_()
    weighted_sum([ops.relu_pointwise(*args, backend=backend)]).backward()  # type: ignore[no-untyped-call]
    for i, tensor in enumerate(tensors):
        assert (tensor.grad is not None) == (i in wanted)
        if tensor.grad is not None:
            assert_close(tensor.grad, expected[i])


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 1)])
def test_the_reference_is_what_networks_compute(size: tuple[int, int]) -> None:
    """The convolutions of both modules between cells; their batch norms as those of a fresh model."""
    x = normal(2, 6, *size)
    halving = FactorizedReduce(6, 5, affine=False).double().eval()
    between = ReLUConvBN(6, 5, 1, 1, affine=False).double().eval()
    scale = (1 + 1e-5) ** -0.5
    weights = [halving.conv_1.weight, halving.conv_2.weight]
    torch.testing.assert_close(reference.relu_pointwise(x, weights, 2) * scale, halving(x))
    (conv,) = (layer for layer in between.modules() if isinstance(layer, nn.Conv2d))
    torch.testing.assert_close(reference.relu_pointwise(x, [conv.weight]) * scale, between(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": normal(3, 5, 7)}, r"x must be \[N, C, H, W\].*; got \[3, 5, 7\]"),
        ({"x": normal(2, 3, 0, 7)}, "x must be .* at least 1"),
        ({"weights": normal(3, 3, 1, 1)}, "weights must be a list or a tuple of tensors"),
        ({"weights": []}, "weights must hold one or two tensors at stride 2; got 0"),
        ({"weights": [normal(3, 3, 1, 1)] * 3}, "weights must hold one or two tensors at stride 2; got 3"),
        ({"stride": 1}, "weights must hold one tensor at stride 1; got 2"),
        ({"stride": 3}, "stride must be 1 or 2; got 3"),
        ({"weights": [normal(3, 4, 1, 1)]}, r"weights\[0\] must be \[3, 3, 1, 1\]; got \[3, 4, 1, 1\]"),
        ({"weights": [normal(3, 3, 1, 1), normal(3, 3, 3, 3)]}, r"weights\[1\] must be \[3, 3, 1, 1\]"),
        ({"weights": [normal(0, 3, 1, 1)]}, r"weights\[0\] must be \[C_i, C, 1, 1\]"),
        ({"weights": [normal(3, 3, 1, 1).float()]}, r"weights\[0\] must"),
    ],
)
def test_relu_pointwise_refuses(changes: dict[str, Any], message: str) -> None:
    args = dict(zip(("x", "weights", "stride"), args_of((2, 2)), strict=True))
    with pytest.raises(UserError, match=f"relu_pointwise: {message}"):
        ops.relu_pointwise(**args | changes)
