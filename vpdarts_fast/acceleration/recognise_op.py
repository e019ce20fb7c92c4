"""Recognises candidate operations by what they compute: the graph of their layers."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from itertools import product

import torch
from torch import fx, nn

from vpdarts_fast.acceleration.copies import differing_state, isolated_copy
from vpdarts_fast.acceleration.draws import drawing_nothing
from vpdarts_fast.acceleration.plans import (
    ChainPlan,
    OpaquePlan,
    OpPlan,
    Path,
    PointwisePlan,
    PoolPlan,
    SepConvPlan,
    SkipPlan,
    StagePlan,
    Unrecognised,
    ZeroPlan,
    at,
    described,
)
from vpdarts_fast.acceleration.snapshot import remembered
from vpdarts_fast.acceleration.tracing import trace


@remembered
def recognise_op(op: nn.Module) -> OpPlan:
    """What the operation computes, the same in both modes; `OpaquePlan` where that is not known for sure."""
    try:
        before = isolated_copy(op)
    except Unrecognised as error:
        return OpaquePlan(str(error))
    op, plans = copy.deepcopy(before), set()
    try:
        with drawing_nothing():
            for training in (True, False):
                plans.add(_recognise(op.train(training)))
        if (written := differing_state(before, op)) is not None:
            return OpaquePlan(f"writes to {written}")
    except Unrecognised as error:
        return OpaquePlan(str(error))
    except Exception as error:  # tracing runs their code, which may raise anything
        plan = _always_zero(op)
        return plan or OpaquePlan(f"cannot be traced: {described(error)}")
    return plans.pop() if len(plans) == 1 else OpaquePlan("differs between training and evaluation")


def _recognise(op: nn.Module) -> OpPlan:
    graph = trace(op)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "call_module", "output"))
    nodes = list(graph.nodes)
    output = nodes[-1].args[0]
    if any(_changes_in_place(op, node, nodes[0]) for node in nodes):
        return OpaquePlan("changes its input", changes_input=True)
    if not all(node.users for node in nodes[:-1]):
        return OpaquePlan("computes something that it does not return")
    for match in (_chain, _zero, _factorised_reduce):
        plan = match(op, nodes[0], output)
        if plan is not None:
            return plan
    return OpaquePlan("unknown layers: " + ", ".join(_name(node.target) for node in nodes[1:-1]))


def _name(target: object) -> str:
    """What a node calls, without its address in memory."""
    return target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)


def _changes_in_place(op: nn.Module, node: fx.Node, x: fx.Node) -> bool:
    """Whether the node changes x: `nn.ReLU(inplace=True)`, `F.relu(x, inplace=True)`, `x.relu_()`."""
    if x not in node.args:
        return False
    layer = layer_called(op, node)
    if layer is not None:
        return bool(getattr(layer[1], "inplace", False))
    name = getattr(node.target, "__name__", str(node.target))
    return bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))


def _always_zero(op: nn.Module) -> ZeroPlan | None:
    """What cannot be traced as it makes new tensors: whether it has no state and gives nothing but zeros."""
    if any(True for _ in (*op.parameters(), *op.buffers())):
        return None
    outcomes = set()
    try:
        with drawing_nothing(), torch.no_grad():
            for training, scale, odd in product((True, False), (1, 1e6), (0, 1)):
                generator = torch.Generator(device="cpu").manual_seed(0)
                size = 2, 3, 8 - odd, 12 - odd
                x = scale * torch.randn(size, dtype=torch.float32, device="cpu", generator=generator)
                outcomes.add(None if (out := op.train(training)(x)).any() else (odd, tuple(out.shape)))
    except Exception:  # as above
        return None
    whole = {0: (2, 3, 8, 12), 1: (2, 3, 7, 11)}
    halves = {0: (2, 3, 4, 6), 1: (2, 3, 4, 6)}
    for plan, sizes in (
        (ZeroPlan(1), whole),
        (ZeroPlan(2), halves),
        (ZeroPlan(2, floors=True), halves | {1: (2, 3, 3, 5)}),
    ):
        if outcomes == set(sizes.items()):
            return plan
    return None


def layer_called(op: nn.Module, node: object) -> tuple[Path, nn.Module, fx.Node] | None:
    """A layer that the node calls on one other node: its path, the layer, and that other node."""
    if not (isinstance(node, fx.Node) and node.op == "call_module") or len(node.args) != 1 or node.kwargs:
        return None
    source = node.args[0]
    path = tuple(str(node.target).split("."))[1:]
    return (path, at(op, path), source) if isinstance(source, fx.Node) else None


def _chain(op: nn.Module, start: fx.Node, node: object) -> OpPlan | None:
    """Layers one behind the other."""
    paths: list[Path] = []
    layers: list[nn.Module] = []
    while node is not start:
        call = layer_called(op, node)
        if call is None:
            return None
        path, layer, node = call
        if type(layer) is not nn.Identity:
            paths.insert(0, path)
            layers.insert(0, layer)
    if not layers:
        return SkipPlan()
    return _pool(paths, layers) or _sep_conv(paths, layers) or _convolution(paths, layers)


def _pool(paths: Sequence[Path], layers: Sequence[nn.Module]) -> OpPlan | None:
    pool, *rest = layers
    if len(rest) > 1 or any(type(layer) is not nn.BatchNorm2d for layer in rest):
        return None
    if not isinstance(pool, (nn.AvgPool2d, nn.MaxPool2d)):
        return None
    stride = square(pool.stride)
    plain = square(pool.kernel_size) == 3 and square(pool.padding) == 1 and not pool.ceil_mode
    if not plain or stride not in (1, 2):
        return None
    norm = paths[1] if rest else None
    if type(pool) is nn.AvgPool2d and not pool.count_include_pad and pool.divisor_override is None:
        return PoolPlan("avg", stride, norm)
    if type(pool) is nn.MaxPool2d and square(pool.dilation) == 1 and not pool.return_indices:
        return PoolPlan("max", stride, norm)
    return None


def _sep_conv(paths: Sequence[Path], layers: Sequence[nn.Module]) -> OpPlan | None:
    first = layers[0]
    if len(layers) not in (4, 8) or (isinstance(first, nn.ReLU) and first.inplace):
        return None
    stages, strides = [], []
    for i in range(0, len(layers), 4):
        relu, depthwise, pointwise, norm = layers[i : i + 4]
        if type(relu) is not nn.ReLU or type(norm) is not nn.BatchNorm2d:
            return None
        stride = _depthwise_stride(depthwise)
        if stride is None or not _is_pointwise(pointwise):
            return None
        stages.append(StagePlan(*paths[i + 1 : i + 4]))
        strides.append(stride)
    if strides[0] not in (1, 2) or any(stride != 1 for stride in strides[1:]):
        return None
    return SepConvPlan(tuple(stages), strides[0])


def _depthwise_stride(conv: nn.Module) -> int | None:
    """Of a depthwise convolution that keeps the size but for its stride."""
    if type(conv) is not nn.Conv2d or conv.bias is not None or conv.padding_mode != "zeros":
        return None
    kernel, dilation = square(conv.kernel_size), square(conv.dilation)
    keeps = conv.weight.shape[:2] == (conv.groups, 1)  # in_channels may be what they were before they grew
    if not keeps or kernel not in (3, 5, 7) or dilation not in (1, 2):
        return None
    return square(conv.stride) if square(conv.padding) == dilation * (kernel - 1) // 2 else None


def _is_pointwise(conv: nn.Module) -> bool:
    return _is_1x1(conv, 1) and conv.weight.shape[0] == conv.weight.shape[1]  # type: ignore[index]


def _convolution(paths: Sequence[Path], layers: Sequence[nn.Module]) -> OpPlan | None:
    """ReLUs and convolutions of any kind, and a batch norm: PyTorch runs all but the latter.

    Of one ReLU and a 1x1 convolution behind it, none.
    """
    *before, norm = layers
    if type(norm) is not nn.BatchNorm2d or not before:
        return None
    stride = 1
    for layer in before:
        if type(layer) is nn.Conv2d:
            stride *= square(layer.stride) or 0
        elif type(layer) is not nn.ReLU:
            return None
    if stride not in (1, 2) or (isinstance(before[0], nn.ReLU) and before[0].inplace):
        return None
    if len(before) == 2 and type(before[0]) is nn.ReLU and _is_1x1(before[1], stride):
        return PointwisePlan((paths[1],), paths[2], stride)
    return ChainPlan(tuple(paths[:-1]), paths[-1], stride)


def _zero(op: nn.Module, start: fx.Node, node: object) -> OpPlan | None:
    """The plan of `x` or `x[:, :, ::2, ::2]` times zero, or of zeros like them."""
    if not isinstance(node, fx.Node) or node.kwargs:
        return None
    times = node.target in ("mul", operator.mul, torch.mul) and len(node.args) == 2 and node.args[1] == 0
    if not times and not (node.target is torch.zeros_like and len(node.args) == 1):
        return None
    node = node.args[0]
    if node is start:
        return ZeroPlan(1)
    if isinstance(node, fx.Node) and node.target is operator.getitem and node.args[0] is start:
        index = node.args[1]
        if index == (slice(None), slice(None), slice(None, None, 2), slice(None, None, 2)):
            return ZeroPlan(2)
    return None


def _factorised_reduce(op: nn.Module, start: fx.Node, node: object) -> OpPlan | None:
    """bn(cat(conv(relu(x)), conv(relu(x)[:, :, 1:, 1:]))), the latter perhaps padded at its end."""
    norm = layer_called(op, node)
    if norm is None or type(norm[1]) is not nn.BatchNorm2d or norm[2].target is not torch.cat:
        return None
    parts = norm[2].args[0]
    dim = norm[2].kwargs.get("dim", norm[2].args[1] if len(norm[2].args) > 1 else 0)
    if not isinstance(parts, (list, tuple)) or len(parts) != 2 or dim != 1:
        return None
    first, second = (layer_called(op, part) for part in parts)
    if first is None or second is None or not all(_is_1x1(conv[1], 2) for conv in (first, second)):
        return None
    if (first[1].bias is None) != (second[1].bias is None):
        return None
    shifted = second[2]
    index = (slice(None), slice(None), slice(1, None), slice(1, None))
    if shifted.target is not operator.getitem or shifted.args[1] != index:
        return None
    pad = layer_called(op, shifted.args[0])
    padded = pad is not None and type(pad[1]) is nn.ConstantPad2d
    if padded:
        assert pad is not None and isinstance(pad[1], nn.ConstantPad2d)
        if tuple(pad[1].padding) != (0, 1, 0, 1) or pad[1].value != 0:
            return None
    rectified = pad[2] if padded and pad is not None else shifted.args[0]
    relu = layer_called(op, rectified)
    if relu is None or type(relu[1]) is not nn.ReLU or relu[1].inplace or relu[2] is not start:
        return None
    if first[2] is not rectified:
        return None
    return PointwisePlan((first[0], second[0]), norm[0], 2, padded)


def _is_1x1(conv: nn.Module, stride: int) -> bool:
    if type(conv) is not nn.Conv2d or conv.groups != 1:
        return False
    return (square(conv.kernel_size), square(conv.stride), square(conv.padding)) == (1, stride, 0)


def square(size: object) -> int | None:
    """The one number of a size that is the same in both directions."""
    if isinstance(size, int):
        return size
    same = isinstance(size, tuple) and len(size) == 2 and size[0] == size[1] and isinstance(size[0], int)
    return size[0] if same and isinstance(size, tuple) else None
