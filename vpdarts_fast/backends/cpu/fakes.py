"""What native ops return for tensors without values, as in tracing: shapes, dtypes and places in memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from vpdarts_fast import native

_Fake = TypeVar("_Fake", bound=Callable[..., Any])


def register_fake(*ops: str) -> Callable[[_Fake], _Fake]:
    """Decorates the fake of native ops: a function of some of their arguments, by the names in the schema.

    It returns what the ops do, without values.
    """

    def register(outputs: _Fake) -> _Fake:
        for op in ops:
            schema = getattr(torch.ops.vpdarts_fast, op).default._schema
            names = [argument.name for argument in schema.arguments]
            places = [names.index(name) for name in inspect.signature(outputs).parameters]

            def fake(*arguments: Any, places: list[int] = places) -> Any:
                return outputs(*(arguments[place] for place in places))

            torch.library.register_fake(f"vpdarts_fast::{op}", fake)
        return outputs

    return register


def padded(channels: int, lanes: int | None = None) -> int:
    """Channels as they lie in memory, a multiple of the lanes."""
    lanes = lanes or native.cpu_lanes(channels)
    return -(-channels // lanes) * lanes


def padded_channels_last(like: Tensor, shape: tuple[int, ...], lanes: int | None = None) -> Tensor:
    """An empty [..., C, H, W], channels last; on the CPU padded to a multiple of the lanes in memory."""
    *leading, channels, height, width = shape
    in_memory = padded(channels, lanes) if like.device.type == "cpu" else channels
    storage = like.new_empty(*leading, height, width, in_memory)
    return storage.movedim(-1, -3).narrow(-3, 0, channels)


def gradient_of(tensor: Tensor, wanted: bool) -> Tensor:
    """Like the tensor, with a first dimension of 0 if it is not wanted."""
    return tensor.new_empty(tensor.shape[0] if wanted else 0, *tensor.shape[1:])


def gradient_of_images(images: Tensor, wanted: bool, lanes: int | None = None) -> Tensor:
    """The same of [N, C, H, W] or [V, N, C, H, W], as `padded_channels_last` has it in memory."""
    return padded_channels_last(images, (images.shape[0] if wanted else 0, *images.shape[1:]), lanes)
