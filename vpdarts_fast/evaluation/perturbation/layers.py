"""Layers between mixed operations, of many variants at once, without moving channels in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override


class ChannelsStayLast(TorchFunctionMode):
    """Within a `torch.vmap`, batch norms and concatenations leave what is channels last as it lies.

    The rules of `torch.vmap` for both put variants beside channels, or channels first: they copy, and so do
    the convolutions behind them. Batch norms whose running mean is an `Estimate` are left.
    """

    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            out = _normalised(*args, **kwargs)
            if out is not None:
                return out
        if func is torch.cat and not kwargs.keys() - {"dim"}:
            out = _concatenated(*args, **kwargs)
            if out is not None:
                return out
        # `torch.vmap` has no rule for a global pool, and warns.
        if func is F.adaptive_avg_pool2d and args[1:] in ((1,), ((1, 1),)) and not kwargs:
            return args[0].mean((-2, -1), keepdim=True)
        return func(*args, **kwargs)


def _normalised(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Does what `torch.nn.functional.batch_norm` does to `x` [N, C, ...]; none where statistics are kept."""
    if training:
        if running_mean is not None or x.dtype.itemsize < 4:
            return None
        variance, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
    elif type(running_mean) is Tensor and type(running_var) is Tensor:
        mean, variance = running_mean, running_var
    else:
        return None
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = -1, *[1] * (x.dim() - 2)
    return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(x.dtype)


def _concatenated(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    """Does what `torch.cat` does with tensors [N, C, H, W] of many variants in dimension 1, or none.

    It lies channels last where all of them do, as without variants.
    """
    if dim not in (1, -3) or any(tensor.dim() != 4 for tensor in tensors):
        return None
    if len({tensor.dtype for tensor in tensors}) > 1 or not any(map(is_batchedtensor, tensors)):
        return None
    out: Tensor = _Concatenation.apply(*tensors)
    return out


class _Concatenation(torch.autograd.Function):
    """Has no derivative; what there is of it is its rule for `torch.vmap`."""

    @staticmethod
    def forward(*tensors: Tensor) -> Tensor:
        """Concatenates [N, C, H, W] in dimension 1."""
        return torch.cat(tensors, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing to keep."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        """The output, and where its dimension of V is."""
        parts = [
            tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(tensors, in_dims, strict=True)
        ]
        images, _, height, width = parts[0].shape[1:]
        channels = sum(part.shape[2] for part in parts)
        if all(part[0].is_contiguous(memory_format=torch.channels_last) for part in parts):
            out = parts[0].new_empty(info.batch_size, images, height, width, channels).movedim(-1, 2)
        else:
            out = parts[0].new_empty(info.batch_size, images, channels, height, width)
        first = 0
        for part in parts:
            out.narrow(2, first, part.shape[2]).copy_(part)
            first += part.shape[2]
        return out, 0
