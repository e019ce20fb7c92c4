"""The native relu_conv and mixed_sum beyond their contract: bad calls, threads, blocks, tracing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cpu_op_cases import CHECKS, all_equal, thread_count
from op_contract import Close, double, flat, gradients, normal, weighted_sum
from torch import Tensor

from vpdarts_fast import native, ops
from vpdarts_fast.contract import reference

pytestmark = [
    pytest.mark.float32,
    pytest.mark.skipif(not native.available(), reason=f"no native extension: {native.why_not()}"),
]


def relu_conv_call(n: int = 5, c: int = 8, size: int = 9, k: int = 3) -> tuple[str, list[Any]]:
    """The op's name and arguments; tensors, also in lists, require gradients. So for the one below."""
    weights = normal(k, c, c, 1, 1, seed=1) * c**-0.5, normal(k, c, c, 3, 3, seed=2) * (c**-0.5 / 3)
    return "relu_conv", [t.float().requires_grad_() for t in (normal(n, c, size, size), *weights)]


def mixed_sum_call(n: int = 5, c: int = 8, size: int = 9, k: int = 3, v: int = 2) -> tuple[str, list[Any]]:
    *terms, scales = (
        [normal(v, n, c, size, size, seed=10 * kind + e).float().requires_grad_() for e in range(k)]
        for kind in range(4)
    )
    return "mixed_sum", [*terms, normal(v, k, 5, seed=99).float().requires_grad_(), scales, 1e-5]


NODE_CALLS = {"relu_conv": relu_conv_call, "mixed_sum": mixed_sum_call}
node_calls = pytest.mark.parametrize("node_call", NODE_CALLS.values(), ids=NODE_CALLS)
NodeCall = Callable[..., tuple[str, list[Any]]]


def differentiable(op: str, outputs: Any) -> list[Tensor]:
    """All outputs but the statistics of mixed_sum."""
    return flat(outputs) if op == "relu_conv" else [outputs[0]]


def node_results(op: str, args: list[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """All that the native op returns, and the gradients of all its tensors."""
    outputs = getattr(torch.ops.vpdarts_fast, op)(*args)
    gradients = torch.autograd.grad(weighted_sum(differentiable(op, outputs)), flat(args))
    return [output.detach() for output in flat(outputs)], list(gradients)


@node_calls
@pytest.mark.parametrize("c", [16, 32, 64])
@pytest.mark.parametrize(("size", "n"), [(4, 13), (8, 9), (17, 2)])
def test_node_ops_of_many_images_and_tails(
    node_call: NodeCall, c: int, size: int, n: int, assert_close: Close
) -> None:
    op, args = node_call(n, c, size)
    outputs, found = node_results(op, args)
    for actual, wanted in zip(outputs, flat(getattr(reference, op)(*double(args))), strict=True):
        assert_close(actual, wanted)
    exact = gradients(getattr(reference, op), double(args), lambda out: differentiable(op, out))
    for actual, wanted in zip(found, exact, strict=True):
        assert_close(actual, wanted)


@node_calls
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_node_ops_are_repeatable(node_call: NodeCall, threads: int, assert_close: Close) -> None:
    """As mixed_cell; the gradients of mixed_sum do not depend on the thread count at all."""
    op, args = node_call(n=11)
    with thread_count(1):
        expected, expected_gradients = node_results(op, args)
    with thread_count(threads):
        first = node_results(op, args)[1]
        for _ in range(5):
            outputs, found = node_results(op, args)
            assert all_equal(outputs, expected)
            assert all_equal(found, first)
    if op == "mixed_sum":
        assert all_equal(first, expected_gradients)
    for gradient, wanted in zip(first, expected_gradients, strict=True):
        assert_close(gradient, wanted)


@pytest.mark.parametrize(
    ("position", "bad", "message"),
    [
        (0, torch.zeros(5, 8, 9, 9, dtype=torch.float64), "x must be float32"),
        (0, torch.zeros(8, 9, 9), r"x must be \[N, C, H, W\]; got 3 dimensions"),
        (0, torch.zeros(5, 7, 9, 9), r"weight_1x1 must have shape \[3, 7, 7, 1, 1\]"),
        (1, torch.zeros(3, 8, 8), r"weight_1x1 must be \[k, C, C, 1, 1\]; got 3 dimensions"),
        (1, torch.zeros(3, 8, 8, 1, 1).half(), "weight_1x1 must be float32"),
        (2, torch.zeros(2, 8, 8, 3, 3), r"weight_3x3 must have shape \[3, 8, 8, 3, 3\]"),
    ],
)
def test_hostile_arguments_of_relu_conv_are_refused_by_the_native_side(
    position: int, bad: Tensor, message: str
) -> None:
    op, args = relu_conv_call()
    args[position] = bad
    with pytest.raises(RuntimeError, match=f"{op}: {message}"):
        torch.ops.vpdarts_fast.relu_conv(*args)
    with pytest.raises(RuntimeError, match=f"{op}: {message}"):
        torch.ops.vpdarts_fast.relu_conv_backward([], [], *args, True, True, True)


@pytest.mark.parametrize(
    "wrong", [[torch.zeros(5, 8, 9, 9)] * 2, [torch.zeros(5, 8, 9, 8)] * 3], ids=["few", "narrow"]
)
def test_wrong_gradients_are_refused_by_the_native_side(wrong: list[Tensor]) -> None:
    _, args = relu_conv_call()
    right = [torch.zeros(5, 8, 9, 9)] * 3
    for incoming in ((wrong, right), (right, wrong)):
        with pytest.raises(RuntimeError, match=r"relu_conv: gradient_.x. must h"):
            torch.ops.vpdarts_fast.relu_conv_backward(*incoming, *args, True, True, True)


@pytest.mark.parametrize(
    ("position", "bad", "message"),
    [
        (0, [], "xs must hold at least one tensor"),
        (0, [torch.zeros(5, 8, 9, 9)] * 3, r"xs must be \[V, N, C, H, W\]; got 4 dimensions"),
        (0, [torch.zeros(2, 1, 8, 1, 1)] * 3, "xs must hold a variant, and two values per channel; got V,"),
        (0, [torch.zeros(2, 5, 8, 9, 9).double()] * 3, "xs must be float32"),
        (1, [torch.zeros(2, 5, 8, 9, 9)] * 2, "raw_1x1 must hold 3 tensors; got 2"),
        (2, [torch.zeros(1, 5, 8, 9, 9)] * 3, r"raw_3x3 must have shape \[2, 5, 8, 9, 9\]"),
        (3, torch.zeros(2, 2, 5), r"alpha must have shape \[2, 3, 5\]"),
        (4, [torch.zeros(2, 5, 8, 9, 9)], "skip_scale must hold 3 tensors; got 1"),
    ],
)
def test_hostile_arguments_of_mixed_sum_are_refused_by_the_native_side(
    position: int, bad: Any, message: str
) -> None:
    op, args = mixed_sum_call()
    args[position] = bad
    with pytest.raises(RuntimeError, match=f"{op}: {message}"):
        torch.ops.vpdarts_fast.mixed_sum(*args)


def test_wants_that_do_not_fit_are_refused_by_the_native_side() -> None:
    _, args = mixed_sum_call()
    node, *statistics = torch.ops.vpdarts_fast.mixed_sum(*args)
    for which in (0, 1, 2, 4):
        wants: list[Any] = [[True] * 3, [True] * 3, [True] * 3, True, [True] * 3]
        wants[which] = [True] * 2
        with pytest.raises(RuntimeError, match=r"mixed_sum: wants_.* must hold 3 values; got 2"):
            torch.ops.vpdarts_fast.mixed_sum_backward(node, *args, *statistics, *wants)


@node_calls
@pytest.mark.parametrize("c", [5, 8])
def test_schema_fake_and_autograd_of_node_ops(node_call: NodeCall, c: int) -> None:
    op, args = node_call(c=c)
    torch.library.opcheck(getattr(torch.ops.vpdarts_fast, op).default, tuple(args), test_utils=CHECKS)


def detached(value: Any) -> Any:
    """Tensors, also in lists, without gradients."""
    if isinstance(value, Tensor):
        return value.detach()
    return [detached(item) for item in value] if isinstance(value, list) else value


def test_schema_and_fake_of_the_node_ops_backward_passes() -> None:
    _, args = relu_conv_call(c=5)
    ones = [torch.ones_like(args[0]).detach() for _ in range(3)]
    backward = torch.ops.vpdarts_fast.relu_conv_backward.default
    for wants in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
        call = ones, ones, *detached(args), *wants
        torch.library.opcheck(backward, call, test_utils=CHECKS[:2])
    _, args = mixed_sum_call(c=5)
    node, *statistics = torch.ops.vpdarts_fast.mixed_sum(*detached(args))
    backward = torch.ops.vpdarts_fast.mixed_sum_backward.default
    some, none = [True, False, True], [False] * 3
    for wanted in ((some, none, some, True, none), (none, some, none, False, some)):
        call = torch.ones_like(node), *detached(args), *statistics, *wanted
        torch.library.opcheck(backward, call, test_utils=CHECKS[:2])


def test_node_ops_compile_without_a_graph_break() -> None:
    """The public functions one behind the other, forward and backward."""
    _, (x, weight_1x1, weight_3x3) = relu_conv_call()
    alpha = normal(1, 3, 5).float().requires_grad_()

    def loss(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        x, weight_1x1, weight_3x3, alpha = leaves
        raws = ops.relu_conv(x, weight_1x1, weight_3x3, backend="cpu")
        raw_1x1, raw_3x3 = ([raw[None] for raw in some] for some in raws)
        node, mean, _ = ops.mixed_sum([x[None]] * 3, raw_1x1, raw_3x3, alpha, backend="cpu")
        return (node * torch.cos(node)).sum(), mean

    def run(function: Callable[..., tuple[Tensor, Tensor]]) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (x, weight_1x1, weight_3x3, alpha)]
        value, mean = function(*leaves)
        return [value.detach(), mean, *torch.autograd.grad(value, leaves)]

    assert all_equal(run(torch.compile(loss, fullgraph=True, backend="aot_eager")), run(loss))
