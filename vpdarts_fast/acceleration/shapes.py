"""Whether candidate operations keep the number of channels, and the size but for their stride.

That is what `mixed_op` computes. Layers may be replaced and settings changed at any time, so it is asked in
every call, before anything runs.
"""

from __future__ import annotations

from torch import Tensor, nn

from vpdarts_fast.acceleration.plans import (
    ChainPlan,
    FactorisedReducePlan,
    OpaquePlan,
    OpPlan,
    Path,
    PoolPlan,
    SepConvPlan,
    SkipPlan,
    ZeroPlan,
    at,
    norm_paths,
)

Size = tuple[int, ...]
"""H, W."""

CHANGES = "has operations that change the number of channels, or the size otherwise than by their stride"


def fits(op: nn.Module, plan: OpPlan, channels: int, size: Size, stride: int) -> bool:
    """Whether [N, C, H, W] becomes [N, C, ceil(H / stride), ceil(W / stride)]; an unknown one is taken to."""
    match plan:
        case OpaquePlan() | SkipPlan():
            return True
        case ZeroPlan(_, floors):
            return not floors or not any(side % stride for side in size)
        case PoolPlan():
            layers_fit = True
        case SepConvPlan(stages):
            layers_fit = all(
                _kernel(op, stage.depthwise)[0] == channels
                and _kernel(op, stage.pointwise)[:2] == (channels, channels)
                for stage in stages
            )
        case ChainPlan(layers):
            behind = tuple(-(-side // stride) for side in size)
            convolutions = [at(op, path) for path in layers]
            layers_fit = _behind(convolutions, channels, size) == (channels, behind)
        case FactorisedReducePlan(paths):
            first, second = (_kernel(op, path) for path in paths)
            layers_fit = first[1] == second[1] == channels == first[0] + second[0]
            layers_fit = layers_fit and (plan.padded or not any(side % 2 for side in size))
    return layers_fit and all(_has(at(op, path), channels) for path in norm_paths(plan))


def _kernel(op: nn.Module, path: Path) -> tuple[int, ...]:
    """The shape of a convolution's weight."""
    weight = at(op, path).weight
    assert isinstance(weight, Tensor)
    return tuple(weight.shape)


def _behind(layers: list[nn.Module], channels: int, size: Size) -> tuple[int, Size] | None:
    """Channels and size behind convolutions, and layers that keep them; none if one does not fit."""
    for layer in layers:
        if not isinstance(layer, nn.Conv2d):
            continue
        if layer.weight.shape[1] * layer.groups != channels:
            return None
        channels = layer.weight.shape[0]
        if isinstance(layer.padding, str):
            padding = [
                d * (k - 1) if layer.padding == "same" else 0
                for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
            ]
        else:
            padding = [2 * part for part in layer.padding]
        size = tuple(
            (side + added - dilation * (kernel - 1) - 1) // step + 1
            for side, added, dilation, kernel, step in zip(
                size, padding, layer.dilation, layer.kernel_size, layer.stride, strict=True
            )
        )
    return channels, size


def _has(norm: nn.Module, channels: int) -> bool:
    """Whether a batch norm is of so many channels; its settings may be older than its tensors."""
    assert isinstance(norm, nn.BatchNorm2d)
    parameters, statistics = [norm.weight, norm.bias], [norm.running_mean, norm.running_var]
    fitting = [tensor is None or tensor.shape == (channels,) for tensor in parameters]
    # Of each variant where they differ, [V, C].
    return all(fitting) and all(tensor is None or tensor.shape[-1:] == (channels,) for tensor in statistics)
