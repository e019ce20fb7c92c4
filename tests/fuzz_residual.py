"""Random calls of the native ops of the block between two stages; fuzz_checks.py says what they must do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from fuzz_calls import LAYOUTS, Arguments, hostile_calls, permuted, right_residual_calls
from fuzz_checks import (
    call,
    check_close,
    check_outcome,
    check_values,
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

DIFFERENTIABLE = ("x", "weight_a", "weight_b", "weight_shortcut", "gamma", "beta")


@many
@given(args=right_residual_calls("residual_block"))
def residual_block(args: Arguments) -> None:
    check_values("residual_block", args)


@many
@given(
    args=right_residual_calls("trained_residual_block"),
    wanted=st.sets(st.sampled_from(DIFFERENTIABLE), min_size=1),
    layout=st.sampled_from([*LAYOUTS, channels_last]),
)
def trained_residual_block(args: Arguments, wanted: set[str], layout: Callable[[Tensor], Tensor]) -> None:
    """Values, and the wanted gradients for an incoming gradient of any strides."""
    check_values("trained_residual_block", args)
    exact = {name: double(value) for name, value in args.items()}
    for call_args in (args, exact):
        for name in wanted:
            call_args[name] = call_args[name].detach().requires_grad_()
    out, exact_out = call("trained_residual_block", args)[0], expected("trained_residual_block", exact)[0]
    incoming = layout(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))
    gradients = torch.autograd.grad(out, [args[name] for name in DIFFERENTIABLE if name in wanted], incoming)
    leaves = [exact[name] for name in DIFFERENTIABLE if name in wanted]
    exact_gradients = torch.autograd.grad(exact_out, leaves, incoming.double(), allow_unused=True)
    # The convolutions' gradients cancel where a batch norm undoes what they change.
    scale = max(1.0, *(float(g.abs().max()) for g in exact_gradients if g is not None))
    for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
        if exact_gradient is not None:
            check_close(gradient, exact_gradient, scale)


@many
@given(data=st.data())
def trained_residual_block_backward(data: st.DataObject) -> None:
    """Direct calls with what a forward pass left behind, in any strides."""
    forward = data.draw(right_residual_calls("trained_residual_block", layouts=False))
    out, *saved = call("trained_residual_block", forward)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    leaves = {name: forward[name].clone().requires_grad_() for name in DIFFERENTIABLE}
    usual = torch.autograd.grad(
        call("trained_residual_block", forward | leaves)[0], list(leaves.values()), weights
    )
    strided = [sliced, transposed, permuted]
    args = {"gradient": data.draw(st.sampled_from(strided))(weights)} | forward
    for name, tensor in zip(("mean", "variance", "raw"), saved, strict=True):
        args[name] = data.draw(st.sampled_from(strided))(tensor)
    x, weight, norm = (data.draw(st.booleans()) for _ in range(3))
    args |= {"wants_x": x, "wants_weights": weight, "wants_norms": norm}
    gradients = call("trained_residual_block_backward", args)
    wants = x, weight, weight, weight, norm, norm
    for gradient, same, wanted in zip(gradients, usual, wants, strict=True):
        assert torch.equal(gradient, same) if wanted else gradient.numel() == 0


@many
@given(data=st.data())
def hostile_residual_block(data: st.DataObject) -> None:
    args = data.draw(right_residual_calls("residual_block", layouts=False))
    check_outcome("residual_block", hostile_calls(data.draw, args))


@many
@given(data=st.data())
def hostile_trained_residual_block(data: st.DataObject) -> None:
    args = data.draw(right_residual_calls("trained_residual_block", layouts=False))
    check_outcome("trained_residual_block", hostile_calls(data.draw, args))


@many
@given(data=st.data())
def hostile_trained_residual_block_backward(data: st.DataObject) -> None:
    """Direct calls with what a forward pass left behind, some of it replaced."""
    forward = data.draw(right_residual_calls("trained_residual_block", layouts=False))
    out, *saved = call("trained_residual_block", forward)
    args = {"gradient": torch.ones_like(out)} | forward
    args |= dict(zip(("mean", "variance", "raw"), saved, strict=True))
    args |= {"wants_x": True, "wants_weights": True, "wants_norms": True}
    args = hostile_calls(data.draw, args)
    gradients = served("trained_residual_block_backward", args)
    if gradients is None or not on_the_cpu(args):
        return
    weights, norms = args["wants_weights"], args["wants_norms"]
    wants = args["wants_x"], weights, weights, weights, norms, norms
    for name, wanted, gradient in zip(DIFFERENTIABLE, wants, gradients, strict=True):
        first, *rest = args[name].shape
        assert gradient.shape == (first if wanted else 0, *rest)


TARGETS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        residual_block,
        trained_residual_block,
        trained_residual_block_backward,
        hostile_residual_block,
        hostile_trained_residual_block,
        hostile_trained_residual_block_backward,
    )
}

if __name__ == "__main__":
    run_target(TARGETS)
