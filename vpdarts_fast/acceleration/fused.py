"""Accelerated modules: the class of a recognised one is exchanged for a subclass of it that runs on `ops`.

Parameters, buffers, submodules, hooks and methods stay where they are. In every call that a plan does not cover,
the module's own method runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vpdarts_fast.acceleration.recognise_sum import (
    CellPlan,
    MixedOpPlan,
    Unrecognised,
    partial_channels,
    recognise_cell,
    recognise_mixed_op,
)
from vpdarts_fast.acceleration.run import OwnMethod, mixture, row_of, whole_cell
from vpdarts_fast.acceleration.snapshot import Snapshot, snapshot

STATE = "_vpdarts_fast"
"""The attribute that holds an accelerated module's plan; not in copies' state_dict, but in copies."""

RETRIES = 100
"""How often a module that changes is looked at again before its own method runs for good."""


class State:
    """What an accelerated module knows of itself."""

    def __init__(self, plan: MixedOpPlan | CellPlan, seen: Snapshot, backend: str) -> None:
        self.plan: MixedOpPlan | CellPlan | None = plan
        self.seen, self.backend, self.retries = seen, backend, RETRIES

    def look_again(self, module: nn.Module) -> None:
        """The module has changed; it may compute something else now, or nothing that is known."""
        self.retries -= 1
        if self.retries < 0:
            self.plan = None
            return
        recognise = recognise_cell if isinstance(self.plan, CellPlan) else recognise_mixed_op
        try:
            self.plan = recognise(_own(module))
        except Unrecognised:
            self.plan = None
        self.seen = snapshot(module, (STATE,))


class Fused:
    """Mixed into the class of an accelerated module."""

    original: ClassVar[type[nn.Module]]
    method: ClassVar[str]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copies and pickles are accelerated too, and name the original class."""
        return _rebuild, (self.original, self.method), self.__dict__


def _rebuild(original: type[nn.Module], method: str) -> nn.Module:
    module = original.__new__(fused_class(original, method))
    assert isinstance(module, nn.Module)
    return module


def _own(module: nn.Module) -> nn.Module:
    """The same, of the original class."""
    assert isinstance(module, Fused)
    own: nn.Module = module.original.__new__(module.original)
    own.__dict__ = {name: value for name, value in module.__dict__.items() if name != STATE}
    return own


@functools.cache
def fused_class(original: type[nn.Module], method: str) -> type[nn.Module]:
    """A subclass whose `method` runs on `ops` where it can."""
    own: Callable[..., Tensor] = getattr(original, method)

    @functools.wraps(own)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        out = None
        if len(args) == 2 and not kwargs and isinstance(args[0], Tensor) and args[0].dim() == 4:
            out = _run(self, args[0], args[1])
        return own(self, *args, **kwargs) if out is None else out

    members = {
        "original": original,
        "method": method,
        method: run,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    return type(original.__name__, (Fused, original), members)


def fuse(module: nn.Module, plan: MixedOpPlan | CellPlan, backend: str) -> None:
    """Exchanges the module's class."""
    module.__class__ = fused_class(type(module), plan.method)
    module.__dict__[STATE] = State(plan, snapshot(module, (STATE,)), backend)


def unfuse(module: nn.Module) -> None:
    """Gives an accelerated module its class back."""
    assert isinstance(module, Fused)
    module.__dict__.pop(STATE, None)
    module.__class__ = module.original


def plan_of(module: nn.Module) -> MixedOpPlan | CellPlan | None:
    """What an accelerated module computes; none where that is no longer known."""
    state: State = module.__dict__[STATE]
    return state.plan


def _run(module: nn.Module, x: Tensor, weights: Any) -> Tensor | None:
    """The module's value through `ops`, or None where its own method has to run."""
    state: State = module.__dict__[STATE]
    seen = state.seen.compare(module)
    if seen == "changed":
        state.look_again(module)
    if state.plan is None or seen == "watched":
        return None
    try:
        if isinstance(state.plan, CellPlan):
            return _cell(module, state.plan, x, weights, state.backend)
        return _mixed_op(module, state.plan, x, weights, state.backend)
    except OwnMethod:
        return None


def _mixed_op(module: nn.Module, plan: MixedOpPlan, x: Tensor, weights: Any, backend: str) -> Tensor:
    """x [N, C, H, W], weights [O] -> [N, C, H', W']."""
    channels = x.shape[1] // plan.partial
    row = row_of(weights, plan.mixture, x)
    mixed = _mapped(lambda x, rows: mixture(module, plan.mixture, x, rows, backend), x[:, :channels], row)
    return mixed if plan.partial == 1 else partial_channels(mixed, x[:, channels:], plan.partial)


def _cell(module: nn.Module, plan: CellPlan, x: Tensor, weights: Any, backend: str) -> Tensor:
    """x [N, C, H, W], weights [E, O] -> the last node."""

    def cell(x: Tensor, alpha: Tensor) -> Tensor:
        """x [1 or V, N, C, H, W], alpha [V, E, O] -> [V, N, C, H, W]."""
        whole = whole_cell(module, plan, x, alpha, backend)
        if whole is not None:
            return whole
        nodes = {0: x}
        for edge, rows in zip(plan.edges, alpha.unbind(1), strict=True):
            term = mixture(module, edge.mixture, nodes[edge.source], rows, backend)
            nodes[edge.target] = nodes[edge.target] + term if edge.target in nodes else term
        return nodes[max(nodes)]

    return _mapped(cell, x, torch.stack([row_of(weights[edge.row], edge.mixture, x) for edge in plan.edges]))


def _mapped(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, weights: Tensor) -> Tensor:
    """A function of x [1 or V, N, ...] and weights [V, ...], for x [N, ...] and weights [...]; also in `torch.vmap`."""
    if not torch.is_grad_enabled():
        mapped: Tensor = _Mapped.apply(x, weights, function)
        return mapped
    return function(x.unsqueeze(0), weights.unsqueeze(0)).squeeze(0)


class _Mapped(torch.autograd.Function):
    """Tells `torch.vmap` that the function takes many variants at once. For inference."""

    @staticmethod
    def forward(x: Tensor, weights: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return function(x.unsqueeze(0), weights.unsqueeze(0)).squeeze(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        weights: Tensor,
        function: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, int]:
        x = x.unsqueeze(0) if in_dims[0] is None else x.movedim(in_dims[0], 0)
        if in_dims[1] is None:
            weights = weights.expand(info.batch_size, *weights.shape)
        else:
            weights = weights.movedim(in_dims[1], 0)
        return function(x, weights), 0
