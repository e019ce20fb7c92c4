"""What has been recognised: plain data, so that accelerated modules can be copied and pickled.

A plan names submodules by their paths and is read anew in every call: channels may grow and submodules may be
replaced during a search.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vpdarts_fast import ops
from vpdarts_fast.acceleration.estimates import of_each_variant
from vpdarts_fast.backends.registry import preferred
from vpdarts_fast.contract.branches import Branch, Given, Norm, Pool, SepConv, Skip, Stage, Zero

Path = tuple[str, ...]
"""From a module down to one of its submodules."""


class Unrecognised(Exception):
    """Says why a module is left alone; the message is empty for one that does not look like anything."""


class OwnMethod(Exception):
    """Says that the module's own method has to run, and why; nothing has been changed yet."""


def described(error: Exception) -> str:
    """The first line of what another code base's error says, without addresses in memory."""
    return without_addresses(f"{type(error).__name__}: {error}".splitlines()[0])


def without_addresses(text: str) -> str:
    """`<function scaled at 0x7f...>` as `<function scaled>`."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def at(module: nn.Module, path: Path) -> nn.Module:
    """The submodule at the end of the path; `KeyError` if there is none."""
    for name in path:
        child = module._modules[name]
        if child is None:
            raise KeyError(name)
        module = child
    return module


@dataclass(frozen=True)
class ZeroPlan:
    """The operation `none`; of an odd size its output may be the smaller half."""

    stride: int
    floors: bool = False


@dataclass(frozen=True)
class SkipPlan:
    """The identity, `skip_connect`."""


@dataclass(frozen=True)
class PoolPlan:
    """A 3x3 pool, and the batch norm behind it."""

    kind: Literal["avg", "max"]
    stride: int
    norm: Path | None


@dataclass(frozen=True)
class StagePlan:
    """ReLU, depthwise convolution, 1x1 convolution, batch norm."""

    depthwise: Path
    pointwise: Path
    norm: Path


@dataclass(frozen=True)
class SepConvPlan:
    """A separable convolution of one or two stages."""

    stages: tuple[StagePlan, ...]
    stride: int


@dataclass(frozen=True)
class ChainPlan:
    """Layers one behind the other, run by PyTorch, and a batch norm."""

    layers: tuple[Path, ...]
    norm: Path
    stride: int


@dataclass(frozen=True)
class PointwisePlan:
    """ReLU, a 1x1 convolution or the two of a factorised reduce, and a batch norm.

    Attributes:
        convolutions: one or two; the second one reads the pixel that is one further in both directions.
        norm: the batch norm.
        stride: of the convolutions.
        padded: zeros follow the last pixel; without, two convolutions need even sizes.
    """

    convolutions: tuple[Path, ...]
    norm: Path
    stride: int
    padded: bool = True


@dataclass(frozen=True)
class OpaquePlan:
    """Anything else: run as it is, weighted and added.

    Attributes:
        why: it is not known.
        changes_input: what the operations behind it are called with.
    """

    why: str
    changes_input: bool = False


OpPlan = ZeroPlan | SkipPlan | PoolPlan | SepConvPlan | ChainPlan | PointwisePlan | OpaquePlan
"""What a candidate operation computes."""


def norm_paths(plan: OpPlan) -> Iterator[Path]:
    """The paths of its batch norms, in the order of `vpdarts_fast.contract.branches.norms`."""
    if isinstance(plan, SepConvPlan):
        yield from (stage.norm for stage in plan.stages)
    elif isinstance(plan, (PoolPlan, ChainPlan, PointwisePlan)) and plan.norm is not None:
        yield plan.norm


def stride_of(plan: OpPlan) -> int | None:
    """The stride of a candidate operation; None where the plan does not say."""
    if isinstance(plan, SkipPlan):
        return 1
    return None if isinstance(plan, OpaquePlan) else plan.stride


def branch(op: nn.Module, plan: OpPlan, x: Tensor, stride: int, backend: str) -> Branch:
    """The candidate operation as `mixed_op` takes it.

    x [1 or V, N, C, H, W]: it would be called with the images of each variant.
    """
    match plan:
        case ZeroPlan():
            return Zero()
        case SkipPlan():
            return Skip()
        case PoolPlan(kind, _, path):
            return Pool(kind, None if path is None else _norm(at(op, path)))
        case SepConvPlan(stages):
            return SepConv(tuple(_stage(op, stage) for stage in stages))
        case ChainPlan(layers, path):
            value = x.flatten(0, 1)
            for layer in layers:
                value = at(op, layer)(value)
            return Given(value.view(*x.shape[:2], *value.shape[1:]), _norm(at(op, path)))
        case PointwisePlan(_, path):
            return Given(_pointwise(op, plan, x, backend), _norm(at(op, path)))
        case OpaquePlan():
            size = *x.shape[1:3], *(-(-side // stride) for side in x.shape[3:])
            values = [
                torch.as_tensor(value, dtype=x.dtype, device=x.device) for value in of_each_variant(op, x)
            ]
            if any(not _expands(value.shape, size) for value in values):
                raise OwnMethod("has operations that change the number of channels or the size")
            return Given(torch.stack([value.expand(size) for value in values]))


def _expands(shape: Sequence[int], size: Sequence[int]) -> bool:
    """Whether `Tensor.expand` makes the size of the shape."""
    sides = zip(reversed(shape), reversed(size), strict=False)
    return len(shape) <= len(size) and all(side in (1, wanted) for side, wanted in sides)


def _pointwise(op: nn.Module, plan: PointwisePlan, x: Tensor, backend: str) -> Tensor:
    """What the convolutions make of `x` [1 or V, N, C, H, W], without biases: [1 or V, N, C', H', W']."""
    weights = [at(op, path).weight for path in plan.convolutions]
    backend = preferred("relu_pointwise", backend)
    raw = ops.relu_pointwise(x.flatten(0, 1), weights, plan.stride, backend=backend)  # type: ignore[arg-type]
    return raw.view(*x.shape[:2], *raw.shape[1:])


def _stage(op: nn.Module, plan: StagePlan) -> Stage:
    depthwise, pointwise = at(op, plan.depthwise), at(op, plan.pointwise)
    assert isinstance(depthwise, nn.Conv2d) and isinstance(pointwise, nn.Conv2d)
    dilation = depthwise.dilation[0]
    return Stage(depthwise.weight, pointwise.weight, dilation, _norm(at(op, plan.norm)))


def _norm(norm: nn.Module) -> Norm:
    assert isinstance(norm, nn.BatchNorm2d)
    return Norm(norm.eps, norm.weight, norm.bias)


def biases(op: nn.Module, plan: OpPlan) -> Iterator[Tensor | None]:
    """The bias [C] that `branch` leaves out before each batch norm, or none; in their order."""
    for path in norm_paths(plan):
        match plan:
            case SepConvPlan(stages):
                yield next(_bias(op, stage.pointwise) for stage in stages if stage.norm == path)
            case PointwisePlan(convolutions):
                parts = [bias for bias in (_bias(op, conv) for conv in convolutions) if bias is not None]
                yield torch.cat(parts) if parts else None
            case _:
                yield None


def _bias(op: nn.Module, path: Path) -> Tensor | None:
    conv = at(op, path)
    assert isinstance(conv, nn.Conv2d)
    return conv.bias


@dataclass(frozen=True)
class MixturePlan:
    """sum_o weights[o] * op_o(x) over the candidate operations of an edge.

    Attributes:
        ops: their paths, in the order of the weights.
        plans: what they compute.
        stride: of all of them.
        partial: k; the first 1/k of the channels goes through the operations, the rest (max-pooled at stride
            2) is concatenated, and the channels are shuffled in k groups. 1 is all channels.
        skips_zeros: an operation of weight 0 is not run.
    """

    ops: tuple[Path, ...]
    plans: tuple[OpPlan, ...]
    stride: int
    partial: int = 1
    skips_zeros: bool = False


@dataclass(frozen=True)
class MixedOpPlan:
    """A module that is a mixed operation.

    Attributes:
        methods: that compute it, called with (x, weights).
        mixture: what is computed.
        adds: they add something of their own to the sum.
        compared: with the module's own code; without values, as on `meta`, this cannot be done.
        remark: what else there is to say.
    """

    methods: tuple[str, ...]
    mixture: MixturePlan
    adds: bool
    compared: bool = True
    remark: str = ""


@dataclass(frozen=True)
class EdgePlan:
    """An edge of a cell, from node `source` to node `target`.

    Attributes:
        source: the number of the node that it leaves; 0 is the cell's input.
        target: the number of the node that it enters.
        row: of the cell's weights, the one that belongs to it.
        mixture: what is computed on it.
    """

    source: int
    target: int
    row: int
    mixture: MixturePlan


@dataclass(frozen=True)
class CellPlan:
    """A module that is a whole cell of mixed operations, without modules for these.

    Attributes:
        methods: that compute it, called with (inputs, weights); the inputs are node 0, the value is the last.
        edges: in the order of targets, then sources.
        compared: as of a mixed operation.
        remark: as of a mixed operation.
    """

    methods: tuple[str, ...]
    edges: tuple[EdgePlan, ...]
    compared: bool = True
    remark: str = ""


@dataclass(frozen=True)
class ResidualPlan:
    """conv1x1(pool(x)) + bn(conv3x3(relu(bn(conv3x3(relu(x)))))), the pool and the first 3x3 of stride 2.

    Attributes:
        convolutions: the first and the second 3x3, and the 1x1 of the shortcut.
        norms: behind the first and the second 3x3.
        methods: that compute it, called with x.
        compared: as of a mixed operation.
        remark: as of a mixed operation.
    """

    convolutions: tuple[Path, Path, Path]
    norms: tuple[Path, Path]
    methods: tuple[str, ...] = ("forward",)
    compared: bool = True
    remark: str = ""


@dataclass(frozen=True)
class PreprocessPlan:
    """A module that is ReLU, 1x1 convolutions and a batch norm, as they stand in front of a DARTS cell.

    Attributes:
        op: its layers; numbers of channels and sizes may change.
        methods: that compute it, called with x.
        compared: as of a mixed operation.
        remark: as of a mixed operation.
    """

    op: PointwisePlan
    methods: tuple[str, ...] = ("forward",)
    compared: bool = True
    remark: str = ""


Plan = MixedOpPlan | CellPlan | ResidualPlan | PreprocessPlan
"""What a module computes."""


def mixtures_of(plan: Plan) -> list[MixturePlan]:
    """The mixtures of a mixed operation, of a cell in the order of its edges, or none."""
    match plan:
        case MixedOpPlan():
            return [plan.mixture]
        case CellPlan():
            return [edge.mixture for edge in plan.edges]
        case ResidualPlan() | PreprocessPlan():
            return []


def unknown_ops(plan: Plan) -> dict[Path, OpaquePlan]:
    """The candidate operations of a plan that run as they are, by their paths in the module."""
    return {
        path: op
        for mixture in mixtures_of(plan)
        for path, op in zip(mixture.ops, mixture.plans, strict=True)
        if isinstance(op, OpaquePlan)
    }
