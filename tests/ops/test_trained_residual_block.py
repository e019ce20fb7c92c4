"""`trained_residual_block`: the op contract, held by every backend."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_arguments import trained_residual_block_args
from op_contract import (
    ALL,
    BOTH,
    Close,
    backends_in,
    check_against_reference,
    check_gradients,
    check_second_derivatives,
    every_layout,
    gradients,
    half_of,
    normal,
    served,
    sliced,
    transposed,
    true_derivatives,
    weighted_sum,
)
from torch import Tensor

from vpdarts_fast import ops
from vpdarts_fast.contract import reference
from vpdarts_fast.errors import UserError
from vpdarts_fast.spaces.blocks import ResidualBlock

CHANNELS = ((1, 2), (3, 5), (8, 16), (16, 32), (24, 8), (32, 64))
SIZES = ((1, 1), (1, 6), (2, 2), (5, 7), (16, 16), (32, 9))


def output_only(outputs: Any) -> list[Tensor]:
    """The statistics are not differentiable."""
    return [outputs[0]]


@served("trained_residual_block", BOTH)
@pytest.mark.parametrize("channels", CHANNELS)
def test_trained_residual_block_values(
    backend: str, dtype: torch.dtype, channels: tuple[int, int], assert_close: Close
) -> None:
    for n, size in half_of(CHANNELS.index(channels), (2, 5), SIZES):
        args = trained_residual_block_args(n, channels, size, dtype)
        check_against_reference("trained_residual_block", args, backend, assert_close)


@served("trained_residual_block", ALL)
def test_trained_residual_block_dtypes(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    args = trained_residual_block_args(channels=(8, 16), dtype=dtype)
    check_against_reference("trained_residual_block", args, backend, assert_close)


@served("trained_residual_block", BOTH)
@pytest.mark.parametrize("channels", CHANNELS)
def test_trained_residual_block_gradients(
    backend: str, dtype: torch.dtype, channels: tuple[int, int], assert_close: Close
) -> None:
    # Of two values only the signs are left after a batch norm: no gradient but rounding. Hence many images.
    for n, size in half_of(CHANNELS.index(channels), (7, 16), SIZES):
        args = trained_residual_block_args(n, channels, size, dtype, eps=0.1)
        check_gradients("trained_residual_block", args, backend, assert_close, output_only)


@served("trained_residual_block", BOTH)
def test_trained_residual_block_of_many_images(backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    """Blocks of several images with a smaller last one."""
    for n in (15, 16, 17, 33):
        args = trained_residual_block_args(n, (8, 16), (8, 8), dtype)
        check_against_reference("trained_residual_block", args, backend, assert_close)
        check_gradients("trained_residual_block", args, backend, assert_close, output_only)


@served("trained_residual_block", BOTH)
@every_layout
def test_trained_residual_block_layouts(
    backend: str, dtype: torch.dtype, layout: Callable[[Tensor], Tensor], assert_close: Close
) -> None:
    for channels in ((3, 5), (16, 16)):
        x, *weights, gamma, beta, eps = trained_residual_block_args(channels=channels, dtype=dtype)
        args = [
            layout(x),
            *(weight.transpose(0, 1).contiguous().transpose(0, 1) for weight in weights),
            transposed(gamma),
            sliced(beta),
            eps,
        ]
        check_against_reference("trained_residual_block", args, backend, assert_close)
        check_gradients("trained_residual_block", args, backend, assert_close, output_only)


@served("trained_residual_block", BOTH)
def test_trained_residual_block_normalises_with_its_own_statistics(
    backend: str, dtype: torch.dtype, assert_close: Close
) -> None:
    x, weight_a, *rest = trained_residual_block_args(dtype=dtype)
    _, mean, variance = ops.trained_residual_block(x + 100, weight_a, *rest, backend=backend)
    raw = F.conv2d(x.double() + 100, weight_a.double(), stride=2, padding=1).transpose(0, 1).flatten(1)
    assert_close(mean[0], raw.mean(1))
    torch.testing.assert_close(variance[0].double(), raw.var(1, correction=0), rtol=1e-3, atol=0)


@served("trained_residual_block", BOTH)
def test_trained_residual_block_second_derivatives(
    backend: str, dtype: torch.dtype, assert_close: Close
) -> None:
    args = trained_residual_block_args(7, (8, 16), dtype=dtype, eps=0.1)
    check_second_derivatives("trained_residual_block", args, backend, assert_close, output_only)


@backends_in("trained_residual_block", torch.float64)
@pytest.mark.parametrize("size", [(3, 4), (2, 5)])
def test_trained_residual_block_gradcheck(backend: str, size: tuple[int, int]) -> None:
    *tensors, eps = trained_residual_block_args(channels=(2, 3), size=size)

    def output(*tensors: Tensor) -> Tensor:
        return ops.trained_residual_block(*tensors, eps, backend=backend)[0]

    assert torch.autograd.gradcheck(output, [tensor.requires_grad_() for tensor in tensors])


@served("trained_residual_block", BOTH)
@pytest.mark.parametrize(
    "wanted", [(0,), (1,), (2,), (3,), (4,), (5,), (1, 4), (0, 5), (0, 1, 2, 3)], ids=str
)
def test_trained_residual_block_gives_only_the_gradients_asked_for(
    backend: str, dtype: torch.dtype, wanted: tuple[int, ...], assert_close: Close
) -> None:
    args = trained_residual_block_args(channels=(8, 16), dtype=dtype)
    expected = true_derivatives(
        lambda exact: gradients(reference.trained_residual_block, exact, output_only), args
    )
    for i in wanted:
        args[i].requires_grad_()
    out, mean, variance = ops.trained_residual_block(*args, backend=backend)
    assert not mean.requires_grad and not variance.requires_grad
    weighted_sum([out]).backward()  # type: ignore[no-untyped-call]
    for i, arg in enumerate(args[:6]):
        assert (arg.grad is not None) == (i in wanted)
        if arg.grad is not None:
            assert_close(arg.grad, expected[i])


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)])
@pytest.mark.parametrize("momentum", [None, 0.25])
def test_trained_residual_block_is_the_module(
    dtype: torch.dtype, size: tuple[int, int], momentum: float | None, assert_close: Close
) -> None:
    """Output, gradients and running statistics, whatever backend the registry takes."""
    torch.manual_seed(0)
    plain = ResidualBlock(4, 8).double()
    for norm in plain.norms:
        norm.momentum = momentum
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    fused = copy.deepcopy(plain).to(dtype)
    fused.fused = True
    for seed in range(3):
        x = normal(9, 4, *size, seed=seed)
        exact, own = x.clone().requires_grad_(), x.to(dtype).requires_grad_()
        expected, actual = plain(exact), fused(own)
        assert_close(actual, expected)
        weighted_sum([expected]).backward()  # type: ignore[no-untyped-call]
        weighted_sum([actual]).backward()  # type: ignore[no-untyped-call]
        assert own.grad is not None and exact.grad is not None
        assert_close(own.grad, exact.grad)
    for (name, left), wanted in zip(fused.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(left.double(), wanted.double(), rtol=1e-5, atol=1e-6, msg=name)
    for parameter, same in zip(fused.parameters(), plain.parameters(), strict=True):
        assert parameter.grad is not None and same.grad is not None
        assert_close(parameter.grad, same.grad)
    assert int(fused.conv_b.norm.num_batches_tracked or 0) == 3


def test_a_fused_residual_block_is_plain_in_eval_mode() -> None:
    block = ResidualBlock(4, 8).eval()
    x = normal(3, 4, 8, 8, dtype=torch.float32)
    expected = block(x)
    block.fused = True
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (3, 5, 7), r"x must be \[N, C, H, W\], C, H and W at least 1; got \[3, 5, 7\]"),
        (0, (2, 3, 0, 7), "x must be"),
        (0, (2, 4, 5, 7), r"weight_a must be \[5, 4, 3, 3\]; got \[5, 3, 3, 3\]"),
        (0, (1, 3, 2, 2), r"the output must hold two values per channel; got x of \[1, 3, 2, 2\]"),
        (0, (0, 3, 8, 8), "the output must hold two values per channel"),
        (1, (5, 3, 9), r"weight_a must be \[C_out, C, 3, 3\]; got \[5, 3, 9\]"),
        (1, (0, 3, 3, 3), "weight_a must be"),
        (1, (4, 3, 3, 3), r"weight_b must be \[4, 4, 3, 3\]"),
        (2, (5, 5, 1, 1), r"weight_b must be \[5, 5, 3, 3\]"),
        (3, (5, 3), r"weight_shortcut must be \[5, 3, 1, 1\]"),
        (4, (5,), r"gamma must be \[2, 5\]"),
        (5, (2, 4), r"beta must be \[2, 5\]"),
    ],
)
def test_trained_residual_block_refuses(position: int, shape: tuple[int, ...], message: str) -> None:
    args = trained_residual_block_args()
    args[position] = normal(*shape)
    with pytest.raises(UserError, match=f"trained_residual_block: {message}"):
        ops.trained_residual_block(*args)
