"""Accelerated modules: the class of a recognised one is exchanged for a subclass of it that runs on `ops`.

Parameters, buffers, submodules, hooks and methods stay where they are. In every call that a plan does not
cover, the module's own method runs.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from vpdarts_fast.acceleration.estimates import Estimate
from vpdarts_fast.acceleration.plans import (
    CellPlan,
    MixedOpPlan,
    OwnMethod,
    Plan,
    PreprocessPlan,
    ResidualPlan,
    Unrecognised,
    unknown_ops,
)
from vpdarts_fast.acceleration.preprocess import preprocess
from vpdarts_fast.acceleration.probing import without_ops
from vpdarts_fast.acceleration.residual import residual_block
from vpdarts_fast.acceleration.run import Mixture, row_of, whole_cell
from vpdarts_fast.acceleration.snapshot import ORIGINAL, STATE, Snapshot, is_simple, original_class, snapshot
from vpdarts_fast.acceleration.vmap import BatchNorm, batched_statistics, layers, of_variants
from vpdarts_fast.contract.transforms import in_plain_vmap, in_transform

RETRIES = 100
"""How often a module that changes is looked at again before its own method runs for good."""


class State:
    """What an accelerated module knows of itself.

    Args:
        plan: what it computes; none, later, where that is no longer known.
        recognise: finds the plan anew when the module has changed.
        seen: the module as it was when the plan was found.
        backend: as `accelerate` takes it.
    """

    def __init__(
        self, plan: Plan, recognise: Callable[[nn.Module], Plan], seen: Snapshot, backend: str
    ) -> None:
        self.plan: Plan | None = plan
        self.recognise, self.seen, self.backend, self.retries = recognise, seen, backend, RETRIES

    @_disable_dynamo  # imports the compiler when it is called, which `torch.compiler.disable` does at once
    def look_again(self, module: nn.Module) -> None:
        """Recognises a module that has changed: it may compute something else now, or nothing that is known.

        At the last of `RETRIES` changes it warns; after one more the module's own methods run for good.
        """
        self.retries -= 1
        self.plan = None
        if self.retries >= 0:
            with contextlib.suppress(Unrecognised):
                self.plan = self.recognise(module)
            self.seen = snapshot(module, unknown_ops(self.plan) if self.plan else ())
        if self.retries == 0:
            warnings.warn(
                f"{type(module).__name__} has changed {RETRIES} times since it was accelerated; at the next "
                "change its own code takes over. Settings that change every step cost more than they save.",
                stacklevel=2,
            )


class Fused:
    """What is mixed into the class of an accelerated module, by which it is known."""

    fused_methods: ClassVar[tuple[str, ...]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copies and pickles are accelerated too, and name the original class."""
        original = getattr(type(self), ORIGINAL)
        return _rebuild, (original, type(self).fused_methods), self.__dict__


def _rebuild(original: type[nn.Module], methods: tuple[str, ...]) -> nn.Module:
    module = original.__new__(fused_class(original, methods))
    assert isinstance(module, nn.Module)
    return module


def fused_class(original: type[nn.Module], methods: tuple[str, ...]) -> type[nn.Module]:
    """The subclass of a module's class whose `methods` run on `ops` where they can; made once for each."""
    kind = _CLASSES.get((original, methods))
    if kind is None:
        members: dict[str, Any] = {method: _running(original, method) for method in methods}
        members |= {ORIGINAL: original, "fused_methods": methods}
        kind = _CLASSES.setdefault((original, methods), subclass(original, members, Fused))
    return kind


_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def _running(original: type[nn.Module], method: str) -> Callable[..., Tensor]:
    own_method: Callable[..., Tensor] = getattr(original, method)
    _, *parameters = inspect.signature(own_method).parameters.values()

    @wraps(own_method)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        out = None
        by_name = [parameter.name for parameter in parameters[len(args) : len(args) + len(kwargs)]]
        if kwargs.keys() == set(by_name):
            given = [*args, *(kwargs[name] for name in by_name)]
            while 2 < len(given) <= len(parameters) and _is_default(parameters[len(given) - 1], given[-1]):
                given.pop()
            out = _run(self, method, *given)
        return getattr(original, method)(self, *args, **kwargs) if out is None else out

    return run


def _is_default(parameter: inspect.Parameter, value: Any) -> bool:
    default = parameter.default
    return value is default or (is_simple(value) and is_simple(default) and bool(value == default))


def subclass(kind: type[nn.Module], members: dict[str, Any], *mixed_in: type) -> type[nn.Module]:
    """A subclass of `kind` that has its name and documentation, and these members besides."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (*mixed_in, kind), names | members)


@dataclass(frozen=True)
class Change:
    """What a module is to become.

    Attributes:
        module: as it is.
        kind: its class.
        state: what it knows of itself, or none for a module that is not accelerated.
    """

    module: nn.Module
    kind: type[nn.Module]
    state: State | None

    def make(self) -> None:
        """Gives the module the class and the state."""
        self.module.__dict__.pop(STATE, None)
        if self.state is not None:
            self.module.__dict__[STATE] = self.state
        self.module.__class__ = self.kind


def fusion(module: nn.Module, plan: Plan, recognise: Callable[[nn.Module], Plan], backend: str) -> Change:
    """The change that accelerates a module: its class becomes the subclass that runs on `ops`."""
    state = State(plan, recognise, snapshot(module, unknown_ops(plan)), backend)
    return Change(module, fused_class(original_class(module), plan.methods), state)


def restoration(module: Fused) -> Change:
    """The change that undoes `fusion`: the module gets its class back."""
    assert isinstance(module, nn.Module)
    return Change(module, original_class(module), None)


def make_all(changes: Sequence[Change]) -> None:
    """Makes all changes, or none of them where one is refused or where it is interrupted."""
    before = [
        Change(change.module, type(change.module), change.module.__dict__.get(STATE)) for change in changes
    ]
    try:
        for change in changes:
            change.make()
    except BaseException:
        for change in before:
            change.make()
        raise


def plan_of(module: Fused) -> Plan | None:
    """What an accelerated module computes; none where that is no longer known."""
    state: State | None = module.__dict__.get(STATE)
    return None if state is None else state.plan


def backend_of(module: nn.Module) -> str:
    """The backend that an accelerated module was given: a name, or auto."""
    state: State = module.__dict__[STATE]
    return state.backend


def _run(module: nn.Module, method: str, x: Any = None, *weights: Any) -> Tensor | None:
    """The method's value through `ops`, or None where its own code has to run."""
    if not isinstance(x, Tensor) or x.dim() != 4:
        return None
    transformed = in_transform()
    if transformed and not _runs_in_vmap(module):
        return None
    state: State | None = module.__dict__.get(STATE)
    if state is None:  # made from an accelerated one's class, as a slice of an `nn.Sequential` is
        return None
    seen = state.seen.compare(module)
    if seen == "changed" or (state.plan is not None and not state.plan.compared and not x.is_meta):
        if transformed or torch._C._len_torch_dispatch_stack():
            return None  # what is within may be without values, and the module may be another one outside
        state.look_again(module)
        seen = state.seen.compare(module)  # what has changed it may be a hook
    plan, backend = state.plan, state.backend
    if plan is None or method not in plan.methods or seen != "same":
        return None
    if len(weights) != (0 if isinstance(plan, (ResidualPlan, PreprocessPlan)) else 1):
        return None
    try:
        return computed(module, method, plan, x, *weights, backend=backend)
    except OwnMethod:
        return None


def _runs_in_vmap(module: nn.Module) -> bool:
    """Whether the transform around the call is one that `of_variants` knows.

    That is a `torch.vmap` over inputs, weights, and running statistics, which change in estimates only.
    """
    others: list[Tensor | None] = []
    for layer in layers(module):
        others += layer._parameters.values()
        if not isinstance(layer, BatchNorm):
            others += layer._buffers.values()
        elif layer.training and not isinstance(layer.running_mean, Estimate | None):
            return False
    return in_plain_vmap(tensor for tensor in others if tensor is not None)


def computed(module: nn.Module, method: str, plan: Plan, x: Tensor, *weights: Any, backend: str) -> Tensor:
    """The method's value, computed by `ops`.

    Raises:
        OwnMethod: the plan does not cover the call.
    """
    match plan:
        case MixedOpPlan():
            return _mixed_op(module, method, plan, x, weights[0], backend)
        case CellPlan():
            return _cell(module, plan, x, weights[0], backend)
        case ResidualPlan():
            return residual_block(module, plan, x, backend)
        case PreprocessPlan():
            return preprocess(module, plan, x, backend)


def _mixed_op(
    module: nn.Module, method: str, plan: MixedOpPlan, x: Tensor, weights: Any, backend: str
) -> Tensor:
    """The mixed operation of `x` [N, C, H, W] with weights [O]: [N, C, H', W']."""

    def mixed_op(x: Tensor, rows: Tensor) -> Tensor:
        return Mixture(module, plan.mixture, x, rows, backend)(x)

    row = row_of(weights, plan.mixture, x)
    mixed = of_variants(mixed_op, x, row, batched=batched_statistics(module))
    if not plan.adds:
        return mixed
    rest: Tensor = getattr(without_ops(module, plan.mixture), method)(x, weights)
    return mixed + rest


def _cell(module: nn.Module, plan: CellPlan, x: Tensor, weights: Any, backend: str) -> Tensor:
    """The last node of a cell with input `x` [N, C, H, W] and weights [E, O]."""

    def cell(x: Tensor, alpha: Tensor) -> Tensor:
        """The last node [V, N, C, H, W] of `x` [1 or V, N, C, H, W] with alpha [V, E, O]."""
        whole = whole_cell(module, plan, x, alpha, backend)
        if whole is not None:
            return whole
        mixtures = [
            Mixture(module, edge.mixture, x, rows, backend)
            for edge, rows in zip(plan.edges, alpha.unbind(1), strict=True)
        ]
        nodes = {0: x}
        for edge, mixture in zip(plan.edges, mixtures, strict=True):
            term = mixture(nodes[edge.source])
            nodes[edge.target] = nodes[edge.target] + term if edge.target in nodes else term
        return nodes[max(nodes)]

    rows = [row_of(weights[edge.row], edge.mixture, x) for edge in plan.edges]
    return of_variants(cell, x, torch.stack(rows), batched=batched_statistics(module))
