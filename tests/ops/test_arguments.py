"""What every op says to arguments of another type, layout, dtype, device, shape or range."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass
from typing import Any

import hostile_arguments as hostile
import pytest
import torch
from op_contract import ALL, example, flat, with_tensors
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vpdarts_fast import ops
from vpdarts_fast.backends.registry import FUSED_OPS
from vpdarts_fast.errors import UserError

# Of PyTorch: kinds of tensors that it has not settled yet.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

every_op = pytest.mark.parametrize("op", FUSED_OPS)


def call(op: str, args: dict[str, Any], **options: Any) -> Any:
    return getattr(ops, op)(**args, **options)


def refusal(op: str, args: dict[str, Any]) -> str:
    """What the op says."""
    with pytest.raises(UserError) as caught:
        call(op, args)
    message = str(caught.value)
    assert message.startswith(f"{op}: ") and "got" in message, message
    assert len(message) < 400, message
    return message


def optional(op: str, name: str) -> bool:
    """Whether the argument of this name, or the field, may be none."""
    default = inspect.signature(getattr(ops, op)).parameters.get(name)
    return (default is not None and default.default is None) or name.endswith((".norm", ".gamma", ".beta"))


@every_op
def test_the_example_is_a_call_with_every_argument(op: str) -> None:
    parameters = inspect.signature(getattr(ops, op)).parameters
    assert list(example(op)) == [name for name in parameters if name != "backend"]
    assert all(output.isfinite().all() for output in flat([call(op, example(op))]))


@pytest.mark.parametrize("kind", hostile.TENSORS)
@every_op
def test_in_place_of_a_tensor(op: str, kind: str) -> None:
    replaced = 0
    for name, value, put in hostile.all_places(example(op)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if kind == "None" and optional(op, name) and not name.startswith("branches"):
            continue
        if kind == "None" and name.endswith((".gamma", ".beta")):
            continue
        if kind == "sparse, compressed" and value.dim() < 2:
            continue
        message = refusal(op, put(hostile.TENSORS[kind](value)))
        # Of a wrong first tensor the others may be said to be unlike it.
        first = name in ("x", "xs[0]") and kind in ("of another dtype", "without data")
        assert first or f" {name} must be " in message, (name, message)
        replaced += 1
    assert replaced >= 3


@pytest.mark.parametrize("kind", hostile.SHAPES)
@every_op
def test_in_place_of_a_shape(op: str, kind: str) -> None:
    for _, value, put in hostile.all_places(example(op)):
        if not isinstance(value, Tensor):
            continue
        try:
            call(op, put(hostile.SHAPES[kind](value)))
        except UserError as error:
            assert str(error).startswith(f"{op}: "), error
        except RuntimeError as error:  # PyTorch's, for a right call of 2^44 images
            assert "can't allocate memory" in str(error), error


@pytest.mark.parametrize("kind", hostile.SEQUENCES)
@pytest.mark.parametrize("op", ["mixed_sum", "mixed_op"])
def test_in_place_of_a_list(op: str, kind: str) -> None:
    for name, value, put in hostile.all_places(example(op)):
        if isinstance(value, (list, tuple)):
            assert f" {name} must be a list or a tuple" in refusal(op, put(hostile.SEQUENCES[kind]))


@pytest.mark.parametrize("kind", hostile.NUMBERS)
@every_op
def test_in_place_of_a_number(op: str, kind: str) -> None:
    """Every eps and probability, by the same rule."""
    for name, value, put in hostile.all_places(example(op)):
        if type(value) is float:
            assert f" {name} must be a number in [0, " in refusal(op, put(hostile.NUMBERS[kind]))


@pytest.mark.parametrize("flag", [None, 1, 0.0, "True", torch.tensor(True), [True]], ids=str)
def test_in_place_of_a_flag(flag: object) -> None:
    message = refusal("mixed_cell", example("mixed_cell") | {"skip_zeros": flag})
    assert " skip_zeros must be True or False; got " in message


@pytest.mark.parametrize("kind", hostile.INTEGERS)
def test_in_place_of_an_integer(kind: str) -> None:
    for name, value, put in hostile.all_places(example("mixed_op")):
        if type(value) is int:
            assert f" {name} must be 1 or 2" in refusal("mixed_op", put(hostile.INTEGERS[kind]))


@pytest.mark.parametrize("kind", hostile.RECORDS)
def test_in_place_of_a_branch_stage_or_norm(kind: str) -> None:
    for name, value, put in hostile.all_places(example("mixed_op")):
        if not is_dataclass(value) or (kind == "None" and name.endswith(".norm") and "stages" not in name):
            continue
        assert f" {name} must be a " in refusal("mixed_op", put(hostile.RECORDS[kind]))


@pytest.mark.parametrize("kind", hostile.BACKENDS)
@every_op
def test_in_place_of_a_backend(op: str, kind: str) -> None:
    with pytest.raises(UserError, match="unknown backend"):
        call(op, example(op), backend=hostile.BACKENDS[kind])


KINDS_OF_SEEDS = (
    "a number", "a text", "a list of numbers", "an array", "a class", "sparse", "nested", "bool", "complex",
    "of another dtype", "without data",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS_OF_SEEDS)
def test_in_place_of_seeds(kind: str) -> None:
    args = example("mixed_cell")
    message = refusal("mixed_cell", args | {"skip_seed": hostile.TENSORS[kind](args["skip_seed"])})
    assert " skip_seed must be " in message


@pytest.mark.parametrize("op", ["mixed_sum", "mixed_op", "mixed_cell", "masked_cell"])
def test_more_variants_than_anybody_has(op: str) -> None:
    """An expanded alpha has any size without memory, and would be computed for hours."""
    args = example(op)
    for name in ("xs", "raw_1x1", "raw_3x3", "skip_scale", "alpha"):
        if name in args:
            one = [tensor[:1].expand(2**31, *tensor.shape[1:]) for tensor in flat([args[name]])]
            args[name] = one if isinstance(args[name], list) else one[0]
    assert "at most 65536 variants; got 2147483648" in refusal(op, args)


def test_more_edges_than_anybody_has() -> None:
    args = example("relu_conv")
    for name in ("weight_1x1", "weight_3x3"):
        args[name] = args[name][:1].expand(2**31, -1, -1, -1, -1)
    assert "at most 65536 edges; got 2147483648" in refusal("relu_conv", args)


@every_op
def test_fake_tensors_pass(op: str) -> None:
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        args = {name: _fake(value, mode) for name, value in example(op).items()}
        fake = flat([call(op, args)])
    real = flat([call(op, example(op))])
    assert [tensor.shape for tensor in fake] == [tensor.shape for tensor in real]


def _fake(value: Any, mode: FakeTensorMode) -> Any:
    return with_tensors(value, mode.from_tensor)


@pytest.mark.parametrize("dtype", ALL)
@every_op
def test_parameters_subclasses_and_float32_beside_half_precision_pass(op: str, dtype: torch.dtype) -> None:
    args = example(op, dtype)
    expected = flat([call(op, args)])
    small = {"mean", "variance", "alpha", "scale", "shift", "gamma", "beta", "statistics"}
    for name, value in args.items():
        if name in small and dtype in (torch.bfloat16, torch.float16):
            args[name] = value.float()
        elif isinstance(value, Tensor) and value.is_floating_point():
            args[name] = torch.nn.Parameter(value)
    assert [out.shape for out in flat([call(op, args)])] == [out.shape for out in expected]


@every_op
def test_integers_as_numbers_and_tuples_as_lists_pass(op: str) -> None:
    args = example(op)
    changed = {
        name: tuple(value) if isinstance(value, list) else 0 if name == "skip_dropout" else value
        for name, value in args.items()
    }
    changed |= {"eps": 1} if "eps" in args else {}
    plain = args | ({"eps": 1.0} if "eps" in args else {})
    plain |= {"skip_dropout": 0.0} if "skip_dropout" in args else {}
    for a, b in zip(flat([call(op, changed)]), flat([call(op, plain)]), strict=True):
        assert torch.equal(a, b)
