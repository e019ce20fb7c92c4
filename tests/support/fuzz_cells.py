"""Random calls of the native ops of cells; fuzz_checks.py says what they must do."""

from __future__ import annotations

from random import Random

import torch
from fuzz_calls import LAYOUTS, Arguments, hostile_calls, permuted, right_calls
from fuzz_checks import (
    Targets,
    call,
    check_close,
    check_outcome,
    check_values,
    detached,
    expected,
    on_the_cpu,
    run_targets,
    served,
)
from op_contract import channels_last, double, sliced, transposed


def masked_cell(rng: Random) -> None:
    check_values("masked_cell", right_calls(rng, "masked_cell"))


def mixed_cell_variants(rng: Random) -> None:
    check_values("mixed_cell_variants", right_calls(rng, "mixed_cell_variants"))


DIFFERENTIABLE = ("x", "weight_1x1", "weight_3x3", "alpha")


def differentiable(args: Arguments) -> tuple[str, ...]:
    """Of a call of mixed_cell: alpha has no gradient where zeros are skipped."""
    return DIFFERENTIABLE[: 3 if args["skip_zeros"] else 4]


def mixed_cell(rng: Random) -> None:
    """Values, and the wanted gradients for an incoming gradient of any strides."""
    args = right_calls(rng, "mixed_cell")
    possible = differentiable(args)
    wanted = rng.sample(possible, rng.randint(1, len(possible)))
    layout = rng.choice([*LAYOUTS, channels_last])
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


def hostile_masked_cell(rng: Random) -> None:
    args = right_calls(rng, "masked_cell", layouts=False)
    check_outcome("masked_cell", hostile_calls(rng, args))


def hostile_mixed_cell(rng: Random) -> None:
    args = right_calls(rng, "mixed_cell", layouts=False)
    check_outcome("mixed_cell", hostile_calls(rng, args))


def hostile_mixed_cell_variants(rng: Random) -> None:
    args = right_calls(rng, "mixed_cell_variants", layouts=False)
    check_outcome("mixed_cell_variants", hostile_calls(rng, args))


def backward_arguments(rng: Random, tiny: bool = False) -> Arguments:
    """A call of the backward pass, with what a forward pass left behind."""
    forward = right_calls(rng, "mixed_cell", layouts=False, tiny=tiny)
    node, _, _, *saved = call("mixed_cell", forward)
    args = {"gradient": torch.ones_like(node)} | forward
    args |= dict(zip(("nodes", "raw", "statistics", "moments"), saved, strict=True))
    return args | {"wants_x": True, "wants_weights": True, "wants_alpha": not forward["skip_zeros"]}


def hostile_mixed_cell_backward(rng: Random) -> None:
    """Direct calls with what a forward pass left behind, some of it replaced."""
    args = hostile_calls(rng, backward_arguments(rng))
    gradients = served("mixed_cell_backward", args)
    if gradients is None or not on_the_cpu(args):
        return
    wants = args["wants_x"], args["wants_weights"], args["wants_weights"], args["wants_alpha"]
    for name, wanted, gradient in zip(DIFFERENTIABLE, wants, gradients, strict=True):
        first, *rest = args[name].shape
        assert gradient.shape == (first if wanted else 0, *rest)


def mixed_cell_backward(rng: Random) -> None:
    """Direct calls with what a forward pass left behind, in any strides."""
    forward = right_calls(rng, "mixed_cell", layouts=False)
    node, _, _, *saved = call("mixed_cell", forward)
    weights = torch.randn(node.shape, generator=torch.Generator().manual_seed(1))
    leaves = {name: forward[name].clone().requires_grad_() for name in differentiable(forward)}
    usual = torch.autograd.grad(
        call("mixed_cell", forward | leaves)[0], list(leaves.values()), weights, materialize_grads=True
    )
    strided = [sliced, transposed, permuted]
    args = {"gradient": rng.choice(strided)(weights)} | forward
    for name, tensor in zip(("nodes", "raw", "statistics", "moments"), saved, strict=True):
        args[name] = rng.choice(strided)(tensor)
    wants = [rng.random() < 0.5 for _ in range(3)]
    wants[2] &= not forward["skip_zeros"]
    args |= dict(zip(("wants_x", "wants_weights", "wants_alpha"), wants, strict=True))
    gradients = call("mixed_cell_backward", args)
    for i, (gradient, wanted) in enumerate(zip(gradients, (wants[0], wants[1], *wants[1:]), strict=True)):
        assert torch.equal(gradient, usual[i]) if wanted else gradient.numel() == 0


TARGETS: Targets = {
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
    run_targets(TARGETS)
