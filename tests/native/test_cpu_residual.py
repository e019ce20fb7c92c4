"""The native residual blocks beyond their contract: bad calls, threads, blocks, tracing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cpu_op_cases import CHECKS, all_equal, thread_count
from op_contract import Close, double, normal, true_derivatives, weighted_sum
from torch import Tensor

from vpdarts_fast import native, ops
from vpdarts_fast.contract import reference

pytestmark = [
    pytest.mark.float32,
    pytest.mark.skipif(not native.available(), reason=f"no native extension: {native.why_not()}"),
]

NATIVE: Any = torch.ops.vpdarts_fast


def arguments(n: int = 5, c: int = 8, c_out: int = 16, size: int = 9) -> list[Any]:
    """x, weights, and scale and shift or gamma and beta of the native ops, which require gradients."""
    tensors = (
        normal(n, c, size, size),
        normal(c_out, c, 3, 3, seed=1) * (c**-0.5 / 3),
        normal(c_out, c_out, 3, 3, seed=2) * (c_out**-0.5 / 3),
        normal(c_out, c, 1, 1, seed=3) * c**-0.5,
        normal(2, c_out, seed=4) + 1,
        normal(2, c_out, seed=5),
    )
    return [tensor.float().requires_grad_() for tensor in tensors]


def fixed(args: list[Any]) -> Tensor:
    out: Tensor = NATIVE.residual_block(*(arg.detach() for arg in args))
    return out


def trained(args: list[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """All that trained_residual_block returns, and the gradients of all tensors."""
    leaves = [tensor.detach().requires_grad_() for tensor in args]
    outputs = list(NATIVE.trained_residual_block(*leaves, 1e-3))
    gradients = torch.autograd.grad(weighted_sum(outputs[:1]), leaves)
    return [output.detach() for output in outputs], list(gradients)


@pytest.mark.parametrize(("c", "c_out"), [(16, 32), (32, 64), (64, 48), (20, 96)])
@pytest.mark.parametrize(("size", "n"), [(4, 70), (8, 37), (17, 9), (34, 3)])
def test_many_images_and_tails(c: int, c_out: int, size: int, n: int, assert_close: Close) -> None:
    """Blocks of several images with a smaller last one, more than six tiles; values and gradients."""
    args = arguments(n, c, c_out, size)
    assert_close(fixed(args), reference.residual_block(*double(args)).detach())

    def true(exact: list[Any]) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in exact]
        outputs = reference.trained_residual_block(*leaves, 1e-3)
        return [*outputs, *torch.autograd.grad(weighted_sum(outputs[:1]), leaves)]

    expected = true_derivatives(true, args)
    outputs, gradients = trained(args)
    for actual, wanted in zip([*outputs[:3], *gradients], expected, strict=True):
        assert_close(actual, wanted)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_residual_blocks_are_repeatable(threads: int, assert_close: Close) -> None:
    """Outputs do not depend on the thread count; gradients are sums whose order it fixes."""
    args = arguments(n=43)
    with thread_count(1):
        expected, expected_gradients = trained(args)
        of_fixed = fixed(args)
    with thread_count(threads):
        assert torch.equal(fixed(args), of_fixed)
        first = trained(args)[1]
        for _ in range(5):
            outputs, gradients = trained(args)
            assert all_equal(outputs, expected)
            assert all_equal(gradients, first)
    for gradient, wanted in zip(first, expected_gradients, strict=True):
        assert_close(gradient, wanted)


@pytest.mark.parametrize("op", ["residual_block", "trained_residual_block"])
@pytest.mark.parametrize(
    ("position", "bad", "message"),
    [
        (0, torch.zeros(5, 8, 9, 9, dtype=torch.float64), "x must be float32"),
        (0, torch.zeros(8, 9, 9), r"x must be \[N, C, H, W\]; got 3 dimensions"),
        (0, torch.zeros(5, 7, 9, 9), r"weight_a must have shape \[16, 7, 3, 3\]"),
        (0, torch.zeros(5, 8, 0, 9), "C, H, W and C_out must be at least 1; got x of"),
        (1, torch.zeros(16, 8, 9), r"weight_a must be \[C_out, C, 3, 3\]; got 3 dimensions"),
        (1, torch.zeros(16, 8, 3, 2), r"weight_a must have shape \[16, 8, 3, 3\]"),
        (2, torch.zeros(16, 8, 3, 3), r"weight_b must have shape \[16, 16, 3, 3\]"),
        (3, torch.zeros(16, 8), r"weight_shortcut must have shape \[16, 8, 1, 1\]"),
        (4, torch.zeros(16), r"(scale|gamma) must have shape \[2, 16\]"),
        (5, torch.zeros(2, 16, dtype=torch.int64), "(shift|beta) must be float32"),
    ],
)
def test_hostile_arguments_of_residual_blocks_are_refused_by_the_native_side(
    op: str, position: int, bad: Tensor, message: str
) -> None:
    args = [arg.detach() for arg in arguments()]
    args[position] = bad
    settings = [1e-3] if op == "trained_residual_block" else []
    with pytest.raises(RuntimeError, match=f"{op}: {message}"):
        getattr(NATIVE, op)(*args, *settings)


@pytest.mark.parametrize("shape", [(1, 8, 2, 2), (0, 8, 9, 9)])
def test_a_lone_value_has_no_statistics(shape: tuple[int, ...]) -> None:
    args = [arg.detach() for arg in arguments()]
    args[0] = torch.zeros(shape)
    with pytest.raises(RuntimeError, match="the output must hold two values per channel"):
        NATIVE.trained_residual_block(*args, 1e-3)


@pytest.mark.parametrize(("c", "c_out"), [(5, 3), (8, 16)])
def test_schema_fake_and_autograd_of_residual_blocks(c: int, c_out: int) -> None:
    args = arguments(c=c, c_out=c_out)
    inputs = [arg.detach() for arg in args]
    torch.library.opcheck(NATIVE.residual_block.default, tuple(inputs), test_utils=CHECKS[:2])
    torch.library.opcheck(NATIVE.trained_residual_block.default, (*args, 1e-3), test_utils=CHECKS)
    out, *saved = NATIVE.trained_residual_block(*inputs, 1e-3)
    backward = NATIVE.trained_residual_block_backward.default
    for wanted in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
        call = torch.ones_like(out), *inputs, 1e-3, *saved, *wanted
        torch.library.opcheck(backward, call, test_utils=CHECKS[:2])


def test_trained_residual_block_compiles_without_a_graph_break() -> None:
    """The public function, forward and backward."""
    args = arguments()

    def loss(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        out, mean, _ = ops.trained_residual_block(*tensors, 1e-3, backend="cpu")
        return (out * torch.cos(out)).sum(), mean

    def run(function: Callable[..., tuple[Tensor, Tensor]]) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in args]
        value, mean = function(*leaves)
        return [value.detach(), mean, *torch.autograd.grad(value, leaves)]

    assert all_equal(run(torch.compile(loss, fullgraph=True, backend="aot_eager")), run(loss))
