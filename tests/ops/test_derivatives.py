"""First and second derivatives of every op, tensor by tensor and block by block, in every backend."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from op_contract import BOTH, ON_THE_CPU, computed, double, example, flat, second_derivative_blocks
from torch import Tensor

from vpdarts_fast import ops
from vpdarts_fast.backends.registry import EVALUATION_OPS, FUSED_OPS
from vpdarts_fast.contract import reference

DIFFERENTIABLE = [op for op in FUSED_OPS if op not in EVALUATION_OPS]
SERVED = [
    pytest.param(op, backend.name, dtype, id=f"{op}-{backend.name}-{str(dtype).removeprefix('torch.')}")
    for op in DIFFERENTIABLE
    for backend in ON_THE_CPU
    for dtype in BOTH
    if op in backend.implementations and dtype in computed(op, backend) and backend.missing is None
]
every_implementation = pytest.mark.parametrize(("op", "backend", "dtype"), SERVED)

STATISTICS = {op: 0 if op in ("relu_conv", "relu_pointwise") else 2 for op in DIFFERENTIABLE}
"""How many of an op's outputs, the last ones, are statistics."""


def differentiable_outputs(op: str) -> Callable[[Any], list[Tensor]]:
    return lambda outputs: flat(outputs)[: len(flat(outputs)) - STATISTICS[op]]


def arguments(op: str, dtype: torch.dtype) -> list[Any]:
    """The example's; of mixed_op with the batch's statistics in place of fixed ones."""
    args = example(op, dtype)
    if "statistics" in args:
        args["statistics"] = None
    return list(args.values())


@every_implementation
def test_statistics_have_no_gradient(op: str, backend: str, dtype: torch.dtype) -> None:
    args = example(op, dtype)
    for tensor in flat(list(args.values())):
        tensor.requires_grad_(tensor.is_floating_point())
    outputs = flat([getattr(ops, op)(**args, backend=backend)])
    differentiable = differentiable_outputs(op)(outputs)
    assert len(differentiable) >= 1 and all(output.requires_grad for output in differentiable)
    assert not any(statistics.requires_grad for statistics in outputs[len(differentiable) :])


@cache
def expected_blocks(op: str) -> list[list[Tensor]]:
    args = double(arguments(op, torch.float64))
    return second_derivative_blocks(getattr(reference, op), args, differentiable_outputs(op))


@every_implementation
def test_second_derivatives_block_by_block(op: str, backend: str, dtype: torch.dtype) -> None:
    """d2 / (da db) for every pair of tensor arguments, each against the reference in float64."""
    args = arguments(op, dtype)
    actual = second_derivative_blocks(
        lambda *a: getattr(ops, op)(*a, backend=backend), args, differentiable_outputs(op)
    )
    expected = expected_blocks(op)
    largest = max(float(wanted.abs().max()) for row in expected for wanted in row)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10}[dtype]  # of sums of terms that cancel
    for i, (row, wanted_row) in enumerate(zip(actual, expected, strict=True)):
        for j, (block, wanted) in enumerate(zip(row, wanted_row, strict=True)):
            scale = max(float(wanted.abs().max()), 1e-3 * largest)
            error = float((block.double() - wanted).abs().max())
            assert error <= tolerance * scale, f"d2 / (d{i} d{j}): off by {error} of {scale}"
