"""Random calls of the native ops of cells; fuzz_checks.py says what they must do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from fuzz_calls import LAYOUTS, Arguments, hostile_calls, permuted, right_calls
from fuzz_checks import (
    call,
    check_close,
    check_outcome,
    check_values,
    detached,
    expected,
    many,
    on_the_cpu,
    run_target,
    served,
)
from hypothesis import given
from hypothesis import strategies as st
from op_contract import channels_last, double, sliced, transposed
from torch import Tensor


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
    check_values("mixed_cell", {name: detached(value) for name, value in args.items()})
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
    gradients = served("mixed_cell_backward", args)
    if gradients is None or not on_the_cpu(args):
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
    run_target(TARGETS)
