"""Random calls of the native ops, right ones and hostile ones: `python tests/fuzz_ops.py TARGET`.

test_fuzz.py runs each target in a process of its own, so that a crash is a failed test. The draws are the
same in every run. FUZZ_EXAMPLES is how many calls a target makes, FUZZ_LOG a file that holds the last one.

What a call must do:

- right arguments of any strides: the result of the reference in float64, values and gradients;
- hostile ones (dtype, rank, sizes, device, layout, NaN and infinity, settings out of range): an error of
  Python, or a result of the right shape; and where the reference's result has no NaN and no infinity, that
  result. (Where it has some, so may all of the op's: Winograd tiles and batch norms spread them, and a
  factor of 0 need not be multiplied.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fuzz_calls import LAYOUTS, Arguments, hostile_calls, permuted, right_calls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_contract import channels_last, double, sliced, transposed
from torch import Tensor

import vpdarts_fast.cpu  # noqa: F401  the fakes and the autograd of the ops
from vpdarts_fast import native, ops, reference

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
LOG = os.environ.get("FUZZ_LOG")

ERRORS = (RuntimeError, ValueError)  # NotImplementedError and UserError are among them
NATIVE: Any = torch.ops.vpdarts_fast
TOLERANCE = 1e-4
"""Of results, relative to the largest expected element: far above rounding, far below a wrong term."""

many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def log(op: str, args: Arguments) -> None:
    """Keeps a description of the call that is about to be made."""
    if LOG is None:
        return

    def text(value: Any) -> str:
        if not isinstance(value, Tensor):
            return repr(value)
        kind = f"{value.dtype} {value.device} {value.layout}".replace("torch.", "")
        strides = value.stride() if value.layout == torch.strided else ""
        return f"{kind} {list(value.shape)} strides {strides}"

    lines = [op, *(f"  {name}: {text(value)}" for name, value in args.items())]
    Path(LOG).write_text("\n".join(lines) + "\n")


def call(op: str, args: Arguments) -> tuple[Tensor, ...]:
    """The native op itself, without the checks of its public function."""
    log(op, args)
    outputs = getattr(NATIVE, op)(*args.values())
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def expected(op: str, args: Arguments) -> tuple[Tensor, ...]:
    """The reference's result in float64."""
    values = {name: double(value) for name, value in args.items()}
    if op == "masked_cell":
        return (reference.masked_cell(**values),)
    if op == "mixed_cell_variants":
        return reference.mixed_cell(**values)
    values["x"], values["alpha"] = values["x"][None], values["alpha"][None]
    return tuple(output[0] for output in reference.mixed_cell(**values))


def check_close(actual: Tensor, wanted: Tensor, scale: float | None = None) -> None:
    assert actual.shape == wanted.shape, (actual.shape, wanted.shape)
    if wanted.numel() == 0 or not wanted.isfinite().all():
        return
    largest = float(wanted.abs().max()) if scale is None else scale
    error = float((actual.detach().double() - wanted).abs().max())
    assert error <= TOLERANCE * max(largest, 1e-30), (error, largest)


def check_values(op: str, args: Arguments) -> None:
    before = {name: value.clone() for name, value in args.items() if isinstance(value, Tensor)}
    for actual, wanted in zip(call(op, args), expected(op, args), strict=False):
        check_close(actual, wanted)
    assert all(torch.equal(args[name], value) for name, value in before.items()), "an argument was changed"


@many
@given(args=right_calls("masked_cell"))
def masked_cell(args: Arguments) -> None:
    check_values("masked_cell", args)


@many
@given(args=right_calls("mixed_cell_variants"))
def mixed_cell_variants(args: Arguments) -> None:
    check_values("mixed_cell_variants", args)


DIFFERENTIABLE = ("x", "weight_1x1", "weight_3x3", "alpha")


@many
@given(
    args=right_calls("mixed_cell"),
    wanted=st.sets(st.sampled_from(DIFFERENTIABLE), min_size=1),
    layout=st.sampled_from([*LAYOUTS, channels_last]),
)
def mixed_cell(args: Arguments, wanted: set[str], layout: Callable[[Tensor], Tensor]) -> None:
    """Values, and the wanted gradients for an incoming gradient of any strides."""
    exact = {name: double(value) for name, value in args.items()}
    for call_args in (args, exact):
        for name in wanted:
            call_args[name] = call_args[name].detach().requires_grad_()
    check_values("mixed_cell", {k: v.detach() if isinstance(v, Tensor) else v for k, v in args.items()})
    node, wanted_node = call("mixed_cell", args)[0], expected("mixed_cell", exact)[0]
    incoming = layout(torch.randn(node.shape, generator=torch.Generator().manual_seed(1)))
    leaves = [args[name] for name in DIFFERENTIABLE if name in wanted]
    exact_leaves = [exact[name] for name in DIFFERENTIABLE if name in wanted]
    gradients = torch.autograd.grad(node, leaves, incoming)
    wanted_gradients = torch.autograd.grad(wanted_node, exact_leaves, incoming.double(), allow_unused=True)
    # The convolutions' gradients cancel where a batch norm undoes what they change.
    scale = max(1.0, *(float(g.abs().max()) for g in wanted_gradients if g is not None))
    for actual, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
        if wanted_gradient is not None:
            check_close(actual, wanted_gradient, scale)


def on_the_cpu(args: Arguments) -> bool:
    return all(value.device.type == "cpu" for value in args.values() if isinstance(value, Tensor))


def comparable(args: Arguments) -> bool:
    """No overflow in float32, no division by a variance of nearly -eps."""
    tensors = [t for t in args.values() if isinstance(t, Tensor) and t.is_floating_point()]
    return args["eps"] > 1e-6 and not any((t.isfinite() & (t.abs() > 1e6)).any() for t in tensors)


def check_outcome(op: str, args: Arguments) -> None:
    """An error, or what the reference makes of it."""
    errors = ERRORS if on_the_cpu(args) else (*ERRORS, IndexError)  # fakes take shapes as they come
    try:
        outputs = call(op, args)
    except errors:
        outputs = ()
    if outputs and on_the_cpu(args):
        leading = () if op == "mixed_cell" else args["alpha"].shape[:1]
        images = args["x"].shape if op == "mixed_cell" else args["x"].shape[1:]
        assert outputs[0].shape == (*leading, *images)
        if outputs[0].numel() > 0 and comparable(args):
            detached = {k: v.detach() if isinstance(v, Tensor) else v for k, v in args.items()}
            for actual, wanted in zip(outputs, expected(op, detached), strict=False):
                check_close(actual, wanted)
    public = op.removesuffix("_variants")
    if op != "mixed_cell":
        try:
            result = getattr(ops, public)(*args.values(), backend="cpu")
        except ERRORS:
            assert not outputs or not on_the_cpu(args), "refused by the public function alone"
        else:
            assert outputs, "refused by the native op alone"
            first = result if isinstance(result, Tensor) else result[0]
            assert first.shape == outputs[0].shape


@many
@given(data=st.data())
def hostile_masked_cell(data: st.DataObject) -> None:
    args = data.draw(right_calls("masked_cell", layouts=False))
    check_outcome("masked_cell", hostile_calls(data.draw, args))


@many
@given(data=st.data())
def hostile_mixed_cell(data: st.DataObject) -> None:
    args = data.draw(right_calls("mixed_cell", layouts=False))
    check_outcome("mixed_cell", hostile_calls(data.draw, args))


@many
@given(data=st.data())
def hostile_mixed_cell_variants(data: st.DataObject) -> None:
    args = data.draw(right_calls("mixed_cell_variants", layouts=False))
    check_outcome("mixed_cell_variants", hostile_calls(data.draw, args))


@many
@given(data=st.data())
def hostile_mixed_cell_backward(data: st.DataObject) -> None:
    """Direct calls with what a forward pass left behind, some of it replaced."""
    forward = data.draw(right_calls("mixed_cell", layouts=False))
    node, _, _, *saved = call("mixed_cell", forward)
    args = {"gradient": torch.ones_like(node)} | forward
    args |= dict(zip(("nodes", "raw", "statistics", "moments"), saved, strict=True))
    args |= {"wants_x": True, "wants_weights": True, "wants_alpha": True}
    args = hostile_calls(data.draw, args)
    errors = ERRORS if on_the_cpu(args) else (*ERRORS, IndexError)
    try:
        gradients = call("mixed_cell_backward", args)
    except errors:
        return
    wants = args["wants_x"], args["wants_weights"], args["wants_weights"], args["wants_alpha"]
    for name, wanted, gradient in zip(DIFFERENTIABLE, wants, gradients, strict=True):
        first, *rest = args[name].shape
        assert gradient.shape == (first if wanted else 0, *rest)


@many
@given(data=st.data())
def mixed_cell_backward(data: st.DataObject) -> None:
    """Direct calls with what a forward pass left behind, in any strides."""
    forward = data.draw(right_calls("mixed_cell", layouts=False))
    node, _, _, *saved = call("mixed_cell", forward)
    weights = torch.randn(node.shape, generator=torch.Generator().manual_seed(1))
    leaves = {name: forward[name].clone().requires_grad_() for name in DIFFERENTIABLE}
    usual = torch.autograd.grad(
        call("mixed_cell", forward | leaves)[0], list(leaves.values()), weights, materialize_grads=True
    )
    strided = [sliced, transposed, permuted]
    args = {"gradient": data.draw(st.sampled_from(strided))(weights)} | forward
    for name, tensor in zip(("nodes", "raw", "statistics", "moments"), saved, strict=True):
        args[name] = data.draw(st.sampled_from(strided))(tensor)
    wants = [data.draw(st.booleans()) for _ in range(3)]
    args |= dict(zip(("wants_x", "wants_weights", "wants_alpha"), wants, strict=True))
    gradients = call("mixed_cell_backward", args)
    for gradient, same, wanted in zip(gradients, usual, (wants[0], wants[1], *wants[1:]), strict=True):
        assert torch.equal(gradient, same) if wanted else gradient.numel() == 0


TARGETS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        masked_cell,
        mixed_cell_variants,
        mixed_cell,
        mixed_cell_backward,
        hostile_masked_cell,
        hostile_mixed_cell_variants,
        hostile_mixed_cell,
        hostile_mixed_cell_backward,
    )
}

if __name__ == "__main__":
    assert native.available(), native.why_not()
    TARGETS[sys.argv[1]]()
