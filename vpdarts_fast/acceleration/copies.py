"""Copies to try things on: nothing that is done to them reaches the module that they are of."""

from __future__ import annotations

import copy
import math
import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import isroutine
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from vpdarts_fast.acceleration.plans import Unrecognised, described
from vpdarts_fast.acceleration.snapshot import INTERNAL, STATE, instance_methods, original_class

HOOKS = tuple(name for name in nn.Module().__dict__ if "hooks" in name)
"""The attributes of a module that hold its hooks."""


def isolated_copy(module: nn.Module) -> nn.Module:
    """A deep copy in float64 on the CPU, as its classes have it: without hooks and methods of instances.

    These may hold on to the module itself, so that a call would reach it. What is on `meta` stays there.

    Raises:
        Unrecognised: it cannot be copied.
    """
    try:
        copied = copy.deepcopy(module, _replacements(module))
        for layer in copied.modules():
            layer.__dict__.pop(STATE, None)
            layer.__class__ = original_class(layer)
            for name in instance_methods(layer):
                del layer.__dict__[name]
            for name, value in layer.__dict__.items():
                if isinstance(value, Tensor):
                    layer.__dict__[name] = _in_float64(value)
        copied = copied.double()
        return copied if is_on_meta(copied) else copied.cpu()
    except Unrecognised:
        raise
    except Exception as error:  # their code may raise anything
        raise Unrecognised(f"cannot be copied: {described(error)}") from error


def _replacements(module: nn.Module) -> dict[int, Any]:
    """By the `id` of what a module holds, what its copy holds instead: the memo of `copy.deepcopy`."""
    memo: dict[int, Any] = {}
    for layer in module.modules():
        for name in HOOKS:
            memo[id(layer.__dict__[name])] = OrderedDict()
        _copy_results(list(layer.__dict__.values()), memo, set())
        for name in ("_compiled_call_impl", *instance_methods(layer)):
            memo[id(layer.__dict__.get(name))] = None
        if any(is_lazy(parameter) for parameter in layer.parameters(recurse=False)):
            raise Unrecognised("has parameters without a shape: call the model once, then accelerate")
    return memo


def _copy_results(values: Iterable[object], memo: dict[int, Any], seen: set[int]) -> None:
    """Adds copies of tensors that autograd keeps a history of, which `copy.deepcopy` refuses."""
    for value in values:
        if isinstance(value, Tensor) and value.grad_fn is not None:
            memo[id(value)] = value.detach().clone()
        elif (isinstance(value, (list, tuple)) or type(value) is dict) and id(value) not in seen:
            seen.add(id(value))
            _copy_results(value.values() if isinstance(value, dict) else value, memo, seen)


def _in_float64(value: Tensor) -> Tensor:
    if value.is_meta:
        return value
    return value.to("cpu", torch.float64 if value.is_floating_point() else value.dtype)


def is_on_meta(module: nn.Module) -> bool:
    """Whether parameters or buffers have no values."""
    return any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def channels_of(layer: nn.Module) -> int | None:
    """How many channels a layer takes, by its parameters and buffers: settings may be older than these."""
    weight = layer._parameters.get("weight")
    if isinstance(layer, nn.modules.conv._ConvNd) and weight is not None:
        return int(weight.shape[0] if layer.transposed else weight.shape[1] * layer.groups)
    if isinstance(layer, nn.modules.batchnorm._NormBase):
        kept = weight if weight is not None else layer._buffers.get("running_mean")
        return layer.num_features if kept is None else len(kept)
    return None


@torch.no_grad()
def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Gives parameters and running statistics random values, about as large as initial ones."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            values = _random(parameter, generator)
            fan_in = max(1, parameter.numel() // max(1, len(parameter))) if parameter.dim() > 1 else 1
            parameter.copy_(values / math.sqrt(fan_in) if fan_in > 1 else 1 + values / 2)
    for layer in module.modules():
        if isinstance(layer, _NormBase) and layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.copy_(_random(layer.running_mean, generator) / 2)
            layer.running_var.copy_(0.5 + _random(layer.running_var, generator).abs())


def _random(template: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(template.shape, dtype=template.dtype, device="cpu", generator=generator)


@contextmanager
def class_attributes(module: nn.Module) -> Iterator[list[str]]:
    """Gives classes back, afterwards, the attributes that their code writes to within; yields their names."""
    written: list[str] = []
    kinds = {kind for layer in module.modules() for kind in type(layer).__mro__ if not _is_library(kind)}
    before = [
        (kind, name, value, copy.copy(value) if isinstance(value, (list, dict, set)) else value)
        for kind in kinds
        for name, value in vars(kind).items()
        if not (name.startswith("__") or isroutine(value) or isinstance(value, property))
    ]
    try:
        yield written
    finally:
        for kind, name, value, held in before:
            if kind.__dict__.get(name) is value and (held is value or _elements(held) == _elements(value)):
                continue
            written.append(f"{kind.__name__}.{name}")
            if held is not value:
                value.clear()
                value.extend(held) if isinstance(value, list) else value.update(held)
            setattr(kind, name, value)


def _elements(container: Any) -> list[int]:
    """Which objects are in a list, set or dictionary."""
    values = [*container, *container.values()] if isinstance(container, dict) else container
    return [id(value) for value in values]


def _is_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", "builtins", "vpdarts_fast", "abc", "typing")


def differing_state(one: nn.Module, other: nn.Module, seen: set[tuple[int, int]] | None = None) -> str | None:
    """The name of an attribute, buffer or parameter that differs between two copies of a module; or none.

    Pairs of objects that have been seen are taken to be alike.
    """
    seen = set() if seen is None else seen
    ones, others = dict(one.named_modules()), dict(other.named_modules())
    if ones.keys() != others.keys():
        return "its submodules"
    for path, layer in ones.items():
        states = [
            {key: value for key, value in copied.__dict__.items() if key not in INTERNAL}
            | dict(copied._parameters)
            | dict(copied._buffers)
            for copied in (layer, others[path])
        ]
        if states[0].keys() != states[1].keys():
            name = min(states[0].keys() ^ states[1].keys())
        else:
            name = next((key for key in states[0] if not _alike(states[0][key], states[1][key], seen)), "")
        if name:
            return f"{path}.{name}" if path else name
    return None


def _alike(a: Any, b: Any, seen: set[tuple[int, int]]) -> bool:
    """Whether two values are the same up to rounding; what cannot be looked into is taken to be."""
    if (id(a), id(b)) in seen or a is b:
        return True
    seen.add((id(a), id(b)))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return are_close(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key], seen) for key in a)
    if hasattr(a, "__len__") and len(a) != len(b):
        return False
    if isinstance(a, (list, tuple)) or type(a).__name__ == "deque":
        return all(_alike(left, right, seen) for left, right in zip(a, b, strict=True))
    if isinstance(a, nn.Module):
        return differing_state(a, b, seen) is None
    if isinstance(a, _WITHOUT_STATE):
        return True
    if type(a).__eq__ is not object.__eq__:  # type: ignore[comparison-overlap]
        return bool(a == b)
    return _alike(getattr(a, "__dict__", {}), getattr(b, "__dict__", {}), seen)


_WITHOUT_STATE = (type, type(lambda: None), type(random.random), type(np))


def are_close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal up to rounding in float64, measured by the largest element.

    NaN has to stand where the other tensor has NaN.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.layout != b.layout:
        return False
    if a.is_meta or b.is_meta or not (a.is_floating_point() or a.is_complex()):
        return a.is_meta or b.is_meta or torch.equal(a, b)
    a, b = a.detach().to_dense(), b.detach().to_dense()
    finite = b[b.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    tolerance = 1e-9 if a.dtype == torch.float64 else 1e-5
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * max(scale, 1e-2), equal_nan=True)
