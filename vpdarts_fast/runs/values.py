"""Checks of values that come from a file, by what they have to be like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vpdarts_fast.runs.formats import shown


def whole(value: object, name: str, least: int = 0, most: int = (1 << 63) - 1) -> int:
    """A whole number in least..most; raises `ValueError` naming it otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number in {least}..{most}; got {shown(value)}")
    return value


def number(value: object, name: str, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number in least..most; raises `ValueError` naming it otherwise."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            converted = float(value)
        except OverflowError:
            converted = math.nan
        if math.isfinite(converted) and least <= converted <= most:
            return converted
    limits = f" in [{least:g}, {most:g}]" if math.isfinite(least) or math.isfinite(most) else ""
    raise ValueError(f"{name} must be a finite number{limits}; got {shown(value)}")


def truth(value: object, name: str) -> bool:
    """True or false; raises `ValueError` naming it otherwise."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false; got {shown(value)}")
    return value


def mapping(value: object, name: str) -> Mapping[str, Any]:
    """A mapping whose keys are strings; raises `ValueError` naming it otherwise."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} must be a mapping of names; got {shown(value)}")
    return value


def numbers_by_name(value: object, name: str, least: float = -math.inf) -> dict[str, float]:
    """A mapping of names to finite numbers; raises `ValueError` naming it otherwise."""
    return {key: number(entry, f"{name}, {key},", least) for key, entry in mapping(value, name).items()}


def tensor_like(value: object, template: Tensor, name: str) -> Tensor:
    """A tensor of the template's shape and dtype, all finite; raises `ValueError` naming it otherwise."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        raise ValueError(f"{name} must be a tensor; got {shown(value)}")
    if value.shape != template.shape or value.dtype != template.dtype:
        expected = f"{list(template.shape)} of {template.dtype}"
        raise ValueError(f"{name} is {list(value.shape)} of {value.dtype}; expected {expected}")
    if value.is_floating_point() and not value.isfinite().all():
        raise ValueError(f"{name} holds numbers that are not finite")
    return value


def tensors_like(value: object, templates: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Tensors as `tensor_like`, one for each template; raises `ValueError` naming it otherwise."""
    values = mapping(value, name)
    if values.keys() != templates.keys():
        odd = sorted(values.keys() ^ templates.keys())
        raise ValueError(f"{name} lacks or should not have {len(odd)} tensors, the first {odd[0]}")
    return {key: tensor_like(values[key], template, key) for key, template in templates.items()}
