"""The native mixed operation beyond its contract: bad calls, threads, tracing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cpu_op_cases import CHECKS, all_equal, thread_count
from mixed_op_cases import darts, mixed_op_args, others
from op_contract import Close, flat, normal, weighted_sum, with_tensors
from torch import Tensor

from vpdarts_fast import native, ops
from vpdarts_fast.contract.branches import Branch, Given, norms

pytestmark = [
    pytest.mark.float32,
    pytest.mark.skipif(not native.available(), reason=f"no native extension: {native.why_not()}"),
]

NATIVE: Any = torch.ops.vpdarts_fast
DARTS_KINDS, DARTS_NORMS = [0, 3, 2, 5, 4, 4, 4, 4], [0, 1, 1, 1, 2, 2, 1, 1]


def native_args(v: int = 1, n: int = 5, c: int = 5, size: int = 6, fixed: bool = False) -> list[Any]:
    """Of the native op, the DARTS space at stride 2."""
    x, alpha, branches, stride, statistics = mixed_op_args(
        v, n, c, (size, size + 1), 2, torch.float32, fixed=fixed, affine=True
    )
    of = norms(branches)
    stages = [stage for branch in branches for stage in getattr(branch, "stages", ())]
    return [
        x,
        alpha,
        DARTS_KINDS,
        DARTS_NORMS,
        [stage.depthwise for stage in stages],
        [stage.pointwise for stage in stages],
        [stage.dilation for stage in stages],
        [branch.raw for branch in branches if isinstance(branch, Given)],
        torch.stack([norm.gamma for norm in of]),
        torch.stack([norm.beta for norm in of]),
        [norm.eps for norm in of],
        statistics,
        stride,
    ]


def outputs_and_gradients(args: Sequence[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """All that the op returns, and the gradients of all tensors."""
    leaves = with_tensors(list(args), lambda tensor: tensor.detach().requires_grad_())
    outputs = ops.mixed_op(*leaves, backend="cpu")
    gradients = torch.autograd.grad(weighted_sum(outputs[:1]), flat(leaves))
    return [output.detach() for output in outputs], list(gradients)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize(("branches", "stride"), [(darts, 1), (darts, 2), (others, 2)])
def test_mixed_op_is_repeatable(
    threads: int, branches: Callable[..., list[Branch]], stride: int, assert_close: Close
) -> None:
    """Outputs do not depend on the thread count; gradients are sums whose order it fixes."""
    args = mixed_op_args(2, 11, 5, (6, 7), stride, torch.float32, branches=branches)[:4]
    with thread_count(1):
        expected, expected_gradients = outputs_and_gradients(args)
    with thread_count(threads):
        first = outputs_and_gradients(args)[1]
        for _ in range(3):
            outputs, gradients = outputs_and_gradients(args)
            assert all_equal(outputs, expected)
            assert all_equal(gradients, first)
    for gradient, wanted in zip(first, expected_gradients, strict=True):
        assert_close(gradient, wanted)


def test_a_nan_of_an_image_is_not_swallowed() -> None:
    args = mixed_op_args(1, 4, 3, (6, 6), dtype=torch.float32, fixed=True)
    args[0][0, 1, 2, 3, 3] = torch.nan
    out, _, _ = ops.mixed_op(*args, backend="cpu")
    assert out[0, 1, 2].isnan().any()
    assert out[0, [0, 2, 3]].isfinite().all()


BAD: list[tuple[int, Any, str]] = [
    (0, torch.zeros(1, 5, 5, 6, 7, dtype=torch.float64), "x must be float32"),
    (0, torch.zeros(5, 5, 6, 7), r"x must be \[V, N, C, H, W\]; got 4 dimensions"),
    (0, torch.zeros(2, 5, 5, 6, 7), "x must hold 1 or V = 1 variants; got 2"),
    (0, torch.zeros(1, 5, 5, 0, 7), "C, H and W must be at least 1; got x of"),
    (0, torch.zeros(1, 1, 5, 1, 2), r"two values per channel; got x of \[1, 1, 5, 1, 2\]"),
    (1, torch.zeros(8), r"alpha must be \[V, O\]; got 1 dimensions"),
    (1, torch.zeros(1, 7), r"alpha must have shape \[1, 8\]"),
    (1, torch.zeros(0, 8), "x must hold 1 or V = 0 variants"),
    (2, [0, 3, 2, 6, 4, 4, 4, 4], "kinds must be 0 to 5; got 6"),
    (2, [0, 3, 2, -1, 4, 4, 4, 4], "kinds must be 0 to 5; got -1"),
    (2, [1, 3, 2, 5, 4, 4, 4, 4], "a skip connection must have stride 1; got 2"),
    (2, [0, 3, 2, 3, 4, 4, 4, 4], "ask for 9 batch norms, 6 stages and 0 given terms; got 9, 6, 1"),
    (3, [0, 1, 1, 1, 2, 2, 1], "norms must be as long as kinds, 8; got 7"),
    (3, [1, 1, 1, 1, 2, 2, 1, 1], "norms must be 0 to 0 for kind 0; got 1"),
    (3, [0, 1, 1, 1, 3, 1, 1, 1], "norms must be 1 to 2 for kind 4; got 3"),
    (3, [0, 1, 1, 1, 0, 2, 1, 1], "norms must be 1 to 2 for kind 4; got 0"),
    (3, [0, 1, 1, 0, 2, 2, 1, 1], "ask for 8 batch norms, 6 stages and 1 given terms; got 9, 6, 1"),
    (4, [torch.zeros(5, 1, 3, 3)] * 5, "must be equally long; got 5, 6, 6"),
    (4, [torch.zeros(5, 1, 4, 4)] * 6, "depthwise must have k = 3, 5 or 7; got 4"),
    (4, [torch.zeros(5, 1, 3, 5)] * 6, r"depthwise must have shape \[5, 1, 3, 3\]"),
    (4, [torch.zeros(5, 9)] * 6, r"depthwise must be \[C, 1, k, k\]; got 2 dimensions"),
    (5, [torch.zeros(5, 5)] * 6, r"pointwise must have shape \[5, 5, 1, 1\]"),
    (6, [1, 1, 1, 1, 2, 3], "dilation must be 1 or 2; got 3"),
    (7, [torch.zeros(1, 5, 5, 3, 3)], r"given must have shape \[1, 5, 5, 3, 4\]"),
    (7, [torch.zeros(3, 5, 5, 3, 4)], "given must hold 1 or V = 1 variants; got 3"),
    (8, torch.zeros(9, 4), r"gamma must have shape \[9, 5\]"),
    (9, torch.zeros(9, 5, dtype=torch.int64), "beta must be float32"),
    (10, [1e-3] * 8, r"gamma must have shape \[8, 5\]"),
    (11, torch.zeros(9, 5, 2), r"statistics must have shape \[9, 2, 5\]"),
    (11, torch.zeros(2, 9, 2, 5), r"statistics must have shape \[1, 9, 2, 5\]"),
    (12, 0, "stride must be 1 or 2; got 0"),
    (12, 3, "stride must be 1 or 2; got 3"),
]


@pytest.mark.parametrize(("position", "bad", "message"), BAD, ids=[message for _, _, message in BAD])
def test_hostile_arguments_of_mixed_op_are_refused_by_the_native_side(
    position: int, bad: Any, message: str
) -> None:
    args = native_args()
    args[position] = bad
    with pytest.raises(RuntimeError, match=f"mixed_op: .*{message}"):
        NATIVE.mixed_op(*args)


def test_statistics_of_each_variant_need_its_images() -> None:
    args = native_args(v=3)
    args[0], args[11] = args[0][:1], torch.ones(3, 9, 2, 5)
    with pytest.raises(RuntimeError, match="x must hold V = 3 variants where each has its own statistics"):
        NATIVE.mixed_op(*args)


def test_a_backward_pass_needs_every_variant() -> None:
    args = native_args(v=3)
    args[0] = args[0][:1]
    out, *saved = NATIVE.mixed_op(*args)
    with pytest.raises(RuntimeError, match="x and given must hold V = 3 variants in a backward pass"):
        NATIVE.mixed_op_backward(torch.ones_like(out), *args, *saved, True, True, True, [True], True)


@pytest.mark.parametrize("c", [5, 16])
@pytest.mark.parametrize("fixed", [False, True])
def test_schema_fake_and_autograd_of_mixed_op(c: int, fixed: bool) -> None:
    args = native_args(2, c=c, fixed=fixed)
    leaves = [
        arg if i == 11 else with_tensors(arg, lambda tensor: tensor.detach().requires_grad_())
        for i, arg in enumerate(args)
    ]
    torch.library.opcheck(NATIVE.mixed_op.default, tuple(leaves), test_utils=CHECKS)
    out, *saved = NATIVE.mixed_op(*args)
    backward = NATIVE.mixed_op_backward.default
    for i in range(-1, 5):
        x, alpha, weights, given, affine = (i in (-1, which) for which in range(5))
        call = torch.ones_like(out), *args, *saved, x, alpha, weights, [given], affine
        torch.library.opcheck(backward, call, test_utils=CHECKS[:2])


@pytest.mark.parametrize("stride", [1, 2])
def test_mixed_op_compiles_without_a_graph_break(stride: int) -> None:
    """The public function, forward and backward."""
    args = mixed_op_args(1, 4, 5, (6, 7), stride, torch.float32, affine=True)[:4]

    def loss(*some: Any) -> tuple[Tensor, Tensor]:
        out, mean, _ = ops.mixed_op(*some, backend="cpu")
        return (out * torch.cos(out)).sum(), mean

    def run(function: Callable[..., tuple[Tensor, Tensor]]) -> list[Tensor]:
        leaves = with_tensors(list(args), lambda tensor: tensor.detach().requires_grad_())
        value, mean = function(*leaves)
        return [value.detach(), mean, *torch.autograd.grad(value, flat(leaves))]

    assert all_equal(run(torch.compile(loss, fullgraph=True, backend="aot_eager")), run(loss))


def test_other_gradients_are_not_computed() -> None:
    """What nobody wants has a first dimension of 0."""
    args = native_args()
    out, *saved = NATIVE.mixed_op(*args)
    x, alpha, depthwise, pointwise, given, gamma, beta = NATIVE.mixed_op_backward(
        normal(*out.shape, dtype=torch.float32), *args, *saved, False, True, False, [False], False
    )
    assert alpha.shape == args[1].shape
    assert {len(tensor) for tensor in (x, *depthwise, *pointwise, *given, gamma, beta)} == {0}
