"""How tensors lie in memory for the kernels: pixels one behind the other, channels side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def empty_channels_last(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised [..., C, H, W], channels innermost."""
    *leading, channels, height, width = shape
    return like.new_empty(*leading, height, width, channels, dtype=dtype or like.dtype).movedim(-1, -3)


def pixel_rows(x: Tensor) -> tuple[Tensor, int]:
    """The tensor `x` [V, N, C, H, W] as the kernels take it, and how many elements lie from pixel to pixel.

    A slice of the channels of a wider tensor, as a convolution for several edges leaves it, is taken as it
    is; what lies otherwise is copied.
    """
    variants, images, channels, height, width = x.shape
    pixels = ((width, 4), (height, 3), (images, 1), (variants, 0))
    step = next((x.stride(axis) for size, axis in pixels if size > 1), channels)
    expected, fits = step, channels <= 1 or x.stride(2) == 1
    for size, axis in pixels:
        fits = fits and (size <= 1 or x.stride(axis) == expected)
        expected *= size
    if fits and step >= channels:
        return x, step
    return x.movedim(2, 4).contiguous().movedim(4, 2), channels


def channels_last(x: Tensor) -> Tensor:
    """The tensor `x` [V, N, C, H, W], copied unless its pixels lie side by side."""
    rows, step = pixel_rows(x)
    return rows if step == x.shape[2] else x.movedim(2, 4).contiguous().movedim(4, 2)


def device_of(x: Tensor) -> AbstractContextManager[object]:
    """Makes the device of `x` the current one while entered.

    Kernels are launched on the current CUDA device, which need not be the one of their tensors.
    """
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
