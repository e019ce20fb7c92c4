"""Whether a module is still what it was when it was recognised."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from functools import cache, wraps
from inspect import isroutine
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy
from torch.overrides import _pop_mode, _push_mode
from torch.utils._device import DeviceContext

from vpdarts_fast.acceleration.plans import Path, Unrecognised, at

GROWING = frozenset(
    {"training", "in_channels", "out_channels", "groups", "num_features", "momentum", "track_running_stats"}
)
"""Attributes that change in a search, and that plans read anew."""

STATE = "_vpdarts_fast"
"""The attribute of an accelerated module that holds what is known of it."""

ORIGINAL = "_vpdarts_fast_original"
"""The attribute of the class of an accelerated module that holds the class that the module had before."""

CALL = "_vpdarts_fast_call"
"""The attribute of a module that leave-one-out evaluation intercepts, meanwhile."""

HARMLESS = frozenset(
    {STATE, CALL, "_compiled_call_impl", "_former_parameters", "_is_replica", "_is_torch_compile"}
)
"""Attributes that may come to a module and change nothing that it computes: ours, and PyTorch's own."""


def is_simple(value: object) -> bool:
    """Whether a value is a number, text or none, or a tuple of such: what can be compared by `==`."""
    if isinstance(value, tuple):
        return all(map(is_simple, value))
    return isinstance(value, (bool, int, float, str, type(None))) and value == value  # and not NaN


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, of an accelerated one that which it had before."""
    kind: type[nn.Module] = getattr(type(module), ORIGINAL, type(module))
    return kind


@dataclass(frozen=True)
class Layer:
    """A submodule, or the module itself, as it was.

    Attributes:
        path: of the submodule.
        kind: its class; none where only its being there counts.
        forward: of the class.
        names: of its attributes, and those that may come to it. Any other may stand in place of a method or
            an attribute of its class.
        settings: its simple attributes.
        held: what other attributes hold.
    """

    path: Path
    kind: type[nn.Module] | None
    forward: object = None
    names: frozenset[str] = frozenset()
    settings: tuple[tuple[str, object], ...] = ()
    held: tuple[tuple[str, object], ...] = ()

    def is_same(self, module: nn.Module) -> bool:
        """Whether the module is still as it was."""
        kind, attributes = type(module), module.__dict__
        if STATE in attributes:
            kind = original_class(module)
        if kind is not self.kind or kind.forward is not self.forward:
            return False
        if not self.names.issuperset(attributes):
            return False
        return all(name in attributes and attributes[name] == value for name, value in self.settings) and all(
            name in attributes and _holding(attributes[name]) == value for name, value in self.held
        )


@dataclass(frozen=True)
class Snapshot:
    """A module and its submodules as they were, to find out whether they have changed since."""

    layers: tuple[Layer, ...]

    def compare(self, module: nn.Module) -> Literal["same", "watched", "changed"]:
        """Whether it is still that module, or somebody wants to see its submodules run, or it is another."""
        if any(_GLOBAL_HOOKS):
            return "watched"  # without a look at changes: recognition would call them
        watched = False
        for layer in self.layers:
            try:
                submodule = at(module, layer.path)
            except KeyError:
                return "changed"
            if layer.kind is not None:
                watched = watched or bool(layer.path and has_hooks(submodule))
                if not layer.is_same(submodule):
                    return "changed"
        return "watched" if watched else "same"


_GLOBAL_HOOKS = tuple(
    getattr(torch_module, name)
    for name in (
        "_global_forward_hooks",
        "_global_forward_pre_hooks",
        "_global_backward_hooks",
        "_global_backward_pre_hooks",
    )
    if hasattr(torch_module, name)
)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody wants to see the module run."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def snapshot(module: nn.Module, unknown: Collection[Path] = ()) -> Snapshot:
    """A module as it is now; of these submodules, whose own code runs anyway, only that they are there."""
    layers: list[Layer] = []
    for name, submodule in module.named_modules():
        path = tuple(name.split(".")) if name else ()
        if any(path[:length] in unknown for length in range(1, len(path))):
            continue
        layers.append(Layer(path, None) if path in unknown else _layer(path, submodule))
    return Snapshot(tuple(layers))


def _layer(path: Path, module: nn.Module) -> Layer:
    kind = original_class(module)
    others = {name: value for name, value in module.__dict__.items() if name not in INTERNAL | GROWING}
    settings = tuple((name, value) for name, value in others.items() if is_simple(value))
    held: tuple[tuple[str, object], ...] = ()
    if not kind.__module__.startswith("torch.nn."):  # whose layers hold nothing but settings
        held = tuple((name, _holding(value)) for name, value in others.items() if not is_simple(value))
    # A replica of `nn.DataParallel` has its parameters as attributes.
    names = HARMLESS.union(module.__dict__, module._parameters, module._buffers)
    return Layer(path, kind, kind.forward, names, settings, held)


def _holding(value: object) -> object:
    """Something that changes with what a value holds, where that can be told."""
    if isinstance(value, Tensor):  # not its values, for which the CPU would wait
        return type(value), id(value), None if value.is_inference() else value._version
    try:
        return frozen(value)
    except Exception:  # their code may raise anything
        return type(value), id(value)


def instance_methods(module: nn.Module) -> list[str]:
    """Names under which the module has something of its own in place of a method of its class."""
    names = _methods(original_class(module))  # type: ignore[arg-type]
    return [name for name in module.__dict__ if name in names]


@cache
def _methods(kind: type[nn.Module]) -> frozenset[str]:
    """Names of what a call of a module of this class may run."""
    before_module = kind.__mro__[: kind.__mro__.index(nn.Module)]
    names = {name for base in before_module for name, value in vars(base).items() if isroutine(value)}
    return frozenset(names - set(dir(nn.Module))) | {"forward", "_call_impl", "_wrapped_call_impl"}


Plan = TypeVar("Plan")


def remembered(recognise: Callable[[nn.Module], Plan]) -> Callable[[nn.Module], Plan]:
    """The same function, which looks only once at modules that are built alike, also where it raises."""
    known: dict[Hashable, Plan | Unrecognised] = {}

    def on_the_cpu(module: nn.Module) -> Plan:
        # Whatever device is the default; `with torch.device` would set a variable of the process as well.
        _push_mode(DeviceContext(torch.device("cpu")))  # type: ignore[no-untyped-call]
        try:
            return recognise(module)
        finally:
            _pop_mode()  # type: ignore[no-untyped-call]

    def look(module: nn.Module) -> Plan | Unrecognised:
        try:
            return on_the_cpu(module)
        except Unrecognised as error:
            return Unrecognised(*error.args)  # without the frames, and all that they hold

    @wraps(recognise)
    def remember(module: nn.Module) -> Plan:
        built = fingerprint(module)
        if built is None:
            return on_the_cpu(module)
        outcome = known.get(built)
        if outcome is None:
            if len(known) >= REMEMBERED:
                known.clear()
            outcome = known[built] = look(module)
        if isinstance(outcome, Unrecognised):
            raise Unrecognised(*outcome.args)
        return outcome

    return remember


REMEMBERED = 1000
"""More than the different modules of any model."""

INTERNAL = frozenset(nn.Module().__dict__) | {STATE}
"""Attributes that every module has, and ours."""


def fingerprint(module: nn.Module) -> Hashable | None:
    """All that two modules built alike have in common; None where an attribute could be anything."""
    parts: list[Hashable] = []
    try:
        for name, layer in module.named_modules():
            values = [(key, frozen(value)) for key, value in layer.__dict__.items() if key not in INTERNAL]
            tensors = (*layer._parameters.items(), *layer._buffers.items())
            kind = original_class(layer)
            parts.append(
                (name, kind, kind.forward, *values, *((key, _shape(tensor)) for key, tensor in tensors))
            )
    except Exception:  # what modules hold may raise anything
        return None
    return tuple(parts)


def _shape(tensor: Tensor | None) -> Hashable:
    """All of a parameter or buffer that recognition looks at."""
    if tensor is None or is_lazy(tensor):
        return None
    return tuple(tensor.shape), tensor.dtype, tensor.is_meta, tensor.requires_grad


def frozen(value: object, depth: int = 6) -> Hashable:
    """What a value holds: simple values, and what is made of them, as pickling takes it apart.

    Raises:
        TypeError: it holds something else, or too much.
    """
    if isinstance(value, (bool, int, float, str, type(None), type, enum.Enum, *IMMUTABLE)):
        return type(value), value
    if depth == 0 or isinstance(value, (nn.Module, MethodType)):
        raise TypeError
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return value, frozen([cells, value.__defaults__, value.__kwdefaults__], depth - 1)
    if isinstance(value, Tensor):
        if value.is_meta or value.numel() > MOST:
            raise TypeError
        return type(value), value.dtype, str(value.device), frozen(value.tolist(), depth - 1)
    if type(value) in (tuple, list, set, frozenset, dict):
        if len(value) > MOST:  # type: ignore[arg-type]
            raise TypeError
        items = value.items() if isinstance(value, dict) else value
        return type(value), *(frozen(item, depth - 1) for item in items)  # type: ignore[attr-defined]
    try:
        parts = value.__reduce_ex__(2)
        whole = parts if isinstance(parts, str) else [*parts[:3], *(list(part or ()) for part in parts[3:5])]
    except Exception as error:  # their code may raise anything
        raise TypeError from error
    return type(value), frozen(whole, depth - 1)


IMMUTABLE = (torch.dtype, torch.device, torch.layout, torch.memory_format, BuiltinFunctionType)

MOST = 100
"""Of elements in a container that is looked into."""
