"""`masked_cell` of the native extension."""

from __future__ import annotations

import torch
from torch import Tensor

from vpdarts_fast import native

masked_cell = torch.ops.vpdarts_fast.masked_cell
"""See `vpdarts_fast.contract.reference.masked_cell`."""


@torch.library.register_fake("vpdarts_fast::masked_cell")  # type: ignore[untyped-decorator]
def _masked_cell_fake(
    x: Tensor,
    weight_1x1: Tensor,
    weight_3x3: Tensor,
    mean: Tensor,
    variance: Tensor,
    alpha: Tensor,
    eps: float,
) -> Tensor:
    return padded_channels_last(x, (alpha.shape[0], *x.shape[1:]))


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
