"""The transforms of PyTorch that a module may be run in: functions of the module, its input and alpha."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, functional
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

Transform = Callable[[nn.Module, Tensor, Tensor], Any]


def direction(like: Tensor) -> Tensor:
    """A fixed tensor of its shape."""
    return torch.linspace(-1, 1, like.numel(), dtype=like.dtype).view_as(like)


def loss(module: nn.Module, x: Tensor, alpha: Tensor) -> Tensor:
    out: Tensor = module(x, alpha)
    return (out * direction(out[:1].detach())).square().mean()


def small(module: nn.Module, x: Tensor, alpha: Tensor) -> Tensor:
    """Few numbers, so that Jacobians are small."""
    out: Tensor = module(x, alpha)
    return (out * direction(out[:1].detach())).flatten(2).mean(2) if out.dim() > 2 else out


def several(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor + 0.5, 2 * tensor])


def two_models(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stacked parameters and buffers of this model and of another of its kind."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    return torch.func.stack_module_state([module, other])


def other_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Three of all floating buffers."""
    return {name: several(buffer) for name, buffer in module.named_buffers() if buffer.is_floating_point()}


def with_tangents(
    function: Callable[..., Tensor], *primals: Tensor, gradients: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Value and tangent by dual numbers."""
    with torch.set_grad_enabled(gradients), forward_ad.dual_level():
        duals = (forward_ad.make_dual(primal, direction(primal)) for primal in primals)
        primal, tangent = forward_ad.unpack_dual(function(*duals))
        return primal, tangent


def gradient_by_parameters(m: nn.Module, x: Tensor, a: Tensor) -> Any:
    parameters = dict(m.named_parameters())
    gradients = grad(lambda p: functional_call(m, p, (x, a)).square().mean())(parameters)
    return list(gradients.values())


def tangents_by_parameters(m: nn.Module, x: Tensor, a: Tensor) -> Any:
    names, values = zip(*m.named_parameters(), strict=True)

    def run(*parameters: Tensor) -> Tensor:
        out: Tensor = functional_call(m, dict(zip(names, parameters, strict=True)), (x, a))
        return out

    return with_tangents(run, *(value.detach() for value in values), gradients=False)


def tangent_of_a_backward_pass(m: nn.Module, x: Tensor, a: Tensor) -> Any:
    """The forward pass has no tangents."""
    a = a.requires_grad_()
    out = m(x, a)
    with forward_ad.dual_level():
        arriving = forward_ad.make_dual(direction(out), direction(out).cos())
        return list(forward_ad.unpack_dual(torch.autograd.grad(out, a, arriving)[0]))


def batched_gradients(m: nn.Module, x: Tensor, a: Tensor) -> Any:
    a = a.requires_grad_()
    out = m(x, a)
    arriving = torch.stack([direction(out), direction(out).cos()])
    return torch.autograd.grad(
        out, [a, *m.parameters()], arriving, is_grads_batched=True, allow_unused=True, materialize_grads=True
    )


def backward_pass_in_vmap(m: nn.Module, x: Tensor, a: Tensor) -> Any:
    a = a.requires_grad_()
    out = m(x, a)
    run = torch.vmap(lambda arriving: torch.autograd.grad(out, a, arriving, retain_graph=True)[0])
    return run(torch.stack([direction(out), direction(out).cos()]))


def second_derivative(m: nn.Module, x: Tensor, a: Tensor) -> Any:
    a = a.requires_grad_()
    (first,) = torch.autograd.grad(loss(m, x, a), a, create_graph=True)
    return torch.autograd.grad((first * direction(first)).sum(), a)


def gradient(m: nn.Module, x: Tensor, a: Tensor) -> Tensor:
    a = a.detach().requires_grad_()
    return torch.autograd.grad(loss(m, x, a), a)[0]


FUNC: dict[str, Transform] = {
    "grad": lambda m, x, a: grad(lambda a: loss(m, x, a))(a),
    "grad by x": lambda m, x, a: grad(lambda x: loss(m, x, a))(x),
    "grad by parameters": gradient_by_parameters,
    "vjp": lambda m, x, a: vjp(lambda a: loss(m, x, a), a)[1](torch.ones_like(a.sum())),
    "jvp": lambda m, x, a: jvp(lambda a: m(x, a), (a,), (direction(a),)),
    "jvp by x": lambda m, x, a: jvp(lambda x: m(x, a), (x,), (direction(x),)),
    "jacrev": lambda m, x, a: jacrev(lambda a: small(m, x, a))(a),
    "jacfwd": lambda m, x, a: jacfwd(lambda a: small(m, x, a))(a),
    "hessian": lambda m, x, a: hessian(lambda a: loss(m, x, a))(a),
    "reverse over reverse": lambda m, x, a: vjp(grad(lambda a: loss(m, x, a)), a)[1](direction(a)),
    "forward over reverse": lambda m, x, a: jvp(grad(lambda a: loss(m, x, a)), (a,), (direction(a),)),
    "reverse over forward": lambda m, x, a: grad(
        lambda a: jvp(lambda a: loss(m, x, a), (a,), (direction(a),))[1]
    )(a),
    "functionalize": lambda m, x, a: torch.func.functionalize(lambda a: m(x, a))(a),
    "gradients of a batch": lambda m, x, a: torch.vmap(grad(lambda a, x: loss(m, x, a)), (None, 0))(
        a, several(x)
    ),
    "make_fx of grad": lambda m, x, a: make_fx(grad(lambda a: loss(m, x, a)))(a)(2 * a),
}
"""Of `torch.func`; they refuse a module that changes buffers which are not given to them."""

over_all = partial(torch.vmap, randomness="same")
"""As leave-one-out uses it."""

BATCHES: dict[str, Transform] = {
    "vmap over alpha": lambda m, x, a: torch.vmap(lambda a: m(x, a))(several(a)),
    "vmap over x": lambda m, x, a: torch.vmap(lambda x: m(x, a))(several(x)),
    "vmap over both": lambda m, x, a: torch.vmap(m)(several(x), several(a)),
    "vmap over alpha, one draw": lambda m, x, a: over_all(lambda a: m(x, a))(several(a)),
    "vmap over both, one draw": lambda m, x, a: over_all(m)(several(x), several(a)),
    "vmap over running statistics": lambda m, x, a: over_all(lambda a, b: functional_call(m, b, (x, a)))(
        several(a), other_statistics(m)
    ),
    "vmap of vmap": lambda m, x, a: over_all(lambda x: over_all(lambda a: m(x, a))(several(a)))(several(x)),
    "ensemble": lambda m, x, a: over_all(lambda p, b: functional_call(m, (p, b), (x, a)))(*two_models(m)),
}
"""Run with and without gradients."""

FORWARD: dict[str, Transform] = {
    "dual alpha": lambda m, x, a: with_tangents(lambda a: m(x, a), a),
    "dual x and alpha": lambda m, x, a: with_tangents(m, x, a),
    "dual x without gradients": lambda m, x, a: with_tangents(lambda x: m(x, a), x, gradients=False),
    "dual parameters": tangents_by_parameters,
    "dual gradients": tangent_of_a_backward_pass,
}

BACKWARD: dict[str, Transform] = {
    "batched gradients": batched_gradients,
    "backward pass in vmap": backward_pass_in_vmap,
    "second derivative": second_derivative,
    "jacobian": lambda m, x, a: functional.jacobian(lambda a: small(m, x, a), a),
    "jacobian, vectorised": lambda m, x, a: functional.jacobian(lambda a: small(m, x, a), a, vectorize=True),
    "jacobian, forward mode": lambda m, x, a: functional.jacobian(
        lambda a: small(m, x, a), a, vectorize=True, strategy="forward-mode"
    ),
    "hessian, vectorised": lambda m, x, a: functional.hessian(
        lambda a: loss(m, x, a), a, vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
    "hvp": lambda m, x, a: functional.hvp(lambda a: loss(m, x, a), a, direction(a)),
    "vhp": lambda m, x, a: functional.vhp(lambda a: loss(m, x, a), a, direction(a)),
    "jvp by two backward passes": lambda m, x, a: functional.jvp(lambda a: m(x, a), a, direction(a)),
}


def traced(m: nn.Module, x: Tensor, a: Tensor, gradients: bool) -> Any:
    with torch.set_grad_enabled(gradients):
        return torch.jit.trace(m, (x, a), check_trace=False)(x + 0.1, 2 * a)


def exported(m: nn.Module, x: Tensor, a: Tensor, strict: bool, gradients: bool) -> Any:
    with torch.set_grad_enabled(gradients):
        return torch.export.export(m, (x, a), strict=strict).module()(x + 0.1, 2 * a)


TRACES: dict[str, Transform] = {
    "jit.trace": lambda m, x, a: traced(m, x, a, gradients=True),
    "jit.trace without gradients": lambda m, x, a: traced(m, x, a, gradients=False),
    "make_fx": lambda m, x, a: make_fx(lambda x, a: m(x, a))(x, a)(x + 0.1, 2 * a),
    "make_fx of a backward pass": lambda m, x, a: make_fx(lambda a: gradient(m, x, a))(a)(2 * a),
    "export": lambda m, x, a: exported(m, x, a, strict=False, gradients=True),
    "export without gradients": lambda m, x, a: exported(m, x, a, strict=False, gradients=False),
}


def run_twice(m: nn.Module, x: Tensor, a: Tensor) -> Any:
    m(x, a)
    return m(x + 0.1, 2 * a)


UNTRACED: dict[str, Transform] = {
    "jit.trace": run_twice,
    "jit.trace without gradients": run_twice,
    "make_fx": run_twice,
    "make_fx of a backward pass": lambda m, x, a: (gradient(m, x, a), gradient(m, x, 2 * a))[1],
    "export": lambda m, x, a: m(x + 0.1, 2 * a),
    "export without gradients": lambda m, x, a: m(x + 0.1, 2 * a),
}
"""What those of `TRACES` compute. All but an export run also when they trace, and change statistics twice."""


def recomputed(m: nn.Module, x: Tensor, a: Tensor, reentrant: bool) -> Any:
    x, a = x.requires_grad_(), a.requires_grad_()
    out = checkpoint(m, x, a, use_reentrant=reentrant)
    out.square().mean().backward()
    return [x.grad, a.grad, *(parameter.grad for parameter in m.parameters())]


def within(context: Callable[[], Any], m: nn.Module, x: Tensor, a: Tensor) -> Any:
    """The gradient of a loss that is computed within."""
    a = a.requires_grad_()
    with context():
        value = loss(m, x, a)
    return torch.autograd.grad(value, a)


def as_arrays() -> Any:
    """What is saved for the backward pass becomes an array of NumPy."""
    return torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor.detach().numpy().copy(), lambda array: torch.from_numpy(array)
    )


def in_inference_mode(m: nn.Module, x: Tensor, a: Tensor) -> Any:
    with torch.inference_mode():
        out = m(x.clone(), a.clone())
    return out.clone()


MODES: dict[str, Transform] = {
    "checkpoint": lambda m, x, a: recomputed(m, x, a, reentrant=False),
    "reentrant checkpoint": lambda m, x, a: recomputed(m, x, a, reentrant=True),
    "detect_anomaly": lambda m, x, a: within(torch.autograd.detect_anomaly, m, x, a),
    "saved_tensors_hooks": lambda m, x, a: within(as_arrays, m, x, a),
    "save_on_cpu": lambda m, x, a: within(torch.autograd.graph.save_on_cpu, m, x, a),
    "inference_mode": in_inference_mode,
}
"""A backward pass, or none, with something around it; running statistics change as often as in the module."""
