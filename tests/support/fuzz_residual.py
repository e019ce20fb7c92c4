"""Random calls of the native ops of the block between two stages; fuzz_checks.py says what they must do."""

from __future__ import annotations

from random import Random

import torch
from fuzz_calls import LAYOUTS, Arguments, hostile_calls, permuted, right_residual_calls
from fuzz_checks import (
    Targets,
    call,
    check_close,
    check_outcome,
    check_values,
    expected,
    on_the_cpu,
    run_targets,
    served,
)
from op_contract import channels_last, double, sliced, transposed

DIFFERENTIABLE = ("x", "weight_a", "weight_b", "weight_shortcut", "gamma", "beta")


def residual_block(rng: Random) -> None:
    check_values("residual_block", right_residual_calls(rng, "residual_block"))


def trained_residual_block(rng: Random) -> None:
    """Values, and the wanted gradients for an incoming gradient of any strides."""
    args = right_residual_calls(rng, "trained_residual_block")
    wanted = rng.sample(DIFFERENTIABLE, rng.randint(1, len(DIFFERENTIABLE)))
    layout = rng.choice([*LAYOUTS, channels_last])
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


def trained_residual_block_backward(rng: Random) -> None:
    """Direct calls with what a forward pass left behind, in any strides."""
    forward = right_residual_calls(rng, "trained_residual_block", layouts=False)
    out, *saved = call("trained_residual_block", forward)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    leaves = {name: forward[name].clone().requires_grad_() for name in DIFFERENTIABLE}
    usual = torch.autograd.grad(
        call("trained_residual_block", forward | leaves)[0], list(leaves.values()), weights
    )
    strided = [sliced, transposed, permuted]
    args = {"gradient": rng.choice(strided)(weights)} | forward
    for name, tensor in zip(("mean", "variance", "raw"), saved, strict=True):
        args[name] = rng.choice(strided)(tensor)
    x, weight, norm = (rng.random() < 0.5 for _ in range(3))
    args |= {"wants_x": x, "wants_weights": weight, "wants_norms": norm}
    gradients = call("trained_residual_block_backward", args)
    wants = x, weight, weight, weight, norm, norm
    for gradient, same, wanted in zip(gradients, usual, wants, strict=True):
        assert torch.equal(gradient, same) if wanted else gradient.numel() == 0


def hostile_residual_block(rng: Random) -> None:
    args = right_residual_calls(rng, "residual_block", layouts=False)
    check_outcome("residual_block", hostile_calls(rng, args))


def hostile_trained_residual_block(rng: Random) -> None:
    args = right_residual_calls(rng, "trained_residual_block", layouts=False)
    check_outcome("trained_residual_block", hostile_calls(rng, args))


def backward_arguments(rng: Random, tiny: bool = False) -> Arguments:
    """A call of the backward pass, with what a forward pass left behind."""
    forward = right_residual_calls(rng, "trained_residual_block", layouts=False, tiny=tiny)
    out, *saved = call("trained_residual_block", forward)
    args = {"gradient": torch.ones_like(out)} | forward
    args |= dict(zip(("mean", "variance", "raw"), saved, strict=True))
    return args | {"wants_x": True, "wants_weights": True, "wants_norms": True}


def hostile_trained_residual_block_backward(rng: Random) -> None:
    """Direct calls with what a forward pass left behind, some of it replaced."""
    args = hostile_calls(rng, backward_arguments(rng))
    gradients = served("trained_residual_block_backward", args)
    if gradients is None or not on_the_cpu(args):
        return
    weights, norms = args["wants_weights"], args["wants_norms"]
    wants = args["wants_x"], weights, weights, weights, norms, norms
    for name, wanted, gradient in zip(DIFFERENTIABLE, wants, gradients, strict=True):
        first, *rest = args[name].shape
        assert gradient.shape == (first if wanted else 0, *rest)


TARGETS: Targets = {
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
    run_targets(TARGETS)
