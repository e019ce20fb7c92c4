"""Whether a module is still what it was when it was recognised."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from functools import wraps
from typing import Literal, TypeVar

from torch import nn
from torch.nn.modules import module as torch_module

from vpdarts_fast.acceleration.plans import Path, at

GROWING = frozenset(
    {"training", "in_channels", "out_channels", "groups", "num_features", "momentum", "track_running_stats"}
)
"""Attributes that change in a search, and that plans read anew."""

STATE = "_vpdarts_fast"
"""The attribute of an accelerated module that holds what is known of it."""

SIMPLE = (bool, int, float, str, tuple, type(None))


@dataclass(frozen=True)
class Snapshot:
    """Types and settings of a module's submodules, without its own type."""

    settings: tuple[tuple[Path, type[nn.Module] | None, tuple[tuple[str, object], ...]], ...]

    def compare(self, module: nn.Module) -> Literal["same", "watched", "changed"]:
        """Whether it is still that module, or somebody wants to see its submodules run, or it is another."""
        watched = any(_GLOBAL_HOOKS)
        for path, kind, settings in self.settings:
            try:
                found = at(module, path)
            except KeyError:
                return "changed"
            if kind is not None:
                if type(found) is not kind:
                    return "changed"
                watched = watched or has_hooks(found)
            attributes = found.__dict__
            for name, value in settings:
                if attributes.get(name) != value:
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


def snapshot(module: nn.Module, as_they_are: Collection[Path] = ()) -> Snapshot:
    """Of the module now, but for what is in these submodules, which run as they are."""
    settings: list[tuple[Path, type[nn.Module] | None, tuple[tuple[str, object], ...]]] = []
    for name, found in module.named_modules():
        path = tuple(name.split(".")) if name else ()
        above = [path[:length] for length in range(1, len(path))]
        if any(part in as_they_are for part in above):
            continue
        if path in as_they_are:
            settings.append((path, None, ()))
            continue
        simple = tuple(
            (key, value)
            for key, value in found.__dict__.items()
            if key not in GROWING and isinstance(value, SIMPLE)
        )
        settings.append((path, type(found) if name else None, simple))
    return Snapshot(tuple(settings))


Plan = TypeVar("Plan")


def remembered(recognise: Callable[[nn.Module], Plan]) -> Callable[[nn.Module], Plan]:
    """The same function, which looks only once at modules that are built alike."""
    known: dict[Hashable, Plan] = {}

    @wraps(recognise)
    def remember(module: nn.Module) -> Plan:
        built = _fingerprint(module)
        if built is None:
            return recognise(module)
        if built not in known:
            if len(known) >= REMEMBERED:
                known.clear()
            known[built] = recognise(module)
        return known[built]

    return remember


REMEMBERED = 1000
"""More than the different modules of any model."""

_INTERNAL = frozenset(nn.Module().__dict__) - {"training"} | {STATE}


def _fingerprint(module: nn.Module) -> Hashable | None:
    """All that two modules built alike have in common; None where an attribute could be anything."""
    parts: list[Hashable] = []
    try:
        for name, found in module.named_modules():
            own = [(key, _frozen(value)) for key, value in found.__dict__.items() if key not in _INTERNAL]
            tensors = (*found._parameters.items(), *found._buffers.items())
            kind = getattr(type(found), "own_class", type(found))
            parts.append(
                (name, kind, kind.forward, *own, *((key, tensor is None) for key, tensor in tensors))
            )
    except TypeError:
        return None
    return tuple(parts)


def _frozen(value: object) -> Hashable:
    """Simple values, also in tuples, lists and dictionaries; `TypeError` for anything else."""
    if isinstance(value, (tuple, list)):
        return type(value).__name__, *map(_frozen, value)
    if isinstance(value, dict):
        return "dict", *((_frozen(key), _frozen(item)) for key, item in value.items())
    if not isinstance(value, SIMPLE):
        raise TypeError
    return value
