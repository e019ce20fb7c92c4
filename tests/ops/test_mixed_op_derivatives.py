"""`mixed_op`: first and second derivatives in the op contract, held by every backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mixed_op_cases import (
    CHANNELS,
    SIZES,
    check,
    darts,
    mixed_op_args,
    norm,
    others,
    output_only,
    reference_of_output,
    stage,
)
from op_contract import (
    BOTH,
    Close,
    backends_in,
    check_second_derivatives,
    double,
    flat,
    gradients,
    half_of,
    normal,
    second_derivatives,
    served,
    true_derivatives,
    weighted_sum,
    with_tensors,
)
from torch import Tensor

from vpdarts_fast import ops
from vpdarts_fast.contract import reference
from vpdarts_fast.contract.branches import Branch, Given, Pool, SepConv


@served("mixed_op", BOTH)
@pytest.mark.parametrize("branches", [darts, others])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("c", CHANNELS)
def test_mixed_op_gradients(
    backend: str,
    dtype: torch.dtype,
    branches: Callable[..., list[Branch]],
    stride: int,
    c: int,
    assert_close: Close,
) -> None:
    for (size,) in half_of(CHANNELS.index(c) + stride + (branches is others), SIZES):
        check(mixed_op_args(1, 9, c, size, stride, dtype, branches=branches), backend, assert_close)


@served("mixed_op", BOTH)
@pytest.mark.parametrize("stride", [1, 2])
def test_mixed_op_sends_the_gradient_of_a_max_pool_to_the_first_maximum(
    backend: str, dtype: torch.dtype, stride: int
) -> None:
    """As PyTorch, where values repeat."""
    x = normal(1, 2, 16, 6, 7).mul(2).round().to(dtype).requires_grad_()
    same = x.detach().clone().requires_grad_()
    out, _, _ = ops.mixed_op(x, torch.ones(1, 1, dtype=dtype), [Pool("max")], stride, backend=backend)
    wanted = F.max_pool2d(same[0], 3, stride, padding=1)
    assert torch.equal(out[0], wanted)
    weights = normal(*out.shape, seed=3).round().to(dtype)
    out.backward(weights)  # type: ignore[no-untyped-call]
    wanted.backward(weights[0])  # type: ignore[no-untyped-call]
    assert torch.equal(x.grad, same.grad)


@served("mixed_op", BOTH)
@pytest.mark.parametrize("branches", [darts, others])
@pytest.mark.parametrize("stride", [1, 2])
def test_mixed_op_second_derivatives(
    backend: str,
    dtype: torch.dtype,
    branches: Callable[..., list[Branch]],
    stride: int,
    assert_close: Close,
) -> None:
    for ((v, shared),) in half_of(stride + (branches is others), ((1, False), (2, True), (2, False))):
        args = mixed_op_args(v, 4, 4, (5, 7), stride, dtype, shared, branches)
        check_second_derivatives("mixed_op", args, backend, assert_close, output_only)


@served("mixed_op", BOTH)
def test_mixed_op_second_derivatives_with_fixed_statistics(
    backend: str, dtype: torch.dtype, assert_close: Close
) -> None:
    *args, statistics = mixed_op_args(2, 3, 4, dtype=dtype, branches=others, fixed=True)

    def output(*some: Any) -> Any:
        return ops.mixed_op(*some, statistics, backend=backend)

    def wanted(*some: Any) -> Any:
        return reference.mixed_op(*some, statistics.double())

    found = second_derivatives(output, args, output_only)
    for derivative, expected in zip(
        found, second_derivatives(wanted, double(args), output_only), strict=True
    ):
        assert_close(derivative, expected)


@backends_in("mixed_op", torch.float64)
@pytest.mark.parametrize("branches", [darts, others])
@pytest.mark.parametrize("stride", [1, 2])
def test_mixed_op_gradcheck(backend: str, branches: Callable[..., list[Branch]], stride: int) -> None:
    args = mixed_op_args(n=3, c=2, size=(3, 2), stride=stride, branches=branches)[:4]
    leaves = [tensor.requires_grad_() for tensor in flat(args)]

    def output(*tensors: Tensor) -> Tensor:
        iterator = iter(tensors)
        return ops.mixed_op(*with_tensors(args, lambda _: next(iterator)), backend=backend)[0]

    assert torch.autograd.gradcheck(output, leaves)


@served("mixed_op", BOTH)
@pytest.mark.parametrize("wanted", [[0], [1], [0, 1], [2], [3], [4, 6], [9, 1], [5, 0], [11], [12]], ids=str)
def test_mixed_op_gives_only_the_gradients_asked_for(
    backend: str, dtype: torch.dtype, wanted: list[int], assert_close: Close
) -> None:
    """x, alpha, a given term and two convolutions, one of two stages, with all they have."""
    args = mixed_op_args(c=4, dtype=dtype)[:3]
    first, second = stage(4, 3, 1, 40, norm(4, 10)), stage(4, 5, 1, 42, norm(4, 12))
    args[2] = [Given(normal(1, 3, 4, 5, 7)), SepConv((first, second)), SepConv((replace(first, dilation=2),))]
    args[1] = args[1][:, :3].contiguous()
    args = with_tensors(args, lambda tensor: tensor.detach().clone().to(dtype))
    expected = true_derivatives(lambda exact: gradients(reference_of_output, exact, output_only), args)
    leaves = flat(args)
    for i in wanted:
        leaves[i].requires_grad_()
    out, mean, variance = ops.mixed_op(*args, backend=backend)
    assert not mean.requires_grad and not variance.requires_grad
    weighted_sum([out]).backward()  # type: ignore[no-untyped-call]
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (i in wanted)
        if leaf.grad is not None:
            assert_close(leaf.grad, expected[i])
