"""What every op asks of its arguments before it looks at shapes: types, devices, ranges; the same in all ops.

A call that is as it should be pays a look at each tensor; words are looked for only where one is not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vpdarts_fast.errors import UserError
from vpdarts_fast.runtime.precision import product_dtype

HALVES = frozenset({torch.bfloat16, torch.float16})
FLOATING = frozenset({torch.float32, torch.float64}) | HALVES
"""What ops take; which of them a backend computes in is its own matter."""

LARGEST_EPS = 3.4028234663852886e38
"""The largest float32; csrc/check.h says the same."""

MOST_SKIP_DROPOUT = 1 - 2**-32
"""More may round to a dropout that keeps nothing."""

MOST_AT_ONCE = 2**16
"""Variants of a call, or edges that leave a node; csrc/check.h says the same. More are a mistake (a view
that repeats an element has any size without taking memory), and would be computed for hours."""


def check_tensor(op: str, name: str, tensor: Any) -> None:
    """Raises `UserError` unless the value is a dense floating tensor."""
    if not _usable(tensor):
        raise _refusal(op, name, tensor)


def check_like(op: str, first: Tensor, **tensors: Any) -> None:
    """Activations and weights: raises `UserError` unless all are dense floating tensors like the first one.

    That is, on its device and of its dtype; where `torch.autocast` is on, the dtype is its matter.
    """
    device, dtype = first.device, first.dtype
    for name, tensor in tensors.items():
        if not _usable(tensor):
            raise _refusal(op, name, tensor)
        if tensor.device != device or tensor.dtype is not dtype:
            _compare(op, name, tensor, first)


def check_lists(op: str, first: Tensor, **lists: Any) -> None:
    """Checks lists or tuples of tensors as `check_like` checks tensors."""
    device, dtype = first.device, first.dtype
    for name, tensors in lists.items():
        check_sequence(op, name, tensors)
        for i, tensor in enumerate(tensors):
            if not _usable(tensor):
                raise _refusal(op, f"{name}[{i}]", tensor)
            if tensor.device != device or tensor.dtype is not dtype:
                _compare(op, f"{name}[{i}]", tensor, first)


def check_small(op: str, first: Tensor, **tensors: Any) -> None:
    """Checks alphas and statistics as `check_like`, but that they may be float32 beside half precision."""
    device, dtype = first.device, first.dtype
    for name, tensor in tensors.items():
        if not _usable(tensor):
            raise _refusal(op, name, tensor)
        if tensor.device != device or tensor.dtype is not dtype:
            _compare(op, name, tensor, first, small=True)


def check_sequence(op: str, name: str, value: Any, items: str = "tensors") -> None:
    """Raises `UserError` unless the value is a list or a tuple."""
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{op}: {name} must be a list or a tuple of {items}; got {_kind(value)}")


def checked_eps(op: str, eps: Any, name: str = "eps") -> float:
    """A batch norm's epsilon as a Python float; `UserError` unless it is a number from 0 to `LARGEST_EPS`."""
    return _checked_number(op, name, eps, LARGEST_EPS, "3.4e38")


def checked_skip_dropout(op: str, skip_dropout: Any) -> float:
    """A probability as a Python float; `UserError` unless it is a number from 0 to `MOST_SKIP_DROPOUT`."""
    return _checked_number(op, "skip_dropout", skip_dropout, MOST_SKIP_DROPOUT, "1 - 2^-32")


def check_integer(op: str, name: str, value: Any, choices: tuple[int, ...]) -> None:
    """Raises `UserError` unless the value is one of these integers."""
    if isinstance(value, bool) or not isinstance(value, int) or value not in choices:
        expected = " or ".join(map(str, choices))
        raise UserError(f"{op}: {name} must be {expected}; got {_shown(value)}")


def check_flag(op: str, name: str, value: Any) -> None:
    """Raises `UserError` unless the value is True or False."""
    if not isinstance(value, bool):
        raise UserError(f"{op}: {name} must be True or False; got {_shown(value)}")


def check_seeds(op: str, name: str, seeds: Any, like: Tensor) -> None:
    """Raises `UserError` unless the value is none or a dense int64 tensor on the CPU or where `like` lies."""
    if seeds is None:
        return
    if not isinstance(seeds, Tensor):
        raise UserError(f"{op}: {name} must be none or an int64 tensor; got {_kind(seeds)}")
    if seeds.dtype != torch.int64 or seeds.layout is not torch.strided or seeds.is_nested:
        raise UserError(f"{op}: {name} must be a dense int64 tensor; got {_kind(seeds)}")
    if seeds.device.type != "cpu" and seeds.device != like.device:
        raise UserError(f"{op}: {name} must be on the CPU or {like.device}; got {seeds.device}")


def check_count(op: str, name: str, what: str, count: int) -> None:
    """Raises `UserError` for more variants or edges than `MOST_AT_ONCE`."""
    if count > MOST_AT_ONCE:
        raise UserError(f"{op}: {name} must hold at most {MOST_AT_ONCE} {what}; got {count}")


def _usable(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dtype in FLOATING  # which leaves out quantised tensors too
        and value.layout is torch.strided
        and not value.is_nested
    )


def _checked_number(op: str, name: str, value: Any, largest: float, largest_text: str) -> float:
    if type(value) is float and 0 <= value <= largest:
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= largest:
        return float(value)
    raise UserError(f"{op}: {name} must be a number in [0, {largest_text}]; got {_shown(value)}")


def _refusal(op: str, name: str, value: Any) -> UserError:
    """Why a value is not usable, and what may help."""
    if not isinstance(value, Tensor):
        help_text = "; torch.from_numpy makes one of an array" if type(value).__module__ == "numpy" else ""
        return UserError(f"{op}: {name} must be a tensor; got {_kind(value)}{help_text}")
    if value.is_quantized:
        help_text = "; .dequantize() makes one of it"
    elif value.is_nested or value.layout is not torch.strided:
        help_text = "" if value.is_nested else "; .to_dense() makes one of it"
        return UserError(f"{op}: {name} must be a dense tensor; got {_kind(value)}{help_text}")
    else:
        help_text = ""
    expected = ", ".join(sorted(map(_name, FLOATING)))
    return UserError(f"{op}: {name} must be a tensor of {expected}; got {_kind(value)}{help_text}")


def _compare(op: str, name: str, tensor: Tensor, first: Tensor, small: bool = False) -> None:
    """Raises `UserError` for another device or dtype than the first tensor's, unless the dtype is allowed."""
    if tensor.device != first.device:
        expected = f"on {first.device}, as the op's first tensor"
        raise UserError(f"{op}: {name} must be {expected}; got {tensor.device}")
    dtype = product_dtype(first)  # what autocast makes of it
    allowed = {dtype, torch.float32} if small and dtype in HALVES else {dtype}
    if (tensor.dtype if small else product_dtype(tensor)) not in allowed:
        expected = " or ".join(sorted(map(_name, allowed)))
        raise UserError(
            f"{op}: {name} must be {expected}, as the op's first tensor; got {_name(tensor.dtype)}"
        )


def _kind(value: Any) -> str:
    """What a value is, in a few words: never its contents, which may be long."""
    if not isinstance(value, Tensor):
        return "None" if value is None else f"a value of type {type(value).__qualname__}"
    if value.is_nested:
        return "a nested tensor"
    if value.layout is not torch.strided:
        return f"a tensor of layout {str(value.layout).removeprefix('torch.')}"
    return f"a tensor of {_name(value.dtype)}"


def _shown(value: Any) -> str:
    """A number as it is written, anything else by its kind."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    return repr(value) if isinstance(value, (int, float, complex)) else _kind(value)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
