"""Random calls of the native ops of single nodes; fuzz_checks.py says what they must do."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from fuzz_calls import LAYOUTS, Arguments, hostile_calls, right_node_calls
from fuzz_checks import (
    NATIVE,
    Targets,
    call,
    check_close,
    check_outcome,
    check_values,
    detached,
    on_the_cpu,
    run_targets,
    served,
)
from op_contract import channels_last, double, flat
from torch import Tensor

from vpdarts_fast.contract import reference


def node_outputs(op: str, outputs: Any) -> list[Tensor]:
    """Those that have gradients."""
    return [outputs[0]] if op == "mixed_sum" else flat([outputs])


def node_values_and_gradients(op: str, args: Arguments, rng: Random) -> None:
    """Values, and the gradients of some tensors for incoming gradients of any strides."""
    before = [tensor.clone() for tensor in flat(list(args.values()))]
    check_values(op, args)
    if op == "relu_conv" and len(args["weight_1x1"]) == 0:  # no output
        return
    leaves = [detached(value) for value in args.values()]
    exact_leaves = double(leaves)
    chosen = rng.sample(range(len(flat(leaves))), rng.randint(1, len(flat(leaves))))
    for i in chosen:
        for some in (leaves, exact_leaves):
            flat(some)[i].requires_grad_()
    got = node_outputs(op, getattr(NATIVE, op)(*leaves))
    wanted_outputs = node_outputs(op, getattr(reference, op)(*exact_leaves))
    layout = rng.choice([*LAYOUTS, channels_last])
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
    assert all(map(torch.equal, flat(list(args.values())), before)), "an argument was changed"


def relu_conv(rng: Random) -> None:
    node_values_and_gradients("relu_conv", right_node_calls(rng, "relu_conv"), rng)


def relu_pointwise(rng: Random) -> None:
    node_values_and_gradients("relu_pointwise", right_node_calls(rng, "relu_pointwise"), rng)


def mixed_sum(rng: Random) -> None:
    node_values_and_gradients("mixed_sum", right_node_calls(rng, "mixed_sum"), rng)


def hostile_relu_conv(rng: Random) -> None:
    args = right_node_calls(rng, "relu_conv", layouts=False)
    check_outcome("relu_conv", hostile_calls(rng, args))


def hostile_relu_pointwise(rng: Random) -> None:
    args = right_node_calls(rng, "relu_pointwise", layouts=False)
    check_outcome("relu_pointwise", hostile_calls(rng, args))


def hostile_mixed_sum(rng: Random) -> None:
    args = right_node_calls(rng, "mixed_sum", layouts=False)
    check_outcome("mixed_sum", hostile_calls(rng, args))


def relu_conv_backward_arguments(rng: Random, tiny: bool = False) -> Arguments:
    """A call of the backward pass, with what a forward pass left behind."""
    forward = right_node_calls(rng, "relu_conv", layouts=False, tiny=tiny)
    raw_1x1, raw_3x3 = call("relu_conv", forward)
    args = {"gradient_1x1": list(raw_1x1), "gradient_3x3": list(raw_3x3)} | forward
    return args | {"wants_x": True, "wants_1x1": True, "wants_3x3": True}


def relu_pointwise_backward_arguments(rng: Random, tiny: bool = False) -> Arguments:
    """A call of the backward pass, with a gradient."""
    forward = right_node_calls(rng, "relu_pointwise", layouts=False, tiny=tiny)
    (out,) = call("relu_pointwise", forward)
    return {"gradient": torch.ones_like(out)} | forward | {"wants_x": True, "wants_weights": True}


def mixed_sum_backward_arguments(rng: Random, tiny: bool = False) -> Arguments:
    """A call of the backward pass, with what a forward pass left behind."""
    forward = right_node_calls(rng, "mixed_sum", layouts=False, tiny=tiny)
    node, mean, variance = call("mixed_sum", forward)
    args = {"gradient": torch.ones_like(node)} | forward | {"mean": mean, "variance": variance}
    args |= {f"wants_{name}": [True] * len(forward["xs"]) for name in ("xs", "1x1", "3x3")}
    return args | {"wants_alpha": True, "wants_scale": [True] * len(forward["skip_scale"])}


def hostile_relu_conv_backward(rng: Random) -> None:
    args = hostile_calls(rng, relu_conv_backward_arguments(rng))
    gradients = served("relu_conv_backward", args)
    if gradients is None or not on_the_cpu(args):
        return
    for name, gradient in zip(("x", "weight_1x1", "weight_3x3"), gradients, strict=True):
        first, *rest = args[name].shape
        wanted = args[name.replace("weight", "wants") if name != "x" else "wants_x"]
        assert gradient.shape == (first if wanted else 0, *rest)


def hostile_relu_pointwise_backward(rng: Random) -> None:
    args = hostile_calls(rng, relu_pointwise_backward_arguments(rng))
    gradients = served("relu_pointwise_backward", args)
    if gradients is None or not on_the_cpu(args):
        return
    of_x, of_weights = gradients
    for wants, some, tensors in (
        ("wants_x", [of_x], [args["x"]]),
        ("wants_weights", of_weights, args["weights"]),
    ):
        for gradient, (first, *rest) in zip(some, (tensor.shape for tensor in tensors), strict=True):
            assert gradient.shape == (first if args[wants] else 0, *rest)


def hostile_mixed_sum_backward(rng: Random) -> None:
    args = hostile_calls(rng, mixed_sum_backward_arguments(rng))
    gradients = served("mixed_sum_backward", args)
    if gradients is None or not on_the_cpu(args):
        return
    *lists, alpha, scale = gradients
    lists.append(scale)
    for name, gradients in zip(("wants_xs", "wants_1x1", "wants_3x3", "wants_scale"), lists, strict=True):
        assert [len(gradient) > 0 for gradient in gradients] == list(args[name])
    assert alpha.shape == (args["alpha"].shape[0] if args["wants_alpha"] else 0, *args["alpha"].shape[1:])


TARGETS: Targets = {
    function.__name__: function
    for function in (
        relu_conv,
        relu_pointwise,
        mixed_sum,
        hostile_relu_conv,
        hostile_relu_conv_backward,
        hostile_relu_pointwise,
        hostile_relu_pointwise_backward,
        hostile_mixed_sum,
        hostile_mixed_sum_backward,
    )
}

if __name__ == "__main__":
    run_targets(TARGETS)
