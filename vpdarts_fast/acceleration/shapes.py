"""Whether candidate operations keep the number of channels, and the size but for their stride.

That is what `mixed_op` computes. Layers may be replaced and settings changed at any time, so it is asked in
every call, before anything runs.
"""

from __future__ import annotations

from torch import Tensor, nn

from vpdarts_fast.acceleration.plans import (
    ChainPlan,
    OpaquePlan,
    OpPlan,
    Path,
    PointwisePlan,
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
        case PointwisePlan():
            layers_fit = pointwise_channels(op, plan, channels, size) == channels
    return layers_fit and all(has_channels(at(op, path), channels) for path in norm_paths(plan))


def pointwise_channels(op: nn.Module, plan: PointwisePlan, channels: int, size: Size) -> int | None:
    """How many channels 1x1 convolutions make of so many; none where channels or size do not fit."""
    shapes = [_kernel(op, path) for path in plan.convolutions]
    if any(shape[1] != channels for shape in shapes):
        return None
    odd = len(shapes) > 1 and not plan.padded and any(side % 2 for side in size)
    return None if odd else sum(shape[0] for shape in shapes)


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


def has_channels(norm: nn.Module, channels: int) -> bool:
    """Whether a batch norm is of so many channels; its settings may be older than its tensors."""
    assert isinstance(norm, nn.BatchNorm2d)
    parameters, statistics = [norm.weight, norm.bias], [norm.running_mean, norm.running_var]
    fitting = [tensor is None or tensor.shape == (channels,) for tensor in parameters]
    # Of each variant where they differ, [V, C].
    return all(fitting) and all(tensor is None or tensor.shape[-1:] == (channels,) for tensor in statistics)
