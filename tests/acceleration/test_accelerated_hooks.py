"""Whatever looks at a part of an accelerated model sees what it saw before, from the first step.

In float64, on the ops in PyTorch: what is looked for is the same whatever runs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from acceleration_cases import CHANNELS, images
from supernets import Cell, MixedOp, Residual, Style, darts_ops
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from vpdarts_fast.acceleration import accelerate

Seen = list[Any]
Register = Callable[[nn.Module, Seen], Any]

pytestmark = pytest.mark.usefixtures("one_thread")


def kinds(modules: Any) -> str:
    return type(modules).__name__


def noting(seen: Seen, what: str) -> Callable[..., None]:
    """A hook that notes its kind and the class of the module."""

    def hook(module: Any, *args: Any, **kwargs: Any) -> None:
        seen.append((what, kinds(module)))

    return hook


def noting_gradient(seen: Seen, what: str) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        seen.append((what, tuple(gradient.shape)))

    return hook


def on_parameters(method: str) -> Register:
    def register(part: nn.Module, seen: Seen) -> None:
        for parameter in part.parameters():
            getattr(parameter, method)(noting_gradient(seen, method))

    return register


HOOKS: dict[str, Register] = {
    "forward": lambda part, seen: part.register_forward_hook(noting(seen, "forward")),
    "forward, with keywords": lambda part, seen: part.register_forward_hook(
        noting(seen, "forward"), with_kwargs=True
    ),
    "forward, always": lambda part, seen: part.register_forward_hook(
        noting(seen, "forward"), always_call=True, prepend=True
    ),
    "before forward": lambda part, seen: part.register_forward_pre_hook(noting(seen, "before")),
    "before forward, with keywords": lambda part, seen: part.register_forward_pre_hook(
        noting(seen, "before"), with_kwargs=True
    ),
    "backward": lambda part, seen: part.register_full_backward_hook(noting(seen, "backward")),
    "before backward": lambda part, seen: part.register_full_backward_pre_hook(noting(seen, "before")),
    "both ways": lambda part, seen: (
        part.register_forward_hook(noting(seen, "forward")),
        part.register_full_backward_hook(noting(seen, "backward")),
    ),
    "tensors": on_parameters("register_hook"),
    "accumulated gradients": on_parameters("register_post_accumulate_grad_hook"),
}

GLOBAL: dict[str, Callable[[Seen], Any]] = {
    "forward": lambda seen: global_hooks.register_module_forward_hook(noting(seen, "forward")),
    "forward, always": lambda seen: global_hooks.register_module_forward_hook(
        noting(seen, "forward"), always_call=True
    ),
    "before forward": lambda seen: global_hooks.register_module_forward_pre_hook(noting(seen, "before")),
    "backward": lambda seen: global_hooks.register_module_full_backward_hook(noting(seen, "backward")),
    "before backward": lambda seen: global_hooks.register_module_full_backward_pre_hook(
        noting(seen, "before")
    ),
}


def replace_norm(module: nn.Module) -> None:
    for part in module.modules():
        for name, child in part.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(part, name, copy.deepcopy(child))


def set_everywhere(name: str, value: Any) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        for part in module.modules():
            setattr(part, name, value)

    return change


def widen_eps(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps *= 2


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "nothing else": lambda module: None,
    "a new attribute": set_everywhere("note", "something"),
    "settings": widen_eps,
    "a replaced submodule": replace_norm,
    "a class": lambda module: parametrizations.weight_norm(next(convolutions(module))),
}


def convolutions(module: nn.Module) -> Iterator[nn.Conv2d]:
    return (part for part in module.modules() if isinstance(part, nn.Conv2d))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mixed op": (lambda: MixedOp(darts_ops(CHANNELS, 1, Style(affine=True))), (8,)),
    "cell": (lambda: Cell(CHANNELS, Style()), (6, 5)),
    "residual block": (lambda: Residual(CHANNELS), ()),
    "preprocess": (lambda: Style(affine=True).dense(CHANNELS, 1, 1), ()),
}
PARTS: dict[str, type[nn.Module]] = {
    "convolution": nn.Conv2d,
    "batch norm": nn.BatchNorm2d,
    "ReLU": nn.ReLU,
    "container": nn.Sequential,
}


def plain_and_fused(kind: str) -> tuple[nn.Module, nn.Module]:
    plain, fused = same(MODULES[kind][0]), same(MODULES[kind][0])
    assert len(accelerate(fused, backend="pytorch").fused) == 1
    return plain, fused


def part_of(module: nn.Module, part: str) -> nn.Module:
    return next(some for some in module.modules() if type(some) is PARTS[part])


def step(module: nn.Module, kind: str) -> dict[str, Tensor]:
    """What comes out, gradients, and all that is kept."""
    x, shape = images(torch.float64).requires_grad_(), MODULES[kind][1]
    weights = (
        [torch.linspace(-1, 1, shape.numel(), dtype=x.dtype).view(shape)]
        if (shape := torch.Size(shape))
        else []
    )
    module.zero_grad()
    out = module(x, *weights)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).square().mean().backward()
    found = {"out": out.detach(), "x": x.grad}
    found |= {f"gradient of {name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {name: value.clone() for name, value in (found | module.state_dict()).items()}


def check(kind: str, plain: nn.Module, fused: nn.Module, seen: tuple[Seen, Seen], steps: int = 2) -> None:
    for _ in range(steps):
        expected, found = step(plain, kind), step(fused, kind)
        assert sorted(seen[1]) == sorted(seen[0])
        for name, value in expected.items():
            tolerance = 1e-9 * max(float(value.abs().max()), 1e-2)
            torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_are_called_from_the_first_step(hook: str, part: str, kind: str) -> None:
    if part == "container" and kind == "mixed op":
        kind = "cell"
    plain, fused = plain_and_fused(kind)
    seen: tuple[Seen, Seen] = [], []
    for module, notes in zip((plain, fused), seen, strict=True):
        HOOKS[hook](part_of(module, part), notes)
    check(kind, plain, fused, seen)
    assert seen[0] or not list(part_of(plain, part).parameters())


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_that_come_with_a_change_are_called(hook: str, change: str) -> None:
    """Of a mixed operation that has run before."""
    plain, fused = plain_and_fused("mixed op")
    seen: tuple[Seen, Seen] = [], []
    check("mixed op", plain, fused, seen, steps=1)
    for module, notes in zip((plain, fused), seen, strict=True):
        CHANGES[change](module)
        HOOKS[hook](list(convolutions(module))[-1], notes)
    check("mixed op", plain, fused, seen)
    assert seen[0]


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_of_the_module_itself(hook: str, calls: list[str]) -> None:
    plain, fused = plain_and_fused("mixed op")
    seen: tuple[Seen, Seen] = [], []
    for module, notes in zip((plain, fused), seen, strict=True):
        HOOKS[hook](module, notes)
    check("mixed op", plain, fused, seen)
    assert seen[0] and calls == ["mixed_op"] * 2


@contextmanager
def removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("change", ["nothing else", "a new attribute"])
@pytest.mark.parametrize("hook", GLOBAL)
def test_global_hooks_are_called_from_the_first_step(hook: str, change: str) -> None:
    plain, fused = plain_and_fused("cell")
    seen: tuple[Seen, Seen] = [], []
    for module, notes in zip((plain, fused), seen, strict=True):
        CHANGES[change](module)
        with removed(GLOBAL[hook](notes)):
            step(module, "cell")
    assert len(seen[0]) > 20 and sorted(seen[0]) == sorted(seen[1])


REPARAMETRISED: dict[str, Callable[[nn.Conv2d], Any]] = {
    "weight norm": lambda conv: parametrizations.weight_norm(conv),
    "weight norm by a hook": lambda conv: weight_norm(conv),
    "spectral norm": lambda conv: parametrizations.spectral_norm(conv),
    "spectral norm by a hook": lambda conv: spectral_norm(conv),
    "pruning": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
}


def same(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


def reparametrise(way: str, *modules: nn.Module) -> None:
    """One convolution of each, alike."""
    for module in modules:
        torch.manual_seed(1)
        REPARAMETRISED[way](next(convolutions(module)))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*spectral_norm:FutureWarning")
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("way", REPARAMETRISED)
def test_weights_that_are_computed(way: str, before: bool, kind: str) -> None:
    """Before `accelerate`, or after a step; their own state, as vectors of a power iteration, is kept."""
    plain, fused = same(MODULES[kind][0]), same(MODULES[kind][0])
    if before:
        reparametrise(way, plain, fused)
    accelerate(fused, backend="pytorch")
    check(kind, plain, fused, ([], []), steps=1)
    if not before:
        reparametrise(way, plain, fused)
    check(kind, plain, fused, ([], []))
