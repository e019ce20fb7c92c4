"""NaN, infinity, very large and very small values in every op's tensors; csrc/README.md says what holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
import torch
from hostile_arguments import Arguments, all_places
from op_contract import ON_THE_CPU, differentiable, double, example, flat, weighted_sum
from torch import Tensor

from vpdarts_fast import ops
from vpdarts_fast.backends.registry import EVALUATION_OPS, FUSED_OPS
from vpdarts_fast.contract import reference

BACKENDS = [b for b in ON_THE_CPU if b.missing is None and b.name not in ("reference", "triton")]
every_implementation = pytest.mark.parametrize(
    ("op", "backend"), [(op, b.name) for op in FUSED_OPS for b in BACKENDS if op in b.implementations]
)

pytestmark = pytest.mark.float32

DIFFERENTIABLE = [op for op in FUSED_OPS if op not in EVALUATION_OPS]
NON_FINITE = {"NaN": torch.nan, "infinity": torch.inf, "minus infinity": -torch.inf}
EXTREME = {"1e15": 1e15, "-1e15": -1e15, "1e-30": 1e-30, "subnormal": 1e-42}
TOLERANCE = 1e-4
"""Of a finite result, relative to the largest expected one: far above rounding, far below a wrong term."""


@cache
def arguments(op: str, fixed: bool = True) -> Arguments:
    """The example's; of mixed_op also with the batch's statistics."""
    args = example(op)
    return args if fixed or "statistics" not in args else args | {"statistics": None}


@dataclass(frozen=True)
class Call:
    """A call with an odd value in one of its tensors.

    Attributes:
        name: of the tensor.
        args: with the value in it.
        expected: the reference's outputs in float32, which say where a result is finite.
        truth: the same in float64.
    """

    name: str
    args: Arguments
    expected: list[Tensor]
    truth: list[Tensor]


def assert_same_where_finite(actual: Tensor, truth: Tensor, finite: Tensor, what: object) -> None:
    if finite.any():
        error = float((actual.double() - truth)[finite].abs().max())
        scale = max(float(truth[finite].abs().max()), 1e-30)
        assert error <= TOLERANCE * scale, (what, error, scale)


@cache
def calls(op: str, value: float, everywhere: bool) -> list[Call]:
    """One for each tensor, with the value in one element or everywhere."""
    result = []
    for fixed in (True, False) if op == "mixed_op" else (True,):
        for name, tensor, put in all_places(arguments(op, fixed)):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                continue
            bad = tensor.clone()
            bad.view(-1)[slice(None) if everywhere else tensor.numel() // 2] = value
            args = put(bad)
            exact = dict(zip(args, double(list(args.values())), strict=True))
            outputs_of = (flat([getattr(reference, op)(**arguments)]) for arguments in (args, exact))
            result.append(Call(name, args, *outputs_of))
    return result


def outputs(op: str, args: Arguments, backend: str) -> list[Tensor]:
    return flat([getattr(ops, op)(**args, backend=backend)])


@pytest.mark.parametrize("value", NON_FINITE)
@every_implementation
def test_nothing_is_hidden(op: str, backend: str, value: str) -> None:
    """Where the reference is not finite, the op is not; and what is finite in both is the same."""
    for everywhere in (False, True):
        for call in calls(op, NON_FINITE[value], everywhere):
            if op == "mixed_op" and call.name == "alpha" and not everywhere:
                continue  # in the column of `none`, which is not computed: below
            results = zip(outputs(op, call.args, backend), call.expected, call.truth, strict=True)
            for actual, wanted, truth in results:
                assert not (actual.isfinite() & ~wanted.isfinite()).any(), call.name
                finite = actual.isfinite() & wanted.isfinite() & truth.isfinite()
                assert_same_where_finite(actual, truth, finite, call.name)


@pytest.mark.parametrize("value", EXTREME)
@every_implementation
def test_large_and_small_values_are_as_in_pytorch(op: str, backend: str, value: str) -> None:
    for everywhere in (False, True):
        for call in calls(op, EXTREME[value], everywhere):
            if everywhere and abs(EXTREME[value]) > 1 and call.name.startswith(("raw_", "branches[6].raw")):
                continue  # no spread: what is left of 1e15 - 1e15 is rounding, in PyTorch's batch norm too
            results = zip(outputs(op, call.args, backend), call.expected, call.truth, strict=True)
            for actual, wanted, truth in results:
                assert torch.equal(actual.isfinite(), wanted.isfinite()), call.name
                assert_same_where_finite(actual, truth, wanted.isfinite(), call.name)


def gradients_by_all(call: Callable[..., Any], op: str, args: Arguments) -> list[Tensor]:
    count = None if op == "relu_conv" else 1  # the others are statistics
    leaves, results = differentiable(call, list(args.values()), lambda outputs: flat(outputs)[:count])
    return list(torch.autograd.grad(weighted_sum(results), leaves, allow_unused=True, materialize_grads=True))


@cache
def differentiated_calls(op: str, everywhere: bool) -> list[tuple[str, Arguments, list[Tensor]]]:
    """As `calls` with NaN, with the gradients in float64 in place of outputs."""
    result = []
    for call in calls(op, torch.nan, everywhere):
        if call.args.get("statistics") is None:
            exact = dict(zip(call.args, double(list(call.args.values())), strict=True))
            truth = gradients_by_all(getattr(reference, op), op, exact)
            result.append((call.name, call.args, truth))
    return result


@pytest.mark.parametrize(("op", "backend"), [(op, b.name) for op in DIFFERENTIABLE for b in BACKENDS])
def test_nothing_is_hidden_from_gradients(op: str, backend: str) -> None:
    """A NaN passes relu's gradient, as in PyTorch; what stays finite is the reference's."""
    for everywhere in (False, True):
        for name, args, expected in differentiated_calls(op, everywhere):
            actual = gradients_by_all(partial(getattr(ops, op), backend=backend), op, args)
            for i, (gradient, truth) in enumerate(zip(actual, expected, strict=True)):
                assert not (gradient.isfinite() & ~truth.isfinite()).any(), (name, i)
                finite = gradient.isfinite() & truth.isfinite()
                assert_same_where_finite(gradient, truth, finite, (name, i))


FIXED = {"relu_conv": 0, "relu_pointwise": 0, "masked_cell": 1, "residual_block": 0, "mixed_op": 1}
"""Ops without statistics of the batch, and which dimension of x and of the outputs counts images."""


@pytest.mark.parametrize(("op", "backend"), [(op, b.name) for op in FIXED for b in BACKENDS])
def test_an_image_does_not_touch_others(op: str, backend: str) -> None:
    args, images = arguments(op), FIXED[op]
    x = args["x"].clone()
    x.select(images, 0).view(-1)[6] = torch.nan
    for got, usual in zip(
        outputs(op, args | {"x": x}, backend)[:1], outputs(op, args, backend)[:1], strict=True
    ):
        assert not got.select(images, 0).isfinite().all()
        torch.testing.assert_close(got.select(images, 1), usual.select(images, 1))


def test_huge_values_are_never_passed_off_as_finite() -> None:
    """Squares of 1e20 overflow: NaN or infinity then, or the reference's values, never others."""
    args = arguments("mixed_cell")
    x = args["x"].clone()
    x.view(-1)[7] = 1e20
    node, _, variance = outputs("mixed_cell", args | {"x": x}, "auto")
    wanted, _, wanted_variance = reference.mixed_cell(**args | {"x": x})
    assert not variance.isfinite().all() and not wanted_variance.isfinite().all()
    finite = node.isfinite()
    torch.testing.assert_close(node[finite], wanted[finite], rtol=1e-3, atol=1e-3)


# What is meant not to be computed --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [b.name for b in BACKENDS])
@pytest.mark.parametrize("alpha", [torch.nan, torch.inf])
def test_none_is_not_computed(backend: str, alpha: float) -> None:
    """Whatever its alpha is."""
    args = arguments("mixed_op")
    table = args["alpha"].clone()
    table[:, 0] = alpha  # the first branch is Zero
    got = outputs("mixed_op", args | {"alpha": table}, backend)
    assert all(map(torch.equal, got, outputs("mixed_op", args, backend)))
    for op in ("mixed_cell", "masked_cell"):
        table = arguments(op)["alpha"].clone()
        table[..., 0] = alpha
        got = outputs(op, arguments(op) | {"alpha": table}, backend)
        assert all(map(torch.equal, got, outputs(op, arguments(op), backend))), op


def test_a_masked_cell_may_leave_out_what_has_alpha_zero() -> None:
    """That is how leave-one-out removes an operation; what a NaN in its weights would do is not shown."""
    args: dict[str, Any] = dict(arguments("masked_cell"))
    args["alpha"] = args["alpha"].clone()
    args["alpha"][..., 2:4] = 0
    usual = outputs("masked_cell", args, "auto")[0]
    for name in ("weight_1x1", "weight_3x3", "mean", "variance"):
        got = outputs("masked_cell", args | {name: torch.full_like(args[name], torch.nan)}, "auto")[0]
        assert torch.equal(got, usual) or not got.isfinite().any(), name
