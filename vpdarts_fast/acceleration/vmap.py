"""Functions of many variants at once, which `torch.vmap` calls as such."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

BatchNorm = nn.modules.batchnorm._BatchNorm

STATISTICS = "running_mean", "running_var"
"""The buffers of a batch norm that variants may have of their own."""

Buffer = tuple[BatchNorm, str]
"""A batch norm, and the name of one of these."""


def of_variants(
    function: Callable[..., Tensor], x: Tensor, *weights: Tensor, batched: Sequence[Buffer] = ()
) -> Tensor:
    """The function of x [1 or V, N, C, H, W] and weights [V, ...], called with x and weights of one variant.

    In `torch.vmap` without gradients, it is called with all variants. What comes out lies in memory as x.

    Args:
        function: see above.
        x: of one variant.
        weights: likewise.
        batched: running statistics that `torch.vmap` is over; they are [V, C] in the function.
    """
    if torch.is_grad_enabled():
        return _single(function, x, *weights)
    if batched:
        function = _with_statistics(function, batched)
        weights += tuple(getattr(norm, name) for norm, name in batched)
    out: Tensor = _OfVariants.apply(function, x, *weights)
    return out


def batched_statistics(module: nn.Module) -> list[Buffer]:
    """Running statistics of batch norms within the module that a `torch.vmap` is over."""
    buffers = ((norm, name, norm._buffers[name]) for norm in batch_norms(module) for name in STATISTICS)
    return [
        (norm, name)
        for norm, name, values in buffers
        if values is not None and torch._C._functorch.is_functorch_wrapped_tensor(values)
    ]


def layers(module: nn.Module) -> list[nn.Module]:
    """The module and all within, as `nn.Module.modules` has them but for their order, in less time.

    Calls ask for them so often that it counts.
    """
    found, seen = [module], {module}
    for layer in found:  # and what it adds
        for child in layer._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                found.append(child)
    return found


def batch_norms(module: nn.Module) -> Iterator[BatchNorm]:
    """All batch norms within the module."""
    return (layer for layer in layers(module) if isinstance(layer, BatchNorm))


@contextmanager
def replaced(buffers: Sequence[Buffer], values: Sequence[Tensor]) -> Iterator[None]:
    """Puts values in place of running statistics while entered, and those back afterwards."""
    before = [norm._buffers[name] for norm, name in buffers]
    try:
        for (norm, name), value in zip(buffers, values, strict=True):
            norm._buffers[name] = value
        yield
    finally:
        for (norm, name), kept in zip(buffers, before, strict=True):
            norm._buffers[name] = kept


def _with_statistics(function: Callable[..., Tensor], buffers: Sequence[Buffer]) -> Callable[..., Tensor]:
    """The function of x, its weights, and the running statistics."""

    def run(x: Tensor, *tensors: Tensor) -> Tensor:
        weights, statistics = tensors[: -len(buffers)], tensors[-len(buffers) :]
        with replaced(buffers, statistics):
            return function(x, *weights)

    return run


def _single(function: Callable[..., Tensor], x: Tensor, *weights: Tensor) -> Tensor:
    out = function(x.unsqueeze(0), *(weight.unsqueeze(0) for weight in weights)).squeeze(0)
    layout = torch.contiguous_format if x.is_contiguous() or x.dim() != 4 else torch.channels_last
    # An op's output is a view, which autograd would not let others change in place, as drop-path does.
    return out.clone(memory_format=layout) if out.requires_grad else out.contiguous(memory_format=layout)


class _OfVariants(torch.autograd.Function):
    """Has no derivative; what there is of it is its rule for `torch.vmap`."""

    forward = staticmethod(_single)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing to keep."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        function: Callable[..., Tensor],
        x: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, int]:
        """The output, and where its dimension of V is."""
        _, x_dim, *weight_dims = in_dims
        x = x.unsqueeze(0) if x_dim is None else x.movedim(x_dim, 0)
        expanded = (
            weight.expand(info.batch_size, *weight.shape) if dim is None else weight.movedim(dim, 0)
            for weight, dim in zip(weights, weight_dims, strict=True)
        )
        out = function(x, *expanded)
        return out.contiguous() if x[0].is_contiguous() else out, 0
