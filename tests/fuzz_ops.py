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
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from fuzz_calls import LAYOUTS, Arguments, hostile_calls, permuted, right_calls, right_node_calls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_contract import channels_last, double, flat, sliced, transposed
from torch import Tensor

import vpdarts_fast.cpu  # noqa: F401  the fakes and the autograd of the ops
from vpdarts_fast import native, ops, reference

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
LOG = os.environ.get("FUZZ_LOG")

ERRORS = (RuntimeError, ValueError)  # UserError, and PyTorch's for a device without the op, are among them
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
        if isinstance(value, list):
            return "[" + "; ".join(map(text, value)) + "]"
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
    return all(tensor.device.type == "cpu" for tensor in flat(list(args.values())))


def comparable(args: Arguments) -> bool:
    """No overflow in float32, no division by a variance of nearly -eps."""
    tensors = [t for t in flat(list(args.values())) if t.is_floating_point()]
    return args.get("eps", 1) > 1e-6 and not any((t.isfinite() & (t.abs() > 1e6)).any() for t in tensors)


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


def detached(value: Any) -> Any:
    """Tensors, also in lists, without gradients."""
    if isinstance(value, Tensor):
        return value.detach()
    return [detached(item) for item in value] if isinstance(value, list) else value


def node_outputs(op: str, outputs: Any) -> list[Tensor]:
    """Those that have gradients."""
    return flat(outputs) if op == "relu_conv" else [outputs[0]]


def node_values_and_gradients(op: str, args: Arguments, data: st.DataObject) -> None:
    """Values, and the gradients of some tensors for incoming gradients of any strides."""
    before = [tensor.clone() for tensor in flat(list(args.values()))]
    outputs, exact = call(op, args), getattr(reference, op)(**{n: double(v) for n, v in args.items()})
    for actual, wanted in zip(flat(outputs), flat(exact), strict=True):
        check_close(actual, wanted)
    if not flat(outputs):
        return
    leaves = [detached(value) for value in args.values()]
    exact_leaves = double(leaves)
    chosen = data.draw(st.sets(st.integers(0, len(flat(leaves)) - 1), min_size=1))
    for i in chosen:
        for some in (leaves, exact_leaves):
            flat(some)[i].requires_grad_()
    got = node_outputs(op, getattr(NATIVE, op)(*leaves))
    wanted_outputs = node_outputs(op, getattr(reference, op)(*exact_leaves))
    layout = data.draw(st.sampled_from([*LAYOUTS, channels_last]))
    generator = torch.Generator().manual_seed(1)
    incoming = [layout(torch.randn(output.shape, generator=generator)) for output in got]
    reached = [o for o, output in enumerate(wanted_outputs) if output.requires_grad]
    gradients = torch.autograd.grad(
        got, [flat(leaves)[i] for i in chosen], incoming, allow_unused=True, materialize_grads=True
    )
    wanted_gradients = torch.autograd.grad(
        [wanted_outputs[o] for o in reached],
        [flat(exact_leaves)[i] for i in chosen],
        [double(incoming[o]) for o in reached],
        allow_unused=True,
        materialize_grads=True,
    )
    scale = max([1.0, *(float(g.abs().max()) for g in wanted_gradients if g.numel())])
    for actual, wanted in zip(gradients, wanted_gradients, strict=True):
        check_close(actual, wanted, scale)
    after = flat(list(args.values()))
    assert all(map(torch.equal, after, before)), "an argument was changed"


@many
@given(data=st.data())
def relu_conv(data: st.DataObject) -> None:
    node_values_and_gradients("relu_conv", data.draw(right_node_calls("relu_conv")), data)


@many
@given(data=st.data())
def mixed_sum(data: st.DataObject) -> None:
    node_values_and_gradients("mixed_sum", data.draw(right_node_calls("mixed_sum")), data)


def check_node_outcome(op: str, args: Arguments) -> None:
    """An error of the native op and of the public function, or what the reference makes of it."""
    on_cpu = on_the_cpu(args)
    errors = ERRORS if on_cpu else (*ERRORS, IndexError)
    outputs: list[Tensor] | None = None
    with suppress(*errors):
        outputs = flat(list(call(op, args)))
    if outputs and on_cpu and comparable(args):
        exact = getattr(reference, op)(*double(detached(list(args.values()))))
        for actual, wanted in zip(outputs, flat(exact), strict=True):
            check_close(actual, wanted)
    try:
        result = getattr(ops, op)(*args.values(), backend="cpu")
    except ERRORS:
        assert outputs is None or not on_cpu, "refused by the public function alone"
    else:
        assert outputs is not None, "refused by the native op alone"
        assert [t.shape for t in flat(result)] == [t.shape for t in outputs]


@many
@given(data=st.data())
def hostile_relu_conv(data: st.DataObject) -> None:
    args = data.draw(right_node_calls("relu_conv", layouts=False))
    check_node_outcome("relu_conv", hostile_calls(data.draw, args))


@many
@given(data=st.data())
def hostile_mixed_sum(data: st.DataObject) -> None:
    args = data.draw(right_node_calls("mixed_sum", layouts=False))
    check_node_outcome("mixed_sum", hostile_calls(data.draw, args))


@many
@given(data=st.data())
def hostile_relu_conv_backward(data: st.DataObject) -> None:
    forward = data.draw(right_node_calls("relu_conv", layouts=False))
    raw_1x1, raw_3x3 = call("relu_conv", forward)
    args = {"gradient_1x1": list(raw_1x1), "gradient_3x3": list(raw_3x3)} | forward
    args |= {"wants_x": True, "wants_1x1": True, "wants_3x3": True}
    args = hostile_calls(data.draw, args)
    errors = ERRORS if on_the_cpu(args) else (*ERRORS, IndexError)
    try:
        gradients = call("relu_conv_backward", args)
    except errors:
        return
    for name, gradient in zip(forward, gradients, strict=True):
        first, *rest = args[name].shape
        wanted = args[name.replace("weight", "wants") if name != "x" else "wants_x"]
        assert gradient.shape == (first if wanted else 0, *rest)


@many
@given(data=st.data())
def hostile_mixed_sum_backward(data: st.DataObject) -> None:
    forward = data.draw(right_node_calls("mixed_sum", layouts=False))
    node, mean, variance = call("mixed_sum", forward)
    args = {"gradient": torch.ones_like(node)} | forward | {"mean": mean, "variance": variance}
    k = len(forward["xs"])
    args |= {"wants_xs": [True] * k, "wants_1x1": [True] * k, "wants_3x3": [True] * k, "wants_alpha": True}
    args |= {"wants_scale": [True] * len(forward["skip_scale"])}
    args = hostile_calls(data.draw, args)
    errors = ERRORS if on_the_cpu(args) else (*ERRORS, IndexError)
    try:
        *lists, alpha, scale = call("mixed_sum_backward", args)
    except errors:
        return
    lists.append(scale)
    for name, gradients in zip(("wants_xs", "wants_1x1", "wants_3x3", "wants_scale"), lists, strict=True):
        assert [len(gradient) > 0 for gradient in gradients] == list(args[name])
    assert alpha.shape == (args["alpha"].shape[0] if args["wants_alpha"] else 0, *args["alpha"].shape[1:])


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
        relu_conv,
        mixed_sum,
        hostile_relu_conv,
        hostile_relu_conv_backward,
        hostile_mixed_sum,
        hostile_mixed_sum_backward,
    )
}

if __name__ == "__main__":
    assert native.available(), native.why_not()
    TARGETS[sys.argv[1]]()
