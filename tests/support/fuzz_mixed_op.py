"""Random calls of the native mixed operation; fuzz_checks.py says what they must do."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from fuzz_calls import LAYOUTS, Arguments, hostile_calls, permuted, right_mixed_op_calls
from fuzz_checks import (
    ERRORS,
    Targets,
    call,
    check_all_close,
    check_close,
    comparable,
    detached,
    on_meta,
    on_the_cpu,
    run_targets,
    served,
    shapes,
)
from op_contract import channels_last, double, flat, sliced, transposed, with_tensors
from torch import Tensor

from vpdarts_fast import ops
from vpdarts_fast.contract import reference
from vpdarts_fast.contract.branches import Branch, Given, Norm, Pool, SepConv, Skip, Stage, Zero

DIFFERENTIABLE = ("x", "alpha", "depthwise", "pointwise", "given", "gamma", "beta")
SAVED = ("mean", "variance", "raw")


def public_args(args: Arguments) -> list[Any]:
    """The same call for the public function and the reference."""
    of = iter([Norm(*some) for some in zip(args["eps"], args["gamma"], args["beta"], strict=True)])
    weights = iter(zip(args["depthwise"], args["pointwise"], args["dilation"], strict=True))
    given = iter(args["given"])

    def branch(kind: int, count: int) -> Branch:
        if kind in (2, 3):
            return Pool("avg" if kind == 2 else "max", next(of) if count else None)
        if kind == 4:
            return SepConv(tuple(Stage(*next(weights), next(of)) for _ in range(count)))
        if kind == 5:
            return Given(next(given), next(of) if count else None)
        return Skip() if kind == 1 else Zero()

    branches = [branch(*some) for some in zip(args["kinds"], args["norms"], strict=True)]
    return [args["x"], args["alpha"], branches, args["stride"], args["statistics"]]


def expected(args: Arguments) -> list[Tensor]:
    """The reference's outputs in float64."""
    return flat(reference.mixed_op(*public_args({name: double(value) for name, value in args.items()})))


def mixed_op(rng: Random) -> None:
    """Values, arguments that stay what they were, and all gradients for an incoming one of any strides."""
    args, layout = right_mixed_op_calls(rng), rng.choice([*LAYOUTS, channels_last])
    before = [tensor.clone() for tensor in flat(list(args.values()))]
    check_all_close(call("mixed_op", args), expected(args), args)
    assert all(map(torch.equal, flat(list(args.values())), before)), "an argument was changed"

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_()

    variants = len(args["alpha"])
    args["x"] = args["x"].expand(variants, *args["x"].shape[1:])
    args["given"] = [some.expand(variants, *some.shape[1:]) for some in args["given"]]
    own = args | {name: with_tensors(args[name], leaf) for name in DIFFERENTIABLE}
    exact = {name: double(value) for name, value in args.items()}
    exact |= {name: with_tensors(exact[name], leaf) for name in DIFFERENTIABLE}
    out, exact_out = call("mixed_op", own)[0], expected(exact)[0]
    if not args["kinds"]:  # zeros, which depend on nothing
        return
    incoming = layout(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))
    gradients = torch.autograd.grad(out, flat([own[name] for name in DIFFERENTIABLE]), incoming)
    leaves = flat([exact[name] for name in DIFFERENTIABLE])
    wanted = torch.autograd.grad(exact_out, leaves, incoming.double(), allow_unused=True)
    # Gradients of parameters cancel where a batch norm undoes what they change.
    scale = max(1.0, *(float(g.abs().max()) for g in wanted if g is not None and g.numel() > 0))
    for gradient, exact_gradient in zip(gradients, wanted, strict=True):
        if exact_gradient is not None:
            check_close(gradient, exact_gradient, scale)


def backward_arguments(rng: Random, tiny: bool = False) -> Arguments:
    """A call of the backward pass, with what a forward pass of every variant left behind."""
    args = right_mixed_op_calls(rng, layouts=False, tiny=tiny)
    variants = len(args["alpha"])
    args["x"] = args["x"].expand(variants, *args["x"].shape[1:])
    args["given"] = [some.expand(variants, *some.shape[1:]) for some in args["given"]]
    out, *saved = call("mixed_op", args)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    wants = {"wants_x": True, "wants_alpha": True, "wants_weights": True}
    wants |= {"wants_given": [True] * len(args["given"]), "wants_norms": True}
    return {"gradient": gradient} | args | dict(zip(SAVED, saved, strict=True)) | wants


def mixed_op_backward(rng: Random) -> None:
    """Direct calls with what a forward pass left behind, in any strides; only what is wanted."""
    args = backward_arguments(rng)
    usual = call("mixed_op_backward", args)
    for name in ("gradient", *SAVED):
        args[name] = rng.choice([sliced, transposed, permuted])(args[name])
    for name in ("wants_x", "wants_alpha", "wants_weights", "wants_norms"):
        args[name] = rng.random() < 0.5
    args["wants_given"] = [rng.random() < 0.5 for _ in args["given"]]
    gradients = call("mixed_op_backward", args)
    weights, stages = args["wants_weights"], len(args["depthwise"])
    wants = [args["wants_x"], args["wants_alpha"], *[weights] * (2 * stages)]
    wants += [*args["wants_given"], *[args["wants_norms"]] * 2]
    for gradient, same, wanted in zip(flat(gradients), flat(usual), wants, strict=True):
        assert torch.equal(gradient, same) if wanted else gradient.numel() == 0


def mixed_op_fixed(rng: Random) -> None:
    """Values, and arguments that stay what they were."""
    args = right_mixed_op_calls(rng, fixed=True)
    before = [tensor.clone() for tensor in flat(list(args.values()))]
    check_all_close(call("mixed_op_fixed", args), expected(args)[:1], args)
    assert all(map(torch.equal, flat(list(args.values())), before)), "an argument was changed"


def hostile_mixed_op_fixed(rng: Random) -> None:
    """An error, or what the reference makes of the call."""
    args = hostile_calls(rng, right_mixed_op_calls(rng, layouts=False, fixed=True))
    outputs = served("mixed_op_fixed", args)
    if outputs is None or not on_the_cpu(args):
        return
    if outputs[0].numel() > 0 and comparable(args | {"eps": min(args["eps"], default=1)}):
        check_all_close(outputs, expected(args)[:1], args)
    fake = call("mixed_op_fixed", {name: on_meta(value) for name, value in args.items()})
    assert shapes(fake) == shapes(outputs)


def hostile_mixed_op(rng: Random) -> None:
    """An error, or what the reference makes of the call; what is served the public function serves too."""
    args = hostile_calls(rng, right_mixed_op_calls(rng, layouts=False))
    outputs = served("mixed_op", args)
    if outputs is None or not on_the_cpu(args):
        return
    plain = {name: detached(value) for name, value in args.items()}
    if outputs[0].numel() > 0 and comparable(args | {"eps": min(args["eps"], default=1)}):
        check_all_close(outputs, expected(plain), args)
    fake = call("mixed_op", {name: on_meta(value) for name, value in args.items()})
    assert shapes(fake) == shapes(outputs)
    try:
        result = ops.mixed_op(*public_args(plain), backend="cpu")
    except ERRORS as error:
        raise AssertionError("refused by the public function alone") from error
    assert shapes(result) == shapes(outputs)[:3]


def hostile_mixed_op_backward(rng: Random) -> None:
    """Direct calls with what a forward pass left behind, some of it replaced."""
    args = hostile_calls(rng, backward_arguments(rng))
    gradients = served("mixed_op_backward", args)
    if gradients is None or not on_the_cpu(args):
        return
    fake = served("mixed_op_backward", {name: on_meta(value) for name, value in args.items()})
    assert fake is not None and shapes(fake) == shapes(gradients)


TARGETS: Targets = {
    function.__name__: function
    for function in (
        mixed_op,
        mixed_op_fixed,
        mixed_op_backward,
        hostile_mixed_op,
        hostile_mixed_op_fixed,
        hostile_mixed_op_backward,
    )
}

if __name__ == "__main__":
    run_targets(TARGETS)
