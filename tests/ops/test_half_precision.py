"""The contract of every op with half-precision activations and weights, float32 alphas and statistics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from mixed_op_cases import mixed_op_args
from op_arguments import (
    masked_cell_args,
    mixed_cell_args,
    mixed_sum_args,
    node_only,
    residual_block_args,
    trained_residual_block_args,
)
from op_contract import ON_THE_CPU, Close, double, flat, gradients, with_tensors

from vpdarts_fast import ops
from vpdarts_fast.contract import reference
from vpdarts_fast.errors import UserError

HALVES = (torch.bfloat16, torch.float16)

CALLS: dict[str, tuple[Callable[[], list[Any]], tuple[int, ...]]] = {
    "mixed_sum": (lambda: mixed_sum_args(v=1, k=2, c=8), (3,)),
    "mixed_op": (lambda: mixed_op_args(n=9, c=8, size=(8, 8)), (1,)),
    "mixed_cell": (lambda: mixed_cell_args(c=8), (3,)),
    "masked_cell": (lambda: masked_cell_args(v=2, c=8, nodes=3), (3, 4, 5)),
    "residual_block": (lambda: residual_block_args(channels=(8, 16)), (4, 5)),
    "trained_residual_block": (lambda: trained_residual_block_args(channels=(8, 16)), (4, 5)),
}
"""Op -> makes the arguments; the places of alphas and statistics among them."""

TRAINED = ("mixed_sum", "mixed_op", "mixed_cell", "trained_residual_block")

SERVED = [(op, b.name) for op in CALLS for b in ON_THE_CPU if op in b.implementations and b.name != "cpu"]
every_op_and_backend = pytest.mark.parametrize(("op", "backend"), SERVED)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors, also in lists and branches, in another dtype."""
    return with_tensors(value, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def beside_float32(op: str, dtype: torch.dtype) -> list[Any]:
    """Arguments of the op in `dtype`; alphas and statistics in float32, more than it can hold."""

    make, small = CALLS[op]
    return [cast(arg, torch.float32 if i in small else dtype) for i, arg in enumerate(make())]


@every_op_and_backend
@pytest.mark.parametrize("dtype", HALVES)
def test_values(op: str, backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    args = beside_float32(op, dtype)
    result, *statistics = flat(getattr(ops, op)(*args, backend=backend))
    wanted, *wanted_statistics = flat(getattr(reference, op)(*double(args)))
    assert result.dtype == dtype
    assert_close(result, wanted)
    for actual, expected in zip(statistics, wanted_statistics, strict=True):
        assert actual.dtype == torch.float32
        # Those of `mixed_sum` are of its arguments; others are of what has been rounded within the op.
        assert_close(actual if op == "mixed_sum" else actual.to(dtype), expected)


@pytest.mark.parametrize(("op", "backend"), [(op, backend) for op, backend in SERVED if op in TRAINED])
@pytest.mark.parametrize("dtype", HALVES)
def test_gradients(op: str, backend: str, dtype: torch.dtype, assert_close: Close) -> None:
    args = beside_float32(op, dtype)
    found = gradients(partial(getattr(ops, op), backend=backend), args, node_only)
    wanted = gradients(getattr(reference, op), double(args), node_only)
    inputs = [tensor for tensor in flat(args) if tensor.is_floating_point()]
    for gradient, expected, tensor in zip(found, wanted, inputs, strict=True):
        assert gradient.dtype == tensor.dtype
        assert_close(gradient.to(dtype), expected)


@pytest.mark.parametrize("backend", ["reference", "pytorch"])
def test_sums_are_rounded_once(backend: str) -> None:
    """1 + 20 terms of 2^-9, each of which alone bfloat16 would round away."""
    k, x = 21, torch.ones(1, 2, 1, 4, 4, dtype=torch.bfloat16)
    alpha = torch.zeros(1, k, 5)
    alpha[0, :, 1] = 2.0**-9
    alpha[0, 0, 1] = 1
    raw = torch.arange(32, dtype=torch.bfloat16).view_as(x)
    node, _, _ = ops.mixed_sum([x] * k, [raw] * k, [raw] * k, alpha, backend=backend)
    assert torch.equal(node, torch.full_like(x, 1 + 20 * 2.0**-9))


@pytest.mark.parametrize("op", CALLS)
def test_the_native_kernels_refuse_it(op: str) -> None:
    args = beside_float32(op, torch.bfloat16)
    with pytest.raises(UserError, match=r"cpu: (computes in torch\.float32; got torch\.bfloat16|the native)"):
        getattr(ops, op)(*args, backend="cpu")


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("backend", ["auto", "reference", "pytorch"])
def test_autocast_casts_activations_and_weights_only(op: str, backend: str) -> None:
    """The same bits as of tensors cast by hand, float32 gradients; float64 is left alone."""
    args = cast(CALLS[op][0](), torch.float32)
    by_hand = [arg if i in CALLS[op][1] else cast(arg, torch.bfloat16) for i, arg in enumerate(args)]
    function = partial(getattr(ops, op), backend=backend)
    expected = flat(function(*by_hand))
    leaves = [tensor for tensor in flat(args) if tensor.is_floating_point()]
    for leaf in leaves:
        leaf.requires_grad_(op in TRAINED)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        actual = flat(function(*args))
        exact = flat(function(*double(args)))
    for some, wanted in zip(actual, expected, strict=True):
        assert some.dtype == wanted.dtype and torch.equal(some, wanted)
    assert all(tensor.dtype == torch.float64 for tensor in exact)
    if op in TRAINED:
        for gradient in torch.autograd.grad(actual[0].float().sum(), leaves):
            assert gradient.dtype == torch.float32
